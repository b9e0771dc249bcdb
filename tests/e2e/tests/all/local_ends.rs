//! Local listeners and printed settings, used by the programs they are for.

use std::io::Write as _;
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran};
use serde_json::Value;

fn with_input(program: &str, arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(program)
        .args(arguments)
        .env("PGPASSWORD", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// A detached `iapctl proxy`, ended with the test.
struct Detached(i32);

impl Drop for Detached {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

#[test]
fn psql_reaches_a_service_through_a_unix_socket_of_ones_own_and_through_a_port_that_stays() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let start = || {
        let detach = ["proxy", "db-prod", "echo", "--detach"];
        let started = plane.json("alice", &detach).unwrap();
        let guard = Detached(i32::try_from(started["pid"].as_i64().unwrap()).unwrap());
        (guard, started["listeners"].clone())
    };
    let (guard, listeners) = start();
    let database = &listeners[0];
    assert_eq!(database["service"], "db-prod", "{listeners}");
    assert_eq!(
        listeners[1]["socket_folder"],
        Value::Null,
        "nothing of libpq's: {listeners}"
    );
    let (folder, port) = (
        database["socket_folder"].as_str().unwrap(),
        database["port"].to_string(),
    );
    let query = |host: &str| -> Ran {
        Command::new("psql")
            .args([
                "-X",
                "-Atc",
                "select 6 * 7",
                "-h",
                host,
                "-p",
                &port,
                "-U",
                "app",
                "-d",
                "app",
            ])
            .output()
            .unwrap()
            .into()
    };
    for host in [folder, "127.0.0.1"] {
        assert_eq!(query(host).succeeded().unwrap().trim(), "42", "{host}");
    }
    // Whoever has the ports already is named.
    let again = plane.iapctl("alice", &["proxy", "db-prod", "--detach"]).unwrap();
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("cannot listen on"), "{again:?}");
    let pid = guard.0;
    drop(guard);
    iap_e2e::wait_until("the listeners end", || {
        Ok(!std::path::Path::new(&format!("/proc/{pid}")).exists())
    })
    .unwrap();
    let (_guard, listeners) = start();
    assert_eq!(listeners[0]["port"].to_string(), port, "the port stays");
}

#[test]
fn psql_that_iapctl_starts_goes_through_the_unix_socket() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let mut connect = plane.command("alice", &["connect", "db-prod"]).unwrap();
    let mut psql = Background(connect.stdin(Stdio::piped()).spawn().unwrap());
    psql.0.stdin.take().unwrap().write_all(b"\\conninfo\n").unwrap();
    let ended = psql.finish().unwrap();
    assert!(ended.succeeded().unwrap().contains("via socket in"), "{ended:?}");
}

#[test]
fn printed_settings_are_read_back_by_the_programs_they_are_for() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let printed = |format: &str| {
        let ran = plane
            .iapctl("alice", &["env", "db-prod", "--format", format])
            .unwrap();
        ran.succeeded().unwrap().to_owned()
    };
    let wanted: Value = serde_json::from_str(&printed("json")).unwrap();
    let same = |read: &str, how: &str| {
        let read: Value = serde_json::from_str(read).unwrap_or_else(|error| panic!("{how}: {error}: {read}"));
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(&read[name], value, "{how}: {name}");
        }
    };
    let all = "node -e 'console.log(JSON.stringify(process.env))'";
    for (shell, format) in [("sh", "shell"), ("bash", "shell"), ("fish", "fish")] {
        let ran = with_input(shell, &[], &format!("{}\n{all}\n", printed(format)));
        same(ran.succeeded().unwrap(), shell);
    }
    let dotenv =
        "console.log(JSON.stringify(require('util').parseEnv(require('fs').readFileSync(0, 'utf8'))))";
    let ran = with_input("node", &["-e", dotenv], &printed("dotenv"));
    same(ran.succeeded().unwrap(), "dotenv");

    let url = printed("url");
    let ran = with_input("psql", &["-X", "-At", url.trim()], "select current_user;\n");
    assert_eq!(ran.succeeded().unwrap().trim(), "app");
}

#[test]
fn the_key_and_the_certificate_are_there_in_the_forms_that_other_programs_import() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let home = plane.home("alice").join("clusters/iap.localhost");
    let file = |name: &str| home.join(name).display().to_string();
    let openssl = |arguments: &[&str]| -> String {
        let ran: Ran = Command::new("openssl").args(arguments).output().unwrap().into();
        ran.succeeded().unwrap().to_owned()
    };
    let public = openssl(&["x509", "-in", &file("cert.pem"), "-noout", "-pubkey"]);
    for key in [
        vec!["pkey", "-pubout", "-in"],
        vec!["pkey", "-pubout", "-inform", "DER", "-in"],
    ] {
        let name = if key.contains(&"DER") {
            "key.pk8"
        } else {
            "key.pem"
        };
        let path = file(name);
        let arguments: Vec<&str> = key.iter().copied().chain([path.as_str()]).collect();
        assert_eq!(openssl(&arguments), public, "{name}");
    }
    let (store, password) = (file("identity.p12"), "pass:");
    let certificates = openssl(&[
        "pkcs12", "-in", &store, "-passin", password, "-nokeys", "-clcerts",
    ]);
    let leaf = plane.scratch().join("leaf.pem");
    std::fs::write(&leaf, certificates).unwrap();
    let leaf = leaf.display().to_string();
    assert_eq!(openssl(&["x509", "-in", &leaf, "-noout", "-pubkey"]), public);
    let key = openssl(&["pkcs12", "-in", &store, "-passin", password, "-nocerts", "-nodes"]);
    assert!(key.contains("PRIVATE KEY"), "{key}");
    for name in ["key.pem", "key.pk8", "identity.p12"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(home.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}
