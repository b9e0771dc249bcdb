//! The opinion of Go's `crypto/x509` and `encoding/asn1`, from a program of the standard library only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

use std::process::Command;

use iap_identity::{Class, ClassSet, UserPeer, VerifiedPeer, verify_client};
use iap_interop::{Specimen, specimens, write_files};
use iap_testkit::{TestCluster, temp};
use serde_json::{Value, json};

const PROGRAM: &str = include_str!("verify.go");

fn go_is_installed() -> bool {
    Command::new("go")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs the program over the request and returns its answer.
fn run(folder: &std::path::Path, request: &Value) -> Value {
    std::fs::write(folder.join("main.go"), PROGRAM).unwrap();
    std::fs::write(folder.join("request.json"), request.to_string()).unwrap();
    let output = Command::new("go")
        .args(["run", "main.go"])
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .env("GOPROXY", "off")
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn user_of(cluster: &TestCluster, specimen: &Specimen) -> UserPeer {
    let accepted = ClassSet::of(&[Class::User]);
    match verify_client(
        &specimen.credential.chain,
        accepted,
        cluster.bundle(),
        cluster.now,
    )
    .unwrap()
    {
        VerifiedPeer::User(user) => user,
        other => panic!("{other:?}"),
    }
}

#[test]
fn go_verifies_every_leaf_and_reads_the_identity_extension_as_we_do() {
    if !go_is_installed() {
        eprintln!("skipped: go is not installed");
        return;
    }
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let specimens = specimens(&cluster).unwrap();
    let folder = temp().unwrap();
    write_files(folder.path(), &cluster, &specimens).unwrap();
    let request: Vec<Value> = specimens
        .iter()
        .map(|specimen| {
            json!({
                "file": format!("{}.pem", specimen.name),
                "authority": format!("ca-{}.pem", specimen.authority),
                "hosts": specimen.hosts,
            })
        })
        .collect();
    let answers = run(folder.path(), &Value::from(request));
    for (specimen, answer) in specimens.iter().zip(answers.as_array().unwrap()) {
        let name = specimen.name;
        assert_eq!(answer["client"] == "", specimen.client, "{name}: {answer}");
        assert_eq!(
            answer["server"] == "",
            !specimen.hosts.is_empty(),
            "{name}: {answer}"
        );
        assert_eq!(answer["hosts"], "", "{name}: {answer}");
        assert_ne!(answer["other_host"], "", "{name}: {answer}");
        assert_ne!(answer["other_authority"], "", "{name}: {answer}");
        assert_eq!(answer["unhandled_critical"], 0, "{name}: {answer}");
        match specimen.name {
            "service" => assert_eq!(answer["extension"], Value::Null),
            "user" | "user-without-email" => {
                compare(&answer["extension"], &user_of(&cluster, specimen), specimen);
            }
            other => assert_eq!(answer["extension"]["cluster"], "iap.example.com", "{other}"),
        }
    }
}

fn compare(extension: &Value, user: &UserPeer, specimen: &Specimen) {
    let groups: Vec<&str> = user.groups.iter().map(|group| group.as_str()).collect();
    let name = if specimen.name == "user" {
        ""
    } else {
        user.name.as_str()
    };
    let expected = json!({
        "version": 1,
        "kind": 0,
        "cluster": "iap.example.com",
        "principal": user.id,
        "login_id": user.login_id.as_uuid().simple().to_string(),
        "auth_time": user.auth_time.unix_timestamp(),
        "login_deadline": user.login_deadline.unix_timestamp(),
        "generation": user.generation,
        "connector": user.idp.connector,
        "issuer": user.idp.issuer,
        "subject": user.idp.subject,
        "login_method": user.login_method,
        "groups": groups,
        "groups_vocabulary": user.groups_vocabulary,
        "name": name,
    });
    assert_eq!(*extension, expected);
}
