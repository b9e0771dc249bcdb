//! The channel to the auth server, through any proxy, and the tasks that live on it. No session waits for
//! any of them.

pub mod leaves;
pub(crate) mod recordings;
pub mod renewal;
pub mod status;
pub mod upload;
pub mod watch;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::Stream;
use iap_identity::CertificateDer;
use iap_proto::v1;
use iap_proto::v1::agent_client::AgentClient;
use iap_runtime::net::{self, HostPort};
use iap_runtime::{rpc, tls};
use tokio::net::TcpStream;
use tonic::transport::Channel;

use crate::identity::{IdentityError, OwnIdentity};

/// Time for one attempt to reach a proxy.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one question and its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for one recording; what has arrived by then need not be sent again.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// The largest message taken: a snapshot with a policy of 4 MiB and thousands of services.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why the auth server did not answer as wanted.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It refused, or could not be reached.
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
    /// The proxy that was dialled turned the connection away, because nobody answers behind it.
    #[error("the proxy cannot reach the auth server (it says so with the TLS alert internal_error)")]
    AwayBehindProxy,
    /// It did not answer in time.
    #[error("no answer within {} s", CALL_TIMEOUT.as_secs())]
    TimedOut,
    /// The channel cannot be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The channel cannot be made.
    #[error("the channel cannot be made: {0}")]
    Channel(#[from] tonic::transport::Error),
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        match tls::alert_behind(&status) {
            Some(tls::AlertDescription::InternalError) => Self::AwayBehindProxy,
            Some(_) | None => Self::Refused(Box::new(status)),
        }
    }
}

/// The agent's side of the `Agent` service.
#[derive(Debug)]
pub struct AuthClient {
    identity: Arc<OwnIdentity>,
    addresses: Addresses,
    channel: ArcSwap<Channel>,
}

/// The proxies by which the auth server can be reached; each failure moves on to the next.
#[derive(Debug, Clone)]
struct Addresses {
    known: tokio::sync::watch::Receiver<Vec<HostPort>>,
    turn: Arc<AtomicUsize>,
}

impl AuthClient {
    /// A client that dials any of `addresses`, at first use.
    ///
    /// # Errors
    /// When the channel cannot be made.
    pub fn new(
        identity: Arc<OwnIdentity>,
        addresses: tokio::sync::watch::Receiver<Vec<HostPort>>,
    ) -> Result<Self, CallError> {
        let addresses = Addresses {
            known: addresses,
            turn: Arc::default(),
        };
        let channel = connect(&identity, &addresses)?;
        Ok(Self {
            identity,
            addresses,
            channel: ArcSwap::from_pointee(channel),
        })
    }

    /// Leaves the connection there is, so that the next call makes one with the current certificate.
    ///
    /// # Errors
    /// When the channel cannot be made.
    pub fn reconnect(&self) -> Result<(), CallError> {
        self.channel
            .store(Arc::new(connect(&self.identity, &self.addresses)?));
        Ok(())
    }

    /// A new certificate for the agent's own key.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn renew(&self, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, CallError> {
        let mut client = self.client();
        let issued = in_time(client.renew(v1::RenewRequest {
            csr,
            ..Default::default()
        }))
        .await?;
        Ok(chain_of(issued))
    }

    /// A certificate for a service.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn service_leaf(
        &self,
        service: String,
        csr: Vec<u8>,
    ) -> Result<Vec<CertificateDer<'static>>, CallError> {
        let mut client = self.client();
        let issued = in_time(client.service_leaf(v1::ServiceLeafRequest { service, csr })).await?;
        Ok(chain_of(issued))
    }

    /// What to log in to a service's backend with.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn backend_credentials(
        &self,
        request: v1::BackendCredentialsRequest,
    ) -> Result<v1::BackendCredentialsReply, CallError> {
        in_time(self.client().backend_credentials(request)).await
    }

    /// The feed.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn watch(&self, services: Vec<String>) -> Result<tonic::Streaming<v1::FeedEvent>, CallError> {
        let request = v1::WatchRequest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            services,
        };
        in_time(self.client().watch(request)).await
    }

    /// Hands over audit records; returns the newest durable number.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn append_audit(&self, batch: v1::AuditBatch) -> Result<u64, CallError> {
        Ok(in_time(self.client().append_audit(batch)).await?.agent_seq)
    }

    /// Sends a recording, or what is new of one; returns how much of it is durable there.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn upload_recording(
        &self,
        parts: impl Stream<Item = v1::RecordingPart> + Send + 'static,
    ) -> Result<v1::RecordingHeld, CallError> {
        let mut client = self.client();
        let call = client.upload_recording(parts);
        match tokio::time::timeout(UPLOAD_TIMEOUT, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_elapsed) => Err(CallError::TimedOut),
        }
    }

    /// How the agent is, for `agents ls`.
    ///
    /// # Errors
    /// When the auth server refuses, or cannot be reached.
    pub async fn status(&self, status: v1::AgentStatus) -> Result<(), CallError> {
        in_time(self.client().status(status)).await.map(drop)
    }

    fn client(&self) -> AgentClient<Channel> {
        AgentClient::new(Channel::clone(&self.channel.load())).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Addresses {
    /// The first address that answers, starting behind the one that failed last.
    async fn dial(self) -> io::Result<TcpStream> {
        let known = self.known.borrow().clone();
        let start = self.turn.load(Ordering::Relaxed);
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no proxy is known");
        for step in 0..known.len() {
            let index = start.wrapping_add(step) % known.len();
            let Some(address) = known.get(index) else { continue };
            match net::reach(address, DIAL_TIMEOUT).await {
                Ok((stream, _route)) => {
                    // If this proxy cannot reach the auth server, the next attempt takes the next one.
                    self.turn.store(index.wrapping_add(1), Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn connect(identity: &OwnIdentity, addresses: &Addresses) -> Result<Channel, CallError> {
    let config = identity.client_config(&[rpc::ALPN_H2])?;
    let addresses = addresses.clone();
    Ok(rpc::channel_over(
        move || addresses.clone().dial(),
        &identity.auth_host(),
        config,
    )?)
}

async fn in_time<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_elapsed) => Err(CallError::TimedOut),
    }
}

fn chain_of(issued: v1::Issued) -> Vec<CertificateDer<'static>> {
    issued.chain.into_iter().map(CertificateDer::from).collect()
}
