//! An identity provider on loopback that can be told to misbehave in one way at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use openidconnect::url::Url;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::super::secrets::pkce_challenge;
use crate::config::ConnectorConfig;

pub(super) const CLIENT_ID: &str = "iap";
pub(super) const CLIENT_SECRET: &str = "a client secret: with colon";
const HUGE_BYTES: usize = 10 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// How one document is answered.
#[derive(Clone, Debug, Default)]
pub(super) enum Answering {
    #[default]
    Honestly,
    /// 302 to somewhere.
    WithRedirect(String),
    /// 10 MB.
    Hugely,
    /// Never.
    Never,
    /// Honestly, once the test lets it: a permit for each answer.
    Gated(Arc<Gate>),
    /// Something else in its place.
    With(Value),
}

/// Holds answers back.
#[derive(Debug)]
pub(super) struct Gate {
    /// One permit for each request that has arrived.
    pub(super) arrived: Semaphore,
    /// One permit for each answer that may go.
    pub(super) open: Semaphore,
}

impl Gate {
    pub(super) fn closed() -> Arc<Self> {
        Arc::new(Self {
            arrived: Semaphore::new(0),
            open: Semaphore::new(0),
        })
    }
}

/// What is wrong with the ID token.
#[derive(Clone, Debug, Default)]
pub(super) enum Forgery {
    #[default]
    None,
    /// `alg=none`, no signature.
    Unsigned,
    /// HS256 with the bytes of a public key.
    HmacWithPublicKey,
    /// HS256 with the client secret.
    HmacWithClientSecret,
    /// Signed by a key that is in no key set.
    StrangersKey,
    /// Signed by the right key, header naming another.
    OtherKeyId,
}

/// Whether there are refresh tokens, and what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Refreshing {
    /// None are given.
    #[default]
    Never,
    /// Each is good for one use and replaced at that.
    Rotating,
    /// One, for ever.
    Fixed,
    /// Every use is answered with this OAuth error.
    With(&'static str),
    /// Every use is answered with 503 and a page.
    OutOfOrder,
    /// Rotates, after a while.
    Slowly(std::time::Duration),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Behaviour {
    pub(super) discovery: Answering,
    /// Replaced in the discovery document.
    pub(super) metadata: Vec<(&'static str, Value)>,
    pub(super) keys: Answering,
    pub(super) token: Answering,
    pub(super) forgery: Forgery,
    /// Replaced in the ID token; null takes a claim away.
    pub(super) claims: Vec<(&'static str, Value)>,
    pub(super) user_info: Option<Value>,
    pub(super) refreshing: Refreshing,
}

#[derive(Default)]
struct Counts {
    discovery: usize,
    keys: usize,
    trap: usize,
    refreshes: usize,
    revocations: usize,
}

struct Granted {
    nonce: String,
    challenge: String,
    redirect_uri: String,
}

struct Shared {
    issuer: String,
    key: SigningKey,
    behaviour: Mutex<Behaviour>,
    codes: Mutex<HashMap<String, Granted>>,
    /// Refresh tokens that are good now, each with the nonce of the login it came from, the newest last.
    refresh_tokens: Mutex<Vec<(String, String)>>,
    counts: Mutex<Counts>,
}

/// The running provider; it ends with the test's runtime.
pub(super) struct Hostile(Arc<Shared>);

impl Hostile {
    pub(super) async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            issuer,
            key: SigningKey::generate("first"),
            behaviour: Mutex::new(behaviour),
            codes: Mutex::default(),
            refresh_tokens: Mutex::default(),
            counts: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(keys))
            .route("/token", post(token))
            .route("/userinfo", get(user_info))
            .route("/revoke", post(revoke))
            .route("/trap", any(trap))
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self(shared)
    }

    pub(super) fn issuer(&self) -> &str {
        &self.0.issuer
    }

    pub(super) fn connector(&self) -> ConnectorConfig {
        ConnectorConfig {
            name: "hostile".to_owned(),
            kind: crate::config::ConnectorKind::Oidc,
            issuer: self.0.issuer.clone(),
            client_id: CLIENT_ID.to_owned(),
            client_secret: Some(CLIENT_SECRET.into()),
            scopes: vec!["openid".to_owned(), "groups".to_owned()],
            groups_claim: Some("groups".to_owned()),
            group_names: Default::default(),
            mfa_acr: Vec::new(),
            domains: ["example.com".to_owned()].into(),
            allow_private: false,
        }
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        *self.0.behaviour.lock().unwrap() = behaviour;
    }

    /// What the provider does when a person signs in at this URL: the code it redirects back with.
    pub(super) fn sign_in(&self, authorization: &str) -> String {
        let url = Url::parse(authorization).unwrap();
        let parameter = |name: &str| {
            url.query_pairs()
                .find(|(key, _)| key == name)
                .unwrap()
                .1
                .into_owned()
        };
        assert_eq!(parameter("code_challenge_method"), "S256");
        let mut codes = self.0.codes.lock().unwrap();
        let code = format!("code-{}", codes.len());
        let granted = Granted {
            nonce: parameter("nonce"),
            challenge: parameter("code_challenge"),
            redirect_uri: parameter("redirect_uri"),
        };
        codes.insert(code.clone(), granted);
        code
    }

    pub(super) fn key_fetches(&self) -> usize {
        self.0.counts.lock().unwrap().keys
    }

    pub(super) fn discoveries(&self) -> usize {
        self.0.counts.lock().unwrap().discovery
    }

    pub(super) fn refreshes(&self) -> usize {
        self.0.counts.lock().unwrap().refreshes
    }

    pub(super) fn revocations(&self) -> usize {
        self.0.counts.lock().unwrap().revocations
    }

    /// The newest refresh token that is good now.
    pub(super) fn refresh_token(&self) -> Option<String> {
        let good = self.0.refresh_tokens.lock().unwrap();
        good.last().map(|(token, _)| token.clone())
    }

    pub(super) fn trapped(&self) -> usize {
        self.0.counts.lock().unwrap().trap
    }
}

impl Shared {
    fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().unwrap().clone()
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    shared.counts.lock().unwrap().discovery += 1;
    let issuer = &shared.issuer;
    let mut document = json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "jwks_uri": format!("{issuer}/jwks"),
        "revocation_endpoint": format!("{issuer}/revoke"),
    });
    let behaviour = shared.behaviour();
    replace(&mut document, &behaviour.metadata);
    answer(behaviour.discovery, document).await
}

async fn keys(State(shared): State<Arc<Shared>>) -> Response {
    shared.counts.lock().unwrap().keys += 1;
    answer(shared.behaviour().keys, json!({ "keys": [shared.key.public] })).await
}

async fn token(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Response {
    let behaviour = shared.behaviour();
    assert!(
        headers[header::AUTHORIZATION]
            .to_str()
            .unwrap()
            .starts_with("Basic ")
    );
    if form["grant_type"] == "refresh_token" {
        return refresh(&shared, &behaviour, &form["refresh_token"]).await;
    }
    let granted = shared.codes.lock().unwrap().remove(&form["code"]);
    let proven = granted.filter(|granted| {
        granted.challenge == pkce_challenge(&form["code_verifier"])
            && granted.redirect_uri == form["redirect_uri"]
    });
    let Some(granted) = proven else {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"}))).into_response();
    };
    let mut body = shared.tokens(&behaviour, &granted.nonce);
    if behaviour.refreshing != Refreshing::Never {
        body["refresh_token"] = json!(shared.next_refresh_token(&granted.nonce));
    }
    answer(behaviour.token, body).await
}

async fn refresh(shared: &Shared, behaviour: &Behaviour, token: &str) -> Response {
    shared.counts.lock().unwrap().refreshes += 1;
    let refused = |error: &str| (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    let Some(nonce) = shared.nonce_of(token) else {
        return refused("invalid_grant");
    };
    let mut body = shared.tokens(behaviour, &nonce);
    match &behaviour.refreshing {
        Refreshing::Never => return refused("unauthorized_client"),
        Refreshing::With(error) => return refused(error),
        Refreshing::OutOfOrder => return (StatusCode::SERVICE_UNAVAILABLE, "<h1>busy</h1>").into_response(),
        Refreshing::Fixed => {}
        Refreshing::Rotating => body["refresh_token"] = json!(shared.rotate(token, &nonce)),
        Refreshing::Slowly(time) => {
            body["refresh_token"] = json!(shared.rotate(token, &nonce));
            tokio::time::sleep(*time).await;
        }
    }
    Json(body).into_response()
}

async fn revoke(State(shared): State<Arc<Shared>>, Form(form): Form<HashMap<String, String>>) -> StatusCode {
    shared.counts.lock().unwrap().revocations += 1;
    shared
        .refresh_tokens
        .lock()
        .unwrap()
        .retain(|(token, _)| *token != form["token"]);
    StatusCode::OK
}

impl Shared {
    fn next_refresh_token(&self, nonce: &str) -> String {
        let token = format!("refresh-{}", uuid::Uuid::now_v7());
        self.refresh_tokens
            .lock()
            .unwrap()
            .push((token.clone(), nonce.to_owned()));
        token
    }

    fn rotate(&self, used: &str, nonce: &str) -> String {
        self.refresh_tokens
            .lock()
            .unwrap()
            .retain(|(token, _)| token != used);
        self.next_refresh_token(nonce)
    }

    fn nonce_of(&self, token: &str) -> Option<String> {
        let good = self.refresh_tokens.lock().unwrap();
        good.iter()
            .find(|(known, _)| known == token)
            .map(|(_, nonce)| nonce.clone())
    }

    fn tokens(&self, behaviour: &Behaviour, nonce: &str) -> Value {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut claims = json!({
            "iss": self.issuer, "aud": CLIENT_ID, "sub": "s1", "iat": now, "exp": now + 60, "nonce": nonce,
            "auth_time": now,
            "email": "alice@example.com", "email_verified": true, "preferred_username": "alice",
            "groups": ["engineering"],
        });
        replace(&mut claims, &behaviour.claims);
        let id_token = self.key.forge(&behaviour.forgery, &claims);
        json!({"access_token": "opaque", "token_type": "Bearer", "id_token": id_token})
    }
}

async fn user_info(State(shared): State<Arc<Shared>>) -> Response {
    match shared.behaviour().user_info {
        Some(info) => Json(info).into_response(),
        None => StatusCode::FORBIDDEN.into_response(),
    }
}

async fn trap(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.counts.lock().unwrap().trap += 1;
    StatusCode::OK
}

async fn answer(how: Answering, honest: Value) -> Response {
    match how {
        Answering::Honestly => Json(honest).into_response(),
        Answering::With(other) => Json(other).into_response(),
        Answering::WithRedirect(target) => (StatusCode::FOUND, [(header::LOCATION, target)]).into_response(),
        Answering::Never => std::future::pending().await,
        Answering::Gated(gate) => {
            gate.arrived.add_permits(1);
            gate.open.acquire().await.unwrap().forget();
            Json(honest).into_response()
        }
        Answering::Hugely => {
            let chunks = (0..HUGE_BYTES / CHUNK_BYTES)
                .map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; CHUNK_BYTES])));
            Body::from_stream(futures_util::stream::iter(chunks)).into_response()
        }
    }
}

fn replace(document: &mut Value, replacements: &[(&'static str, Value)]) {
    let fields = document.as_object_mut().unwrap();
    for (name, value) in replacements {
        match value {
            Value::Null => drop(fields.remove(*name)),
            value => drop(fields.insert((*name).to_owned(), value.clone())),
        }
    }
}

struct SigningKey {
    pair: KeyPair,
    public: Value,
    id: String,
}

impl SigningKey {
    fn generate(id: &str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let point = pair.der_bytes();
        let (x, y) = (
            URL_SAFE_NO_PAD.encode(&point[1..33]),
            URL_SAFE_NO_PAD.encode(&point[33..65]),
        );
        let public = json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "x": x, "y": y});
        Self {
            pair,
            public,
            id: id.to_owned(),
        }
    }

    fn forge(&self, forgery: &Forgery, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.clone());
        let hmac = |secret: &[u8]| {
            let header = Header {
                alg: Algorithm::HS256,
                kid: Some(self.id.clone()),
                ..Header::default()
            };
            jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).unwrap()
        };
        let signed = |header: &Header, key: &KeyPair| {
            jsonwebtoken::encode(header, claims, &EncodingKey::from_ec_der(&key.serialize_der())).unwrap()
        };
        match forgery {
            Forgery::None => signed(&header, &self.pair),
            Forgery::Unsigned => {
                let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
                format!("{}.{}.", encode(&json!({"alg": "none"})), encode(claims))
            }
            Forgery::HmacWithPublicKey => hmac(self.pair.der_bytes()),
            Forgery::HmacWithClientSecret => hmac(CLIENT_SECRET.as_bytes()),
            Forgery::StrangersKey => signed(&header, &Self::generate(&self.id).pair),
            Forgery::OtherKeyId => {
                header.kid = Some("second".to_owned());
                signed(&header, &self.pair)
            }
        }
    }

    fn public_as(&self, id: &str) -> Value {
        let mut public = self.public.clone();
        public["kid"] = json!(id);
        public
    }
}

impl Hostile {
    /// The key set after the provider has renamed its key.
    pub(super) fn rotated_keys(&self) -> Value {
        json!({ "keys": [self.0.key.public_as("second")] })
    }
}
