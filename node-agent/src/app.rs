//! The program: build what is needed, in the order in which it may be relied on, then run until told to stop.

mod running;
mod wiring;

use std::sync::Arc;
use std::time::Duration;

use iap_runtime::admin::{self, AdminError, Readiness};
use iap_runtime::config::InForce;
use iap_runtime::handover::DescriptorStore;
use iap_runtime::shutdown::Shutdown;
use iap_runtime::spool::Spool;
use iap_runtime::traces::{self, Program, Traces};
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::sync::watch;

use crate::auth::CallError;
use crate::clock::TrustedClock;
use crate::config::{Config, LocalServices};
use crate::identity::{IdentityError, OwnIdentity};
use crate::journal::{Journal, JournalError};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::recording::{Recordings, RecordingsError};
use crate::session::handover::handed::Handed;
use crate::session::handover::succession;
use crate::session::{Inheritance, Registry};
use crate::state::{Joined, StateDir, StateError, names};
use crate::view::{Feed, FeedError};
use running::Conditions;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The state directory, or the host has not joined.
    #[error(transparent)]
    State(#[from] StateError),
    /// The trust bundle.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The agent's own certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The audit spool.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The folder of recordings.
    #[error(transparent)]
    Recordings(#[from] RecordingsError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] traces::StartError),
}

/// Why the agent stops by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The admin address.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The channel to the auth server.
    #[error(transparent)]
    Channel(#[from] CallError),
    /// The list of live sessions.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A task that never ends has ended.
    #[error("the task {0} ended; the agent cannot go on without it")]
    TaskEnded(&'static str),
}

/// How long a predecessor that has ended may take to let go of its spool, and how often that is looked at.
const SPOOL_TRIES: u32 = 100;
const SPOOL_TRY_EVERY: Duration = Duration::from_millis(50);

/// A built agent: everything on disk is loaded and checked, lost sessions have their end records, and nothing
/// has been dialled yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    state: StateDir,
    joined: Joined,
    clock: Arc<TrustedClock>,
    feed: Feed,
    identity: Arc<OwnIdentity>,
    journal: Journal,
    metrics: Metrics,
    registry: MetricsRegistry,
    traces: Traces,
    services: watch::Sender<Arc<LocalServices>>,
    limits: InForce<Limits>,
    sessions: Arc<Registry>,
    store: Option<DescriptorStore>,
    handed: Handed,
    recordings: Recordings,
}

/// Changes what a running agent takes over of its own file.
#[derive(Debug, Clone)]
pub struct Reload {
    services: watch::Sender<Arc<LocalServices>>,
    limits: InForce<Limits>,
    sessions: Arc<Registry>,
}

impl Reload {
    /// From now on these are the services of the agent's own file. Live sessions are decided again: what the
    /// file no longer lists or allows ends.
    pub fn services(&self, services: LocalServices) {
        self.services.send_replace(Arc::new(services));
    }

    /// From now on these limits, as far as a running agent takes them over. Nobody who came in under others is
    /// sent away.
    pub fn limits(&self, limits: Limits) {
        self.limits.replace(limits.taken_over(&self.limits.now()));
        self.sessions.resize(self.limits.now().sessions_max);
    }
}

impl App {
    /// Loads and checks what is on disk; ends the sessions that a killed predecessor left.
    ///
    /// # Errors
    /// Why the agent cannot start.
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        Self::build_at(config, TrustedClock::default()).await
    }

    /// The same after a predecessor, whose sessions go on.
    ///
    /// # Errors
    /// Why the agent cannot start; what was left stays where it is.
    pub async fn build_after(config: Config, inheritance: Inheritance) -> Result<Self, BuildError> {
        Self::build_with(config, TrustedClock::default(), inheritance).await
    }

    /// The same by another clock than the system's.
    ///
    /// # Errors
    /// Why the agent cannot start.
    pub async fn build_at(config: Config, clock: TrustedClock) -> Result<Self, BuildError> {
        Self::build_with(config, clock, Inheritance::default()).await
    }

    /// The same by another clock, after a predecessor.
    ///
    /// # Errors
    /// Why the agent cannot start; what was left stays where it is.
    pub async fn build_with(
        config: Config,
        clock: TrustedClock,
        inheritance: Inheritance,
    ) -> Result<Self, BuildError> {
        let state = StateDir::open(&config.state_dir)?;
        let joined = state.joined()?;
        let clock = Arc::new(clock);
        let feed = Feed::load(config.cluster.clone(), joined, state.clone(), Arc::clone(&clock)).await?;
        let bundle = Arc::clone(&feed.bundles().borrow());
        let identity = OwnIdentity::load(joined.agent_id, state.clone(), &bundle, Arc::clone(&clock))?;
        let mut registry = MetricsRegistry::default();
        let metrics = Metrics::registered(&mut registry);
        let program = Program {
            name: "iap-agent",
            version: env!("CARGO_PKG_VERSION"),
            instance: Some(joined.agent_id.to_string()),
            cluster: Some(config.cluster.to_string()),
        };
        let traces = Traces::start(config.traces.as_ref(), &program, metrics.trace_spans())?;
        let (id, limits) = (joined.agent_id, InForce::new(config.limits.clone()));
        let Inheritance { left, store } = inheritance;
        let asks = store.is_none().then(|| state.path(names::SUCCESSOR));
        let drain = config.limits.drain();
        let looking = tokio::task::spawn_blocking(move || {
            let given = asks.and_then(|path| succession::ask(&path, drain));
            let is_direct = given.is_some();
            (Handed::look(given.unwrap_or(left), id), is_direct)
        });
        let (mut handed, is_direct) = looking.await.map_err(JournalError::Task)?;
        if is_direct {
            wait_for_spool(&state).await;
        }
        let (in_force, time, counts) = (limits.clone(), Arc::clone(&clock), metrics.clone());
        let journal = Journal::open_after(id, &state, in_force, time, counts, &mut handed).await?;
        let recordings = Recordings::open(&state, limits.clone(), &journal).await?;
        let identity = Arc::new(identity);
        let services = watch::Sender::new(Arc::new(config.services.clone()));
        Ok(Self {
            config,
            state,
            joined,
            clock,
            feed,
            identity,
            journal,
            metrics,
            registry,
            traces,
            services,
            sessions: Arc::new(Registry::new(limits.now().sessions_max)),
            limits,
            store,
            handed,
            recordings,
        })
    }

    /// For changes of the agent's own file while it runs.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload {
            services: self.services.clone(),
            limits: self.limits.clone(),
            sessions: Arc::clone(&self.sessions),
        }
    }

    /// Serves until `shutdown`, then drains. `serving` is called once every task runs and the admin address is bound.
    ///
    /// # Errors
    /// When something the agent cannot do without fails.
    pub async fn run(self, shutdown: Shutdown, serving: impl FnOnce() + Send) -> Result<(), RunError> {
        let readiness = Readiness::new();
        let conditions = Conditions {
            snapshot: readiness.condition("snapshot"),
            proxies: readiness.condition("proxies"),
            spool: readiness.condition("spool"),
            certificate: readiness.condition("certificate"),
            clock: readiness.condition("clock"),
        };
        let limits = self.limits.clone();
        let admin_listen = self.config.admin_listen;
        let (running, registry) = wiring::start(self, conditions, &shutdown)?;
        if let Some(address) = admin_listen {
            let bound = admin::serve(address, readiness, Arc::new(registry), shutdown.clone()).await?;
            tracing::info!(%bound, "admin address");
        }
        serving();
        running.until_stopped(shutdown, &limits).await
    }
}

/// Whoever has handed its sessions over is about to end, and to let go of what it holds. If it does not, opening says so.
async fn wait_for_spool(state: &StateDir) {
    for _ in 0..SPOOL_TRIES {
        if Spool::lock(&state.path(names::SPOOL)).is_ok() {
            return;
        }
        tokio::time::sleep(SPOOL_TRY_EVERY).await;
    }
}
