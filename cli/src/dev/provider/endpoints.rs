//! The provider's endpoints.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::extract::{Form, Query, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::pages;
use super::state::{AuthorizationRequest, Grant, State};
use super::{ProviderError, ProviderUser};

/// How long an ID token is valid.
const ID_TOKEN_SECONDS: i64 = 300;

type Provider = Shared<Arc<State>>;

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/jwks", get(keys))
        .route("/authorize", get(ask).post(authorize))
        .route("/token", post(token))
        .route("/userinfo", get(user_info))
        .with_state(state)
}

/// OpenID Connect Discovery §3.
async fn discovery(Shared(state): Provider) -> Json<Value> {
    let issuer = &state.settings.issuer;
    let at = |path: &str| format!("{}{path}", issuer.trim_end_matches('/'));
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": at("/authorize"),
        "token_endpoint": at("/token"),
        "userinfo_endpoint": at("/userinfo"),
        "jwks_uri": at("/jwks"),
        "scopes_supported": ["openid", "email", "profile", "groups"],
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
    }))
}

async fn keys(Shared(state): Provider) -> Json<Value> {
    Json(state.key.key_set())
}

/// The login page: one button for each person.
async fn ask(Shared(state): Provider, Query(request): Query<AuthorizationRequest>) -> Response {
    match state.accepts(&request) {
        Ok(()) => Html(pages::login(&request, &state.settings.users)).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, Html(pages::refusal(why))).into_response(),
    }
}

#[derive(Deserialize)]
struct Chosen {
    user: String,
    #[serde(flatten)]
    request: AuthorizationRequest,
}

/// A button was pressed: the code goes to the registered address.
async fn authorize(Shared(state): Provider, Form(chosen): Form<Chosen>) -> Response {
    let refused = |why| (StatusCode::BAD_REQUEST, Html(pages::refusal(why))).into_response();
    if let Err(why) = state.accepts(&chosen.request) {
        return refused(why);
    }
    let Some(user) = state.user(&chosen.user).cloned() else {
        return refused("nobody of that name");
    };
    let (Ok(mut target), request) = (Url::parse(&chosen.request.redirect_uri), chosen.request) else {
        return refused("the redirect address is not a URL");
    };
    let sent_state = request.state.clone();
    let Some(code) = state.issue_code(Grant { request, user }) else {
        return refused("too many logins at once");
    };
    target
        .query_pairs_mut()
        .append_pair("code", &code)
        .append_pair("state", &sent_state)
        .append_pair("iss", &state.settings.issuer);
    Redirect::to(target.as_str()).into_response()
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct TokenRequest {
    grant_type: String,
    code: String,
    redirect_uri: String,
    code_verifier: String,
    client_id: String,
    client_secret: String,
}

/// A code for tokens (OpenID Connect Core §3.1.3).
async fn token(Shared(state): Provider, headers: HeaderMap, Form(request): Form<TokenRequest>) -> Response {
    if !is_the_client(&state, &headers, &request) {
        return oauth_error(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    if request.grant_type != "authorization_code" {
        return oauth_error(StatusCode::BAD_REQUEST, "unsupported_grant_type");
    }
    let Some(grant) = state
        .redeem_code(&request.code)
        .filter(|grant| proves(grant, &request))
    else {
        return oauth_error(StatusCode::BAD_REQUEST, "invalid_grant");
    };
    let id_token = id_token(&state, &grant);
    match (id_token, state.issue_token(grant.user)) {
        (Ok(id_token), Some(access_token)) => {
            let body = json!({
                "token_type": "Bearer", "expires_in": ID_TOKEN_SECONDS,
                "access_token": access_token, "id_token": id_token,
            });
            ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        (Ok(_), None) | (Err(_), _) => oauth_error(StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
    }
}

async fn user_info(Shared(state): Provider, headers: HeaderMap) -> Response {
    let token = authorization(&headers, "Bearer ").and_then(|token| state.token_user(token));
    match token {
        Some(user) => Json(claims_of(&user)).into_response(),
        None => oauth_error(StatusCode::UNAUTHORIZED, "invalid_token"),
    }
}

fn id_token(state: &State, grant: &Grant) -> Result<String, ProviderError> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut claims = claims_of(&grant.user);
    if let Value::Object(claims) = &mut claims {
        claims.insert("iss".to_owned(), json!(state.settings.issuer));
        claims.insert("aud".to_owned(), json!(state.settings.client_id));
        claims.insert("iat".to_owned(), json!(now));
        claims.insert("exp".to_owned(), json!(now + ID_TOKEN_SECONDS));
        claims.insert("auth_time".to_owned(), json!(now));
        claims.insert("nonce".to_owned(), json!(grant.request.nonce));
    }
    state.key.sign(&claims)
}

fn claims_of(user: &ProviderUser) -> Value {
    json!({
        "sub": user.local(),
        "email": user.email,
        "email_verified": true,
        "preferred_username": user.local(),
        "groups": user.groups,
    })
}

fn is_the_client(state: &State, headers: &HeaderMap, request: &TokenRequest) -> bool {
    let settings = &state.settings;
    let matches = |id: &str, secret: &str| {
        id == settings.client_id
            && verify_slices_are_equal(secret.as_bytes(), settings.client_secret.as_bytes()).is_ok()
    };
    let basic = authorization(headers, "Basic ")
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .and_then(|decoded| String::from_utf8(decoded).ok());
    match basic.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((id, secret)) => matches(id, secret),
        None => matches(&request.client_id, &request.client_secret),
    }
}

/// The code was made for this redirect address and this PKCE verifier (RFC 7636 §4.6).
fn proves(grant: &Grant, request: &TokenRequest) -> bool {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, request.code_verifier.as_bytes());
    grant.request.redirect_uri == request.redirect_uri
        && URL_SAFE_NO_PAD.encode(digest.as_ref()) == grant.request.code_challenge
}

fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix(scheme)
}

fn oauth_error(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
