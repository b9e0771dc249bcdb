//! From a proxy's `Open` to a session: dial back, be the TLS server on that socket, learn who is there,
//! decide, record, dial the backend, hand over to the protocol's handler.
//!
//! Each step consumes what the step before yielded: [`Greeted`](greet::Greeted) (a ClientHello for a service
//! of ours), [`Entered`](handshake::Entered) (possession of a certificate is proven),
//! [`Permit`](crate::decide::Permit), [`Started`](crate::session::Started), an open backend.

mod ask;
mod come_back;
mod fetch;
mod greet;
mod handshake;
mod hear;
mod hello;
mod serve;
mod shares;
mod stream;
mod take_over;
mod verifier;
mod watcher;

pub use handshake::ClientStream;
pub(crate) use hello::{say_last, write_status};
pub use stream::DataStream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use iap_identity::{AgentId, ClusterName, ConnectionId, ProxyId, ServiceName};
use iap_runtime::config::InForce;
use iap_runtime::say_seldom;
use iap_runtime::seldom::Seldom;
use iap_runtime::shutdown::{INTERRUPTED, Shutdown};
use iap_runtime::slots::Slots;
use iap_runtime::traces::Traces;
use iap_runtime::waiting_room::{Place, Source};
use iap_tunnel::{CancelRequest, Token};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::control::Link;
use crate::credentials::Credentials;
use crate::decide::Gate;
use crate::handlers::ssh::HostKeys;
use crate::handlers::{self, Cancels};
use crate::identity::OwnIdentity;
use crate::journal::Journal;
use crate::leaves::Offer;
use crate::limits::Limits;
use crate::metrics::{self, Metrics};
use crate::recording::Recordings;
use crate::session::{Handover, Live, Registry, Resumption, Resumptions, Through, review};
use crate::watch::Watchers;
use shares::Shares;

/// Requests to cancel that are handed on to backends at the same time.
const CANCELS_AT_ONCE_MAX: usize = 16;

/// What a proxy asks the agent to fetch.
pub struct Open {
    /// Which connection.
    pub connection_id: ConnectionId,
    /// The proof that this agent was asked.
    pub token: Token,
    /// Which service the proxy says it is for; `None`: for the agent itself.
    pub service: Option<ServiceName>,
    /// Where the client comes from, as the proxy saw it.
    pub client_address: SocketAddr,
    /// The connection, dialled in advance, that it is on.
    pub pooled: Option<ConnectionId>,
}

/// Where connections come in. Nothing behind it waits for the auth server.
#[derive(Debug)]
pub struct Entrance {
    parts: EntranceParts,
    handshakes: Shares,
    resumptions: Resumptions,
    cancels: Cancels,
    /// Requests to cancel, from strangers, that are looked at.
    cancelling: Slots,
    /// Those who watch sessions.
    watchers: Watchers,
    said: Said,
}

/// When what strangers can bring about at any rate was said last.
#[derive(Debug, Default)]
struct Said {
    not_dialling_back: Seldom,
    pooled_broke: Seldom,
    not_fetched_this_way: Seldom,
    not_fetched: Seldom,
    turned_away: Seldom,
    no_session: Seldom,
    ticket_refused: Seldom,
    watch_refused: Seldom,
}

/// Everything a session needs, shared by all of them.
#[derive(Debug)]
pub struct EntranceParts {
    /// This agent.
    pub agent_id: AgentId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Who decides.
    pub gate: Arc<Gate>,
    /// What is written down.
    pub journal: Journal,
    /// What is running.
    pub registry: Arc<Registry>,
    /// The certificate to answer at the agent's own name with.
    pub identity: Arc<OwnIdentity>,
    /// The leaves to answer with.
    pub offers: watch::Receiver<Arc<Offer>>,
    /// The bounds.
    pub limits: InForce<Limits>,
    /// The counters.
    pub metrics: Metrics,
    /// Where spans go.
    pub traces: Traces,
    /// When to stop letting anyone in; its drain waits for the sessions.
    pub shutdown: Shutdown,
    /// The way to this agent's successor.
    pub handover: Handover,
    /// Where recordings lie.
    pub recordings: Recordings,
    /// The SSH keys that clients see.
    pub(crate) host_keys: HostKeys,
    /// What to log in to backends with.
    pub credentials: Credentials,
}

impl Entrance {
    /// Whether sessions go to a successor now, so that one that is not here may be there.
    pub(crate) fn leaves_sessions(&self) -> bool {
        let shutdown = &self.parts.shutdown;
        shutdown.is_triggered()
            && shutdown.reason() != Some(INTERRUPTED)
            && self.parts.handover.has_successor()
    }

    /// An entrance to what these parts serve.
    #[must_use]
    pub fn new(parts: EntranceParts) -> Arc<Self> {
        let handshakes = Shares::new(parts.limits.now().proxies_max);
        Arc::new(Self {
            resumptions: Resumptions::new(parts.limits.clone()),
            cancels: Cancels::new(&parts.agent_id),
            cancelling: Slots::new(CANCELS_AT_ONCE_MAX),
            watchers: Watchers::default(),
            parts,
            handshakes,
            said: Said::default(),
        })
    }

    /// The time that decisions here are made with.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        self.parts.gate.now()
    }

    /// Fetches a connection, or tells the proxy at once that it will not, so that it can ask another agent.
    pub fn open(self: Arc<Self>, open: Open, link: Link) {
        match self.place(link.through.proxy, open.client_address) {
            Ok(place) => {
                let shutdown = self.parts.shutdown.clone();
                shutdown.spawn(serve::serve(self, open, link, place));
            }
            Err(reason) => {
                say_seldom!(self.said.not_dialling_back, warn, connection = %open.connection_id, reason, "not dialling back");
                self.parts.metrics.open_refused(reason);
                link.refuse(open.connection_id, reason);
            }
        }
    }

    /// Ends a statement, if that is what the request has the key to. It is a stranger's word, and so are those that are too
    /// many at once.
    pub(crate) fn cancel(self: Arc<Self>, request: CancelRequest) {
        let Some(slot) = self.cancelling.take() else {
            return;
        };
        let shutdown = self.parts.shutdown.clone();
        shutdown.spawn(async move {
            let patience = self.parts.limits.now().backend_dial();
            handlers::cancel(&self.cancels, &request, None, &self.parts.cluster, patience).await;
            drop(slot);
        });
    }

    /// Cuts the sessions that run through a proxy which is locked.
    pub fn cut_through(&self, through: &Through) {
        let (gate, registry) = (&self.parts.gate, &self.parts.registry);
        let concerned = |live: &Arc<Live>| live.through() == *through;
        for live in registry.all().into_iter().filter(concerned) {
            review::cut_by_lock_on_proxy(gate, &live);
        }
    }

    /// The sessions through `proxy` whose clients can come back by another.
    pub(crate) fn resumable_through(&self, proxy: ProxyId) -> Vec<Arc<Resumption>> {
        self.resumptions.through(proxy)
    }

    fn place(&self, proxy: ProxyId, client: SocketAddr) -> Result<Place, &'static str> {
        if self.parts.shutdown.is_triggered() {
            return Err(metrics::STOPPING);
        }
        if !self.parts.registry.has_room() {
            return Err(metrics::SESSIONS_MAX);
        }
        let (source, now) = (Source::of(client.ip()), Instant::now());
        let places_max = self.parts.limits.now().handshakes_max;
        let place = self.handshakes.place(proxy, source, places_max, now);
        place.map_err(|_| metrics::HANDSHAKES_MAX)
    }
}
