//! The agent at work: its tasks, its readiness, and how it stops.

use std::sync::Arc;
use std::time::Duration;

use iap_audit::CloseReason;
use iap_runtime::admin::Condition;
use iap_runtime::config::InForce;
use iap_runtime::shutdown::{INTERRUPTED, Shutdown};
use iap_runtime::traces::{self, Traces};
use iap_tunnel::ControlWay;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::RunError;
use crate::auth::upload::Uploader;
use crate::clock::TrustedClock;
use crate::config::LocalServices;
use crate::control::Connected;
use crate::decide::Gate;
use crate::identity::OwnIdentity;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::session::{Ending, Handover, Registry};

/// What is looked at every second counts no longer when that stops.
const CONFIRMED_FOR: Duration = Duration::from_secs(15);
/// How long it may take to leave all sessions that can be left to the successor.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long cut sessions may take to write their end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last records may take to reach the auth server; otherwise they wait on disk.
const LAST_UPLOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Tasks that never end by themselves.
#[derive(Debug, Default)]
pub(super) struct Tasks(JoinSet<&'static str>);

impl Tasks {
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
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

/// An agent at work.
pub(super) struct Running {
    pub(super) tasks: Tasks,
    pub(super) sessions: Arc<Registry>,
    pub(super) journal: Journal,
    pub(super) uploader: Arc<Uploader>,
    pub(super) traces: Traces,
    pub(super) handover: Handover,
    /// Tasks that follow the services end when nobody can publish them any more.
    pub(super) _services: watch::Sender<Arc<LocalServices>>,
}

impl Running {
    /// Stopping is in steps: the control connections withdraw their announcements by themselves; sessions get
    /// their grace, then their end; records are on disk before anything else goes.
    pub(super) async fn until_stopped(
        mut self,
        shutdown: Shutdown,
        limits: &InForce<Limits>,
    ) -> Result<(), RunError> {
        let uploader = Arc::clone(&self.uploader);
        self.tasks.spawn("upload", async move { uploader.run().await });
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            failure = self.tasks.any_ended() => Some(failure),
        };
        shutdown.trigger("an essential task ended");
        let grace = limits.now().drain();
        // Whoever interrupts a program wants an end.
        let is_final = shutdown.reason() == Some(INTERRUPTED);
        let hands_over = !is_final && self.handover.has_successor();
        let drained = async {
            match hands_over {
                true => self.sessions.settled().await,
                false => self.sessions.empty().await,
            }
        };
        if tokio::time::timeout(grace, drained).await.is_err() {
            let live = self.sessions.len();
            tracing::info!(live, "ending the sessions that are left");
        }
        if hands_over {
            self.handover.ask();
            let _ = tokio::time::timeout(HANDOVER_TIMEOUT, self.sessions.none_can_move()).await;
        }
        // Also when there were none: one may be about to begin.
        self.sessions.cut_all(&Ending::because(
            CloseReason::Shutdown,
            "the agent was told to stop",
        ));
        let _ = shutdown.drain(END_TIMEOUT).await;
        let until_the_end = self.handover.settled().await;
        self.journal.stop().await;
        let _ = tokio::time::timeout(LAST_UPLOAD_TIMEOUT, self.uploader.finish()).await;
        self.traces.finish(traces::FINISH_TIMEOUT).await;
        self.tasks.0.shutdown().await;
        drop(until_the_end);
        match failure {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }
}

/// When the agent is ready.
pub(super) struct Conditions {
    pub(super) snapshot: Condition,
    pub(super) proxies: Condition,
    pub(super) clock: Condition,
    pub(super) spool: Condition,
    pub(super) certificate: Condition,
}

/// Keeps readiness and the slow gauges up to date.
pub(super) struct Gauges {
    pub(super) gate: Arc<Gate>,
    pub(super) connected: Arc<Connected>,
    pub(super) journal: Journal,
    pub(super) identity: Arc<OwnIdentity>,
    pub(super) clock: Arc<TrustedClock>,
    pub(super) metrics: Metrics,
    pub(super) conditions: Conditions,
}

impl Gauges {
    pub(super) async fn run(self) {
        const EVERY: Duration = Duration::from_secs(1);
        let mut connected = self.connected.changes();
        let mut views = self.gate.views();
        loop {
            self.update();
            let next = Instant::now() + EVERY;
            tokio::select! {
                // What nobody publishes any more changes no more.
                Ok(()) = connected.changed() => {}
                Ok(()) = views.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn update(&self) {
        let connected = self.connected.count();
        match self.gate.outage() {
            None => self.conditions.snapshot.met_for(CONFIRMED_FOR),
            Some(outage) => self.conditions.snapshot.unmet(outage.text()),
        }
        if connected > 0 {
            self.conditions.proxies.met_for(CONFIRMED_FOR);
        } else {
            self.conditions
                .proxies
                .unmet("no control connection to any proxy");
        }
        match self.clock.standing().text() {
            None => self.conditions.clock.met_for(CONFIRMED_FOR),
            Some(text) => self.conditions.clock.unmet(text),
        }
        if *self.journal.fullness().borrow() {
            let waiting = self.journal.unacknowledged();
            let why = format!("the spool is full: {waiting} records wait for the auth server");
            self.conditions.spool.unmet(&why);
        } else {
            self.conditions.spool.met_for(CONFIRMED_FOR);
        }
        let left = self.identity.current().not_after - self.clock.now();
        match Duration::try_from(left) {
            Ok(left) => self.conditions.certificate.met_for(left),
            Err(_) => self
                .conditions
                .certificate
                .unmet("the agent's certificate has expired and is not renewed yet"),
        }
        self.metrics.control_connections(connected);
        self.metrics.clock_offset(self.clock.offset());
        for way in ControlWay::ALL {
            self.metrics.control_way(way, self.connected.by(way));
        }
        self.metrics.feed_age(self.clock.feed_age().unwrap_or_default());
        self.metrics.spool_records(self.journal.unacknowledged());
    }
}
