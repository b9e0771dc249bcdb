//! Clients that know nothing of us: `psql` with `verify-full`, and `openssl s_client`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use iap_e2e::{Background, Plane, Ran};

pub(crate) fn environment(plane: &Plane, user: &str, service: &str) -> BTreeMap<String, String> {
    let ran = plane.iapctl(user, &["env", service, "--format", "json"]).unwrap();
    serde_json::from_str(ran.succeeded().unwrap()).unwrap()
}

#[test]
fn psql_connects_with_verify_full_and_without_iapctl_in_the_path() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let variables = environment(&plane, "alice", "db-prod");
    assert_eq!(variables["PGSSLMODE"], "verify-full");

    let psql = |variables: &BTreeMap<String, String>| -> Ran {
        Command::new("psql")
            .args(["-X", "-Atc", "select 6 * 7"])
            .envs(variables)
            .output()
            .unwrap()
            .into()
    };
    assert_eq!(psql(&variables).succeeded().unwrap().trim(), "42");

    let mut wrong_root = variables.clone();
    wrong_root.insert("PGSSLROOTCERT".to_owned(), variables["PGSSLCERT"].clone());
    let refused = psql(&wrong_root);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("certificate verify failed"),
        "{}",
        refused.stderr
    );

    // Bob, for whom `iapctl env` would not even know the name, with the settings alice has.
    plane.log_in("bob").unwrap();
    let own = environment(&plane, "bob", "web");
    let mut bobs = variables;
    bobs.insert("PGSSLCERT".to_owned(), own["IAP_CERT"].clone());
    bobs.insert("PGSSLKEY".to_owned(), own["IAP_KEY"].clone());
    let denied = psql(&bobs);
    assert_ne!(denied.code, 0);
    assert!(
        denied
            .stderr
            .contains("FATAL:  Policy does not allow bob@example.com"),
        "{}",
        denied.stderr
    );
}

#[test]
fn env_is_a_shell_script() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let script = plane.iapctl("alice", &["env", "db-prod"]).unwrap();
    let ran: Ran = Command::new("sh")
        .args([
            "-c",
            &format!(
                "{}\npsql -X -Atc 'select current_user'",
                script.succeeded().unwrap()
            ),
        ])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.succeeded().unwrap().trim(), "app");
}

#[test]
fn openssl_s_client_reaches_echo() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let v = environment(&plane, "alice", "echo");
    let client = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-connect"])
        .arg(format!("127.0.0.1:{}", v["IAP_PORT"]))
        .args([
            "-servername",
            &v["IAP_SERVER_NAME"],
            "-verify_hostname",
            &v["IAP_SERVER_NAME"],
        ])
        .args([
            "-CAfile",
            &v["IAP_CA"],
            "-cert",
            &v["IAP_CERT"],
            "-key",
            &v["IAP_KEY"],
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // With -quiet it would wait for the server to close: it is ended instead.
    let mut client = Background(client);
    client
        .0
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"over and back\n")
        .unwrap();
    let mut answer = [0; 14];
    client.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"over and back\n");
}
