//! Backends that are told who comes: PROXY v2 headers as nginx, HAProxy and a reader of our own understand them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use iap_e2e::{Annex, Background, Plane, wait_until};
use iap_testkit::free_port;

/// Where the test's own client comes from: an address that nothing else here uses.
const CLIENT: &str = "127.0.0.77";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn told(address: SocketAddr) -> String {
    format!("backend = \"{address}\"\nproxy_protocol = \"v2\"")
}

/// nginx that says the addresses of the header it got.
fn nginx(plane: &Plane, address: SocketAddr) -> Background {
    let folder = plane.scratch().join("nginx");
    std::fs::create_dir(&folder).unwrap();
    let at = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/log;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen {address} proxy_protocol; location / {{\n\
         return 200 \"$proxy_protocol_addr $proxy_protocol_server_addr:$proxy_protocol_server_port\\n\"; }} }} }}\n"
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(folder.join("nginx.conf"));
    started(command, address)
}

/// HAProxy that says the address, server name and unique id of the header it got.
fn haproxy(plane: &Plane, address: SocketAddr) -> Background {
    let file = plane.scratch().join("haproxy.cfg");
    let text = format!(
        "defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n\
         frontend told\n bind {address} accept-proxy\n http-request return status 200 content-type text/plain \
         lf-string \"%[src] %[fc_pp_authority] %[fc_pp_unique_id]\\n\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    started(command, address)
}

fn started(mut command: Command, address: SocketAddr) -> Background {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let process = Background(command.spawn().expect("`make test` installs nginx and haproxy"));
    wait_until("the backend listens", || Ok(TcpStream::connect(address).is_ok())).unwrap();
    process
}

/// A backend that hands over everything the first client sent until it stopped.
fn reader() -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            let _ = stream.write_all(b"seen\n");
            let _ = sender.send(all);
        }
    });
    (address, received)
}

/// Type and value.
type Extension = (u8, Vec<u8>);

/// The extensions of a header for TCP over IPv4, and what follows it.
fn parsed(bytes: &[u8]) -> (SocketAddr, Vec<Extension>, Vec<u8>) {
    assert_eq!(
        &bytes[..14],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
        "signature, command, family"
    );
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let (body, rest) = bytes[16..].split_at(length);
    let client = SocketAddr::from((
        [body[0], body[1], body[2], body[3]],
        u16::from_be_bytes([body[8], body[9]]),
    ));
    let mut extensions = Vec::new();
    let mut left = &body[12..];
    while let [kind, high, low, tail @ ..] = left {
        let (value, tail) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        extensions.push((*kind, value.to_vec()));
        left = tail;
    }
    assert!(left.is_empty(), "{left:?}");
    (client, extensions, rest.to_vec())
}

/// `openssl s_client`, from [`CLIENT`], sends `input` and says what came back.
fn ask(plane: &Plane, service: &str, input: &str) -> String {
    let proxy = plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let home = plane.home("alice").join("clusters/iap.localhost");
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-quiet",
        "-no_ign_eof",
        "-connect",
        &proxy,
        "-bind",
        CLIENT,
    ]);
    command.args(["-servername", &format!("{service}.iap.localhost")]);
    for (flag, file) in [("-CAfile", "ca.pem"), ("-cert", "cert.pem"), ("-key", "key.pem")] {
        command.arg(flag).arg(home.join(file));
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    let mut said = vec![0; 4096];
    let count = child.stdout.as_mut().unwrap().read(&mut said).unwrap();
    drop(stdin);
    child.wait().unwrap();
    String::from_utf8_lossy(&said[..count]).into_owned()
}

#[test]
fn backends_that_want_it_are_told_who_comes_and_others_are_not() {
    let plane = Plane::demo().unwrap();
    for person in ["alice", "admin", "auditor"] {
        plane.log_in(person).unwrap();
    }
    let proxy = plane.descriptor().unwrap()["proxy_addr"]
        .as_str()
        .unwrap()
        .to_owned();
    let [at_nginx, at_haproxy] = [(); 2].map(|()| local(free_port().unwrap()));
    let _nginx = nginx(&plane, at_nginx);
    let _haproxy = haproxy(&plane, at_haproxy);
    let (at_reader, received) = reader();
    let (at_plain, received_plain) = reader();
    let _agent = Annex::agent(
        &plane,
        "telling",
        &proxy,
        &[
            ("told-nginx", &told(at_nginx)),
            ("told-haproxy", &told(at_haproxy)),
            ("told", &told(at_reader)),
            ("untold", &format!("backend = \"{at_plain}\"")),
        ],
        "",
        &[],
    )
    .unwrap();
    let request = "GET / HTTP/1.0\r\n\r\n";
    wait_until("the agent serves", || {
        Ok(ask(&plane, "told-nginx", request).contains("200 OK"))
    })
    .unwrap();

    let nginx_says = ask(&plane, "told-nginx", request);
    assert!(
        nginx_says.ends_with(&format!("\n{CLIENT} {at_nginx}\n")),
        "{nginx_says}"
    );
    let haproxy_says = ask(&plane, "told-haproxy", request);
    let session_of = |service: &str| {
        let sessions = plane
            .sessions_when(|all| all.iter().any(|one| one["service"] == service))
            .unwrap();
        let session = sessions.iter().find(|one| one["service"] == service).unwrap();
        session["session_id"].as_str().unwrap().to_owned()
    };
    let words = format!(
        "{CLIENT} told-haproxy.iap.localhost {}\n",
        session_of("told-haproxy")
    );
    assert!(haproxy_says.ends_with(&words), "{haproxy_says} is not {words}");

    let session = plane.iapctl(
        "alice",
        &["connect", "untold", "--", "sh", "-c", "exec 3<>/dev/null"],
    );
    assert_eq!(session.unwrap().code, 0);
    assert_eq!(
        received_plain.recv().unwrap(),
        b"",
        "a backend that did not ask gets nothing ahead"
    );

    let mut client = plane.command("alice", &["connect", "told", "--stdio"]).unwrap();
    let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
    client
        .stdin
        .take()
        .unwrap()
        .write_all(b"the client's own bytes")
        .unwrap();
    assert!(client.wait().unwrap().success());
    let (address, extensions, rest) = parsed(&received.recv().unwrap());
    assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
    assert_eq!(rest, b"the client's own bytes");
    let user = plane.json("alice", &["status"]).unwrap();
    let text = |kind: u8| {
        let value = extensions
            .iter()
            .find(|(found, _)| *found == kind)
            .map(|(_, value)| value.clone());
        String::from_utf8(value.unwrap_or_default()).unwrap()
    };
    assert_eq!(text(0x02), "told.iap.localhost");
    assert_eq!(text(0x05), session_of("told"));
    assert_eq!(text(0xE0), "alice@example.com");
    assert!(text(0xE1).starts_with("u-"), "{user}");
    assert_eq!(text(0xE2), "user");
    assert_eq!(text(0xE3), "told");
}
