//! Logins that go on: the renewer, refresh tokens of a certified provider, what ends them, and lost answers.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iap_e2e::{Background, Plane, Ran, wait_until};
use serde_json::{Value, json};

use crate::oidc::{Provider, approve, log_in};
use crate::resume::kill_proxy;

/// Certificates that are renewed within a test: at half their life.
const SHORT: &str = "[login]\nttl = \"14s\"\n";
/// Logins that are over with their first certificate.
const OVER_SOON: &str = "[login]\nttl = \"6s\"\ndeadline = \"6s\"\n";
/// A provider that is asked again and again.
const WATCHFUL: &str = "[login]\nrecheck = \"1s\"\n";

fn status(plane: &Plane, user: &str) -> Value {
    plane.json(user, &["status"]).unwrap()
}

fn cluster_file(plane: &Plane, user: &str, name: &str) -> std::path::PathBuf {
    plane.home(user).join("clusters/iap.localhost").join(name)
}

fn is_running(pid: &Value) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

fn psql(variables: &BTreeMap<String, String>) -> Ran {
    let query = ["-X", "-Atc", "select 6 * 7"];
    Command::new("psql")
        .args(query)
        .envs(variables)
        .output()
        .unwrap()
        .into()
}

/// The type of a TLS record that carries the handshake in clear: the ClientHello.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Waits longer than for things that should be there at once.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Every record of that event, through an auditor who logs in anew.
fn records(plane: &Plane, event: &str) -> Vec<Value> {
    plane.log_in("auditor").unwrap();
    let expression = format!("event == \"{event}\"");
    let found = plane.json("auditor", &["audit", "search", &expression]).unwrap();
    found.as_array().unwrap().clone()
}

fn hours_left(plane: &Plane, user: &str) -> f64 {
    let said = status(plane, user);
    let time = |name: &str| {
        let text = said[name].as_str().unwrap();
        time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
    };
    (time("login_deadline") - time("auth_time")).as_seconds_f64() / 3600.0
}

#[test]
fn a_stock_client_works_past_the_certificates_life_until_logout() {
    let mut provider = Provider::start();
    let plane = provider.plane_with(SHORT);
    log_in(&plane, "carol", &[]);
    assert!((11.9..12.1).contains(&hours_left(&plane, "carol")));
    let first = status(&plane, "carol");
    assert_eq!(first["renewer"]["running"], true, "{first}");
    assert!(first["renewer"]["next_renewal"].is_string(), "{first}");
    let text = plane.iapctl("carol", &["status"]).unwrap();
    assert!(
        text.stdout.contains("Renewer  running, renews in"),
        "{}",
        text.stdout
    );
    let ran = plane
        .iapctl("carol", &["env", "db-prod", "--format", "json"])
        .unwrap();
    let variables: BTreeMap<String, String> = serde_json::from_str(ran.succeeded().unwrap()).unwrap();
    assert_eq!(psql(&variables).succeeded().unwrap().trim(), "42");

    let stale = plane.scratch().join("first-cert.pem");
    std::fs::copy(cluster_file(&plane, "carol", "cert.pem"), &stale).unwrap();
    eventually("the fourth generation", || {
        status(&plane, "carol")["generation"].as_u64() >= Some(4)
    });
    assert_eq!(psql(&variables).succeeded().unwrap().trim(), "42");
    let mut expired = variables.clone();
    expired.insert("PGSSLCERT".to_owned(), stale.display().to_string());
    let refused = psql(&expired);
    assert!(
        refused.stderr.contains("certificate expired"),
        "{}",
        refused.stderr
    );
    assert!(provider.tell(&json!({}))["refreshed"].as_u64() >= Some(2));

    let copies = plane.scratch().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let mut stolen = variables.clone();
    for (variable, name) in [("PGSSLCERT", "cert.pem"), ("PGSSLKEY", "key.pem")] {
        let copy = copies.join(name);
        std::fs::copy(cluster_file(&plane, "carol", name), &copy).unwrap();
        stolen.insert(variable.to_owned(), copy.display().to_string());
    }
    let pid = status(&plane, "carol")["renewer"]["pid"].clone();
    assert!(is_running(&pid));
    assert_eq!(provider.tell(&json!({}))["revoked"], 0);
    let ended = plane.json("carol", &["logout"]).unwrap();
    assert_eq!(
        ended,
        json!({"logged_out": true, "cluster": "iap.localhost", "not_done": []})
    );
    assert!(!is_running(&pid), "the renewer ends with the login");
    assert!(!cluster_file(&plane, "carol", "key.pem").exists());
    let locked = psql(&stolen);
    assert!(locked.stderr.contains("access is locked"), "{}", locked.stderr);
    eventually("the refresh token is revoked", || {
        provider.tell(&json!({}))["revoked"].as_u64() >= Some(1)
    });
    assert_eq!(records(&plane, "login.logout").len(), 1);
}

#[test]
fn a_login_without_a_refresh_token_lasts_four_hours() {
    let provider = Provider::start_with("off");
    let plane = provider.plane();
    log_in(&plane, "carol", &["--no-renew"]);
    assert!((3.9..4.1).contains(&hours_left(&plane, "carol")));
    let said = status(&plane, "carol");
    assert_eq!(said["renewer"]["running"], false, "{said}");
}

#[test]
fn groups_taken_away_at_the_provider_reach_the_certificate_and_cut_sessions() {
    let mut provider = Provider::start();
    let plane = provider.plane_with(SHORT);
    log_in(&plane, "carol", &[]);
    let mut session = plane.echo_session("carol").unwrap();
    assert_eq!(
        status(&plane, "carol")["groups"],
        json!(["certified:engineering"])
    );
    provider.tell(&json!({"groups": {"alice": ["support"]}}));
    eventually("the session is cut", || session.0.try_wait().unwrap().is_some());
    eventually("the certificate has no groups", || {
        status(&plane, "carol")["groups"] == json!([])
    });
    let denied = plane.iapctl("carol", &["connect", "echo", "--stdio"]).unwrap();
    assert_eq!(denied.code, 3, "{denied:?}");
    let changed = records(&plane, "login.regrouped");
    assert_eq!(
        changed[0]["removed"],
        json!(["certified:engineering"]),
        "{changed:?}"
    );
    let ended = plane.sessions_when(|all| {
        all.iter()
            .any(|one| one["service"] == "echo" && !one["end"].is_null())
    });
    let ended = ended.unwrap();
    assert_eq!(ended[0]["close_reason"], "killed", "{ended:?}");
    let records = plane.records(ended[0]["session_id"].as_str().unwrap()).unwrap();
    let detail = records.last().unwrap()["close_detail"].to_string();
    assert!(detail.contains("certified:engineering"), "{detail}");
}

#[test]
fn a_login_withdrawn_at_the_provider_is_locked_and_cut_and_one_that_is_down_changes_nothing() {
    let mut provider = Provider::start();
    let plane = provider.plane_with(WATCHFUL);
    log_in(&plane, "carol", &["--no-renew"]);
    let mut session = plane.echo_session("carol").unwrap();
    provider.tell(&json!({"down": true}));
    let log = plane.dir().join("logs/auth.log");
    eventually("the provider is missed", || {
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("could not be asked about a login")
    });
    session.round_trip(b"still here\n").unwrap();
    provider.tell(&json!({"down": false}));
    let before = provider.tell(&json!({}))["refreshed"].as_u64();
    eventually("the provider is asked again", || {
        provider.tell(&json!({}))["refreshed"].as_u64() > before
    });
    session.round_trip(b"still here\n").unwrap();

    for name in ["auth.db", "auth.db-wal"] {
        let bytes = std::fs::read(plane.dir().join("auth").join(name)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for token in provider.tell(&json!({"tokens": true}))["tokens"]
            .as_array()
            .unwrap()
        {
            assert!(
                !text.contains(token.as_str().unwrap()),
                "{name} holds a refresh token"
            );
        }
    }

    provider.tell(&json!({"withdraw": "alice"}));
    wait_until("the session is cut", || Ok(session.0.try_wait()?.is_some())).unwrap();
    let refused = plane.iapctl("carol", &["ls"]).unwrap();
    assert_ne!(refused.code, 0, "{refused:?}");
    let withdrawn = records(&plane, "login.withdrawn");
    assert_eq!(withdrawn.len(), 1, "{withdrawn:?}");
    assert!(
        withdrawn[0]["reason"].as_str().unwrap().contains("invalid_grant"),
        "{withdrawn:?}"
    );
    let locks = records(&plane, "lock.added");
    assert_eq!(locks[0]["lock_target"], withdrawn[0]["login_id"], "{locks:?}");
}

#[test]
fn the_renewer_is_one_for_each_home_and_ends_with_it() {
    let provider = Provider::start();
    let plane = provider.plane();
    log_in(&plane, "carol", &[]);
    let first = status(&plane, "carol")["renewer"]["pid"].clone();
    let mode = std::fs::metadata(cluster_file(&plane, "carol", "renewer.log"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Another one finds the lock held and ends at once.
    let second = plane.command("carol", &["renewer"]).unwrap().spawn().unwrap();
    Background(second).finish().unwrap().succeeded().unwrap();
    assert_eq!(status(&plane, "carol")["renewer"]["pid"], first);

    log_in(&plane, "carol", &[]);
    let next = status(&plane, "carol")["renewer"]["pid"].clone();
    assert!(
        next != first && !is_running(&first) && is_running(&next),
        "{first} {next}"
    );
    // It has a session of its own: nothing that happens to the terminal reaches it.
    let stat = std::fs::read_to_string(format!("/proc/{next}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, next.to_string());

    log_in(&plane, "carol", &["--no-renew"]);
    assert!(!is_running(&next));
    assert_eq!(status(&plane, "carol")["renewer"]["running"], false);

    log_in(&plane, "carol", &[]);
    let last = status(&plane, "carol")["renewer"]["pid"].clone();
    std::fs::remove_dir_all(plane.home("carol")).unwrap();
    eventually("the renewer sees that the home is gone", || !is_running(&last));
    assert!(!plane.home("carol").exists(), "and leaves nothing there");
}

#[test]
fn logging_out_works_without_the_auth_server_and_says_what_could_not_be_done() {
    let provider = Provider::start();
    let plane = provider.plane();
    log_in(&plane, "carol", &[]);
    let pid = status(&plane, "carol")["renewer"]["pid"].clone();
    plane.signal("dev", rustix::process::Signal::STOP).unwrap();
    plane.signal("auth", rustix::process::Signal::KILL).unwrap();
    let ended = plane.iapctl("carol", &["logout"]).unwrap();
    plane.signal("dev", rustix::process::Signal::CONT).unwrap();
    ended.succeeded().unwrap();
    assert!(ended.stderr.contains("could not be told"), "{}", ended.stderr);
    assert!(!cluster_file(&plane, "carol", "key.pem").exists());
    assert!(!is_running(&pid));
}

#[test]
fn without_a_person_an_expired_login_is_exit_4_and_no_browser() {
    let provider = Provider::start();
    let plane = provider.plane_with(OVER_SOON);
    log_in(&plane, "carol", &["--no-renew"]);
    let opened = browser_that_writes(&plane);
    eventually("the login has expired", || {
        plane.iapctl("carol", &["status"]).unwrap().code == 4
    });
    let (script, mark) = (opened.0.as_str(), opened.1.as_path());
    let mut piped = plane.command("carol", &["ls"]).unwrap();
    piped.env_remove("IAPCTL_NONINTERACTIVE").env("BROWSER", script);
    let mut on_terminal = on_a_terminal(&plane, "carol", "ls", script);
    on_terminal.env("IAPCTL_NONINTERACTIVE", "1");
    for mut command in [piped, on_terminal] {
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.code, 4, "{ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains("iapctl login iap.localhost"), "{said}");
    }
    assert!(!mark.exists(), "a browser was opened");
}

#[test]
fn a_machine_that_slept_past_its_certificates_end_goes_on_with_its_login_until_that_is_withdrawn() {
    let mut provider = Provider::start();
    let plane = provider.plane_with("[login]\nttl = \"6s\"\nrecheck = \"1s\"\n");
    log_in(&plane, "carol", &["--no-renew"]);
    let expired = || plane.iapctl("carol", &["status"]).unwrap().code == 4;
    eventually("the certificate has expired", expired);
    let connected = plane
        .iapctl(
            "carol",
            &["connect", "db-prod", "--", "psql", "-X", "-Atc", "select 6 * 7"],
        )
        .unwrap();
    assert_eq!(connected.succeeded().unwrap().trim(), "42", "without a person");
    assert_eq!(status(&plane, "carol")["generation"], 2);
    eventually("the next has expired too", expired);
    // Whoever sits at carol's machine signed in as alice.
    provider.tell(&json!({"withdraw": "alice"}));
    // The provider may just have been asked.
    let refused = || plane.iapctl("carol", &["ls"]).unwrap().code != 0;
    eventually("the login is over", refused);
    eventually("the certificate is over", expired);
    assert!(refused(), "and is not renewed any more");
}

/// The certificate ends while a session runs and its connection breaks: it is renewed on the way back.
#[test]
fn a_session_that_lost_its_connection_comes_back_with_a_renewed_certificate() {
    let provider = Provider::start();
    let plane = provider.plane_with(SHORT);
    log_in(&plane, "carol", &["--no-renew"]);
    let mut session = plane.echo_session("carol").unwrap();
    session.round_trip(b"before\n").unwrap();
    eventually("the certificate has expired", || {
        plane.iapctl("carol", &["status"]).unwrap().code == 4
    });
    let proxy = plane.pid("proxy").unwrap();
    plane.signal("proxy", rustix::process::Signal::KILL).unwrap();
    session.round_trip(b"after\n").unwrap();
    assert_ne!(plane.pid("proxy").unwrap(), proxy);
    assert_eq!(status(&plane, "carol")["generation"], 2);
    drop(session.0.stdin.take());
    assert_eq!(session.finish().unwrap().code, 0);
}

#[test]
fn several_commands_at_once_share_one_login() {
    let provider = Provider::start();
    let plane = provider.plane_with(OVER_SOON);
    log_in(&plane, "carol", &["--no-renew"]);
    let (script, mark) = browser_that_writes(&plane);
    eventually("the login has expired", || {
        plane.iapctl("carol", &["status"]).unwrap().code == 4
    });
    let running: Vec<Background> = (0..3)
        .map(|_| Background(on_a_terminal(&plane, "carol", "ls", &script).spawn().unwrap()))
        .collect();
    wait_until("a browser is opened", || Ok(mark.exists())).unwrap();
    // Long enough for the others to have opened theirs, if they did.
    std::thread::sleep(Duration::from_secs(1));
    let urls = std::fs::read_to_string(&mark).unwrap();
    assert_eq!(urls.lines().count(), 1, "{urls}");
    approve(&plane, &urls);
    for one in running {
        let ran = one.finish().unwrap();
        assert!(ran.succeeded().unwrap().contains("echo"), "{ran:?}");
    }
    assert_eq!(
        std::fs::read_to_string(&mark).unwrap(),
        urls,
        "one login was enough"
    );
}

#[test]
fn lost_answers_cost_an_honest_client_nothing_and_a_thief_of_the_key_is_caught() {
    let provider = Provider::start();
    let plane = provider.plane_with("[login]\nttl = \"40s\"\n");
    log_in(&plane, "carol", &[]);
    let relay = Relay::start(&plane);
    let record = cluster_file(&plane, "carol", "cluster.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    changed["addresses"] = json!([format!("iap.localhost:{}", relay.port)]);
    std::fs::write(&record, changed.to_string()).unwrap();
    copy_folder(&plane.home("carol"), &plane.home("thief"));
    relay.lose_next(2);

    eventually("the renewer got through", || {
        status(&plane, "carol")["generation"] == 2
    });
    let log = std::fs::read_to_string(cluster_file(&plane, "carol", "renewer.log")).unwrap();
    assert_eq!(log.matches("not renewed, again in").count(), 2, "{log}");
    let login = status(&plane, "carol")["login_id"].clone();
    let issued = records(&plane, "certificate.issued");
    let mine = issued.iter().filter(|record| record["login_id"] == login);
    let generations: Vec<_> = mine.filter_map(|record| record["generation"].as_u64()).collect();
    let repeated = generations.iter().filter(|number| **number == 2).count();
    assert_eq!((repeated, generations.len()), (3, 4), "{generations:?}");
    assert!(records(&plane, "lock.added").is_empty());

    // The thief has the key and the first certificate, but not the request that renewed it: within ten minutes
    // it passes for a client that forgot its own, and from then on two hold the login.
    eventually("the thief renews", || {
        plane.iapctl("thief", &["ls"]).unwrap();
        status(&plane, "thief")["generation"] == 3
    });
    eventually("the honest renewer shows the second holder", || {
        !records(&plane, "login.reused").is_empty()
    });
    for holder in ["carol", "thief"] {
        assert_ne!(
            plane.iapctl(holder, &["ls"]).unwrap().code,
            0,
            "{holder} is locked"
        );
    }
    eventually("the renewer ends at a lock", || {
        status_of_renewer(&plane)["running"] == false
    });
    let ended = status_of_renewer(&plane)["ended"].to_string();
    assert!(ended.contains("renews this login no more"), "{ended}");
}

/// Also while the login itself is no good any more.
fn status_of_renewer(plane: &Plane) -> Value {
    let file = std::fs::read(cluster_file(plane, "carol", "renewer.json")).unwrap();
    let mut report: Value = serde_json::from_slice(&file).unwrap();
    report["running"] = json!(is_running(&report["pid"]));
    report
}

/// A program for `$BROWSER` that writes the addresses it is given, and where.
fn browser_that_writes(plane: &Plane) -> (String, std::path::PathBuf) {
    let script = plane.scratch().join("browser");
    let mark = plane.scratch().join("opened");
    std::fs::write(
        &script,
        format!("#!/bin/sh\necho \"$1\" >> '{}'\n", mark.display()),
    )
    .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    (script.display().to_string(), mark)
}

/// `iapctl` on a terminal of its own.
fn on_a_terminal(plane: &Plane, user: &str, arguments: &str, browser: &str) -> Command {
    let iapctl = iap_e2e::program("iapctl").unwrap();
    let mut command = Command::new("script");
    command
        .args([
            "-qefc",
            &format!("'{}' {arguments}", iapctl.display()),
            "/dev/null",
        ])
        .env("IAPCTL_HOME", plane.home(user))
        .env_remove("IAPCTL_NONINTERACTIVE")
        .env("BROWSER", browser)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// Between a client and the proxy: loses the answers of connections as it is told.
struct Relay {
    port: u16,
    losing: Arc<AtomicUsize>,
}

impl Relay {
    fn start(plane: &Plane) -> Self {
        let descriptor = plane.descriptor().unwrap();
        let proxy: SocketAddr = descriptor["proxy_addr"].as_str().unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, losing) = (
            listener.local_addr().unwrap().port(),
            Arc::new(AtomicUsize::new(0)),
        );
        let counter = Arc::clone(&losing);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let loses = counter
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok();
                let server = TcpStream::connect(proxy).unwrap();
                carry(client.unwrap(), server, loses);
            }
        });
        Self { port, losing }
    }

    fn lose_next(&self, connections: usize) {
        self.losing.store(connections, Ordering::SeqCst);
    }
}

/// What the server answers to a request is lost together with the connection, when `loses`. Its settings, which come
/// before, are shorter than any certificate.
fn carry(client: TcpStream, server: TcpStream, loses: bool) {
    const ANSWER_BYTES_MIN: usize = 600;
    let messages = Arc::new(AtomicUsize::new(0));
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let sent = Arc::clone(&messages);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // The first are the hello, perhaps in pieces.
            if !buffer.starts_with(&[HANDSHAKE_RECORD]) {
                sent.fetch_add(1, Ordering::SeqCst);
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server, client);
    std::thread::spawn(move || {
        let (mut buffer, mut lost) = ([0; 16 * 1024], 0);
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            match loses && messages.load(Ordering::SeqCst) > 0 {
                true => lost += length,
                false => drop(to.write_all(&buffer[..length])),
            }
            if lost > ANSWER_BYTES_MIN {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

/// The session's own `iapctl` has in hand what two others have replaced, and all of it has expired.
#[test]
fn a_login_that_others_have_renewed_and_that_expired_again_is_renewed_when_a_session_is_come_back_to() {
    let provider = Provider::start();
    let plane = provider.plane_with(SHORT);
    log_in(&plane, "carol", &["--no-renew"]);
    let has_ended = || Ok(plane.iapctl("carol", &["status"])?.code == 4);
    let mut session = plane.echo_session("carol").unwrap();
    session.round_trip(b"before\n").unwrap();
    wait_until("the certificate has ended", has_ended).unwrap();
    let elsewhere = plane.iapctl("carol", &["connect", "echo", "--", "true"]);
    elsewhere.unwrap().succeeded().unwrap();
    wait_until("the certificate of another has ended", has_ended).unwrap();
    kill_proxy(&plane);
    session.round_trip(b"after\n").unwrap();
    drop(session.0.stdin.take());
    assert_eq!(session.finish().unwrap().code, 0);
}
