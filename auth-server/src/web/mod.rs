//! The web pages at `<cluster>`: login, device codes, and what the cluster says of itself.
//!
//! Rendered here, without scripts. Every answer passes [`headers::harden`], and nothing is served under
//! another name than the cluster's own.

mod browser;
mod headers;
mod html;
mod login;
mod pages;
mod well_known;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::login::Logins;

use headers::Page;

/// The largest form that is read.
const FORM_BYTES_MAX: usize = 4096;

/// Everything served at `<cluster>`.
pub fn router(logins: Arc<Logins>) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/style.css", get(style))
        .route("/device", get(login::device).post(login::device_typed))
        .route("/login/callback", get(login::callback))
        .route("/login/{id}", get(login::open))
        .route("/login/{id}/approve", get(login::approval).post(login::decide))
        .route("/.well-known/iap", get(well_known::cluster))
        .route("/.well-known/jwks.json", get(well_known::keys))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(FORM_BYTES_MAX))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&logins),
            headers::only_this_host,
        ))
        .layer(middleware::map_response(headers::harden))
        .with_state(logins)
}

async fn home(State(logins): State<Arc<Logins>>) -> Response {
    let config = &logins.context().config;
    let address = match config.public_address.port() {
        443 => config.cluster.as_str().to_owned(),
        port => format!("{}:{port}", config.cluster.as_str()),
    };
    Page::plain(pages::home(config.cluster.as_str(), &address)).into_response()
}

async fn style() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=3600"),
    ];
    (headers, include_str!("style.css"))
}

async fn not_found(State(logins): State<Arc<Logins>>) -> Response {
    let page = pages::problem(
        logins.context().config.cluster.as_str(),
        "Nothing here",
        "there is no such page",
        "<a href=\"/\">Go to the start</a>.",
    );
    Page::plain(page)
        .with_status(StatusCode::NOT_FOUND)
        .into_response()
}

async fn wrong_method(State(logins): State<Arc<Logins>>) -> Response {
    let page = pages::problem(
        logins.context().config.cluster.as_str(),
        "Not this way",
        "this page does not take such a request",
        "<a href=\"/\">Go to the start</a>.",
    );
    Page::plain(page)
        .with_status(StatusCode::METHOD_NOT_ALLOWED)
        .into_response()
}
