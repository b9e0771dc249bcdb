//! The ordinary login, and what is left behind by it.

use axum::http::StatusCode;
use time::Duration;

use super::super::{CODE_TRIES_MAX, FinishError, LOGIN_TRIES_MAX, Waited};
use super::hostile::{Answering, Behaviour};
use super::plane::{HERE, ORIGIN, PORT, Plane, callback, parameter};
use crate::store::hash_of;
use rcgen::{KeyPair, PublicKeyData as _};

#[tokio::test]
async fn a_person_approves_and_the_program_gets_a_certificate_for_its_key() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let page = plane.to_approval(&mut visitor, &program).await;
    for shown in [
        "alice@example.com",
        "&lt;laptop&gt;",
        "192.0.2.7",
        program.started.words.as_str(),
    ] {
        assert!(
            page.body.contains(shown),
            "{shown} is not on the page: {}",
            page.body
        );
    }
    let done = visitor.decide(&page, "approve").await.location();
    assert!(
        done.starts_with(&format!("http://127.0.0.1:{PORT}/callback?")),
        "{done}"
    );
    assert_eq!(parameter(&done, "login_id"), program.started.login_id.to_string());
    assert_eq!(
        parameter(&done, "pin"),
        plane.logins.context().authority.pin().to_string()
    );
    let thumbprint = iap_identity::hex(&hash_of(&program.key.subject_public_key_info()));
    assert_eq!(parameter(&done, "thumbprint"), thumbprint);

    let finished = plane.finish(&program, &parameter(&done, "code")).await.unwrap();
    assert_eq!(finished.login.name, "alice@example.com");
    assert_eq!(finished.login.login_method, "browser");
    assert_eq!(finished.login.groups[0].to_string(), "hostile:engineering");
    let events: Vec<String> = plane.events().await.into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, ["certificate.issued", "login.success"]);
}

#[tokio::test]
async fn nothing_that_opens_or_ends_a_login_is_in_the_database() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let sent = visitor.get(&program.started.url).await.location();
    let code = plane.hostile.sign_in(&sent);
    let back = visitor.get(&callback(&sent, &code)).await.location();
    let page = visitor.get(&back).await;
    let done = visitor.decide(&page, "approve").await.location();
    let mut secrets: Vec<String> = visitor.cookies.values().cloned().collect();
    secrets.extend([
        parameter(&program.started.url, "s"),
        program.started.poll_secret.clone(),
        parameter(&sent, "state"),
        parameter(&sent, "nonce"),
        parameter(&done, "code"),
        page.form().1,
    ]);
    let data = plane.dir.path().join("data");
    let files = ["auth.db", "auth.db-wal"].map(|name| std::fs::read(data.join(name)).unwrap_or_default());
    let stored = files.concat();
    assert!(
        stored.windows(8).any(|window| window == b"<laptop>"),
        "the login is stored"
    );
    for secret in secrets {
        let found = stored
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in the database");
    }
}

#[tokio::test]
async fn a_code_works_once() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let code = plane.approved_code(&program).await;
    plane.finish(&program, &code).await.unwrap();
    assert_eq!(
        plane.finish(&program, &code).await.err(),
        Some(FinishError::Refused)
    );
    assert_eq!(plane.failures().await, ["code_replayed"]);
}

#[tokio::test]
async fn a_code_that_comes_with_another_key_is_burnt() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let code = plane.approved_code(&program).await;
    let thief = KeyPair::generate().unwrap();
    assert_eq!(
        plane.finish_with(&program, &code, &thief).await.err(),
        Some(FinishError::Refused)
    );
    assert_eq!(
        plane.finish(&program, &code).await.err(),
        Some(FinishError::Refused)
    );
    assert_eq!(plane.failures().await, ["wrong_key", "code_late"]);
}

#[tokio::test]
async fn a_wrong_code_does_not_use_up_the_right_one_but_five_do() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let code = plane.approved_code(&program).await;
    for _ in 0..4 {
        assert!(plane.finish(&program, "9999999999.guess").await.is_err());
    }
    plane.finish(&program, &code).await.unwrap();

    let other = plane.program("browser").await;
    let code = plane.approved_code(&other).await;
    for _ in 0..5 {
        assert!(plane.finish(&other, "9999999999.guess").await.is_err());
    }
    assert!(plane.finish(&other, &code).await.is_err());
}

#[tokio::test]
async fn tries_beyond_the_fifth_write_nothing_and_a_source_that_guesses_has_to_wait() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut refused = Vec::new();
    for _ in 0..=CODE_TRIES_MAX {
        refused.push(plane.finish(&program, "9999999999.guess").await.err().unwrap());
    }
    let store = &plane.logins.context().store;
    let row = store.login(program.started.login_id).await.unwrap().unwrap();
    assert_eq!(row.tries, LOGIN_TRIES_MAX);
    assert_eq!(plane.failures().await.len(), LOGIN_TRIES_MAX as usize);
    assert_eq!(refused.pop(), Some(FinishError::TooManyTries));
    assert!(refused.iter().all(|error| *error == FinishError::Refused));
}

#[tokio::test]
async fn a_late_code_is_refused() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let code = plane.approved_code(&program).await;
    plane.pass(Duration::seconds(121));
    assert_eq!(
        plane.finish(&program, &code).await.err(),
        Some(FinishError::Refused)
    );
    assert_eq!(plane.failures().await, ["code_late"]);
}

#[tokio::test]
async fn a_login_nobody_came_to_is_over_after_ten_minutes() {
    let plane = Plane::start().await;
    let program = plane.program("no-browser").await;
    plane.pass(Duration::minutes(10));
    let page = plane.visitor().get(&program.started.url).await;
    assert_eq!(page.status, StatusCode::NOT_FOUND);
    let waited = plane
        .logins
        .wait(program.started.login_id, program.started.poll_secret.as_bytes())
        .await;
    assert_eq!(waited, Ok(Waited::Expired));
}

#[tokio::test]
async fn a_refusal_on_the_page_ends_the_login_and_the_program_hears_of_it() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let page = plane.to_approval(&mut visitor, &program).await;
    assert!(visitor.decide(&page, "refuse").await.body.contains("Refused"));
    let waited = plane
        .logins
        .wait(program.started.login_id, program.started.poll_secret.as_bytes())
        .await;
    assert!(matches!(waited, Ok(Waited::Denied(_))), "{waited:?}");
    assert_eq!(plane.failures().await, ["refused_by_person"]);
    assert_eq!(
        visitor.decide(&page, "approve").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_provider_that_fails_is_named_on_the_page_and_to_the_program() {
    let redirecting = Answering::WithRedirect("http://169.254.169.254/".to_owned());
    let plane = Plane::with(
        Behaviour {
            discovery: redirecting,
            ..Behaviour::default()
        },
        "",
    )
    .await;
    let program = plane.program("browser").await;
    let page = plane.visitor().get(&program.started.url).await;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
    assert!(
        page.body.contains("hostile") && page.body.contains("redirect"),
        "{}",
        page.body
    );
    assert!(!page.body.contains("169.254"), "{}", page.body);
    let waited = plane
        .logins
        .wait(program.started.login_id, program.started.poll_secret.as_bytes())
        .await;
    assert!(matches!(waited, Ok(Waited::Denied(why)) if why.contains("hostile")));
    assert_eq!(plane.failures().await, ["provider_forbidden"]);
}

#[tokio::test]
async fn a_person_who_is_locked_gets_no_certificate() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let code = plane.approved_code(&program).await;
    let context = plane.logins.context();
    let author = iap_audit::UserRecord {
        id: "u-x".into(),
        name: "admin".into(),
        kind: "user".into(),
    };
    let lock = crate::locks::NewLock {
        kind: iap_identity::LockKind::User,
        target: "alice@example.com".to_owned(),
        reason: "laptop stolen".to_owned(),
        life: None,
    };
    crate::locks::add(context, &author, lock).await.unwrap();
    let locked = plane.finish(&program, &code).await.err();
    assert!(
        matches!(&locked, Some(FinishError::Locked(_, why)) if why == "laptop stolen"),
        "{locked:?}"
    );
    assert_eq!(plane.failures().await, ["locked"]);
}

#[tokio::test]
async fn several_providers_are_a_choice() {
    let more = r#"
        [[connector]]
        name = "other"
        issuer = "http://127.0.0.1:1"
        client_id = "iap"
    "#;
    let plane = Plane::with(Behaviour::default(), more).await;
    let program = plane.program("browser").await;
    let mut visitor = plane.visitor();
    let page = visitor.get(&program.started.url).await;
    assert!(
        page.body.contains("connector=hostile&amp;s=") && page.body.contains("connector=other"),
        "{}",
        page.body
    );
    let chosen = visitor
        .get(&format!("{}&connector=hostile", program.started.url))
        .await;
    assert!(chosen.location().starts_with(plane.hostile.issuer()));
    let named = Plane::request(&program.key, "browser");
    let named = crate::login::StartRequest {
        connector: "hostile".to_owned(),
        ..named
    };
    let started = plane.logins.start(named, HERE).await.unwrap();
    assert!(
        visitor
            .get(&started.url)
            .await
            .location()
            .starts_with(plane.hostile.issuer())
    );
}

#[tokio::test]
async fn the_first_page_reopened_in_another_browser_takes_the_login_along() {
    let plane = Plane::start().await;
    let program = plane.program("no-browser").await;
    let (mut first, mut second) = (plane.visitor(), plane.visitor());
    let abandoned = first.get(&program.started.url).await.location();
    plane.to_approval(&mut second, &program).await;
    let code = plane.hostile.sign_in(&abandoned);
    let page = first.get(&callback(&abandoned, &code)).await;
    assert_eq!(page.status, StatusCode::BAD_REQUEST);
    assert!(!page.body.contains(ORIGIN));
}

#[tokio::test]
async fn a_login_that_asks_for_fresh_proof_refuses_a_session_that_stood_before() {
    let long_ago = time::OffsetDateTime::now_utc() - Duration::hours(1);
    let claims = vec![("auth_time", serde_json::json!(long_ago.unix_timestamp()))];
    let behaviour = Behaviour {
        claims,
        ..Behaviour::default()
    };
    let plane = Plane::with(behaviour, "").await;
    let fresh = crate::store::ProofAsked {
        fresh: true,
        ..Default::default()
    };
    for (proof, is_let_in) in [(Default::default(), true), (fresh, false)] {
        let key = KeyPair::generate().unwrap();
        let request = crate::login::StartRequest {
            proof,
            ..Plane::request(&key, "browser")
        };
        let started = plane.logins.start(request, HERE).await.unwrap();
        let mut visitor = plane.visitor();
        let sent = visitor.get(&started.url).await.location();
        assert_eq!(sent.contains("prompt=login"), !is_let_in, "{sent}");
        let code = plane.hostile.sign_in(&sent);
        let back = visitor.get(&callback(&sent, &code)).await;
        assert_eq!(back.status == StatusCode::SEE_OTHER, is_let_in, "{}", back.body);
    }
}
