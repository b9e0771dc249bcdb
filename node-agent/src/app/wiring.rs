//! Who gets what: the built parts become tasks that know only what they need.

use std::collections::BTreeSet;
use std::sync::Arc;

use iap_identity::AgentId;
use iap_runtime::config::InForce;
use iap_runtime::handover::Successor;
use iap_runtime::shutdown::Shutdown;
use iap_tunnel::RunId;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::sync::watch;
use uuid::Uuid;

use super::running::{Conditions, Gauges, Running, Tasks};
use super::{App, RunError};
use crate::auth::leaves::LeafKeeper;
use crate::auth::recordings::RecordingUploader;
use crate::auth::upload::Uploader;
use crate::auth::watch::Watcher;
use crate::auth::{AuthClient, renewal, status};
use crate::clock::TrustedClock;
use crate::config::LocalServices;
use crate::control::{Connected, Connector, Proxies};
use crate::credentials::keeper::{CredentialKeeper, KeeperParts};
use crate::credentials::{Credentials, Relayed};
use crate::decide::Gate;
use crate::dialback::{Entrance, EntranceParts};
use crate::handlers::ssh::HostKeys;
use crate::identity::OwnIdentity;
use crate::leaves::Leaves;
use crate::limits::Limits;
use crate::session::handover::handed::Handed;
use crate::session::handover::succession::Succession;
use crate::session::review::Reviewer;
use crate::session::{Handover, Registry};
use crate::state::names;
use crate::view::View;

/// What most parts look at.
struct Shared {
    agent_id: AgentId,
    clock: Arc<TrustedClock>,
    identity: Arc<OwnIdentity>,
    limits: InForce<Limits>,
    services: watch::Receiver<Arc<LocalServices>>,
    sessions: Arc<Registry>,
    views: watch::Receiver<Option<Arc<View>>>,
}

/// Starts every task of a built agent.
pub(super) fn start(
    app: App,
    conditions: Conditions,
    shutdown: &Shutdown,
) -> Result<(Running, MetricsRegistry), RunError> {
    let App {
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
        limits,
        sessions,
        store,
        handed,
        recordings,
    } = app;
    let successor = Successor::default();
    let succession = store.is_none().then(|| Succession {
        path: state.path(names::SUCCESSOR),
        successor: successor.clone(),
        shutdown: shutdown.clone(),
    });
    let handover = match store {
        Some(store) => Handover::through(store).surviving_kill(config.sessions.survive_kill),
        None => {
            if config.sessions.survive_kill {
                tracing::warn!(
                    "sessions end when this agent is killed: there is no descriptor store to keep them in"
                );
            }
            Handover::direct(successor)
        }
    };
    let shared = Shared {
        agent_id: joined.agent_id,
        sessions,
        services: services.subscribe(),
        limits,
        views: feed.views(),
        clock,
        identity,
    };
    let gate = shared.gate();
    let (credentials, holder) = Credentials::empty(Arc::clone(&shared.clock), metrics.clone());
    let leaves = Leaves::new(shared.agent_id, state.clone());
    let offers = leaves.offers();
    let entrance = Entrance::new(EntranceParts {
        agent_id: shared.agent_id,
        cluster: config.cluster.clone(),
        gate: Arc::clone(&gate),
        journal: journal.clone(),
        registry: Arc::clone(&shared.sessions),
        identity: Arc::clone(&shared.identity),
        offers: offers.clone(),
        limits: shared.limits.clone(),
        metrics: metrics.clone(),
        traces: traces.clone(),
        shutdown: shutdown.clone(),
        handover: handover.clone(),
        recordings: recordings.clone(),
        host_keys: HostKeys::new(state.clone()),
        credentials,
    });
    take_over(&entrance, handed, handover.clone());
    let connected = Arc::new(Connected::default());
    let connector = Connector {
        identity: Arc::clone(&shared.identity),
        run: RunId::from_bytes(*Uuid::now_v7().as_bytes()),
        offers: offers.clone(),
        entrance,
        views: shared.views.clone(),
        connected: Arc::clone(&connected),
        limits: shared.limits.clone(),
        choice: config.control,
        data_choice: config.data,
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    };
    let proxies = Proxies::new(
        Arc::new(connector),
        config.proxies,
        shared.limits.now().proxies_max,
    );
    let client = Arc::new(AuthClient::new(
        Arc::clone(&shared.identity),
        proxies.addresses(),
    )?);
    let keeper = KeeperParts {
        agent_id: shared.agent_id,
        cluster: config.cluster,
        state: state.clone(),
        client: Arc::clone(&client),
        services: shared.services.clone(),
        views: shared.views.clone(),
        clock: Arc::clone(&shared.clock),
        metrics: metrics.clone(),
    };
    let mut keeper = CredentialKeeper::new(keeper, holder);
    keeper.take_up();
    let uploader = Arc::new(Uploader::new(
        journal.clone(),
        Arc::clone(&client),
        Arc::clone(&shared.identity),
        state,
        shared.views.clone(),
    )?);
    let recorded = RecordingUploader::new(recordings, Arc::clone(&client));
    let sessions = Arc::clone(&shared.sessions);
    let gauges = Gauges {
        gate: Arc::clone(&gate),
        connected: Arc::clone(&connected),
        journal: journal.clone(),
        identity: Arc::clone(&shared.identity),
        clock: Arc::clone(&shared.clock),
        metrics,
        conditions,
    };

    let relayed = Relayed {
        agent_id: shared.agent_id,
        services: shared.services.clone(),
        views: shared.views.clone(),
    };

    let mut tasks = Tasks::default();
    tasks.spawn("recordings", recorded.run());
    tasks.spawn("review", shared.reviewer(gate).run());
    tasks.spawn("journal", journal.clone().run());
    tasks.spawn("leaves", shared.keeper(leaves, Arc::clone(&client)).run());
    tasks.spawn("credentials", keeper.run());
    let (views, recovering) = (shared.views.clone(), journal.clone());
    tasks.spawn("proxies", async move {
        recovering.recovered().await;
        proxies.run(views).await;
    });
    tasks.spawn("feed", shared.watcher(feed, Arc::clone(&client)).run());
    tasks.spawn(
        "status",
        status::run(
            Arc::clone(&client),
            connected,
            Arc::clone(&sessions),
            offers,
            relayed,
        ),
    );
    tasks.spawn("renewal", renewal::run(client, shared.identity, shared.clock));
    tasks.spawn("gauges", gauges.run());
    if let Some(succession) = succession {
        tasks.spawn("succession", succession.run());
    }
    Ok((
        Running {
            tasks,
            sessions,
            journal,
            uploader,
            traces,
            handover,
            _services: services,
        },
        registry,
    ))
}

/// Before anybody can come back to one of these sessions.
fn take_over(entrance: &Arc<Entrance>, handed: Handed, handover: Handover) {
    let (sessions, done_with) = handed.into_claimed();
    tokio::spawn(async move {
        for name in done_with {
            handover.forget(name).await;
        }
    });
    entrance.take_over(sessions);
}

impl Shared {
    fn gate(&self) -> Arc<Gate> {
        Arc::new(Gate::new(
            self.agent_id,
            self.identity.changes(),
            self.views.clone(),
            Arc::clone(&self.clock),
            self.services.clone(),
            self.limits.clone(),
        ))
    }

    fn reviewer(&self, gate: Arc<Gate>) -> Reviewer {
        Reviewer::new(
            gate,
            Arc::clone(&self.sessions),
            self.views.clone(),
            self.services.clone(),
            self.limits.clone(),
        )
    }

    /// Takes up the leaves on disk, so that the first announcement names them.
    fn keeper(&self, leaves: Leaves, client: Arc<AuthClient>) -> LeafKeeper {
        let mut keeper = LeafKeeper {
            agent_id: self.agent_id,
            leaves,
            client,
            services: self.services.clone(),
            views: self.views.clone(),
            clock: Arc::clone(&self.clock),
            reported: BTreeSet::new(),
        };
        keeper.take_up();
        keeper
    }

    fn watcher(&self, feed: crate::view::Feed, client: Arc<AuthClient>) -> Watcher {
        let services = self.services.clone();
        Watcher {
            feed,
            client,
            identity: Arc::clone(&self.identity),
            services,
        }
    }
}
