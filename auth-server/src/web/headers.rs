//! What every answer carries, and under which name anything is answered at all.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html as HtmlBody, IntoResponse, Response};

use super::html::Html;
use crate::login::Logins;

/// Nothing is loaded but our own style sheet; no scripts, no frames.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action ";
const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// A page with the rules a browser is to keep for it.
pub(super) struct Page {
    html: Html,
    status: StatusCode,
    /// Where forms of this page may lead, redirects included: browsers hold redirects to it, too.
    form_action: String,
    /// Browsers send `Origin: null` from pages without a referrer, and the POST's origin is checked.
    referrer_policy: &'static str,
}

impl Page {
    /// A page without a form.
    pub(super) fn plain(html: Html) -> Self {
        Self {
            html,
            status: StatusCode::OK,
            form_action: "'none'".to_owned(),
            referrer_policy: "no-referrer",
        }
    }

    /// A page with a form of ours.
    pub(super) fn with_form(html: Html) -> Self {
        Self {
            form_action: "'self'".to_owned(),
            referrer_policy: "same-origin",
            ..Self::plain(html)
        }
    }

    /// The form's answer may redirect to this loopback port.
    pub(super) fn leading_to_loopback(mut self, port: u16) -> Self {
        if port != 0 {
            self.form_action = format!("'self' http://127.0.0.1:{port}");
        }
        self
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = (self.status, HtmlBody(self.html.into_string())).into_response();
        let headers = response.headers_mut();
        if let Ok(policy) = HeaderValue::try_from(format!("{POLICY}{}", self.form_action)) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        headers.insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static(self.referrer_policy),
        );
        response
    }
}

/// The strictest value of each header that the answer has not set itself.
pub(super) async fn harden(mut response: Response) -> Response {
    let defaults = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
        ),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
    ];
    for (name, value) in defaults {
        response
            .headers_mut()
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

/// 421 for a request under any other name than the cluster's: no other site's name may lead here.
pub(super) async fn only_this_host(
    State(logins): State<Arc<Logins>>,
    request: Request,
    next: Next,
) -> Response {
    let cluster = logins.context().config.cluster.as_str();
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str().to_owned());
    let host = authority.or_else(|| text(request.headers(), header::HOST));
    let name = host
        .as_deref()
        .map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
    match name {
        Some(name) if name.eq_ignore_ascii_case(cluster) => next.run(request).await,
        Some(_) | None => (
            StatusCode::MISDIRECTED_REQUEST,
            "this server answers to another name\n",
        )
            .into_response(),
    }
}

/// The one value of a header, as text; none when it is sent twice.
pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => only.to_str().ok().map(str::to_owned),
        (Some(_), Some(_)) | (None, _) => None,
    }
}
