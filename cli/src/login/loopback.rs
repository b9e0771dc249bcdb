//! Receives the one-time code on 127.0.0.1 (RFC 8252 §7.3) and checks that it belongs to this login.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::Started;
use crate::failure::Failure;
use crate::trust::Trust;

/// Where the auth server sends the browser.
const PATH: &str = "/callback";
/// How long the last page may take to be sent.
const LAST_PAGE_SECONDS_MAX: u64 = 2;

/// A port on loopback that waits for the browser.
pub(super) struct Listener {
    listener: TcpListener,
    port: u16,
}

/// What must come with the code.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    login_id: String,
    key_thumbprint: String,
    pin: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Arrival {
    code: String,
    login_id: String,
    #[serde(alias = "thumbprint")]
    key_thumbprint: String,
    pin: String,
    error: String,
}

#[derive(Clone)]
struct Shared {
    expected: Expected,
    port: u16,
    outcome: mpsc::Sender<Result<String, String>>,
}

impl Expected {
    pub(super) fn of(started: &Started, trust: &Trust) -> Self {
        Self {
            login_id: started.login_id.as_uuid().to_string(),
            key_thumbprint: iap_identity::hex(&started.key_thumbprint),
            pin: trust.pin.to_string(),
        }
    }
}

impl Listener {
    pub(super) async fn bind() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("cannot listen on 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the code. Requests that do not belong to this login are refused and change nothing.
    pub(super) async fn wait(self, expected: &Expected) -> anyhow::Result<String> {
        let (outcome, mut arrived) = mpsc::channel(1);
        let shared = Shared {
            expected: expected.clone(),
            port: self.port,
            outcome,
        };
        let router = Router::new().route(PATH, get(receive)).with_state(shared);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = axum::serve(self.listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let serving = tokio::spawn(serving.into_future());
        let result = arrived.recv().await;
        let _ = stop.send(());
        // The browser keeps its connection open; it has its page by then.
        let _ = tokio::time::timeout(Duration::from_secs(LAST_PAGE_SECONDS_MAX), serving).await;
        match result {
            Some(Ok(code)) => Ok(code),
            Some(Err(why)) => Err(Failure::denied("the login was refused").because(why).into()),
            None => Err(Failure::failed("the local listener ended")
                .next("iapctl login")
                .into()),
        }
    }
}

async fn receive(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Query(arrival): Query<Arrival>,
) -> Response {
    if let Err(why) = check(&shared, &headers, &arrival) {
        return page(
            StatusCode::BAD_REQUEST,
            "This does not belong to the login that is waiting here.",
            why,
        );
    }
    let result = if arrival.error.is_empty() {
        Ok(arrival.code)
    } else {
        Err(arrival.error)
    };
    let response = match &result {
        Ok(_) => page(
            StatusCode::OK,
            "You are logged in.",
            "You may close this window and go back to the terminal.",
        ),
        Err(_) => page(
            StatusCode::OK,
            "The login was refused.",
            "The terminal says why. You may close this window.",
        ),
    };
    let _ = shared.outcome.try_send(result);
    response
}

fn check(shared: &Shared, headers: &HeaderMap, arrival: &Arrival) -> Result<(), &'static str> {
    // A page elsewhere whose name was pointed at 127.0.0.1 has another Host (DNS rebinding).
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if host != Some(&format!("127.0.0.1:{}", shared.port)) {
        return Err("The request is not for this listener.");
    }
    let expected = &shared.expected;
    if arrival.login_id != expected.login_id {
        return Err("It names another login.");
    }
    if arrival.key_thumbprint != expected.key_thumbprint {
        return Err("It was made for another key.");
    }
    if arrival.pin != expected.pin {
        return Err("It comes from a cluster with another pin.");
    }
    if arrival.code.is_empty() && arrival.error.is_empty() {
        return Err("It carries no code.");
    }
    Ok(())
}

fn page(status: StatusCode, title: &str, text: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>iapctl</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:32rem;margin:20vh auto;padding:0 1rem;\
         color-scheme:light dark}}</style><h1>{title}</h1><p>{text}</p>"
    );
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (header::CONNECTION, "close"),
    ];
    (status, headers, Html(html)).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    fn expected() -> Expected {
        Expected {
            login_id: "l".to_owned(),
            key_thumbprint: "k".to_owned(),
            pin: "sha256:p".to_owned(),
        }
    }

    async fn fetch(port: u16, host: &str, query: &str) -> u16 {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://127.0.0.1:{port}{PATH}?{query}");
        client
            .get(url)
            .header("host", host)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    #[tokio::test]
    async fn only_the_code_of_this_login_key_and_cluster_is_taken() {
        let listener = Listener::bind().await.unwrap();
        let port = listener.port();
        let waiting = tokio::spawn(async move { listener.wait(&expected()).await });
        let host = format!("127.0.0.1:{port}");
        for query in [
            "code=c&login_id=x&key_thumbprint=k&pin=sha256:p",
            "code=c&login_id=l&key_thumbprint=x&pin=sha256:p",
            "code=c&login_id=l&key_thumbprint=k&pin=sha256:x",
            "login_id=l&key_thumbprint=k&pin=sha256:p",
            "",
        ] {
            assert_eq!(fetch(port, &host, query).await, 400, "{query}");
        }
        let right = "code=c&login_id=l&key_thumbprint=k&pin=sha256:p";
        assert_eq!(fetch(port, "evil.example", right).await, 400);
        assert_eq!(fetch(port, &host, right).await, 200);
        assert_eq!(waiting.await.unwrap().unwrap(), "c");
    }

    #[tokio::test]
    async fn a_refusal_on_the_page_is_a_denial_with_its_reason() {
        let listener = Listener::bind().await.unwrap();
        let port = listener.port();
        let waiting = tokio::spawn(async move { listener.wait(&expected()).await });
        let query = "error=not+me&login_id=l&key_thumbprint=k&pin=sha256:p";
        assert_eq!(fetch(port, &format!("127.0.0.1:{port}"), query).await, 200);
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(crate::failure::status_of(&error).code(), 3);
        assert!(error.to_string().contains("not me"));
    }
}
