//! Holds a leaf for every service the agent is granted, has in its own file and can serve.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{AgentId, ServiceName, TrustBundle};
use iap_proto::ServiceRecord;
use iap_runtime::backoff::Backoff;
use tokio::sync::watch;

use super::AuthClient;
use crate::clock::TrustedClock;
use crate::config::LocalServices;
use crate::handlers;
use crate::leaves::Leaves;
use crate::view::View;

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The longest sleep in one piece, so that a clock that jumps is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// The one keeper of leaves.
#[derive(Debug)]
pub struct LeafKeeper {
    /// This agent.
    pub agent_id: AgentId,
    /// What it holds.
    pub leaves: Leaves,
    /// Who issues them.
    pub client: Arc<AuthClient>,
    /// What the agent's own file lists.
    pub services: watch::Receiver<Arc<LocalServices>>,
    /// What is granted.
    pub views: watch::Receiver<Option<Arc<View>>>,
    /// The time.
    pub clock: Arc<TrustedClock>,
    /// What was said about services that are not served.
    pub reported: BTreeSet<(ServiceName, &'static str)>,
}

impl LeafKeeper {
    /// Takes up the leaves on disk; afterwards [`run`](Self::run) fetches what is missing.
    pub fn take_up(&mut self) {
        let view = self.views.borrow_and_update().clone();
        if let Some(view) = view {
            let wanted = self.wanted(&view);
            self.leaves.adopt(&wanted, view.bundle(), self.clock.now());
        }
    }

    /// Runs until every publisher of views has gone.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        self.report_obstacles();
        loop {
            self.take_up();
            let pause = if self.fetch_due().await {
                backoff.reset();
                self.until_due()
            } else {
                backoff.next_delay()
            };
            tokio::select! {
                changed = self.views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.report_obstacles();
                }
                changed = self.services.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.report_obstacles();
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn wanted(&self, view: &View) -> Vec<ServiceName> {
        let served = view
            .services_of(self.agent_id)
            .filter(|record| self.obstacle(record).is_none());
        served.map(|record| record.facts.name.clone()).collect()
    }

    /// Why a granted service is not served here.
    fn obstacle(&self, record: &ServiceRecord) -> Option<&'static str> {
        match self.services.borrow().get(&record.facts.name) {
            Some(local) => handlers::obstacle(&record.facts, local),
            None => Some("it is not in the agent's own file"),
        }
    }

    /// Each obstacle is logged once, when it appears.
    fn report_obstacles(&mut self) {
        let view = self.views.borrow().clone();
        let granted = view.iter().flat_map(|view| view.services_of(self.agent_id));
        let obstacles: BTreeSet<_> = granted
            .filter_map(|record| Some((record.facts.name.clone(), self.obstacle(record)?)))
            .collect();
        for (service, reason) in obstacles.difference(&self.reported) {
            tracing::warn!(%service, reason, "granted to this agent, and not served");
        }
        self.reported = obstacles;
    }

    /// Whether every leaf that is due has come.
    async fn fetch_due(&mut self) -> bool {
        let view = self.views.borrow().clone();
        let Some(view) = view else { return true };
        let wanted = self.wanted(&view);
        let mut complete = true;
        for service in self.leaves.due(&wanted, self.clock.now()) {
            if let Err(error) = self.fetch(&service, view.bundle()).await {
                tracing::warn!(%service, %error, "no certificate for the service yet");
                complete = false;
            }
        }
        complete
    }

    async fn fetch(&mut self, service: &ServiceName, bundle: &TrustBundle) -> anyhow::Result<()> {
        let asked = Leaves::ask(service)?;
        let chain = self
            .client
            .service_leaf(service.to_string(), asked.csr.clone())
            .await?;
        self.leaves.take(asked, chain, bundle, self.clock.now())?;
        tracing::info!(%service, "the service has a certificate");
        Ok(())
    }

    fn until_due(&self) -> Duration {
        let left = self
            .leaves
            .next_due()
            .map(|due| Duration::try_from(due - self.clock.now()).unwrap_or_default());
        left.unwrap_or(SLEEP_MAX).clamp(Duration::from_secs(1), SLEEP_MAX)
    }
}
