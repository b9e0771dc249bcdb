//! The one address: reads who is asked for, and hands the connection to the web pages or to the API.
//!
//! Everything before the handshake's end is bounded in bytes, time and count. Anything but the two names
//! this server has is answered by an alert.

mod arrival;
mod identity;
mod principals;
mod stream;
mod web;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use iap_identity::{Class, ClassSet};
use iap_runtime::net;
use iap_runtime::proxy_protocol;
use iap_runtime::rpc::ALPN_H2;
use iap_runtime::shutdown::Shutdown;
use iap_runtime::slots::{Slot, Slots};
use iap_runtime::tls::{self, Demand, Material, PeerVerifier};
use iap_runtime::waiting_room::{NoPlace, Place, Source, Standing, WaitingRoom};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::config::Limits;
use crate::context::AppContext;
use crate::metrics::Metrics;
use crate::rpc::{Connection, Presented};
use arrival::{Arrival, ArrivalError, Destination};
use principals::{Principals, principal_of};

pub use identity::{IdentityError, OwnIdentity};
use stream::Unauthenticated;
pub use stream::{ApiIncoming, ApiStream};
pub use web::{WebCertificateError, WebTls};

/// Accepted API connections that wait for the gRPC server.
const API_QUEUE_MAX: usize = 64;

/// One principal's share of `limits.connections_max`: a sixteenth. Programs keep a few connections each.
const PRINCIPAL_SHARE: usize = 16;
/// However few connections there may be.
const PRINCIPAL_CONNECTIONS_MIN: usize = 16;

/// Which classes may knock at `auth.<cluster>`; the table of RPCs says what each may call.
const API_CLASSES: ClassSet = ClassSet::of(&[Class::User, Class::Bot, Class::Agent, Class::Proxy]);

/// Takes connections until shutdown.
#[derive(Debug)]
pub struct Front {
    context: Arc<AppContext>,
    material: Arc<Material>,
    web_tls: WebTls,
    pages: Router,
    api: mpsc::Sender<ApiStream>,
    places: Places,
    metrics: Metrics,
    shutdown: Shutdown,
}

/// How many connections there may be at once. Clones share the places.
#[derive(Clone, Debug)]
pub struct Places {
    connections: Slots,
    unauthenticated: WaitingRoom,
    principals: Principals,
}

impl Places {
    /// As many as these limits allow, none of them taken.
    pub fn new(limits: &Limits) -> Self {
        Self {
            connections: Slots::new(limits.connections_max),
            unauthenticated: WaitingRoom::new(
                strangers_max(limits),
                limits.unauthenticated_connections_per_source_max,
            ),
            principals: Principals::new(share_of_one(limits)),
        }
    }

    /// From now on these limits count. Whoever has a place keeps it.
    pub fn resize(&self, limits: &Limits) {
        self.connections.resize(limits.connections_max);
        self.unauthenticated.resize(
            strangers_max(limits),
            limits.unauthenticated_connections_per_source_max,
        );
        self.principals.resize(share_of_one(limits));
    }
}

/// What a connection holds while it lasts.
struct Taken {
    connection: Slot,
    unauthenticated: Place,
}

impl Front {
    /// A front for those pages, and the stream of connections for the gRPC server.
    pub fn new(
        context: Arc<AppContext>,
        material: Arc<Material>,
        web_tls: WebTls,
        pages: Router,
        places: Places,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> (Self, ApiIncoming) {
        let (api, incoming) = mpsc::channel(API_QUEUE_MAX);
        let front = Self {
            places,
            context,
            material,
            web_tls,
            pages,
            api,
            metrics,
            shutdown,
        };
        (front, ApiIncoming::new(incoming))
    }

    /// Accepts until shutdown.
    pub async fn run(self, listener: TcpListener) {
        let front = Arc::new(self);
        loop {
            let (stream, peer) = tokio::select! {
                () = front.shutdown.cancelled() => return,
                accepted = net::accept(&listener) => accepted,
            };
            front.take(stream, peer);
        }
    }

    /// Beyond the limits a connection is closed at once: making it wait would cost more. Among those that have
    /// proven nothing, whoever has been there longest gives way.
    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Some(slots) = self.slots(peer) else {
            self.metrics.connection("over_limit");
            tracing::debug!(%peer, "connection refused: over the limit");
            return;
        };
        let front = Arc::clone(self);
        let serving = async move {
            let gave_way = slots.unauthenticated.gave_way();
            let served = tokio::select! {
                served = front.serve(stream, peer, slots) => served,
                () = gave_way => Err(ArrivalError::GaveWay),
            };
            match served {
                Ok(()) => {}
                Err(error) => {
                    front.metrics.connection(error.outcome());
                    match error {
                        // The operator's mistake more often than a stranger's.
                        ArrivalError::ProxyHeader(error) => {
                            tracing::warn!(%peer, %error, "connection refused")
                        }
                        error => tracing::debug!(%peer, %error, "connection refused"),
                    }
                }
            }
        };
        tokio::spawn(serving);
    }

    fn slots(&self, peer: SocketAddr) -> Option<Taken> {
        let forwards = proxy_protocol::may_send(peer.ip(), &self.context.config.proxy_protocol_from);
        let source = (!forwards).then(|| Source::of(peer.ip()));
        Some(Taken {
            connection: self.places.connections.take()?,
            unauthenticated: self
                .places
                .unauthenticated
                .enter(source, Standing::Stranger, Instant::now())
                .ok()?,
        })
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, mut slots: Taken) -> Result<(), ArrivalError> {
        net::tune(&stream)?;
        let timeout = self.context.limits.now().handshake_timeout;
        let deadline = tokio::time::Instant::now() + timeout;
        let arriving = arrival::receive(&self.context.config, timeout, stream, peer);
        let arrival =
            tokio::time::timeout_at(deadline, arriving)
                .await
                .map_err(|_| ArrivalError::TimedOut {
                    milliseconds: timeout.as_millis(),
                })??;
        let source = Source::of(arrival.client.ip());
        let place = &mut slots.unauthenticated;
        place
            .attribute(source, Standing::Stranger, Instant::now())
            .map_err(|NoPlace| ArrivalError::GaveWay)?;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        match arrival.destination {
            Destination::Pages => self.serve_pages(arrival, left, slots).await,
            Destination::Api => self.serve_api(arrival, left, slots).await,
        }
    }

    async fn serve_pages(&self, arrival: Arrival, left: Duration, slots: Taken) -> Result<(), ArrivalError> {
        let stream = tls::handshake(arrival.stream, self.web_tls.config(), left).await?;
        self.metrics.connection("web");
        let connection = Connection {
            address: arrival.client,
            certificate: Presented::NoCertificate,
        };
        let pages = self.pages.clone().layer(axum::Extension(connection));
        web::serve(stream, pages, self.shutdown.clone()).await;
        drop(slots);
        Ok(())
    }

    async fn serve_api(&self, arrival: Arrival, left: Duration, slots: Taken) -> Result<(), ArrivalError> {
        let demand = Demand::OptionalOrExpired;
        let verifier = Arc::new(PeerVerifier::new(self.material.bundle(), API_CLASSES, demand));
        let (identity, clients) = (Arc::clone(&self.material) as _, Arc::clone(&verifier) as _);
        let config = tls::server_config(identity, clients, &[ALPN_H2])?;
        let stream = match tls::handshake(arrival.stream, config, left).await {
            Ok(stream) => stream,
            Err(error) => {
                let refusal = verifier.refusal().map(ToString::to_string);
                tracing::debug!(client = %arrival.client, refusal, "API handshake failed");
                return Err(error.into());
            }
        };
        let certificate = presented(&verifier, leaf_of(&stream));
        let unauthenticated = match &certificate {
            Presented::NoCertificate => {
                let life = self.context.limits.now().unauthenticated_timeout;
                Some(Unauthenticated::new(slots.unauthenticated, life))
            }
            Presented::Valid { .. } | Presented::ExpiredAgent(_) | Presented::ExpiredUser(_) => None,
        };
        let counted = match principal_of(&certificate) {
            None => None,
            Some(principal) => {
                let counted = self.places.principals.enter(principal.clone());
                Some(counted.ok_or(ArrivalError::TooManyOfOne(principal))?)
            }
        };
        self.metrics.connection("api");
        let connection = Connection {
            address: arrival.client,
            certificate,
        };
        let stream = ApiStream::new(stream, connection, slots.connection, counted, unauthenticated);
        self.api
            .send(stream)
            .await
            .map_err(|_| ArrivalError::ShuttingDown)
    }
}

/// Strangers never get more than half of all connections: those with a certificate find a place beside any number
/// of them.
fn strangers_max(limits: &Limits) -> usize {
    limits
        .unauthenticated_connections_max
        .min((limits.connections_max / 2).max(1))
}

fn share_of_one(limits: &Limits) -> usize {
    (limits.connections_max / PRINCIPAL_SHARE).max(PRINCIPAL_CONNECTIONS_MIN)
}

fn presented(verifier: &PeerVerifier, leaf: Option<tls::CertificateDer<'static>>) -> Presented {
    match (verifier.peer(), leaf) {
        (Some(peer), Some(leaf)) => Presented::Valid { peer, leaf },
        (Some(_), None) | (None, _) => {
            let agent = verifier.expired_agent().map(Presented::ExpiredAgent);
            let user = || verifier.expired_user().map(Presented::ExpiredUser);
            agent.or_else(user).unwrap_or(Presented::NoCertificate)
        }
    }
}

fn leaf_of<S>(stream: &tls::ServerStream<S>) -> Option<tls::CertificateDer<'static>> {
    let (_, connection) = stream.get_ref();
    connection
        .peer_certificates()?
        .first()
        .map(|leaf| leaf.clone().into_owned())
}
