//! The program: build what is needed, in the order in which it may be relied on, then run until told to stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_identity::ServiceName;
use iap_runtime::admin::{self, AdminError, Readiness};
use iap_runtime::shutdown::Shutdown;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::auth::leaves::LeafKeeper;
use crate::auth::upload::Uploader;
use crate::auth::watch::Watcher;
use crate::auth::{AuthClient, CallError, renewal, status};
use crate::clock::TrustedClock;
use crate::config::{Config, LocalService};
use crate::control::{Connected, Connector, Proxies};
use crate::decide::Gate;
use crate::dialback::{Entrance, EntranceParts};
use crate::identity::{IdentityError, OwnIdentity};
use crate::journal::{Journal, JournalError};
use crate::leaves::Leaves;
use crate::metrics::Metrics;
use crate::session::review::Reviewer;
use crate::session::{Ending, Registry};
use crate::state::{Joined, StateDir, StateError};
use crate::view::{Feed, FeedError};

/// How long cut sessions may take to write their end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last records may take to reach the auth server; otherwise they wait on disk.
const LAST_UPLOAD_TIMEOUT: Duration = Duration::from_secs(1);

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
}

impl App {
    /// Loads and checks what is on disk; ends the sessions that a killed predecessor left.
    ///
    /// # Errors
    /// Why the agent cannot start.
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let state = StateDir::open(&config.state_dir)?;
        let joined = state.joined()?;
        let clock = Arc::new(TrustedClock::default());
        let feed = Feed::load(config.cluster.clone(), joined, state.clone(), Arc::clone(&clock)).await?;
        let bundle = Arc::clone(&feed.bundles().borrow());
        let identity = OwnIdentity::load(joined.agent_id, state.clone(), &bundle, clock.now())?;
        let mut registry = MetricsRegistry::default();
        let metrics = Metrics::registered(&mut registry);
        let (id, limits) = (joined.agent_id, &config.limits);
        let journal = Journal::open(id, &state, limits, Arc::clone(&clock), metrics.clone()).await?;
        let identity = Arc::new(identity);
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
        })
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// # Errors
    /// When something the agent cannot do without fails.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let readiness = Readiness::new();
        let conditions = Conditions {
            snapshot: readiness.condition("snapshot"),
            proxies: readiness.condition("proxies"),
        };
        let drain = self.config.limits.drain();
        let admin_listen = self.config.admin_listen;
        let (running, registry) = self.start(conditions, &shutdown)?;
        if let Some(address) = admin_listen {
            let bound = admin::serve(address, readiness, Arc::new(registry), shutdown.clone()).await?;
            tracing::info!(%bound, "admin address");
        }
        running.until_stopped(shutdown, drain).await
    }

    fn start(
        self,
        conditions: Conditions,
        shutdown: &Shutdown,
    ) -> Result<(Running, MetricsRegistry), RunError> {
        let Self {
            config,
            state,
            joined,
            clock,
            feed,
            identity,
            journal,
            metrics,
            registry,
        } = self;
        let agent_id = joined.agent_id;
        let services: Arc<BTreeMap<ServiceName, LocalService>> = Arc::new(config.services);
        let views = feed.views();
        let gate = Arc::new(Gate::new(
            agent_id,
            identity.changes(),
            views.clone(),
            Arc::clone(&clock),
            Arc::clone(&services),
            config.limits.lock_feed(),
        ));
        let sessions = Arc::new(Registry::new(config.limits.sessions_max));
        let leaves = Leaves::new(agent_id, state.clone());
        let offers = leaves.offers();
        let entrance = Entrance::new(EntranceParts {
            agent_id,
            cluster: config.cluster,
            gate: Arc::clone(&gate),
            journal: journal.clone(),
            registry: Arc::clone(&sessions),
            offers: offers.clone(),
            services: Arc::clone(&services),
            limits: config.limits.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
        });
        let connected = Arc::new(Connected::default());
        let connector = Connector {
            identity: Arc::clone(&identity),
            offers: offers.clone(),
            entrance,
            connected: Arc::clone(&connected),
            dial_timeout: config.limits.dial(),
            shutdown: shutdown.clone(),
        };
        let proxies = Proxies::new(Arc::new(connector), config.proxies, config.limits.proxies_max);
        let client = Arc::new(AuthClient::new(Arc::clone(&identity), proxies.addresses())?);
        let uploader = Uploader::new(journal.clone(), Arc::clone(&client), Arc::clone(&identity), state)?;
        let mut keeper = LeafKeeper {
            agent_id,
            leaves,
            client: Arc::clone(&client),
            services: Arc::clone(&services),
            views: views.clone(),
            clock: Arc::clone(&clock),
        };
        keeper.take_up();
        let reviewer = Reviewer::new(
            Arc::clone(&gate),
            Arc::clone(&sessions),
            views.clone(),
            config.limits.outage_grace(),
        );
        let names = services.keys().map(ServiceName::to_string).collect();
        let watcher = Watcher {
            feed,
            client: Arc::clone(&client),
            identity: Arc::clone(&identity),
            services: names,
        };
        let gauges = Gauges {
            gate,
            connected: Arc::clone(&connected),
            journal: journal.clone(),
            clock: Arc::clone(&clock),
            metrics,
            conditions,
        };

        let mut tasks = Tasks::default();
        tasks.spawn("review", reviewer.run());
        tasks.spawn("journal", journal.clone().run());
        tasks.spawn("proxies", proxies.run(views));
        tasks.spawn("feed", watcher.run());
        tasks.spawn("renewal", renewal::run(Arc::clone(&client), identity, clock));
        tasks.spawn("leaves", keeper.run());
        tasks.spawn(
            "status",
            status::run(client, connected, Arc::clone(&sessions), offers),
        );
        tasks.spawn("gauges", gauges.run());
        let running = Running {
            tasks,
            sessions,
            journal,
            uploader: Arc::new(uploader),
        };
        Ok((running, registry))
    }
}

/// Tasks that never end by themselves.
#[derive(Debug, Default)]
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    async fn any_ended(&mut self) -> RunError {
        match self.0.join_next().await {
            Some(Ok(name)) => RunError::TaskEnded(name),
            Some(Err(error)) => {
                tracing::error!(%error, "a task failed");
                RunError::TaskEnded("that failed")
            }
            None => std::future::pending().await,
        }
    }
}

struct Running {
    tasks: Tasks,
    sessions: Arc<Registry>,
    journal: Journal,
    uploader: Arc<Uploader>,
}

impl Running {
    /// Stopping is in steps: the control connections withdraw their announcements by themselves; sessions get
    /// their grace, then their end; records are on disk before anything else goes.
    async fn until_stopped(mut self, shutdown: Shutdown, grace: Duration) -> Result<(), RunError> {
        let uploader = Arc::clone(&self.uploader);
        self.tasks.spawn("upload", async move { uploader.run().await });
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            failure = self.tasks.any_ended() => Some(failure),
        };
        shutdown.trigger("an essential task ended");
        if tokio::time::timeout(grace, self.sessions.empty()).await.is_err() {
            let live = self.sessions.len();
            tracing::info!(live, "ending the sessions that are left");
            self.sessions.cut_all(&Ending::because(
                CloseReason::Shutdown,
                "the agent was told to stop",
            ));
        }
        let _ = shutdown.drain(END_TIMEOUT).await;
        self.journal.stop().await;
        let _ = tokio::time::timeout(LAST_UPLOAD_TIMEOUT, self.uploader.finish()).await;
        self.tasks.0.shutdown().await;
        match failure {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }
}

/// When the agent is ready.
struct Conditions {
    snapshot: admin::Condition,
    proxies: admin::Condition,
}

/// Keeps readiness and the slow gauges up to date.
struct Gauges {
    gate: Arc<Gate>,
    connected: Arc<Connected>,
    journal: Journal,
    clock: Arc<TrustedClock>,
    metrics: Metrics,
    conditions: Conditions,
}

impl Gauges {
    async fn run(self) {
        const EVERY: Duration = Duration::from_secs(1);
        let mut count = self.connected.count();
        let mut views = self.gate.views();
        loop {
            self.update(*count.borrow_and_update());
            let next = Instant::now() + EVERY;
            tokio::select! {
                _ = count.changed() => {}
                _ = views.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn update(&self, connected: usize) {
        match self.gate.outage() {
            None => self.conditions.snapshot.met(),
            Some(outage) => self.conditions.snapshot.unmet(outage.text()),
        }
        if connected > 0 {
            self.conditions.proxies.met();
        } else {
            self.conditions
                .proxies
                .unmet("no control connection to any proxy");
        }
        self.metrics.control_connections(connected);
        self.metrics.feed_age(self.clock.feed_age().unwrap_or_default());
        self.metrics.spool_records(self.journal.unacknowledged());
    }
}
