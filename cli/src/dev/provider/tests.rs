//! The provider over real HTTP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::LOCATION;
use reqwest::{Client, StatusCode, redirect};
use serde_json::Value;

use super::*;

const CALLBACK: &str = "https://iap.localhost/login/callback";
/// RFC 7636 appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

fn settings(issuer: &str) -> Settings {
    Settings {
        issuer: issuer.to_owned(),
        client_id: "iap".to_owned(),
        client_secret: "secret".to_owned(),
        redirect_uris: vec![CALLBACK.to_owned()],
        users: vec![ProviderUser::new(
            "alice@example.com",
            vec!["engineering".to_owned()],
        )],
    }
}

struct Running {
    issuer: String,
    client: Client,
}

impl Running {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let serving = serve(listener, settings(&issuer), std::future::pending());
        tokio::spawn(async move { serving.await.unwrap() });
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        Self { issuer, client }
    }

    async fn document(&self, path: &str) -> Value {
        self.client
            .get(format!("{}{path}", self.issuer))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }

    async fn authorize(&self, changed: &[(&str, &str)]) -> reqwest::Response {
        let mut form = vec![
            ("response_type", "code"),
            ("client_id", "iap"),
            ("redirect_uri", CALLBACK),
            ("scope", "openid groups"),
            ("state", "the state"),
            ("nonce", "n"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
            ("user", "alice"),
        ];
        for (name, value) in changed {
            form.retain(|(existing, _)| existing != name);
            form.push((name, value));
        }
        self.client
            .post(format!("{}/authorize", self.issuer))
            .form(&form)
            .send()
            .await
            .unwrap()
    }

    async fn code(&self) -> String {
        let answer = self.authorize(&[]).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let target = Url::parse(answer.headers()[LOCATION].to_str().unwrap()).unwrap();
        let parameter = |name: &str| {
            target
                .query_pairs()
                .find(|(key, _)| key == name)
                .unwrap()
                .1
                .into_owned()
        };
        assert!(target.as_str().starts_with(CALLBACK));
        assert_eq!(
            (parameter("state").as_str(), parameter("iss")),
            ("the state", self.issuer.clone())
        );
        parameter("code")
    }

    async fn redeem(&self, code: &str, verifier: &str, secret: &str) -> (StatusCode, Value) {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", verifier),
        ];
        let request = self
            .client
            .post(format!("{}/token", self.issuer))
            .basic_auth("iap", Some(secret))
            .form(&form);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn it_refuses_an_issuer_that_is_not_loopback() {
    for issuer in [
        "http://192.0.2.1:8080",
        "https://sso.example.com",
        "http://localhost.example.com",
        "nonsense",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = serve(listener, settings(issuer), std::future::pending()).await;
        assert!(matches!(refused, Err(ProviderError::NotLoopback(_))), "{issuer}");
    }
}

#[tokio::test]
async fn it_refuses_to_listen_beyond_loopback() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = serve(listener, settings("http://127.0.0.1:1"), std::future::pending()).await;
    assert!(matches!(refused, Err(ProviderError::NotLoopback(_))));
}

#[tokio::test]
async fn a_pressed_button_becomes_tokens_that_name_the_user() {
    let running = Running::start().await;
    assert_eq!(
        running.document("/.well-known/openid-configuration").await["issuer"],
        running.issuer
    );
    let code = running.code().await;
    let (status, tokens) = running.redeem(&code, VERIFIER, "secret").await;
    assert_eq!(status, StatusCode::OK);
    let claims = claims(tokens["id_token"].as_str().unwrap());
    assert_eq!((&claims["sub"], &claims["nonce"]), (&"alice".into(), &"n".into()));
    assert_eq!(
        (&claims["email"], &claims["groups"][0]),
        (&"alice@example.com".into(), &"engineering".into())
    );
    let access = tokens["access_token"].as_str().unwrap();
    let info = running
        .client
        .get(format!("{}/userinfo", running.issuer))
        .bearer_auth(access)
        .send()
        .await
        .unwrap();
    assert_eq!(info.json::<Value>().await.unwrap()["sub"], "alice");
}

#[tokio::test]
async fn a_code_is_worth_nothing_twice_without_its_verifier_or_to_another_client() {
    let running = Running::start().await;
    let code = running.code().await;
    assert_eq!(
        running.redeem(&code, VERIFIER, "wrong").await.0,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(running.redeem(&code, VERIFIER, "secret").await.0, StatusCode::OK);
    assert_eq!(
        running.redeem(&code, VERIFIER, "secret").await.0,
        StatusCode::BAD_REQUEST
    );
    let another = running.code().await;
    assert_eq!(
        running.redeem(&another, "another verifier", "secret").await.0,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn codes_go_to_the_registered_address_alone() {
    let running = Running::start().await;
    for changed in [
        ("redirect_uri", "https://evil.example/login/callback"),
        ("client_id", "another"),
        ("code_challenge_method", "plain"),
        ("scope", "email"),
        ("user", "mallory"),
    ] {
        assert_eq!(
            running.authorize(&[changed]).await.status(),
            StatusCode::BAD_REQUEST,
            "{changed:?}"
        );
    }
}
