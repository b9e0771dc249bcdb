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

const SERVERS: [&str; 3] = ["auth", "proxy", "agent"];

/// What `systemd-analyze security` may say at most, in tenths: 0 is a sealed box, 100 no protection at all.
const EXPOSURE_MAX: &str = "18";

fn unit(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/systemd");
    std::fs::read_to_string(format!("{folder}/iap-{name}")).unwrap()
}

/// The unit with this build's program in it, since the checker looks whether the program is there.
fn installed(name: &str, folder: &std::path::Path) -> std::path::PathBuf {
    let program = program(&format!("iap-{name}")).unwrap();
    let text = unit(&format!("{name}.service"));
    let path = folder.join(format!("iap-{name}.service"));
    let text = text.replace(&format!("/usr/bin/iap-{name}"), program.to_str().unwrap());
    std::fs::write(&path, text).unwrap();
    path
}

fn systemd_analyze(arguments: &[&str], unit: &std::path::Path) -> Ran {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(unit).output().unwrap().into()
}

#[test]
fn systemd_units_name_programs_and_files_that_exist_here() {
    for name in SERVERS {
        let unit = unit(&format!("{name}.service"));
        assert!(unit.contains(&format!(
            "ExecStart=/usr/bin/iap-{name} --config /etc/iap/{name}.toml"
        )));
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/examples");
        let example = std::fs::read_to_string(format!("{folder}/{name}.toml")).unwrap();
        assert!(
            example.contains(&format!("/var/lib/iap-{name}")),
            "the state of {name} is where its unit puts it"
        );
    }
}

#[test]
fn systemd_finds_no_mistake_in_the_units() {
    let folder = tempfile::tempdir().unwrap();
    for name in SERVERS {
        let unit = installed(name, folder.path());
        let ran = systemd_analyze(&["verify", "--man=no", "--recursive-errors=no"], &unit);
        assert!(
            ran.code == 0 && !ran.stderr.contains(&format!("iap-{name}")),
            "{ran:?}"
        );
        std::fs::write(&unit, "[Service]\nExecStart=/nowhere/iap\nNoNewPrivilege=yes\n").unwrap();
        let broken = systemd_analyze(&["verify", "--man=no", "--recursive-errors=no"], &unit);
        assert!(broken.stderr.contains("NoNewPrivilege"), "{broken:?}");
    }
}

#[test]
fn the_units_leave_a_server_little_to_attack_its_host_with() {
    let folder = tempfile::tempdir().unwrap();
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let arguments = ["security", "--offline=true", "--no-pager", &threshold];
    for name in SERVERS {
        let unit = installed(name, folder.path());
        let ran = systemd_analyze(&arguments, &unit);
        assert_eq!(ran.code, 0, "{}", ran.stdout);
        let text = std::fs::read_to_string(&unit).unwrap();
        std::fs::write(
            &unit,
            text.replace("ProtectSystem=strict\n", "")
                .replace("SystemCallFilter=", "#"),
        )
        .unwrap();
        let looser = systemd_analyze(&arguments, &unit);
        assert_ne!(looser.code, 0, "a looser unit passes: {}", looser.stdout);
    }
}

#[test]
fn the_units_wait_for_what_the_programs_say_of_themselves() {
    for name in SERVERS {
        let unit = unit(&format!("{name}.service"));
        for line in [
            "Type=notify",
            "NotifyAccess=main",
            "WatchdogSec=60",
            "LimitCORE=0",
        ] {
            assert!(
                unit.lines().any(|one| one == line),
                "iap-{name}.service lacks {line}"
            );
        }
    }
}

fn troff(page: &std::path::Path) -> Ran {
    let mut man = Command::new("man");
    man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80");
    man.args(["--warnings", "-E", "UTF-8", "-Tutf8", "-Z", "-l"]);
    man.arg(page).output().unwrap().into()
}

#[test]
fn every_program_writes_manual_pages_that_troff_has_no_word_against() {
    let folder = tempfile::tempdir().unwrap();
    let programs = [("iap-auth", 8), ("iap-proxy", 8), ("iap-agent", 8), ("iapctl", 1)];
    for (name, section) in programs {
        let mut command = Command::new(program(name).unwrap());
        let command = command.args(["manual", "--output"]).arg(folder.path());
        let ran: Ran = command.output().unwrap().into();
        assert_eq!((ran.code, &*ran.stdout), (0, ""), "{name}: {}", ran.stderr);
        assert!(folder.path().join(format!("{name}.{section}")).exists());
    }
    let mut pages = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let page = entry.unwrap().path();
        let ran = troff(&page);
        assert!(
            ran.code == 0 && ran.stderr.is_empty() && ran.stdout.contains("NAME"),
            "{}: {}",
            page.display(),
            ran.stderr
        );
        pages += 1;
    }
    assert!(pages > 50, "{pages}");
    for page in ["iap-agent-join.8", "iap-auth-admin-cert.8", "iapctl-lock-add.1"] {
        assert!(folder.path().join(page).exists(), "{page} is missing");
    }
    let broken = folder.path().join("broken.1");
    std::fs::write(&broken, ".TH broken 1\n.nosuchmacro\n").unwrap();
    assert!(troff(&broken).stderr.contains("nosuchmacro"));
}

#[test]
fn each_server_has_a_user_and_a_state_folder_that_its_unit_names() {
    for name in SERVERS {
        let service = unit(&format!("{name}.service"));
        assert!(service.contains(&format!("User=iap-{name}\n")));
        assert!(service.contains(&format!("StateDirectory=iap-{name}\nStateDirectoryMode=0700\n")));
        let users = unit(&format!("{name}.sysusers"));
        assert!(users.contains(&format!("\nu iap-{name} - ")));
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/systemd");
        let tried: Ran = Command::new("systemd-sysusers")
            .args(["--dry-run", &format!("{folder}/iap-{name}.sysusers")])
            .output()
            .unwrap()
            .into();
        assert!(
            tried.code == 0 && !tried.stderr.contains("not a valid"),
            "{tried:?}"
        );
        let folder = format!("d /var/lib/iap-{name} 0700 iap-{name} iap-{name} -");
        assert!(unit(&format!("{name}.tmpfiles")).contains(&folder));
    }
}
