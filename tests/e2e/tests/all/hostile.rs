//! Parts that behave badly: backends that reset, half-close, hang or are not there, and somebody in between at the first
//! login. Nothing is lost, and nothing is told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iap_e2e::{Background, PATIENCE, Plane, wait_until};
use iap_identity::AuthId;
use iap_testkit::{Credential, TestCluster, certificates::pem, free_port};
use rustix::process::Signal;
use serde_json::Value;

/// Each connection of the backend misbehaves in its own way, in this order; the next finds nobody.
const RESETS: &str = "resets with what was sent unread";
const HALF_CLOSES: &str = "ends its direction and goes on reading";
const HANGS: &str = "says nothing and reads nothing";

/// What the backend saw, connection by connection.
fn misbehaving_backend() -> (u16, Receiver<(&'static str, String)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (saw, seen) = channel();
    std::thread::spawn(move || {
        let (resetting, _) = listener.accept().unwrap();
        resetting.peek(&mut [0]).unwrap();
        drop(resetting);
        saw.send((RESETS, String::new())).unwrap();

        let (mut half_closing, _) = listener.accept().unwrap();
        half_closing.write_all(b"half").unwrap();
        half_closing.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        half_closing.read_to_string(&mut rest).unwrap();
        saw.send((HALF_CLOSES, rest)).unwrap();

        let (hanging, _) = listener.accept().unwrap();
        drop(listener);
        saw.send((HANGS, String::new())).unwrap();
        // Until the agent closes it; what waits unread stays unread.
        while hanging.take_error().is_ok() && hanging.peek(&mut [0]).is_ok_and(|bytes| bytes > 0) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    (port, seen)
}

fn point_echo_at(plane: &Plane, port: u16) {
    let path = plane.dir().join("config").join("agent.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, echo) = text.split_once("name = \"echo\"\nbackend = \"").unwrap();
    let (_, after) = echo.split_once('"').unwrap();
    let text = format!("{before}name = \"echo\"\nbackend = \"127.0.0.1:{port}\"{after}");
    std::fs::write(&path, text).unwrap();
    plane.signal("agent", Signal::HUP).unwrap();
    let log = plane.dir().join("logs").join("agent.log");
    wait_until("the agent has read its file again", || {
        Ok(std::fs::read_to_string(&log)?.contains("services are read again"))
    })
    .unwrap();
}

/// A local listener for `echo`, and where it listens.
fn listen(plane: &Plane) -> (Background, String) {
    let mut command = plane
        .command("alice", &["connect", "echo", "--listen", "127.0.0.1:0"])
        .unwrap();
    let mut listening = Background(command.spawn().unwrap());
    let mut line = String::new();
    let stdout = listening.0.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    (listening, line.trim().to_owned())
}

fn dial(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"x").unwrap();
    stream
}

#[test]
fn whatever_a_backend_does_each_of_its_sessions_has_one_start_and_one_end() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    plane.log_in("auditor").unwrap();
    let (port, seen) = misbehaving_backend();
    point_echo_at(&plane, port);
    let (listening, address) = listen(&plane);
    let next = || seen.recv_timeout(PATIENCE).unwrap();

    let mut reset = dial(&address);
    assert_eq!(next().0, RESETS);
    let mut nothing = Vec::new();
    let _ = reset.read_to_end(&mut nothing);
    assert!(nothing.is_empty());

    let mut half = dial(&address);
    let mut said = String::new();
    half.read_to_string(&mut said).unwrap();
    assert_eq!(said, "half");
    half.write_all(b" and after").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(next(), (HALF_CLOSES, "x and after".to_owned()));

    let hanging = dial(&address);
    assert_eq!(next().0, HANGS);

    let mut refused = dial(&address);
    let _ = refused.read_to_end(&mut nothing);
    assert!(nothing.is_empty());
    drop(hanging);
    listening.interrupt().unwrap();

    let sessions = plane
        .sessions_when(|all| all.len() >= 4 && all.iter().all(|one| !one["end"].is_null()))
        .unwrap();
    let reasons: Vec<&Value> = sessions.iter().map(|session| &session["close_reason"]).collect();
    assert!(reasons.contains(&&Value::from("backend_refused")), "{reasons:?}");
    assert!(reasons.contains(&&Value::from("backend_closed")), "{reasons:?}");
    for session in &sessions {
        let records = plane.records(session["session_id"].as_str().unwrap()).unwrap();
        for event in ["session.start", "session.end"] {
            let found = records.iter().filter(|record| record["event"] == event).count();
            assert_eq!(found, 1, "{event} in {records:?}");
        }
    }
}

/// A server for `auth.iap.localhost` that prints whatever it is told once TLS is up.
fn eavesdropper(credential: &Credential, root: &[u8], folder: &Path) -> (Background, u16) {
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let certificate_file = file("relay.pem", pem(credential.leaf()));
    let key_file = file("relay.key.pem", credential.key_pem());
    let behind_the_leaf: String = credential.chain.iter().skip(1).map(|der| pem(der)).collect();
    let chain_file = file("relay.chain.pem", behind_the_leaf + &pem(root));
    let port = free_port().unwrap();
    let server = Command::new("openssl")
        .args(["s_server", "-quiet", "-tls1_3", "-alpn", "h2", "-accept"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("-cert")
        .arg(&certificate_file)
        .arg("-cert_chain")
        .arg(&chain_file)
        .arg("-key")
        .arg(&key_file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("it listens", || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
    })
    .unwrap();
    (Background(server), port)
}

/// What somebody in between hears of a first login that trusts `pin`.
fn overheard(plane: &Plane, relay: &TestCluster, root: &[u8], pin: &str) -> (Option<i32>, String) {
    let credential = relay.auth(AuthId::from_uuid(iap_testkit::new_uuid())).unwrap();
    let (mut server, port) = eavesdropper(&credential, root, plane.scratch());
    let cluster = format!("iap.localhost:{port}");
    let mut command = plane
        .command(
            "mallory",
            &["login", &cluster, "--ca", pin, "--headless", "--no-renew"],
        )
        .unwrap();
    let mut login = Background(command.spawn().unwrap());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (hearing, mut said) = (Arc::clone(&heard), server.0.stdout.take().unwrap());
    let listener = std::thread::spawn(move || {
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = said.read(&mut bytes) {
            hearing.lock().unwrap().extend_from_slice(&bytes[..count]);
        }
    });
    // One who trusts the relay waits for an answer that never comes.
    let mut code = None;
    wait_until("the login gives up, or says something", || {
        code = login.0.try_wait()?.map(|status| status.code().unwrap_or(-1));
        Ok(code.is_some() || !heard.lock().unwrap().is_empty())
    })
    .unwrap();
    drop(login);
    server.0.kill().unwrap();
    listener.join().unwrap();
    let heard = heard.lock().unwrap();
    (code, String::from_utf8_lossy(&heard).into_owned())
}

#[test]
fn somebody_in_between_at_the_first_login_is_told_nothing() {
    let plane = Plane::start(&[]).unwrap();
    let record =
        std::fs::read_to_string(plane.dir().join("home/clusters/iap.localhost/cluster.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let pin = record["pin"].as_str().unwrap();
    let relay = TestCluster::new("iap.localhost").unwrap();

    let own_root = relay.bundle().root_der().to_vec();
    let (_, heard) = overheard(&plane, &relay, &own_root, &relay.pin().to_string());
    assert!(
        heard.starts_with("PRI * HTTP/2"),
        "whoever trusts it talks to it: {heard:?}"
    );

    let (code, heard) = overheard(&plane, &relay, &own_root, pin);
    assert_eq!((code, heard.as_str()), (Some(1), ""));

    // The genuine root is no secret, and at the end of somebody else's chain it helps nobody.
    let ran = Command::new("openssl")
        .args(["x509", "-outform", "DER", "-in"])
        .arg(plane.dir().join("auth/root.pem"))
        .output()
        .unwrap();
    assert!(ran.status.success());
    let (code, heard) = overheard(&plane, &relay, &ran.stdout, pin);
    assert_eq!((code, heard.as_str()), (Some(1), ""));
}
