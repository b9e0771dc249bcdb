//! An auth server without listeners: its store, its pages, a provider on loopback, a clock that can be moved.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use iap_identity::certificate_request;
use openidconnect::url::{Url, form_urlencoded};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::Value;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tower::ServiceExt as _;

use super::super::{FinishError, Finished, Logins, StartRequest, Started};
use super::hostile::{Behaviour, CLIENT_ID, CLIENT_SECRET, Hostile};
use crate::config::{Config, RawConfig};
use crate::context::{AppContext, Clock, Random};
use crate::rpc::{Connection, Presented};
use crate::store::{RecordRange, hash_of};
use crate::web;

pub(super) const ORIGIN: &str = "https://iap.localhost:8443";
pub(super) const PORT: u16 = 40_123;
pub(super) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

pub(super) struct Plane {
    pub(super) logins: Arc<Logins>,
    pub(super) hostile: Hostile,
    router: Router,
    clock: Arc<AtomicI64>,
    pub(super) dir: TempDir,
}

/// A program that logs in, with its key.
pub(super) struct Program {
    pub(super) key: KeyPair,
    pub(super) started: Started,
}

impl Plane {
    pub(super) async fn start() -> Self {
        Self::with(Behaviour::default(), "").await
    }

    /// `more`: further configuration.
    pub(super) async fn with(behaviour: Behaviour, more: &str) -> Self {
        let hostile = Hostile::start(behaviour).await;
        let dir = iap_testkit::temp().unwrap();
        let config = configuration(&dir, hostile.issuer(), more);
        let clock = Arc::new(AtomicI64::new(0));
        let moved = Arc::clone(&clock);
        let now = move || OffsetDateTime::now_utc() + Duration::seconds(moved.load(Ordering::Relaxed));
        let opened = AppContext::open(config, Clock::from_fn(now), Random::system())
            .await
            .unwrap();
        let logins = Arc::new(Logins::new(Arc::new(opened.context)).unwrap());
        Self {
            router: web::router(Arc::clone(&logins)),
            logins,
            hostile,
            clock,
            dir,
        }
    }

    pub(super) fn pass(&self, time: Duration) {
        self.clock.fetch_add(time.whole_seconds(), Ordering::Relaxed);
    }

    pub(super) fn request(key: &KeyPair, method: &str) -> StartRequest {
        StartRequest {
            method: method.to_owned(),
            key_thumbprint: hash_of(&key.subject_public_key_info()).to_vec(),
            host_name: "<laptop>".to_owned(),
            user_name: "al".to_owned(),
            redirect_port: u32::from(PORT),
            ..StartRequest::default()
        }
    }

    pub(super) async fn program(&self, method: &str) -> Program {
        let key = KeyPair::generate().unwrap();
        let started = self
            .logins
            .start(Self::request(&key, method), HERE)
            .await
            .unwrap();
        Program { key, started }
    }

    pub(super) fn visitor(&self) -> Visitor {
        self.visitor_from(HERE)
    }

    pub(super) fn visitor_from(&self, address: IpAddr) -> Visitor {
        let connection = Connection {
            address: SocketAddr::new(address, 5555),
            certificate: Presented::NoCertificate,
        };
        let router = self.router.clone().layer(axum::Extension(connection));
        Visitor {
            router,
            cookies: BTreeMap::new(),
        }
    }

    /// Opens the program's URL, signs in, and stands before the approval page.
    pub(super) async fn to_approval(&self, visitor: &mut Visitor, program: &Program) -> Seen {
        let sent = visitor.get(&program.started.url).await;
        let code = self.hostile.sign_in(&sent.location());
        let back = visitor.get(&callback(&sent.location(), &code)).await;
        assert_eq!(back.status, StatusCode::SEE_OTHER, "{}", back.body);
        visitor.get(&back.location()).await
    }

    /// Approves, and returns the one-time code that the loopback port would get.
    pub(super) async fn approved_code(&self, program: &Program) -> String {
        let mut visitor = self.visitor();
        let page = self.to_approval(&mut visitor, program).await;
        let done = visitor.decide(&page, "approve").await;
        parameter(&done.location(), "code")
    }

    pub(super) async fn finish(&self, program: &Program, code: &str) -> Result<Finished, FinishError> {
        self.finish_with(program, code, &program.key).await
    }

    pub(super) async fn finish_with(
        &self,
        program: &Program,
        code: &str,
        key: &KeyPair,
    ) -> Result<Finished, FinishError> {
        let csr = certificate_request(key).unwrap();
        self.logins
            .finish(program.started.login_id, code, &csr, HERE)
            .await
    }

    /// (event, reason) of every record so far.
    pub(super) async fn events(&self) -> Vec<(String, String)> {
        let records = self.records().await;
        let text = |record: &Value, field: &str| record[field].as_str().unwrap_or_default().to_owned();
        records
            .iter()
            .map(|record| (text(record, "event"), text(record, "reason")))
            .collect()
    }

    /// The reasons of the failed logins so far.
    pub(super) async fn failures(&self) -> Vec<String> {
        let events = self.events().await;
        events
            .into_iter()
            .filter(|(event, _)| event == "login.failure")
            .map(|(_, reason)| reason)
            .collect()
    }

    pub(super) async fn records(&self) -> Vec<Value> {
        let range = RecordRange {
            before_seq: u64::MAX >> 1,
            since: OffsetDateTime::UNIX_EPOCH,
            until: OffsetDateTime::now_utc() + Duration::days(1),
        };
        let store = &self.logins.context().store;
        let mut records = store.records(range, 1_000).await.unwrap();
        records.sort_by_key(|record| record.seq);
        records
            .iter()
            .map(|record| serde_json::from_slice(&record.bytes).unwrap())
            .collect()
    }
}

fn configuration(dir: &TempDir, issuer: &str, more: &str) -> Config {
    let secret = dir.path().join("client_secret");
    std::fs::write(&secret, CLIENT_SECRET).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = format!(
        r#"
        cluster = "iap.localhost"
        data_dir = "{data}"
        listen = "127.0.0.1:0"
        public_address = "iap.localhost:8443"
        development = true
        {more}
        [[connector]]
        name = "hostile"
        issuer = "{issuer}"
        client_id = "{CLIENT_ID}"
        client_secret_file = "{secret}"
        groups_claim = "groups"
        domains = ["example.com"]
        "#,
        data = dir.path().join("data").display(),
        secret = secret.display(),
    );
    let raw: RawConfig = toml::from_str(&text).unwrap();
    Config::check(raw, "test.toml").unwrap()
}

/// The provider's redirect back to us.
pub(super) fn callback(authorization: &str, code: &str) -> String {
    format!(
        "/login/callback?code={code}&state={}",
        parameter(authorization, "state")
    )
}

pub(super) fn parameter(url: &str, name: &str) -> String {
    let url = Url::parse(url).unwrap();
    url.query_pairs()
        .find(|(key, _)| key == name)
        .unwrap_or_else(|| panic!("no {name} in {url}"))
        .1
        .into_owned()
}

/// A browser: keeps cookies, follows nothing.
pub(super) struct Visitor {
    router: Router,
    pub(super) cookies: BTreeMap<String, String>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Visitor {
    pub(super) async fn get(&mut self, address: &str) -> Seen {
        let path = address.strip_prefix(ORIGIN).unwrap_or(address);
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(super) async fn post(&mut self, path: &str, origin: Option<&str>, fields: &[(&str, &str)]) -> Seen {
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let mut request =
            Request::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        self.send(request.body(Body::from(form)).unwrap()).await
    }

    /// Presses a button of the approval page.
    pub(super) async fn decide(&mut self, page: &Seen, decision: &str) -> Seen {
        let (action, token) = page.form();
        self.post(
            &action,
            Some(ORIGIN),
            &[("token", &token), ("decision", decision)],
        )
        .await
    }

    async fn send(&mut self, mut request: Request<Body>) -> Seen {
        let headers = request.headers_mut();
        headers.insert(header::HOST, "iap.localhost:8443".parse().unwrap());
        for (name, value) in &self.cookies {
            headers.append(header::COOKIE, format!("{name}={value}").parse().unwrap());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        for cookie in parts.headers.get_all(header::SET_COOKIE) {
            let cookie = cookie.to_str().unwrap();
            assert!(
                cookie.starts_with("__Host-") && cookie.ends_with("; Secure; HttpOnly; SameSite=Lax"),
                "{cookie}"
            );
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        let body = body.collect().await.unwrap().to_bytes();
        Seen {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }
}

impl Seen {
    pub(super) fn location(&self) -> String {
        let location = self.headers.get(header::LOCATION);
        location
            .unwrap_or_else(|| panic!("{} without redirect: {}", self.status, self.body))
            .to_str()
            .unwrap()
            .to_owned()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}"))
            .to_str()
            .unwrap()
    }

    /// The approval form's action and token.
    pub(super) fn form(&self) -> (String, String) {
        let after = |mark: &str| {
            let rest = self
                .body
                .split_once(mark)
                .unwrap_or_else(|| panic!("no {mark} in {}", self.body))
                .1;
            rest.split('"').next().unwrap().to_owned()
        };
        (after("action=\""), after("name=\"token\" value=\""))
    }
}
