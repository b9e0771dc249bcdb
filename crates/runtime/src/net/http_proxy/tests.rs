//! Answers of an HTTP proxy, good and bad, and the variables that name one.

#![allow(clippy::unwrap_used, clippy::panic)]

use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn target() -> HostPort {
    HostPort::parse("iap.example.com:443").unwrap()
}

fn found(variables: &[(&str, &str)], target: &str) -> Result<Option<HttpProxy>, HttpProxyError> {
    let value = |name: &str| {
        let set = variables.iter().find(|(set, _)| *set == name);
        set.map(|(_, value)| (*value).to_owned())
    };
    proxied_as(value, &HostPort::parse(target).unwrap())
}

fn address(variables: &[(&str, &str)], target: &str) -> Option<String> {
    found(variables, target)
        .unwrap()
        .map(|proxy| proxy.address().to_string())
}

/// An HTTP proxy that hears one request and says `answer`; yields what it heard and what came behind it.
async fn proxy_that_says(answer: &'static [u8]) -> (HttpProxy, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://alice:s%3Acret@{}", listener.local_addr().unwrap());
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 4096];
        let count = stream.read(&mut heard).await.unwrap();
        stream.write_all(answer).await.unwrap();
        if answer.is_empty() {
            std::future::pending::<()>().await;
        }
        let mut behind = [0; 4];
        let tunnelled = stream.read_exact(&mut behind).await.is_ok();
        let heard = String::from_utf8_lossy(heard.get(..count).unwrap()).into_owned();
        match tunnelled {
            true => heard + &String::from_utf8_lossy(&behind),
            false => heard,
        }
    });
    (HttpProxy::parse(&url).unwrap(), heard)
}

async fn refusal(answer: &'static [u8]) -> io::Error {
    let (proxy, _heard) = proxy_that_says(answer).await;
    let route = Route::Through {
        proxy,
        target: target(),
    };
    route.connect(PATIENCE).await.unwrap_err()
}

#[test]
fn the_variables_count_in_upper_and_lower_case_and_empty_ones_do_not() {
    let target = "iap.example.com:443";
    assert_eq!(address(&[], target), None);
    assert_eq!(address(&[("HTTPS_PROXY", "")], target), None);
    assert_eq!(
        address(&[("https_proxy", "http://p:3128")], target).as_deref(),
        Some("p:3128")
    );
    let both = [
        ("HTTPS_PROXY", "http://upper:1"),
        ("https_proxy", "http://lower:2"),
    ];
    assert_eq!(address(&both, target).as_deref(), Some("upper:1"));
    for list in ["NO_PROXY", "no_proxy"] {
        assert_eq!(
            address(&[("HTTPS_PROXY", "p:1"), (list, "example.com")], target),
            None,
            "{list}"
        );
    }
    assert_eq!(address(&[("HTTPS_PROXY", "p:1")], "iap.localhost:443"), None);
}

#[test]
fn a_proxy_is_named_as_a_url_or_as_host_and_port() {
    for (url, place) in [
        ("http://proxy.example.com:3128", "proxy.example.com:3128"),
        ("HTTP://proxy.example.com:3128/", "proxy.example.com:3128"),
        ("proxy.example.com:3128", "proxy.example.com:3128"),
        ("http://proxy.example.com", "proxy.example.com:80"),
        ("http://[2001:db8::1]:3128", "[2001:db8::1]:3128"),
        ("http://[2001:db8::1]", "[2001:db8::1]:80"),
        ("http://user:p%40ss@192.0.2.1:8080/?x", "192.0.2.1:8080"),
    ] {
        assert_eq!(
            address(&[("HTTPS_PROXY", url)], "iap.example.com:443").as_deref(),
            Some(place)
        );
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_an_error_without_its_password() {
    for url in [
        "socks5://hunter2@p:1",
        "https://u:hunter2@p:1",
        "http://u:hunter2@",
        "http://u:hunter2@p:port",
        "http://u:hunter2%@p:1",
        "http://u:hunter2%zz@p:1",
        "http://u:hunter2%0d%0a@p:1",
        "http://u%3a:hunter2@p:1",
    ] {
        let error = found(&[("https_proxy", url)], "iap.example.com:443").unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(
            said.contains("https_proxy") && !said.contains("hunter2"),
            "{said}"
        );
    }
    let proxy = HttpProxy::parse("http://u:hunter2@p:1").unwrap();
    assert!(!format!("{proxy} {proxy:?}").contains("hunter2"));
}

#[tokio::test]
async fn connect_names_the_target_and_the_user_and_then_carries_bytes() {
    let (proxy, heard) = proxy_that_says(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await;
    let route = Route::Through {
        proxy,
        target: target(),
    };
    let mut stream = route.connect(PATIENCE).await.unwrap();
    stream.write_all(b"tail").await.unwrap();
    let heard = heard.await.unwrap();
    assert!(
        heard.starts_with("CONNECT iap.example.com:443 HTTP/1.1\r\nHost: iap.example.com:443\r\n"),
        "{heard}"
    );
    // "alice:s:cret"
    assert!(
        heard.contains("\r\nProxy-Authorization: Basic YWxpY2U6czpjcmV0\r\n"),
        "{heard}"
    );
    assert!(heard.ends_with("\r\n\r\ntail"), "{heard}");
}

#[tokio::test]
async fn a_refusal_says_who_refused_what_with_which_words_and_what_to_do() {
    for (answer, words) in [
        (
            &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
            "does not accept the user",
        ),
        (
            b"HTTP/1.0 403 Forb\x1bidden\r\n\r\n",
            "403 Forbidden: ask whoever runs it",
        ),
        (b"HTTP/1.1 502\r\n\r\n", "cannot reach the target"),
    ] {
        let error = refusal(answer).await;
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let said = error.to_string();
        assert!(
            said.contains(words) && said.contains("to connect to iap.example.com:443"),
            "{said}"
        );
        assert!(said.starts_with("the HTTP proxy 127.0.0.1:"), "{said}");
    }
}

#[tokio::test]
async fn what_is_no_answer_to_connect_is_refused() {
    assert!(
        refusal(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            .await
            .to_string()
            .contains("does not speak HTTP")
    );
    assert!(
        refusal(b"HTTP/2 20x y\r\n\r\n")
            .await
            .to_string()
            .contains("does not speak HTTP")
    );
    assert!(
        refusal(b"HTTP/1.1 200 OK\r\n\r\nearly")
            .await
            .to_string()
            .contains("ahead of the tunnel")
    );
    static ENDLESS: [u8; 2 * ANSWER_HEAD_BYTES_MAX] = [b'a'; 2 * ANSWER_HEAD_BYTES_MAX];
    assert!(
        refusal(&ENDLESS)
            .await
            .to_string()
            .contains("longer than 8192 bytes")
    );
}

#[tokio::test]
async fn a_proxy_that_is_silent_or_away_is_named() {
    let (proxy, silent) = proxy_that_says(b"").await;
    let route = Route::Through {
        proxy,
        target: target(),
    };
    let error = route.connect(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(
        error
            .to_string()
            .contains("did not connect to iap.example.com:443"),
        "{error}"
    );
    silent.abort();
    let _ = silent.await;
    let gone = route.connect(PATIENCE).await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    assert!(gone.to_string().contains("cannot be reached"), "{gone}");
}
