//! SSH services whose bytes the agent passes on: a stock sshd that trusts the service's authority by one line of its
//! configuration, and stock clients that find everything in what a login leaves behind.

use std::path::Path;
use std::process::Command;

use iap_e2e::{Ran, wait_until};

use crate::ssh_world::{World, assert_same, output, write_random};

const SERVICE: &str = "web-1";
const HOST: &str = "web-1.iap.localhost";
/// What scp, sftp, rsync and git carry here; `moves` has the large files.
const BYTES: u64 = 8 << 20;

#[test]
fn stock_clients_reach_a_server_that_trusts_one_line_by_name_and_nobody_says_yes() {
    let world = World::relaying(r#"["{me}"]"#);
    let ran = world.ssh(&[SERVICE, "--", "echo", "it is", "$(id -un);", "exit", "7"]);
    assert_eq!(
        (ran.stdout.trim(), ran.code),
        (format!("it is {}", world.me).as_str(), 7),
        "{}",
        ran.stderr
    );
    for name in [SERVICE, HOST] {
        let ran = world.run("ssh", &[name, "cat; echo done >&2"]);
        assert_eq!((ran.code, ran.stderr.trim()), (0, "done"));
    }
    let (sent, came) = (world.files.path().join("sent"), world.files.path().join("came"));
    write_random(&sent, BYTES);
    let remote = world.files.path().join("remote");
    let there = format!("{SERVICE}:{}", remote.display());
    let here = |path: &Path| path.display().to_string();
    world
        .run("scp", &["-q", &here(&sent), &there])
        .succeeded()
        .unwrap();
    assert_same(&sent, &remote);
    world
        .run("sftp", &["-q", &there, &here(&came)])
        .succeeded()
        .unwrap();
    assert_same(&sent, &came);
    std::fs::remove_file(&remote).unwrap();
    world
        .run("rsync", &["-q", &here(&sent), &there])
        .succeeded()
        .unwrap();
    assert_same(&sent, &remote);
    let repository = world.files.path().join("repository");
    let git = |arguments: &[&str]| output(Command::new("git").arg("-C").arg(&repository).args(arguments));
    std::fs::create_dir(&repository).unwrap();
    git(&["init", "-q"]);
    std::fs::copy(&sent, repository.join("big")).unwrap();
    git(&["add", "big"]);
    git(&[
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "-qm",
        "one",
    ]);
    let clone = world.files.path().join("clone");
    world
        .run(
            "git",
            &[
                "clone",
                "-q",
                &format!("{SERVICE}:{}", here(&repository)),
                &here(&clone),
            ],
        )
        .succeeded()
        .unwrap();
    assert_same(&sent, &clone.join("big"));
}

#[test]
fn the_server_logs_who_came_and_the_issuance_is_on_record() {
    let world = World::relaying(r#"["{me}"]"#);
    world.ssh(&[SERVICE, "--", "true"]).succeeded().unwrap();
    let log = world.sshd.log();
    assert!(log.contains("ID alice@example.com login "), "{log}");
    world.plane.log_in("auditor").unwrap();
    let found = world
        .plane
        .json("admin", &["audit", "search", "class == \"ssh_user\""])
        .unwrap();
    let record = &found.as_array().unwrap()[0];
    assert_eq!(record["user"]["name"], "alice@example.com");
    let certificate = &record["certificates"][0];
    assert_eq!(
        (&certificate["service"], &certificate["principals"][0]),
        (&SERVICE.into(), &world.me.as_str().into())
    );
    assert!(log.contains(certificate["serial"].as_str().unwrap()), "{log}");
}

#[test]
fn a_login_that_the_policy_does_not_give_is_no_principal_and_the_server_refuses_it() {
    let world = World::relaying(r#"["somebody-else"]"#);
    let certificate = output(
        Command::new("ssh-keygen")
            .arg("-L")
            .arg("-f")
            .arg(world.folder().join("web-1-cert.pub")),
    );
    assert!(
        certificate.contains("somebody-else") && !certificate.contains(&format!("{}\n", world.me)),
        "{certificate}"
    );
    assert!(
        !certificate.contains("permit-agent-forwarding") && certificate.contains("permit-pty"),
        "{certificate}"
    );
    let ran = world.ssh(&[
        &format!("{}@{SERVICE}", world.me),
        "--ssh-arg=-oBatchMode=yes",
        "--",
        "true",
    ]);
    assert_eq!(ran.code, 255);
    assert!(ran.stderr.contains("Permission denied"), "{}", ran.stderr);
}

#[test]
fn another_services_authority_and_an_expired_certificate_are_refused_by_the_server() {
    let world = World::configured(r#"["{me}"]"#, "[login]\nttl = \"10s\"\n");
    let old = world.files.path().join("old");
    std::fs::create_dir(&old).unwrap();
    for name in ["id_ed25519", "web-1-cert.pub"] {
        std::fs::copy(world.folder().join(name), old.join(name)).unwrap();
    }
    world.admin("services", "[[service]]\nname = \"web-2\"\nprotocol = \"ssh\"\n");
    let other = world.iapctl(
        "admin",
        &["ca", "export", "--service", "web-2", "--kind", "ssh-user"],
    );
    let authority = world.files.path().join("iap_user_ca.pub");
    let good = std::fs::read_to_string(&authority).unwrap();
    std::fs::write(&authority, other.succeeded().unwrap()).unwrap();
    let ran = world.run("ssh", &[SERVICE, "true"]);
    assert!(
        ran.code == 255 && ran.stderr.contains("Permission denied"),
        "{}",
        ran.stderr
    );
    std::fs::write(&authority, good).unwrap();
    let kept = |keyword: &str, name: &str| format!("-o{keyword}={}", old.join(name).display());
    let with_old = [
        kept("CertificateFile", "web-1-cert.pub"),
        kept("IdentityFile", "id_ed25519"),
    ];
    wait_until("the certificate has ended", || {
        let text = Command::new("ssh-keygen")
            .arg("-Lf")
            .arg(old.join("web-1-cert.pub"))
            .output()?;
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        let ends = text
            .split_once(" to ")
            .map(|(_, end)| end.chars().take(19).collect::<String>());
        let now = output(Command::new("date").arg("+%Y-%m-%dT%H:%M:%S"));
        Ok(ends.is_some_and(|ends| ends < now))
    })
    .unwrap();
    // The login goes on: the way there is renewed, and the server looks at the certificate it is shown.
    let mut command = Command::new("ssh");
    command
        .args([
            "-F",
            &world.config(),
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentityAgent=none",
        ])
        .args(&with_old);
    command.args([SERVICE, "true"]).env("IAPCTL_NONINTERACTIVE", "1");
    let ran = Ran::from(command.output().unwrap());
    let log = world.sshd.log();
    assert!(
        log.contains("Certificate invalid: expired"),
        "{}\n{log}",
        ran.stderr
    );
    world.ssh(&[SERVICE, "--", "true"]).succeeded().unwrap();
}

#[test]
fn whoever_may_not_hears_why_and_every_failure_of_ours_is_255() {
    let world = World::relaying(r#"["{me}"]"#);
    world.plane.log_in("bob").unwrap();
    let ran = world.iapctl("bob", &["proxy-command", SERVICE]);
    assert_eq!(ran.code, 255);
    assert!(ran.stderr.contains("does not allow"), "{}", ran.stderr);
    let ran = world.iapctl("bob", &["ssh", SERVICE]);
    assert_eq!(ran.code, 255);
    assert!(ran.stderr.contains("no SSH service of yours"), "{}", ran.stderr);
    assert_eq!(world.iapctl("nobody", &["ssh", SERVICE]).code, 255);
    assert_eq!(world.iapctl("nobody", &["proxy-command", SERVICE]).code, 255);
    assert_eq!(world.ssh(&["Not A Name"]).code, 255);
    // A removed rule ends what runs, and the next attempt is told why.
    world.run("ssh", &[SERVICE, "true"]).succeeded().unwrap();
    world.apply_policy("another", r#"["{me}"]"#);
    wait_until("alice may no longer", || {
        let ran = world.run("ssh", &[SERVICE, "true"]);
        Ok(ran.code == 255 && ran.stderr.contains("does not allow"))
    })
    .unwrap();
}

#[test]
fn a_hosts_key_is_noted_the_first_time_and_one_that_changes_is_an_alarm() {
    let world = World::relaying(r#"["{me}"]"#);
    world.run("ssh", &[SERVICE, "true"]).succeeded().unwrap();
    let known = world
        .plane
        .home("alice")
        .join("clusters/iap.localhost/ssh_known_hosts");
    assert!(
        std::fs::read_to_string(&known).unwrap().contains(HOST),
        "the key is noted under the service's name"
    );
    // Somebody else's key under that name.
    let noted = std::fs::read_to_string(&known).unwrap();
    let other = std::fs::read_to_string(world.files.path().join("user.pub")).unwrap();
    let key: Vec<&str> = other.split_whitespace().take(2).collect();
    std::fs::write(&known, format!("{HOST} {}\n", key.join(" "))).unwrap();
    let ran = world.run("ssh", &[SERVICE, "true"]);
    assert!(
        ran.code == 255 && ran.stderr.contains("HOST IDENTIFICATION HAS CHANGED"),
        "{}",
        ran.stderr
    );
    std::fs::write(&known, noted).unwrap();
    world.run("ssh", &[SERVICE, "true"]).succeeded().unwrap();
}

#[test]
fn a_server_with_a_certificate_of_its_services_host_ca_is_believed_and_nothing_is_noted() {
    let world = World::relaying(r#"["{me}"]"#);
    let strict = ["-o", "StrictHostKeyChecking=yes", SERVICE, "echo believed"];
    let ran = world.run("ssh", &strict);
    assert!(
        ran.code == 255 && ran.stderr.contains("Host key verification failed"),
        "{}",
        ran.stderr
    );
    let own_key = |text: String| text.replace("ssh_host_ed25519_key", "host");
    let command = own_key(world.block("sh", "ca sign-host-key"));
    let words: Vec<&str> = command
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .collect();
    let printed = world.iapctl("admin", &words);
    let certificate = world.files.path().join("host-cert.pub").display().to_string();
    assert_eq!(printed.succeeded().unwrap().trim(), certificate);
    let line = own_key(world.block("sshd_config", "HostCertificate"));
    world.sshd.reload_with(&line).unwrap();

    let ran = world.run("ssh", &strict);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "believed\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stderr, "");
    world.ssh(&[SERVICE, "--", "true"]).succeeded().unwrap();
    let noted = world
        .plane
        .home("alice")
        .join("clusters/iap.localhost/ssh_known_hosts");
    assert!(!noted.exists(), "no key is noted");
    let found = world
        .plane
        .json(
            "admin",
            &["audit", "search", "class == \"ssh_host\" && has(user.name)"],
        )
        .unwrap();
    assert_eq!(found[0]["user"]["name"], "admin@example.com");
    assert_eq!(found[0]["principals"], serde_json::json!([HOST]));

    let again = world.iapctl(
        "admin",
        &[
            "ca",
            "sign-host-key",
            "--service",
            SERVICE,
            "--public-key",
            &certificate,
        ],
    );
    assert!(
        again.code == 2 && again.stderr.contains("this is a certificate"),
        "{again:?}"
    );
    let by_alice = world.iapctl("alice", &words);
    assert_eq!(by_alice.code, 3, "{by_alice:?}");
}

#[test]
fn the_fragment_can_be_included_and_a_renewal_replaces_key_and_certificates_together() {
    let world = World::relaying(r#"["{me}"]"#);
    let printed = world.iapctl("alice", &["ssh-config"]);
    assert!(
        printed
            .succeeded()
            .unwrap()
            .contains("Host web-1 web-1.iap.localhost")
    );
    let path = world.iapctl("alice", &["config", "--path"]);
    assert_eq!(path.succeeded().unwrap().trim(), world.config());
    let including = world.files.path().join("ssh_config");
    std::fs::write(&including, format!("Include {}\n", world.config())).unwrap();
    let ran: Ran = Command::new("ssh")
        .args([
            "-F",
            including.to_str().unwrap(),
            "-o",
            "BatchMode=yes",
            SERVICE,
            "true",
        ])
        .env("IAPCTL_NONINTERACTIVE", "1")
        .output()
        .unwrap()
        .into();
    ran.succeeded().unwrap();
    let read = |name: &str| std::fs::read(world.folder().join(name)).unwrap();
    let (key, certificate) = (read("id_ed25519"), read("web-1-cert.pub"));
    // What was granted since comes with a renewal, which `iapctl ssh` asks for where it does not know a name.
    world.admin(
        "services",
        "[[service]]\nname = \"web-2\"\nprotocol = \"ssh\"\nlabels = { env = \"dev\" }\n",
    );
    let ran = world.ssh(&["web-2", "--", "true"]);
    assert_eq!(ran.code, 255);
    assert!(read("web-1-cert.pub") != certificate, "{}", ran.stderr);
    assert!(read("id_ed25519") == key, "the key is that of the login");
    world.run("ssh", &[SERVICE, "true"]).succeeded().unwrap();
    world.iapctl("alice", &["logout"]).succeeded().unwrap();
    assert!(!world.folder().exists());
}
