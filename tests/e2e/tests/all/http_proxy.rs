//! Networks that let nothing out but through an HTTP proxy: `HTTPS_PROXY` and `NO_PROXY`, for people and for agents.
//!
//! The names dialled exist nowhere: only the HTTP proxy of these tests can resolve them, so a connection that went
//! around it would not come about.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use iap_e2e::{Annex, Plane, wait_until};

const USER: &str = "outside";
const PASSWORD: &str = "s3cret of the proxy";

/// An HTTP proxy that wants a password and knows names nobody else knows.
struct HttpProxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl HttpProxy {
    fn start(names: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let names: BTreeMap<String, SocketAddr> = names
            .iter()
            .map(|(name, address)| ((*name).to_owned(), *address))
            .collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (names, log) = (names.clone(), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &names, &log));
            }
        });
        Self { address, asked }
    }

    /// For the environment, with the password percent-encoded as in a URL.
    fn url(&self) -> String {
        format!("http://{USER}:{}@{}", PASSWORD.replace(' ', "%20"), self.address)
    }

    /// The targets of the CONNECTs so far.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, names: &BTreeMap<String, SocketAddr>, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        head.push(line);
    }
    let Some(target) = head
        .first()
        .and_then(|line| line.strip_prefix("CONNECT ")?.split(' ').next())
    else {
        return;
    };
    log.lock().unwrap().push(target.to_owned());
    // "outside:s3cret of the proxy"
    let wanted = "Proxy-Authorization: Basic b3V0c2lkZTpzM2NyZXQgb2YgdGhlIHByb3h5";
    let is_known = head.iter().any(|line| line.trim_end() == wanted);
    let refusal = match names.get(target) {
        _ if !is_known => {
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n"
        }
        None => "HTTP/1.1 403 Not On The List\r\nContent-Length: 0\r\n\r\n",
        Some(address) => return relay(stream, reader, *address),
    };
    let _ = stream.write_all(refusal.as_bytes());
}

fn relay(mut client: TcpStream, mut from_client: BufReader<TcpStream>, target: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(target) else {
        let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
        return;
    };
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .unwrap();
    let mut to_server = server.try_clone().unwrap();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Write);
}

/// A backend that answers with one line and closes.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"from behind the HTTP proxy\n");
            let _ = stream.read(&mut [0; 64]);
        }
    });
    address
}

fn proxy_of(plane: &Plane) -> SocketAddr {
    plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// From now on the person's machine knows the plane's proxy by this name only.
fn knows_the_proxy_as(plane: &Plane, user: &str, name: &str) {
    let path = plane.home(user).join("clusters/iap.localhost/cluster.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["addresses"] = serde_json::json!([name]);
    std::fs::write(&path, record.to_string()).unwrap();
}

fn iapctl(plane: &Plane, variables: &[(&str, &str)], arguments: &[&str]) -> iap_e2e::Ran {
    let mut command = plane.command("alice", arguments).unwrap();
    for name in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().unwrap().into()
}

#[test]
fn a_person_behind_an_http_proxy_reaches_services_and_the_auth_server_through_it() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let outside = "way-out.example.test:443";
    let http = HttpProxy::start(&[(outside, proxy_of(&plane))]);
    knows_the_proxy_as(&plane, "alice", outside);
    let url = http.url();
    let session = [
        "connect",
        "db-prod",
        "--",
        "psql",
        "-X",
        "-Atc",
        "select 'through'",
    ];

    let answer = iapctl(&plane, &[("HTTPS_PROXY", &url)], &session);
    assert_eq!(answer.succeeded().unwrap().trim(), "through");
    let sessions = http.asked().len();
    assert!(
        sessions >= 1 && http.asked().iter().all(|target| target == outside),
        "{:?}",
        http.asked()
    );
    let listed = iapctl(&plane, &[("https_proxy", &url)], &["ls"]);
    assert!(listed.succeeded().unwrap().contains("db-prod"));
    assert!(http.asked().len() > sessions, "the list came through it too");

    // With the list came the addresses that are reached directly.
    knows_the_proxy_as(&plane, "alice", outside);
    let seen = http.asked().len();
    for list in ["example.test", ".test", "other.test,*"] {
        let direct = iapctl(&plane, &[("HTTPS_PROXY", &url), ("NO_PROXY", list)], &session);
        assert_eq!(direct.code, 125, "the name leads nowhere without it: {direct:?}");
    }
    assert_eq!(http.asked().len(), seen, "NO_PROXY was heeded");
}

#[test]
fn an_http_proxy_that_refuses_is_named_with_its_answer() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let outside = "way-out.example.test:443";
    let http = HttpProxy::start(&[(outside, proxy_of(&plane))]);
    let said = |url: &str, arguments: &[&str], words: &[&str]| {
        let ran = iapctl(&plane, &[("HTTPS_PROXY", url)], arguments);
        assert_eq!(ran.code, 1, "{ran:?}");
        for word in words {
            assert!(ran.stderr.contains(word), "{word:?} is not in: {}", ran.stderr);
        }
        assert!(!ran.stderr.contains("wrong-password"), "{}", ran.stderr);
    };
    knows_the_proxy_as(&plane, "alice", outside);
    let session = ["connect", "echo", "--stdio"];
    let place = http.address.to_string();
    said(
        &format!("http://{place}"),
        &session,
        &[&place, "407", "put a user and password into HTTPS_PROXY"],
    );
    said(
        &format!("http://x:wrong-password@{place}"),
        &session,
        &["407", "does not accept the user"],
    );
    said(
        "socks5://x:wrong-password@p",
        &session,
        &["HTTPS_PROXY cannot be used"],
    );
    let nobody = format!("127.0.0.1:{}", iap_testkit::free_port().unwrap());
    said(
        &format!("http://{nobody}"),
        &session,
        &["the HTTP proxy", &nobody, "cannot be reached"],
    );
    knows_the_proxy_as(&plane, "alice", "elsewhere.example.test:443");
    said(
        &http.url(),
        &session,
        &["elsewhere.example.test:443", "403 Not On The List"],
    );
    let login = [
        "login",
        "other.example.test",
        "--ca",
        &format!("sha256:{}", "ab".repeat(32)),
        "--no-browser",
    ];
    said(
        &http.url(),
        &login,
        &["other.example.test:443", "403 Not On The List"],
    );
    let asks_the_web_page = ["login", "other.example.test", "--no-browser"];
    said(
        &http.url(),
        &asks_the_web_page,
        &["cannot reach other.example.test"],
    );
    let asked = http.asked();
    let last = asked.last().unwrap();
    assert_eq!(
        last, "other.example.test:443",
        "the page was asked for through it"
    );
}

#[test]
fn an_agent_behind_an_http_proxy_joins_serves_and_reports_through_it() {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin", "auditor"] {
        plane.log_in(person).unwrap();
    }
    // The first of all proxies in order of names, and the only one this agent connects to.
    let outside = "0-way-out.example.test:443";
    let http = HttpProxy::start(&[(outside, proxy_of(&plane))]);
    let backend = format!("backend = \"{}\"", backend());
    let url = http.url();
    let agent = Annex::agent(
        &plane,
        "branch",
        outside,
        &[("far", &backend)],
        "limits.proxies_max = 1",
        &[("HTTPS_PROXY", &url), ("NO_PROXY", "")],
    )
    .unwrap();
    wait_until("the service behind the HTTP proxy answers", || {
        let session = plane.iapctl("alice", &["connect", "far", "--stdio"])?;
        Ok(session.stdout == "from behind the HTTP proxy\n")
    })
    .unwrap();
    let asked = http.asked();
    assert!(asked.iter().all(|target| target == outside), "{asked:?}");
    // Joining, the feed, the control connection, a dial-back.
    assert!(asked.len() >= 4, "{asked:?}");
    assert!(agent.log().contains("through the HTTP proxy"), "{}", agent.log());
    assert!(!agent.log().contains("s3cret"), "the log holds no password");
    plane
        .sessions_when(|all| {
            all.iter()
                .any(|one| one["service"] == "far" && !one["end"].is_null())
        })
        .unwrap();
}
