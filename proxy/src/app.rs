//! Putting the proxy together and running it: parse, build, run.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iap_runtime::admin::{self, AdminError, Condition, Readiness};
use iap_runtime::config::InForce;
use iap_runtime::pump::Cancellation;
use iap_runtime::quic::QuicError;
use iap_runtime::rpc::{self, ALPN_H2};
use iap_runtime::seldom::Seldom;
use iap_runtime::shutdown::{Drained, Shutdown};
use iap_runtime::tls::{self, ServerVerifier};
use iap_runtime::traces::{self, Program, Traces};
use prometheus_client::registry::Registry;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::admission::Admission;
use crate::auth::{Feed, Renewal};
use crate::bind::{Binder, Listeners};
use crate::config::{Config, Limits};
use crate::control::ControlDoor;
use crate::front::door::Door;
use crate::front::fetch::Fetcher;
use crate::front::forward::AuthDialer;
use crate::front::greet::Rules;
use crate::metrics::Metrics;
use crate::state::{Reloader, State, StateError};
use crate::switchboard::Switchboard;
use crate::trust::Trust;

const STOPPING: &str = "the proxy is stopping";
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// What calls to the auth server get to end by themselves once the sessions are over. An agent's feed never does.
const CALLS: Duration = Duration::from_secs(1);
/// When none of the sessions that can go on elsewhere has left for so long, none will: their clients and agents know no
/// other proxy, and wait for the one that begins when this one has ended.
const LEAVING: Duration = Duration::from_secs(1);
/// For closing what the drain did not see end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A proxy with everything it needs: verified state, bound sockets.
pub struct App {
    door: Arc<Door>,
    listeners: Vec<Listeners>,
    admin_listen: SocketAddr,
    feed: Feed,
    renewal: Renewal,
    readiness: Readiness,
    registry: Arc<Registry>,
    trust: watch::Receiver<Arc<Trust>>,
}

/// The limits of a running proxy.
#[derive(Clone)]
pub struct LimitsInForce {
    limits: InForce<Limits>,
    admission: Admission,
    board: Switchboard,
}

impl LimitsInForce {
    /// From now on these limits, as far as a running proxy takes them over. Nobody who came in under others is
    /// sent away.
    pub fn take_over(&self, limits: Limits) {
        self.limits.replace(limits.taken_over(&self.limits.now()));
        self.admission.resize();
        self.board.resize();
    }
}

/// Why the proxy cannot run.
#[derive(Debug, Error)]
pub enum AppError {
    /// Its state is unusable.
    #[error(transparent)]
    State(#[from] StateError),
    /// A public address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A socket that was passed to the program cannot be used.
    #[error("a socket that was passed to this program (LISTEN_FDS): {0}")]
    Inherited(io::Error),
    /// A socket was passed that the configuration does not speak of.
    #[error(
        "{address} was passed to this program and is not in `listen`: make the socket unit and the configuration say the \
         same (without QUIC, a datagram socket is one too many)"
    )]
    NotConfigured {
        /// Where it is bound.
        address: SocketAddr,
    },
    /// A public address cannot be bound for QUIC.
    #[error(
        "cannot listen on UDP {address} ({source}): free it, or set quic.enabled = false to do without QUIC"
    )]
    ListenUdp {
        /// Which.
        address: SocketAddr,
        /// What failed.
        source: QuicError,
    },
    /// QUIC cannot be set up.
    #[error("QUIC: {0}")]
    Quic(String),
    /// The admin address cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] traces::StartError),
    /// The way to the auth server cannot be set up.
    #[error("the client for the auth server: {0}")]
    Client(String),
}

impl App {
    /// Verifies the state first, binds sockets last: a proxy without an identity listens to nobody.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        let state = State::open(&config.state_dir, &config.cluster, OffsetDateTime::now_utc())?;
        tracing::info!(proxy = %state.proxy_id, cluster = %config.cluster, "the proxy's state is verified");
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let readiness = Readiness::new();
        let channel = auth_channel(&config, &state)?;
        let trust = state.keeper.reader();
        let program = Program {
            name: "iap-proxy",
            version: env!("CARGO_PKG_VERSION"),
            instance: Some(state.proxy_id.to_string()),
            cluster: Some(config.cluster.to_string()),
        };
        let traces = Traces::start(config.traces.as_ref(), &program, &metrics.trace_spans)?;
        let door = Arc::new(door(&config, &state, &metrics, traces));
        let secret = state.key.serialize_der();
        let feed = Feed {
            channel: channel.clone(),
            keeper: state.keeper,
            metrics,
            public_address: config.public_address.to_string(),
            ready: readiness.condition("locks"),
        };
        let renewal = Renewal {
            channel,
            directory: state.directory,
            material: state.material,
            ready: readiness.condition("certificate"),
        };
        let listeners = Binder::new(&config, &door, secret)?.bind_all()?;
        let admin_listen = config.admin_listen;
        let registry = Arc::new(registry);
        Ok(Self {
            door,
            listeners,
            admin_listen,
            feed,
            renewal,
            readiness,
            registry,
            trust,
        })
    }

    /// The public addresses actually bound.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.tcp.local_addr().ok())
            .collect()
    }

    /// The counters, for programs that embed the proxy.
    pub fn metrics(&self) -> Metrics {
        self.door.metrics.clone()
    }

    /// Takes over what `iap-proxy join` left in the state directory, while the proxy runs.
    pub fn reloader(&self) -> Reloader {
        Reloader {
            directory: self.renewal.directory.clone(),
            material: Arc::clone(&self.renewal.material),
        }
    }

    /// Changes the limits while the proxy runs.
    pub fn limits(&self) -> LimitsInForce {
        LimitsInForce {
            limits: self.door.control.limits.clone(),
            admission: self.door.admission.clone(),
            board: self.door.fetcher.board.clone(),
        }
    }

    /// The table of agents and sessions, likewise.
    pub fn switchboard(&self) -> Switchboard {
        self.door.fetcher.board.clone()
    }

    /// Serves until the shutdown, then drains: no new connections, a word to every agent, a bounded wait for
    /// what still runs, and the end.
    pub async fn run(self, shutdown: Shutdown) -> Result<Drained, AppError> {
        Ok(self.start(shutdown).await?.stopped().await)
    }

    /// Begins to serve.
    pub async fn start(self, shutdown: Shutdown) -> Result<Running, AppError> {
        let listening = self.readiness.condition("listening");
        let admin_address =
            admin::serve(self.admin_listen, self.readiness, self.registry, shutdown.clone()).await?;
        let mut background = vec![
            tokio::spawn(self.feed.follow()),
            tokio::spawn(self.renewal.keep()),
            tokio::spawn(cut_locked(self.trust, self.door.fetcher.board.clone())),
        ];
        let mut doors = Vec::new();
        for listeners in self.listeners {
            let door = Arc::clone(&self.door);
            doors.push(tokio::spawn(door.accept(listeners.tcp, shutdown.clone())));
            if let Some(listener) = listeners.quic {
                let door = self.door.control.clone();
                background.push(tokio::spawn(door.accept_quic(listener, shutdown.clone())));
            }
        }
        listening.met();
        let door = self.door;
        Ok(Running {
            door,
            doors,
            background,
            shutdown,
            admin_address,
            listening,
        })
    }
}

/// A proxy that serves.
pub struct Running {
    door: Arc<Door>,
    doors: Vec<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
    shutdown: Shutdown,
    admin_address: SocketAddr,
    listening: Condition,
}

impl Running {
    /// Where health, readiness and metrics are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Waits for the shutdown, then drains.
    pub async fn stopped(self) -> Drained {
        self.shutdown.cancelled().await;
        self.listening.unmet("draining");
        for door in self.doors {
            // Ends at the shutdown by itself and closes its socket.
            let _ = door.await;
        }
        let seconds_max = self.door.control.limits.now().drain_seconds_max;
        let drained = drain(&self.door, seconds_max, &self.shutdown).await;
        self.background.iter().for_each(JoinHandle::abort);
        self.door.traces.finish(traces::FINISH_TIMEOUT).await;
        drained
    }
}

/// Agents' lines stay until the sessions are over, so that locks and verdicts still reach the proxy.
async fn drain(door: &Door, seconds_max: Duration, shutdown: &Shutdown) -> Drained {
    let board = &door.fetcher.board;
    let seconds = u32::try_from(seconds_max.as_secs()).unwrap_or(u32::MAX);
    board.drain(seconds);
    tracing::info!(
        sessions = board.sessions(),
        agents = board.agents(),
        seconds,
        "draining"
    );
    let idle = async {
        until(|| door.admission.taken().0 == 0 && board.not_resumable() == 0).await;
        // The sessions that are left hold a place each, as calls do.
        let calls = until(|| door.admission.taken() == (0, board.sessions()));
        // Whoever is cut off here asks again by another proxy, or this one when it is back.
        let calls = tokio::time::timeout(CALLS, calls);
        let _ = tokio::join!(calls, until_nobody_leaves(board));
    };
    let in_time = tokio::time::timeout(seconds_max, idle).await;
    let left = board.sessions();
    door.end.cancel(STOPPING);
    board.cut_all(STOPPING);
    let ended = shutdown.drain(LAST_WORDS).await;
    match in_time {
        Ok(()) => ended,
        Err(_) => Drained::Abandoned { tasks: left },
    }
}

/// Returns once no session is left, or none has left for a while.
async fn until_nobody_leaves(board: &Switchboard) {
    let (mut sessions, mut last_left) = (board.sessions(), Instant::now());
    while sessions > 0 && last_left.elapsed() < LEAVING {
        tokio::time::sleep(DRAIN_POLL).await;
        let now = board.sessions();
        if now < sessions {
            (sessions, last_left) = (now, Instant::now());
        }
    }
    if sessions > 0 {
        tracing::info!(sessions, "they go on once another proxy is there");
    }
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// A lock that arrives ends what runs through the agent it names.
async fn cut_locked(mut trust: watch::Receiver<Arc<Trust>>, board: Switchboard) {
    loop {
        let now = Arc::clone(&trust.borrow_and_update());
        if let Some(locks) = now.locks() {
            let (lines, sessions) = board.cut_locked(locks, OffsetDateTime::now_utc());
            if lines + sessions > 0 {
                tracing::warn!(lines, sessions, "cut by a lock");
            }
        }
        if trust.changed().await.is_err() {
            return;
        }
    }
}

fn door(config: &Config, state: &State, metrics: &Metrics, traces: Traces) -> Door {
    let limits = InForce::new(config.limits.clone());
    let board = Switchboard::new(limits.clone(), metrics.clone());
    let admission = Admission::new(limits.clone());
    let end = Cancellation::new();
    Door {
        rules: Rules {
            cluster: config.cluster.clone(),
            proxy_protocol_from: config.proxy_protocol_from.clone(),
            limits: limits.clone(),
        },
        fetcher: Fetcher {
            board: board.clone(),
            metrics: metrics.clone(),
            limits: limits.clone(),
            missed: Arc::default(),
        },
        auth: AuthDialer {
            auth: config.auth.clone(),
            limits: limits.clone(),
        },
        control: ControlDoor {
            material: Arc::clone(&state.material),
            board,
            admission: admission.clone(),
            trust: state.keeper.reader(),
            limits,
            metrics: metrics.clone(),
            end: end.clone(),
        },
        trust: state.keeper.reader(),
        admission,
        metrics: metrics.clone(),
        turned_away: Seldom::default(),
        traces,
        end,
    }
}

fn auth_channel(config: &Config, state: &State) -> Result<Channel, AppError> {
    let verifier = Arc::new(ServerVerifier::new(Arc::clone(&state.material)));
    let tls = tls::client_config(verifier, Some(Arc::clone(&state.material) as _), &[ALPN_H2])
        .map_err(|error| AppError::Client(error.to_string()))?;
    rpc::channel(config.auth.clone(), &config.cluster.auth_host(), tls)
        .map_err(|error| AppError::Client(error.to_string()))
}
