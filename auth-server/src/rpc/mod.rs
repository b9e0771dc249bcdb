//! The API at `auth.<cluster>`: one table of who may call what, one gate that holds it, and the handlers.

mod admin;
mod agent;
mod backend;
mod caller;
mod error;
mod gate;
mod join;
mod proxy;
mod table;
mod user;

use std::sync::Arc;
use std::time::Duration;

use iap_proto::v1;
use iap_runtime::shutdown::Shutdown;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};

use crate::audit::ingest::Ingest;
use crate::context::AppContext;
use crate::login::{LoginRpc, Logins};
use crate::metrics::Metrics;

pub use caller::{Caller, Connection, Presented, UserCaller};
pub use error::{ERROR_METADATA_KEY, ErrorCode, RpcError};
pub use gate::GateLayer;
pub use table::{Callers, Row, TABLE, row_of};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// One message of an RPC that answers without a certificate: names, a key's hash or request, a secret.
const OPEN_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// What a refused or reset stream may cost before the connection is closed (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;

/// The gRPC server behind its gate.
pub fn server(
    context: &Arc<AppContext>,
    logins: Arc<Logins>,
    metrics: Metrics,
    shutdown: &Shutdown,
) -> Router<Stack<GateLayer, Identity>> {
    let bytes_max = context.config.limits.message_bytes_max;
    let ingest = Ingest::new(
        Arc::clone(&context.store),
        context.audit.clone(),
        context.clock.clone(),
        context.traces.clone(),
    );
    let agents = agent::AgentRpc::new(Arc::clone(context), ingest, shutdown.clone());
    let proxies = proxy::ProxyRpc::new(Arc::clone(context), shutdown.clone());
    Server::builder()
        .max_concurrent_streams(context.config.limits.streams_per_connection_max)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .layer(GateLayer::new(Arc::clone(context), metrics))
        .add_service(
            v1::login_server::LoginServer::new(LoginRpc::new(Arc::clone(&logins)))
                .max_decoding_message_size(OPEN_MESSAGE_BYTES_MAX),
        )
        .add_service(
            v1::join_server::JoinServer::new(join::JoinRpc::new(Arc::clone(context)))
                .max_decoding_message_size(OPEN_MESSAGE_BYTES_MAX),
        )
        .add_service(
            v1::user_server::UserServer::new(user::UserRpc::new(Arc::clone(context), logins))
                .max_decoding_message_size(bytes_max),
        )
        .add_service(v1::agent_server::AgentServer::new(agents).max_decoding_message_size(bytes_max))
        .add_service(v1::proxy_server::ProxyServer::new(proxies).max_decoding_message_size(bytes_max))
        .add_service(
            v1::admin_server::AdminServer::new(admin::AdminRpc::new(Arc::clone(context)))
                .max_decoding_message_size(bytes_max),
        )
}
