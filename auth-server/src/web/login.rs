//! The pages of a login, each a thin layer over [`Logins`].

use std::sync::Arc;

use axum::extract::{Form, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use iap_identity::LoginId;
use serde::Deserialize;

use super::browser::{ClientAddress, FromOurPage};
use super::headers::Page;
use super::pages;
use crate::login::{Cookies, Decision, Logins, Opened, Outcome, ProviderAnswer, StepError};

type Service = State<Arc<Logins>>;

#[derive(Deserialize)]
pub(super) struct OpenQuery {
    s: Option<String>,
    connector: Option<String>,
}

/// The URL that `iapctl` opens or prints.
pub(super) async fn open(
    State(logins): Service,
    Path(id): Path<String>,
    Query(query): Query<OpenQuery>,
    cookies: Cookies,
) -> Response {
    let Ok(id) = LoginId::parse(&id) else {
        return failed(&logins, &StepError::Unknown);
    };
    match logins
        .open(id, query.s.as_deref(), &cookies, query.connector.as_deref())
        .await
    {
        Ok(Opened::Choose(choices)) => {
            let page = pages::choose(cluster(&logins), id, query.s.as_deref(), &choices);
            Page::plain(page).into_response()
        }
        Ok(Opened::Go { url, cookie }) => {
            ([(header::SET_COOKIE, cookie.header())], Redirect::to(&url)).into_response()
        }
        Err(error) => failed(&logins, &error),
    }
}

#[derive(Deserialize)]
pub(super) struct CallbackQuery {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// The provider's redirect.
pub(super) async fn callback(
    State(logins): Service,
    Query(query): Query<CallbackQuery>,
    cookies: Cookies,
) -> Response {
    let answer = ProviderAnswer {
        state: query.state,
        code: query.code,
        issuer: query.iss,
        error: query.error,
        error_description: query.error_description,
    };
    match logins.answer(&answer, &cookies).await {
        // A page of its own, so that a reload does not send the provider's answer again.
        Ok(id) => Redirect::to(&format!("/login/{id}/approve")).into_response(),
        Err(error) => failed(&logins, &error),
    }
}

/// What asked, and who is signed in.
pub(super) async fn approval(State(logins): Service, Path(id): Path<String>, cookies: Cookies) -> Response {
    let Ok(id) = LoginId::parse(&id) else {
        return failed(&logins, &StepError::Unknown);
    };
    match logins.approval(id, &cookies).await {
        Ok(approval) => Page::with_form(pages::approval(cluster(&logins), &approval))
            .leading_to_loopback(approval.login.redirect_port)
            .into_response(),
        Err(error) => failed(&logins, &error),
    }
}

#[derive(Deserialize)]
pub(super) struct DecisionForm {
    token: String,
    decision: String,
}

/// One of the two buttons.
pub(super) async fn decide(
    _: FromOurPage,
    State(logins): Service,
    Path(id): Path<String>,
    cookies: Cookies,
    Form(form): Form<DecisionForm>,
) -> Response {
    let decision = match form.decision.as_str() {
        "approve" => Decision::Approve,
        _ => Decision::Refuse,
    };
    let Ok(id) = LoginId::parse(&id) else {
        return failed(&logins, &StepError::Unknown);
    };
    match logins.decide(id, &cookies, &form.token, decision).await {
        Ok(Outcome::Loopback(url)) => Redirect::to(&url).into_response(),
        Ok(Outcome::Waiting) => Page::plain(pages::approved(cluster(&logins))).into_response(),
        Ok(Outcome::Refused) => Page::plain(pages::refused(cluster(&logins))).into_response(),
        Err(error) => failed(&logins, &error),
    }
}

/// The field for a code.
pub(super) async fn device(State(logins): Service) -> Response {
    Page::with_form(pages::device(cluster(&logins), None)).into_response()
}

#[derive(Deserialize)]
pub(super) struct DeviceForm {
    code: String,
}

/// A code was typed.
pub(super) async fn device_typed(
    _: FromOurPage,
    State(logins): Service,
    ClientAddress(client): ClientAddress,
    Form(form): Form<DeviceForm>,
) -> Response {
    match logins.device(&form.code, client).await {
        Ok(found) => {
            let page = pages::device_found(cluster(&logins), &found.login, &found.choices);
            ([(header::SET_COOKIE, found.cookie.header())], Page::plain(page)).into_response()
        }
        Err(error @ StepError::WrongCode) => {
            let message = "No login waits for this code. Look at the code in your terminal again.";
            Page::with_form(pages::device(cluster(&logins), Some(message)))
                .with_status(status(&error))
                .into_response()
        }
        Err(error) => failed(&logins, &error),
    }
}

fn failed(logins: &Logins, error: &StepError) -> Response {
    Page::plain(pages::step_failed(cluster(logins), error))
        .with_status(status(error))
        .into_response()
}

fn status(error: &StepError) -> StatusCode {
    match error {
        StepError::Unknown | StepError::UnknownConnector => StatusCode::NOT_FOUND,
        StepError::Taken => StatusCode::CONFLICT,
        StepError::OtherBrowser | StepError::Forged => StatusCode::FORBIDDEN,
        StepError::UnknownAnswer | StepError::WrongCode => StatusCode::BAD_REQUEST,
        StepError::Provider { .. } => StatusCode::BAD_GATEWAY,
        StepError::TooManyTries => StatusCode::TOO_MANY_REQUESTS,
        StepError::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn cluster(logins: &Logins) -> &str {
    logins.context().config.cluster.as_str()
}
