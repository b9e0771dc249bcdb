//! The login whose code is typed on another device.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::StatusCode;
use time::Duration;

use super::super::{WaitError, Waited};
use super::plane::{HERE, ORIGIN, Plane, Program, Visitor, callback};

const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99));

async fn type_code(visitor: &mut Visitor, code: &str) -> super::plane::Seen {
    visitor.post("/device", Some(ORIGIN), &[("code", code)]).await
}

async fn wait(plane: &Plane, program: &Program) -> Result<Waited, WaitError> {
    plane
        .logins
        .wait(program.started.login_id, program.started.poll_secret.as_bytes())
        .await
}

fn user_code(program: &Program) -> String {
    program.started.user_code.clone().unwrap()
}

/// Types the code, signs in, and stands before the approval page.
async fn to_approval(plane: &Plane, visitor: &mut Visitor, program: &Program) -> super::plane::Seen {
    let found = type_code(visitor, &user_code(program).to_lowercase()).await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.body);
    assert!(found.body.contains("&lt;laptop&gt;"), "{}", found.body);
    let path = format!("/login/{}?connector=hostile", program.started.login_id);
    assert!(found.body.contains(&path), "{}", found.body);
    let sent = visitor.get(&path).await.location();
    assert!(sent.contains("prompt=login"), "{sent}");
    let code = plane.hostile.sign_in(&sent);
    let back = visitor.get(&callback(&sent, &code)).await.location();
    visitor.get(&back).await
}

#[tokio::test]
async fn a_code_typed_elsewhere_logs_the_waiting_program_in() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    assert!(program.started.url.ends_with("/device"));
    let mut visitor = plane.visitor_from(ELSEWHERE);
    let page = to_approval(&plane, &mut visitor, &program).await;
    assert!(page.body.contains(&program.started.words));
    let waiting = wait(&plane, &program);
    let approving = visitor.decide(&page, "approve");
    let (waited, approved) = tokio::join!(waiting, approving);
    assert!(approved.body.contains("Logged in"), "{}", approved.body);
    let Ok(Waited::Approved(Some(code))) = waited else {
        panic!("{waited:?}")
    };
    let finished = plane.finish(&program, &code).await.unwrap();
    assert_eq!(finished.login.login_method, "headless");
}

#[tokio::test]
async fn a_code_asked_for_again_voids_the_first() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    let mut visitor = plane.visitor();
    let page = to_approval(&plane, &mut visitor, &program).await;
    visitor.decide(&page, "approve").await;
    let Ok(Waited::Approved(Some(first))) = wait(&plane, &program).await else {
        panic!()
    };
    let Ok(Waited::Approved(Some(second))) = wait(&plane, &program).await else {
        panic!()
    };
    assert!(plane.finish(&program, &first).await.is_err());
    plane.finish(&program, &second).await.unwrap();
}

#[tokio::test]
async fn five_wrong_codes_from_one_source_are_enough() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    let mut visitor = plane.visitor();
    for _ in 0..5 {
        assert_eq!(
            type_code(&mut visitor, "BBBB-BBBB-BB").await.status,
            StatusCode::BAD_REQUEST
        );
    }
    let refused = type_code(&mut visitor, &user_code(&program)).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let elsewhere = type_code(&mut plane.visitor_from(ELSEWHERE), &user_code(&program)).await;
    assert_eq!(elsewhere.status, StatusCode::OK);
}

#[tokio::test]
async fn a_code_is_over_after_five_minutes() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    plane.pass(Duration::minutes(5));
    assert_eq!(
        type_code(&mut plane.visitor(), &user_code(&program)).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(wait(&plane, &program).await, Ok(Waited::Expired));
}

#[tokio::test]
async fn a_link_that_carries_the_code_opens_nothing() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    let code: String = user_code(&program).replace('-', "");
    let path = format!("/login/{}?s={code}&connector=hostile", program.started.login_id);
    assert_eq!(plane.visitor().get(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_code_sent_by_another_site_is_not_taken() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    for origin in [
        None,
        Some("null"),
        Some("https://evil.example"),
        Some("https://iap.localhost"),
    ] {
        let page = plane
            .visitor()
            .post("/device", origin, &[("code", &user_code(&program))])
            .await;
        assert_eq!(page.status, StatusCode::FORBIDDEN, "{origin:?}");
    }
}

#[tokio::test]
async fn only_the_program_that_asked_may_wait() {
    let plane = Plane::start().await;
    let program = plane.program("headless").await;
    let other = plane.program("headless").await;
    let wrong = plane
        .logins
        .wait(program.started.login_id, other.started.poll_secret.as_bytes())
        .await;
    assert_eq!(wrong, Err(WaitError::Unknown));
}

#[tokio::test]
async fn the_url_of_an_ordinary_login_is_no_user_code() {
    let plane = Plane::start().await;
    let program = plane.program("browser").await;
    let secret = super::plane::parameter(&program.started.url, "s");
    assert_eq!(
        type_code(&mut plane.visitor(), &secret).await.status,
        StatusCode::BAD_REQUEST
    );
    assert!(plane.logins.device(&secret, HERE).await.is_err());
}
