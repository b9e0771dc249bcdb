//! Browsers and sites that try to slip something in.

use std::sync::Arc;

use axum::http::StatusCode;

use super::super::{LoginId, StartError, StartRequest};
use super::hostile::{Answering, Behaviour, Gate};
use super::plane::{HERE, ORIGIN, Plane, callback, parameter};
use rcgen::KeyPair;

#[tokio::test]
async fn an_answer_with_a_wrong_state_is_refused_and_recorded() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    let code = plane.hostile.sign_in(&sent);
    for state in ["", "forged"] {
        let page = visitor
            .get(&format!("/login/callback?code={code}&state={state}"))
            .await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(plane.failures().await, ["wrong_state", "wrong_state"]);
    assert_eq!(
        visitor.get(&callback(&sent, &code)).await.status,
        StatusCode::SEE_OTHER,
        "the login goes on"
    );
}

#[tokio::test]
async fn wrong_states_are_recorded_five_times_at_most_and_end_the_login() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    for _ in 0..9 {
        visitor.get("/login/callback?code=x&state=forged").await;
    }
    assert_eq!(plane.failures().await.len(), 5);
    let code = plane.hostile.sign_in(&sent);
    assert_eq!(
        visitor.get(&callback(&sent, &code)).await.status,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn an_answer_in_another_browser_is_refused() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    let code = plane.hostile.sign_in(&sent);
    let mut other = plane.visitor();
    assert_eq!(
        other.get(&callback(&sent, &code)).await.status,
        StatusCode::FORBIDDEN
    );
    other.cookies = visitor
        .cookies
        .keys()
        .map(|name| (name.clone(), "forged".to_owned()))
        .collect();
    assert_eq!(
        other.get(&callback(&sent, &code)).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(plane.failures().await, ["other_browser", "other_browser"]);
    assert_eq!(
        visitor.get(&callback(&sent, &code)).await.status,
        StatusCode::SEE_OTHER
    );
}

#[tokio::test]
async fn an_answer_is_taken_once() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    let code = plane.hostile.sign_in(&sent);
    assert_eq!(
        visitor.get(&callback(&sent, &code)).await.status,
        StatusCode::SEE_OTHER
    );
    assert_eq!(
        visitor.get(&callback(&sent, &code)).await.status,
        StatusCode::BAD_REQUEST
    );
}

/// The one who started the login opens its page again in the moment in which somebody else's answer is with
/// the provider.
#[tokio::test]
async fn a_login_that_is_opened_again_during_the_exchange_stays_with_the_browser_that_signed_in() {
    let gate = Gate::closed();
    let behaviour = Behaviour {
        token: Answering::Gated(Arc::clone(&gate)),
        ..Behaviour::default()
    };
    let plane = Plane::with(behaviour, "").await;
    let program = plane.program("browser").await;
    let (mut victim, mut thief) = (plane.visitor(), plane.visitor());
    let sent = victim.get(&program.started.url).await.location();
    let back = callback(&sent, &plane.hostile.sign_in(&sent));
    let exchanging = tokio::spawn(async move { (victim.get(&back).await, victim) });
    gate.arrived.acquire().await.unwrap().forget();

    let opened = thief.get(&program.started.url).await;
    gate.open.add_permits(1);
    let (answered, mut victim) = exchanging.await.unwrap();
    let approval = answered.location();
    assert_eq!(thief.get(&approval).await.status, StatusCode::FORBIDDEN);
    assert_eq!(opened.status, StatusCode::CONFLICT, "{}", opened.body);
    let page = victim.get(&approval).await;
    assert!(page.body.contains("alice@example.com"), "{}", page.body);
}

#[tokio::test]
async fn an_answer_that_comes_twice_at_once_is_exchanged_once_and_ends_no_login() {
    let gate = Gate::closed();
    let behaviour = Behaviour {
        token: Answering::Gated(Arc::clone(&gate)),
        ..Behaviour::default()
    };
    let plane = Plane::with(behaviour, "").await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    let back = callback(&sent, &plane.hostile.sign_in(&sent));
    let mut twin = plane.visitor();
    twin.cookies.clone_from(&visitor.cookies);
    // The browser goes away in the midst of it: the code is used up, so the exchange goes on.
    let first = tokio::spawn({
        let back = back.clone();
        async move { twin.get(&back).await }
    });
    gate.arrived.acquire().await.unwrap().forget();
    first.abort();
    assert_eq!(visitor.get(&back).await.status, StatusCode::CONFLICT);
    gate.open.add_permits(1);
    let approval = format!("/login/{}/approve", program.started.login_id);
    let page = loop {
        let page = visitor.get(&approval).await;
        if page.status == StatusCode::OK {
            break page;
        }
        tokio::task::yield_now().await;
    };
    assert!(page.body.contains("alice@example.com"), "{}", page.body);
    assert_eq!(plane.failures().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_providers_refusal_ends_the_login_in_its_own_words() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    let state = parameter(&sent, "state");
    let query = format!("error=access_denied&error_description=not%20%3Cyou%3E&state={state}");
    let page = visitor.get(&format!("/login/callback?{query}")).await;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
    assert!(
        page.body.contains("access_denied") && page.body.contains("not &lt;you&gt;"),
        "{}",
        page.body
    );
    assert_eq!(plane.failures().await, ["provider_refused"]);
}

#[tokio::test]
async fn the_approval_page_is_shown_in_the_browser_that_signed_in_alone() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let page = plane.to_approval(&mut visitor, &program).await;
    let (path, token) = page.form();
    let mut other = plane.visitor();
    assert_eq!(other.get(&path).await.status, StatusCode::FORBIDDEN);
    let fields = [("token", token.as_str()), ("decision", "approve")];
    assert_eq!(
        other.post(&path, Some(ORIGIN), &fields).await.status,
        StatusCode::FORBIDDEN
    );
    other.cookies = visitor
        .cookies
        .keys()
        .map(|name| (name.clone(), "forged".to_owned()))
        .collect();
    assert_eq!(other.get(&path).await.status, StatusCode::FORBIDDEN);
    assert_eq!(
        other.post(&path, Some(ORIGIN), &fields).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        visitor.decide(&page, "approve").await.status,
        StatusCode::SEE_OTHER
    );
}

#[tokio::test]
async fn an_approval_that_our_page_did_not_send_is_refused() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let page = plane.to_approval(&mut visitor, &program).await;
    let (path, token) = page.form();
    let right = [("token", token.as_str()), ("decision", "approve")];
    for origin in [
        None,
        Some("null"),
        Some("https://evil.example"),
        Some("http://iap.localhost:8443"),
    ] {
        assert_eq!(
            visitor.post(&path, origin, &right).await.status,
            StatusCode::FORBIDDEN,
            "{origin:?}"
        );
    }
    let forged = [("token", "forged"), ("decision", "approve")];
    assert_eq!(
        visitor.post(&path, Some(ORIGIN), &forged).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(plane.failures().await, ["forged_approval"]);
    assert_eq!(
        visitor.get(&path).await.status,
        StatusCode::OK,
        "a GET approves nothing"
    );
    assert_eq!(
        visitor.decide(&page, "approve").await.status,
        StatusCode::SEE_OTHER
    );
    assert_eq!(
        visitor.decide(&page, "approve").await.status,
        StatusCode::CONFLICT,
        "pressed twice"
    );
}

#[tokio::test]
async fn a_login_opens_with_its_secret_alone() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let path = format!("/login/{}", program.started.login_id);
    for address in [
        path.clone(),
        format!("{path}?s="),
        format!("{path}?s=guess"),
        "/login/nonsense".to_owned(),
    ] {
        assert_eq!(
            plane.visitor().get(&address).await.status,
            StatusCode::NOT_FOUND,
            "{address}"
        );
    }
    let unknown = LoginId::from_uuid(uuid::Uuid::nil());
    assert_eq!(
        plane.visitor().get(&format!("/login/{unknown}?s=x")).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_method_that_is_switched_off_starts_nothing() {
    let plane = Plane::with(Behaviour::default(), "[login]\nmethods = [\"browser\"]").await;
    let key = KeyPair::generate().unwrap();
    let refused = plane
        .logins
        .start(Plane::request(&key, "headless"), HERE)
        .await
        .err()
        .unwrap();
    assert_eq!(
        refused.to_string(),
        "the login method `headless` is switched off here; use browser"
    );
    plane
        .logins
        .start(Plane::request(&key, "browser"), HERE)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_start_that_makes_no_sense_is_refused_by_field() {
    let plane = Plane::start().await;
    let key = KeyPair::generate().unwrap();
    let right = Plane::request(&key, "browser");
    let wrong = [
        (
            "method",
            StartRequest {
                method: "telepathy".to_owned(),
                ..right.clone()
            },
        ),
        (
            "key_thumbprint",
            StartRequest {
                key_thumbprint: vec![0; 31],
                ..right.clone()
            },
        ),
        (
            "redirect_port",
            StartRequest {
                redirect_port: 0,
                ..right.clone()
            },
        ),
        (
            "redirect_port",
            StartRequest {
                redirect_port: 65_536,
                ..right.clone()
            },
        ),
    ];
    for (expected, request) in wrong {
        let refused = plane.logins.start(request, HERE).await.err();
        assert!(
            matches!(&refused, Some(StartError::Malformed { field, .. }) if *field == expected),
            "{refused:?}"
        );
    }
    let unknown = StartRequest {
        connector: "okta".to_owned(),
        ..right
    };
    let refused = plane.logins.start(unknown, HERE).await.err();
    assert!(matches!(refused, Some(StartError::UnknownConnector(..))));
}
