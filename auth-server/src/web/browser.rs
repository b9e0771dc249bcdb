//! What a request says about the browser behind it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::headers::{Page, text};
use super::pages;
use crate::login::{Cookies, Logins};
use crate::rpc::Connection;

impl<S: Sync> FromRequestParts<S> for Cookies {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let headers = parts.headers.get_all(header::COOKIE).iter();
        Ok(Cookies::read(headers.filter_map(|header| header.to_str().ok())))
    }
}

/// Where the request came from, as the listener saw it.
pub(super) struct ClientAddress(pub(super) IpAddr);

impl<S: Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let connection = parts.extensions.get::<Connection>();
        // Without an address all share one: limits by source then hold for everybody together.
        Ok(Self(
            connection.map_or(Ipv4Addr::UNSPECIFIED.into(), |connection| connection.address.ip()),
        ))
    }
}

/// A POST that came from a page of ours: browsers name the origin of every POST (Fetch §3.2), and pages of
/// other sites cannot change it.
pub(super) struct FromOurPage;

impl<S> FromRequestParts<S> for FromOurPage
where
    S: Send + Sync,
    Arc<Logins>: FromRef<S>,
{
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let logins = Arc::<Logins>::from_ref(state);
        let config = &logins.context().config;
        let origin = text(&parts.headers, header::ORIGIN);
        if origin.is_some_and(|origin| origin.eq_ignore_ascii_case(&config.web_url())) {
            return Ok(Self);
        }
        let page = pages::problem(
            config.cluster.as_str(),
            "Not sent from here",
            "the form was not sent by a page of this site",
            "Run <code>iapctl login</code> again, and use a browser that sends the <code>Origin</code> header.",
        );
        Err(Page::plain(page)
            .with_status(StatusCode::FORBIDDEN)
            .into_response())
    }
}
