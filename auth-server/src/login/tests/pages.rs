//! What every page keeps, and what the cluster says of itself.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::plane::{PORT, Plane};

const ADDRESSES: [&str; 7] = [
    "/",
    "/device",
    "/style.css",
    "/.well-known/iap",
    "/.well-known/jwks.json",
    "/nothing",
    "/login/callback",
];

#[tokio::test]
async fn every_answer_forbids_frames_scripts_sniffing_and_foreign_forms() {
    let plane = Plane::start().await;
    let mut visitor = plane.visitor();
    let program = plane.program("browser").await;
    let mut answers = vec![plane.to_approval(&mut plane.visitor(), &program).await];
    for address in ADDRESSES {
        answers.push(visitor.get(address).await);
    }
    for answer in answers {
        let policy = answer.header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action ",
        ] {
            assert!(policy.contains(rule), "{rule} is missing in {policy}");
        }
        assert!(
            !policy.contains("script") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(answer.header("x-frame-options"), "DENY");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert!(["no-referrer", "same-origin"].contains(&answer.header("referrer-policy")));
        assert!(answer.header("cache-control").starts_with("no-store") || answer.body.starts_with(":root"));
        assert!(!answer.body.contains("<script") && !answer.body.contains("style=\""));
    }
}

#[tokio::test]
async fn the_approval_form_may_lead_to_its_own_loopback_port_and_nowhere_else() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let page = plane.to_approval(&mut plane.visitor(), &program).await;
    let expected = format!("form-action 'self' http://127.0.0.1:{PORT}");
    assert!(page.header("content-security-policy").ends_with(&expected));
    // With `no-referrer` browsers would send `Origin: null`, which is refused.
    assert_eq!(page.header("referrer-policy"), "same-origin");
}

#[tokio::test]
async fn the_cluster_names_its_root_and_pin() {
    let plane = Plane::start().await;
    let answer = plane.visitor().get("/.well-known/iap").await;
    let said: Value = serde_json::from_str(&answer.body).unwrap();
    let authority = &plane.logins.context().authority;
    let expected = json!({
        "cluster": "iap.localhost",
        "pin": authority.pin().to_string(),
        "ca_pem": authority.root_pem(),
        "proxies": [],
    });
    assert_eq!(said, expected);
    assert_eq!(
        plane.visitor().get("/.well-known/jwks.json").await.body,
        r#"{"keys":[]}"#
    );
}

#[tokio::test]
async fn another_name_is_misdirected() {
    use axum::body::Body;
    use axum::http::{Request, header};
    use tower::ServiceExt as _;
    let plane = Plane::start().await;
    let router = crate::web::router(std::sync::Arc::clone(&plane.logins));
    for host in [
        "db-prod.iap.localhost",
        "evil.example",
        "iap.localhost.evil.example",
        "127.0.0.1:8443",
    ] {
        let request = Request::get("/")
            .header(header::HOST, host)
            .body(Body::empty())
            .unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{host}");
    }
    let nameless = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(
        router.oneshot(nameless).await.unwrap().status(),
        StatusCode::MISDIRECTED_REQUEST
    );
}

#[tokio::test]
async fn large_forms_are_not_read() {
    let plane = Plane::start().await;
    let long = "B".repeat(5_000);
    let page = plane
        .visitor()
        .post("/device", Some(super::plane::ORIGIN), &[("code", &long)])
        .await;
    assert_eq!(page.status, StatusCode::PAYLOAD_TOO_LARGE);
}
