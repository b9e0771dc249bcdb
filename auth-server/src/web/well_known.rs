//! What the cluster says of itself to programs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::login::Logins;

/// `{cluster, pin, ca_pem, proxies}`: enough to trust `auth.<cluster>`, for those who reached this page
/// through a certificate they trust already.
pub(super) async fn cluster(State(logins): State<Arc<Logins>>) -> Response {
    let context = logins.context();
    let proxies: Vec<String> = match context.store.proxies().await {
        Ok(proxies) => proxies
            .into_iter()
            .filter_map(|proxy| proxy.public_address)
            .collect(),
        Err(error) => {
            tracing::error!(%error, "the proxies could not be listed");
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
    };
    Json(json!({
        "cluster": context.config.cluster.as_str(),
        "pin": context.authority.pin().to_string(),
        "ca_pem": context.authority.root_pem(),
        "proxies": proxies,
    }))
    .into_response()
}

/// Keys that sign assertions for backends; none are in use yet.
pub(super) async fn keys() -> Json<Value> {
    Json(json!({ "keys": [] }))
}
