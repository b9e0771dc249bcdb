//! Strangers who hold connections half open, and servers without descriptors left: honest sessions go on, new ones
//! open, and afterwards everything is as before.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use iap_e2e::{Annex, Background, Plane, wait_until};
use iap_testkit::free_port;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

const COMPLAINT: &str = "out of file descriptors";

fn proxy_of(plane: &Plane) -> SocketAddr {
    plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn knows_the_proxy_as(plane: &Plane, user: &str, address: SocketAddr) {
    let path = plane.home(user).join("clusters/iap.localhost/cluster.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["addresses"] = serde_json::json!([address.to_string()]);
    std::fs::write(&path, record.to_string()).unwrap();
}

/// The ClientHello of a stock client that asks for `name`.
fn client_hello(name: &str) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-connect",
        &listener.local_addr().unwrap().to_string(),
        "-servername",
        name,
    ]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _client = Background(command.spawn().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut body).unwrap();
    [head.to_vec(), body].concat()
}

/// So many connections that say `bytes` and then nothing.
fn half_open(address: SocketAddr, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let open = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    (0..count).map(|_| open()).collect()
}

/// How many of them the other side has closed, with or without an alert.
fn closed(streams: &[TcpStream]) -> usize {
    let is_closed = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    };
    streams.iter().filter(|stream| is_closed(stream)).count()
}

#[test]
fn honest_sessions_open_while_strangers_hold_every_waiting_place_of_a_proxy() {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin"] {
        plane.log_in(person).unwrap();
    }
    let address = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    // Nobody is sent away by the clock while this runs.
    let limits = "[limits]\nwaiting_connections_max = 30\nwaiting_connections_per_source_max = 20\n\
                  client_hello_seconds_max = 600\n";
    let _small = Annex::proxy(&plane, "small", address, limits).unwrap();
    knows_the_proxy_as(&plane, "alice", address);
    wait_until("the agent is connected to the second proxy", || {
        Ok(plane.echo_session("alice").is_ok())
    })
    .unwrap();
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x40\x00"] {
        let strangers = half_open(address, 20, bytes);
        // Refused for the first moments, as long as they could be honest newcomers themselves.
        opened(&plane).round_trip(b"while they wait\n").unwrap();
        let gone = closed(&strangers);
        assert!(
            (1..15).contains(&gone),
            "those in the way are gone, the others wait: {gone}"
        );
    }
}

/// A session of Alice's, once one opens.
fn opened(plane: &Plane) -> Background {
    let mut session = None;
    wait_until("a session opens", || {
        session = plane.echo_session("alice").ok();
        Ok(session.is_some())
    })
    .unwrap();
    session.unwrap()
}

#[test]
fn honest_sessions_open_while_strangers_hold_every_handshake_of_an_agent() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let hello = client_hello("echo.iap.localhost");
    // limits.handshakes_max of an agent is 256.
    let strangers = half_open(proxy_of(&plane), 300, &hello);
    wait_until("the agent holds its fill", || Ok(closed(&strangers) >= 1)).unwrap();
    // Refused for the first moments, as long as they could be honest newcomers themselves.
    let mut session = opened(&plane);
    session.round_trip(b"while they wait\n").unwrap();
    wait_until("they are sent away", || Ok(closed(&strangers) == strangers.len())).unwrap();
    session.round_trip(b"afterwards\n").unwrap();
}

/// Leaves a running process `more` descriptors beyond those it has, until dropped.
struct Starved {
    pid: Pid,
    before: Rlimit,
}

impl Starved {
    fn with(pid: Pid, more: u64) -> Self {
        let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid()))
            .unwrap()
            .count();
        let least = Rlimit {
            current: Some(u64::try_from(open).unwrap() + more),
            maximum: getrlimit(Resource::Nofile).maximum,
        };
        let before = prlimit(Some(pid), Resource::Nofile, least).unwrap();
        Self { pid, before }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before);
    }
}

fn complaints(plane: &Plane, program: &str) -> usize {
    let log = plane.dir().join("logs").join(format!("{program}.log"));
    said(&log).matches(COMPLAINT).count()
}

fn said(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

#[test]
fn a_proxy_without_descriptors_left_says_so_once_keeps_its_sessions_and_recovers() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let mut live = plane.echo_session("alice").unwrap();
    let starved = Starved::with(plane.pid("proxy").unwrap(), 4);
    let strangers = half_open(proxy_of(&plane), 50, b"\x16");
    wait_until("the proxy complains", || Ok(complaints(&plane, "proxy") > 0)).unwrap();
    for _ in 0..20 {
        live.round_trip(b"still here\n").unwrap();
    }
    assert_eq!(complaints(&plane, "proxy"), 1, "one line for all of them");
    drop((strangers, starved));
    wait_until("new sessions open", || Ok(plane.echo_session("alice").is_ok())).unwrap();
    live.round_trip(b"and still\n").unwrap();
}

#[test]
fn an_agent_without_descriptors_left_says_so_once_keeps_its_sessions_and_recovers() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let mut live = plane.echo_session("alice").unwrap();
    let starved = Starved::with(plane.pid("agent").unwrap(), 0);
    let began = Instant::now();
    // Connections dialled in advance have their descriptors: sessions on them take what is left.
    let (mut held, mut refused_in_a_row) = (Vec::new(), 0);
    while refused_in_a_row < 3 {
        match plane.echo_session("alice") {
            Ok(session) => {
                held.push(session);
                refused_in_a_row = 0;
            }
            Err(_) => refused_in_a_row += 1,
        }
        live.round_trip(b"still here\n").unwrap();
        assert!(held.len() < 20, "descriptors do not run out");
    }
    let refused = plane.iapctl("alice", &["connect", "echo", "--stdio"]).unwrap();
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("is not available"), "{refused:?}");
    let allowed = 1 + usize::try_from(began.elapsed().as_secs() / 10).unwrap();
    let said = complaints(&plane, "agent");
    assert!(
        (1..=allowed).contains(&said),
        "{said} lines, one in ten seconds for all of them"
    );
    drop(starved);
    wait_until("new sessions open", || Ok(plane.echo_session("alice").is_ok())).unwrap();
    live.round_trip(b"and still\n").unwrap();
}

#[test]
fn an_auth_server_without_descriptors_left_says_so_once_and_recovers() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let config = said(&plane.dir().join("config/auth.toml"));
    let listen = config
        .lines()
        .find_map(|line| line.strip_prefix("listen = \"")?.strip_suffix('"'))
        .unwrap();
    let address: SocketAddr = listen.parse().unwrap();
    let starved = Starved::with(plane.pid("auth").unwrap(), 4);
    let strangers = half_open(address, 50, b"\x16");
    wait_until("the auth server complains", || Ok(complaints(&plane, "auth") > 0)).unwrap();
    let mut session = plane.echo_session("alice").unwrap();
    session.round_trip(b"it is on nobody's path\n").unwrap();
    assert_eq!(complaints(&plane, "auth"), 1, "one line for all of them");
    drop((strangers, starved));
    wait_until("it answers again", || {
        Ok(plane.iapctl("alice", &["ls"])?.code == 0)
    })
    .unwrap();
    plane.log_in("bob").unwrap();
}
