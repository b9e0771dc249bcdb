//! The auth server's web pages, by a real HTTP/1.1 connection in memory: no answer is an internal error, every one
//! is hardened, nothing a stranger sends gets a login approved or a script into a page.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use iap_auth::config::Config;
use iap_auth::context::{AppContext, Clock, Random};
use iap_auth::login::{Logins, StartRequest};
use iap_auth::rpc::{Connection, Presented};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use super::Seeds;

/// What one request may take, with the provider that does not answer.
const ANSWER_SECONDS_MAX: u64 = 30;
/// Where `iapctl` would wait for the code of the login under way.
const LOOPBACK_PORT: u32 = 40_123;
/// Requests before a login ends (ten minutes in real life) and the plane is made anew.
const REQUESTS_PER_PLANE: u32 = 20_000;

pub(crate) fn run(bytes: &[u8]) {
    thread_local! {
        static PLANE: std::cell::RefCell<Option<Plane>> = const { std::cell::RefCell::new(None) };
    }
    PLANE.with_borrow_mut(|plane| {
        if plane
            .as_ref()
            .is_some_and(|plane| plane.requests >= REQUESTS_PER_PLANE)
        {
            *plane = None;
        }
        let plane = plane.get_or_insert_with(Plane::new);
        plane.requests += 1;
        let request = plane.fill_in(bytes);
        let answer = plane.runtime.block_on(exchange(plane.pages(bytes), &request));
        check(&answer, &request);
    });
}

/// An auth server without listeners, and one login under way.
struct Plane {
    requests: u32,
    /// Login id, secret of its URL, user code of a headless one.
    known: [(&'static str, String); 3],
    pages: Router,
    runtime: Runtime,
    _folder: TempDir,
}

impl Plane {
    fn new() -> Self {
        let folder = iap_testkit::temp().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (logins, known) = runtime.block_on(async {
            let random = Random::system();
            let opened = AppContext::open(configuration(&folder), Clock::system(), random)
                .await
                .unwrap();
            let logins = Arc::new(Logins::new(Arc::new(opened.context)).unwrap());
            let browser = logins.start(request("browser"), here(0)).await.unwrap();
            let headless = logins.start(request("headless"), here(0)).await.unwrap();
            let secret = browser.url.split_once("s=").map(|(_, secret)| secret.to_owned());
            let known = [
                ("{ID}", browser.login_id.to_string()),
                ("{SECRET}", secret.unwrap()),
                ("{CODE}", headless.user_code.unwrap()),
            ];
            (logins, known)
        });
        Self {
            requests: 0,
            known,
            pages: iap_auth::web::router(logins),
            runtime,
            _folder: folder,
        }
    }

    /// The request with this plane's ids and secrets in it.
    fn fill_in(&self, bytes: &[u8]) -> Vec<u8> {
        let mut request = bytes.to_vec();
        for (mark, value) in &self.known {
            while let Some(place) = request
                .windows(mark.len())
                .position(|window| window == mark.as_bytes())
            {
                request.splice(place..place + mark.len(), value.bytes());
            }
        }
        request
    }

    /// The pages as seen from one of many addresses: some answers are limited by source.
    fn pages(&self, bytes: &[u8]) -> Router {
        let sum = bytes.iter().fold(0u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u32::from(*byte))
        });
        let connection = Connection {
            address: SocketAddr::new(here(sum), 5555),
            certificate: Presented::NoCertificate,
        };
        self.pages.clone().layer(axum::Extension(connection))
    }
}

fn here(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | number >> 8).into()
}

fn request(method: &str) -> StartRequest {
    StartRequest {
        method: method.to_owned(),
        key_thumbprint: vec![7; 32],
        host_name: "<script>laptop".to_owned(),
        user_name: "al".to_owned(),
        redirect_port: u32::from(method == "browser") * LOOPBACK_PORT,
        ..StartRequest::default()
    }
}

fn configuration(folder: &TempDir) -> Config {
    let secret = folder.path().join("client_secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // Port 9 of loopback: the provider is never there, and says so at once.
    let text = format!(
        r#"
        cluster = "iap.localhost"
        data_dir = "{data}"
        listen = "127.0.0.1:0"
        public_address = "iap.localhost:8443"
        development = true
        [[connector]]
        name = "nobody"
        issuer = "http://127.0.0.1:9"
        client_id = "iap"
        client_secret_file = "{secret}"
        groups_claim = "groups"
        domains = ["example.com"]
        "#,
        data = folder.path().join("data").display(),
        secret = secret.display(),
    );
    Config::parse(&text, "fuzz.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

/// Sends the bytes, closes, and returns everything that was answered.
async fn exchange(pages: Router, request: &[u8]) -> Vec<u8> {
    let (mut browser, server) = tokio::io::duplex(64 * 1024);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).half_close(true);
    let connection = http.serve_connection(TokioIo::new(server), TowerToHyperService::new(pages));
    let asking = async {
        browser.write_all(request).await.unwrap();
        browser.shutdown().await.unwrap();
        let mut answer = Vec::new();
        browser.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let limit = Duration::from_secs(ANSWER_SECONDS_MAX);
    let both = async { tokio::join!(connection, asking).1 };
    tokio::time::timeout(limit, both)
        .await
        .expect("an answer in time")
}

/// Holds every answer on the connection to what all answers keep.
fn check(answer: &[u8], request: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    for head in heads(&text) {
        let status = head.split(' ').nth(1).unwrap_or_default();
        assert!(
            status != "500",
            "{head}\nto\n{}",
            String::from_utf8_lossy(request)
        );
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines
                .find(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        };
        // What is no HTTP is answered before it reaches a page, with a bare head.
        let is_bare = header("content-length") == Some("0") && header("date").is_some() && status == "400";
        if !is_bare
            && header("cache-control").is_none()
            && status != "100"
            && status != "431"
            && status != "414"
        {
            panic!("an answer that is not hardened: {head}");
        }
        if let Some(place) = header("location") {
            assert!(
                !place.contains(&LOOPBACK_PORT.to_string()),
                "a login was decided: {place}"
            );
            assert!(
                place.starts_with('/') || place.starts_with("http"),
                "leads to {place}"
            );
        }
        for cookie in head
            .lines()
            .filter(|line| line.to_ascii_lowercase().starts_with("set-cookie: "))
        {
            let is_closed =
                cookie.contains("__Host-") && cookie.ends_with("; Secure; HttpOnly; SameSite=Lax");
            assert!(is_closed, "{cookie}");
        }
    }
    assert!(
        !text.to_ascii_lowercase().contains("<script"),
        "a script in a page"
    );
}

/// The heads of the answers in `text`.
fn heads(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("HTTP/1.1 ").map(|(place, _)| {
        let rest = &text[place..];
        rest.split("\r\n\r\n").next().unwrap_or(rest)
    })
}

pub(crate) fn seeds() -> Seeds {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: iap.localhost:8443\r\n\r\n");
    let post = |path: &str, form: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: iap.localhost:8443\r\norigin: https://iap.localhost:8443\r\ncontent-type: \
             application/x-www-form-urlencoded\r\ncookie: __Host-iap-login-{{ID}}=AAAA; a=b\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        )
    };
    let named = |name: &str, text: String| (name.to_owned(), text.into_bytes());
    vec![
        named("home", get("/")),
        named("style", get("/style.css")),
        named("nothing", get("/no/such/page?x=%3Cscript%3E")),
        named("open", get("/login/{ID}?s={SECRET}&connector=nobody")),
        named("open-wrong", get("/login/{ID}?s=AAAA")),
        named("callback", get("/login/callback?state=abc&code=xyz&iss=http%3A%2F%2F127.0.0.1%3A9")),
        named("callback-error", get("/login/callback?state=abc&error=access_denied&error_description=%3Cscript%3E")),
        named("approval", get("/login/{ID}/approve")),
        named("device", get("/device?code={CODE}")),
        named("device-typed", post("/device", "code=AAAA-BBBB-CCCC")),
        named("device-known", post("/device", "code={CODE}")),
        named("decide", post("/login/{ID}/approve", "token=abc&decision=approve")),
        named("well-known", get("/.well-known/iap")),
        named("keys", get("/.well-known/jwks.json")),
        named("two", [get("/"), post("/device", "code=x")].concat()),
        named("other-host", "GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_owned()),
        named("absolute", "GET https://iap.localhost:8443/device HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
        named(
            "chunked",
            "POST /device HTTP/1.1\r\nhost: iap.localhost\r\norigin: https://iap.localhost:8443\r\ncontent-type: \
             application/x-www-form-urlencoded\r\ntransfer-encoding: chunked\r\n\r\n6\r\ncode=x\r\n0\r\n\r\n"
                .to_owned(),
        ),
        named("expect", "POST /device HTTP/1.1\r\nhost: iap.localhost\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx".to_owned()),
        named("old", "GET / HTTP/1.0\r\n\r\n".to_owned()),
    ]
}
