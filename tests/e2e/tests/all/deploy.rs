//! The example configurations are configurations.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use iap_e2e::{Ran, program};

#[test]
fn every_example_configuration_is_accepted_by_its_program() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples");
    let scratch = tempfile::tempdir().unwrap();
    let secret = scratch.path().join("client_secret");
    std::fs::write(&secret, "not a secret\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // The file it names exists on an operator's machine only.
        let text = std::fs::read_to_string(&path).unwrap();
        let copy = scratch.path().join(format!("{name}.toml"));
        std::fs::write(
            &copy,
            text.replace("/etc/iap/client_secret", secret.to_str().unwrap()),
        )
        .unwrap();
        let ran: Ran = Command::new(program(&format!("iap-{name}")).unwrap())
            .arg("--check-config")
            .arg("--config")
            .arg(&copy)
            .output()
            .unwrap()
            .into();
        assert_eq!(ran.code, 0, "{}: {}{}", path.display(), ran.stdout, ran.stderr);
        checked += 1;
    }
    assert_eq!(checked, 3);
}

#[test]
fn all_mistakes_in_a_configuration_are_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.toml");
    std::fs::write(
        &file,
        "cluster = \"Not A Name\"\nstate_dir = 7\nlisten = [\"nowhere\"]\ncolour = \"blue\"\n",
    )
    .unwrap();
    let ran: Ran = Command::new(program("iap-proxy").unwrap())
        .args(["--check-config", "--config"])
        .arg(&file)
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 2, "{ran:?}");
    for word in ["cluster", "state_dir", "listen", "colour", "proxy.toml"] {
        assert!(
            ran.stderr.contains(word),
            "{word} is not mentioned:\n{}",
            ran.stderr
        );
    }
}

#[test]
fn systemd_units_name_programs_and_files_that_exist_here() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/systemd");
    for name in ["auth", "proxy", "agent"] {
        let unit = std::fs::read_to_string(format!("{folder}/iap-{name}.service")).unwrap();
        assert!(unit.contains(&format!(
            "ExecStart=/usr/bin/iap-{name} --config /etc/iap/{name}.toml"
        )));
        assert!(unit.contains("NoNewPrivileges=yes") && unit.contains("ProtectSystem=strict"));
        let example = std::fs::read_to_string(format!("{folder}/../examples/{name}.toml")).unwrap();
        assert!(
            example.contains(&format!("/var/lib/iap-{name}")),
            "the state of {name} is where its unit puts it"
        );
    }
}
