//! Denials and closes in the words of each protocol, read by stock clients: the rows of docs/denials.md.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran};

fn settings(plane: &Plane, user: &str, service: &str) -> BTreeMap<String, String> {
    let ran = plane.iapctl(user, &["env", service, "--format", "json"]).unwrap();
    serde_json::from_str(ran.succeeded().unwrap()).unwrap()
}

/// The way to a service as `alice` knows it, with the certificate of somebody who may not go there.
fn with_certificate_of(plane: &Plane, user: &str, service: &str) -> BTreeMap<String, String> {
    let mut settings = settings(plane, "alice", service);
    let home = plane.home(user).join("clusters/iap.localhost");
    let file = |name: &str| home.join(name).display().to_string();
    for (variable, name) in [
        ("IAP_CERT", "cert.pem"),
        ("IAP_KEY", "key.pem"),
        ("PGSSLCERT", "cert.pem"),
        ("PGSSLKEY", "key.pem"),
    ] {
        if settings.contains_key(variable) {
            settings.insert(variable.to_owned(), file(name));
        }
    }
    settings
}

fn psql(settings: &BTreeMap<String, String>, query: &str) -> Command {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-Atc", query])
        .envs(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    psql
}

fn s_client(settings: &BTreeMap<String, String>) -> Ran {
    Command::new("openssl")
        .args(["s_client", "-quiet", "-connect"])
        .arg(format!("127.0.0.1:{}", settings["IAP_PORT"]))
        .args(["-servername", &settings["IAP_SERVER_NAME"]])
        .args(["-CAfile", &settings["IAP_CA"]])
        .args(["-cert", &settings["IAP_CERT"], "-key", &settings["IAP_KEY"]])
        .stdin(Stdio::null())
        .output()
        .unwrap()
        .into()
}

#[test]
fn whom_policy_denies_reads_so_with_psql_openssl_and_iapctl() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "bob", "auditor"] {
        plane.log_in(user).unwrap();
    }
    let denied: Ran = psql(&with_certificate_of(&plane, "bob", "db-prod"), "select 1")
        .output()
        .unwrap()
        .into();
    assert_eq!(denied.code, 2, "{denied:?}");
    for said in [
        "FATAL:  Policy does not allow bob@example.com to reach db-prod as app.",
        "HINT:  Ask #databases, who can see why with: iapctl policy explain bob@example.com db-prod",
    ] {
        assert!(denied.stderr.contains(said), "{said}: {}", denied.stderr);
    }
    let (_, session) = denied.stderr.split_once("DETAIL:  Session ").unwrap();
    let session = session.split('.').next().unwrap();
    let mut found = Vec::new();
    iap_e2e::wait_until("the denial's record arrives", || {
        let all = plane.json("auditor", &["audit", "search", session])?;
        found = all.as_array().cloned().unwrap_or_default();
        Ok(!found.is_empty())
    })
    .unwrap();
    assert_eq!(found[0]["event"], "session.denied");

    let alert = s_client(&with_certificate_of(&plane, "bob", "echo"));
    assert!(alert.stderr.contains("alert access denied"), "{alert:?}");

    let told = plane
        .iapctl("bob", &["connect", "db-prod", "--", "true"])
        .unwrap();
    assert_eq!(told.code, 3, "{told:?}");
    for said in ["Policy does not allow", "#databases", "iapctl policy explain"] {
        assert!(told.stderr.contains(said), "{said}: {}", told.stderr);
    }
}

#[test]
fn whom_a_lock_shuts_out_reads_so_with_psql_openssl_and_iapctl_and_live_sessions_end_with_a_word() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    let (database, echo) = (
        settings(&plane, "alice", "db-prod"),
        settings(&plane, "alice", "echo"),
    );
    let mut live = psql(&database, "select 'begun'").spawn().map(Background).unwrap();
    let mut sleeping = Command::new("psql")
        .args(["-X", "-At", "-c", "select 'begun'", "-c", "select pg_sleep(600)"])
        .envs(&database)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map(Background)
        .unwrap();
    let mut line = String::new();
    BufReader::new(sleeping.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "begun\n");
    assert!(live.0.wait().unwrap().success());
    let lock = [
        "lock",
        "add",
        "--user",
        "alice@example.com",
        "--reason",
        "stolen laptop",
    ];
    plane.iapctl("admin", &lock).unwrap().succeeded().unwrap();
    let ended = sleeping.finish().unwrap();
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("FATAL:  Access is locked."), "{ended:?}");

    let denied: Ran = psql(&database, "select 1").output().unwrap().into();
    assert!(
        denied.stderr.contains("FATAL:  access is locked: stolen laptop"),
        "{denied:?}"
    );
    let alert = s_client(&echo);
    assert!(alert.stderr.contains("alert certificate revoked"), "{alert:?}");
    let told = plane.iapctl("alice", &["connect", "echo", "--", "true"]).unwrap();
    assert_eq!(told.code, 3, "{told:?}");
    assert!(
        told.stderr.contains("stolen laptop") && told.stderr.contains("#platform"),
        "{told:?}"
    );
}

/// The way to another name than the one it was made for.
fn asking_for(settings: &BTreeMap<String, String>, name: &str) -> BTreeMap<String, String> {
    let host = format!("{name}.iap.localhost");
    let mut settings = settings.clone();
    for variable in ["IAP_SERVER_NAME", "PGHOST"] {
        if settings.contains_key(variable) {
            settings.insert(variable.to_owned(), host.clone());
        }
    }
    settings
}

#[test]
fn a_name_that_nobody_serves_and_one_that_does_not_exist_read_so_with_psql_openssl_and_iapctl() {
    let plane = Plane::demo().unwrap();
    for user in ["alice", "admin"] {
        plane.log_in(user).unwrap();
    }
    let file = plane.scratch().join("idle.toml");
    std::fs::write(
        &file,
        "[[service]]\nname = \"idle\"\nlabels = { env = \"dev\" }\n",
    )
    .unwrap();
    let applying = ["services", "apply", file.to_str().unwrap()];
    plane.iapctl("admin", &applying).unwrap().succeeded().unwrap();
    let (database, echo) = (
        settings(&plane, "alice", "db-prod"),
        settings(&plane, "alice", "echo"),
    );
    for (name, alert, code, said) in [
        ("idle", "internal error", 1, "'idle' is not available"),
        ("nowhere", "unrecognized name", 2, "iapctl ls"),
    ] {
        let told = plane.iapctl("alice", &["connect", name, "--stdio"]).unwrap();
        assert_eq!(told.code, code, "{name}: {told:?}");
        assert!(told.stderr.contains(said), "{name}: {told:?}");
        // The proxy learns of a new service a moment later.
        iap_e2e::wait_until("openssl sees the alert", || {
            Ok(s_client(&asking_for(&echo, name)).stderr.contains(alert))
        })
        .unwrap();
        let psql: Ran = psql(&asking_for(&database, name), "select 1")
            .output()
            .unwrap()
            .into();
        assert!(psql.stderr.contains(alert), "{name}: {psql:?}");
    }
}

#[test]
fn a_certificate_of_another_cluster_is_turned_away_by_alert_with_psql() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let settings = settings(&plane, "alice", "db-prod");
    let foreign = iap_testkit::TestCluster::new("iap.localhost").unwrap();
    let stranger = foreign.user("alice@example.com", &["engineering"]).unwrap();
    let file = |name: &str, text: &str| {
        let path = plane.scratch().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let mut strange = settings.clone();
    strange.insert(
        "PGSSLCERT".to_owned(),
        file("stranger.pem", &stranger.chain_pem()),
    );
    strange.insert("PGSSLKEY".to_owned(), file("stranger.key", &stranger.key_pem()));
    let psql: Ran = psql(&strange, "select 1").output().unwrap().into();
    assert!(
        ["alert unknown ca", "alert bad certificate"]
            .iter()
            .any(|alert| psql.stderr.contains(alert)),
        "{psql:?}"
    );
}
