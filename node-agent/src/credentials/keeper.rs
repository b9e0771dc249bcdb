//! Keeps credentials for the backends of every service that this agent serves by speaking its protocol: takes up
//! what is on disk, asks for what is missing, and replaces everything at half its life.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{AgentId, ClusterName, LoginName, ServiceName};
use iap_policy::{Protocol, ServiceFacts};
use iap_proto::v1;
use iap_runtime::backoff::Backoff;
use iap_runtime::big_stack;
use iap_runtime::keys::{self, KeyKind};
use tokio::sync::watch;

use super::stored::{ServiceCredentials, ServiceKeys};
use super::{ASKED_MAX, Held, Holder, source};
use crate::auth::AuthClient;
use crate::clock::TrustedClock;
use crate::config::LocalServices;
use crate::metrics::Metrics;
use crate::state::StateDir;
use crate::view::View;

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The longest sleep in one piece, so that a clock that jumps is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// A login that no session used for so long is not asked for again, unless the policy tells it.
const UNUSED_MAX: time::Duration = time::Duration::hours(24);

/// What the keeper needs.
#[derive(Debug)]
pub struct KeeperParts {
    /// This agent.
    pub agent_id: AgentId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Where credentials lie.
    pub state: StateDir,
    /// Who issues them.
    pub client: Arc<AuthClient>,
    /// What the agent's own file lists.
    pub services: watch::Receiver<Arc<LocalServices>>,
    /// What is granted, and the policy.
    pub views: watch::Receiver<Option<Arc<View>>>,
    /// The time.
    pub clock: Arc<TrustedClock>,
    /// The counters.
    pub metrics: Metrics,
}

/// The one keeper of credentials.
#[derive(Debug)]
pub struct CredentialKeeper {
    parts: KeeperParts,
    holder: Holder,
    /// Where each service's backend sees this agent, as its certificates were bound.
    bound: BTreeMap<ServiceName, Vec<IpAddr>>,
    /// What the auth server did not issue for under this view.
    refused: BTreeSet<(ServiceName, LoginName)>,
    /// The view of that.
    refused_under: u64,
    /// Services whose lack of room was told.
    told_incomplete: BTreeSet<ServiceName>,
}

impl CredentialKeeper {
    /// A keeper that holds nothing yet.
    #[must_use]
    pub fn new(parts: KeeperParts, holder: Holder) -> Self {
        Self {
            parts,
            holder,
            bound: BTreeMap::new(),
            refused: BTreeSet::new(),
            refused_under: 0,
            told_incomplete: BTreeSet::new(),
        }
    }

    /// Takes up what is on disk; afterwards [`run`](Self::run) fetches what is missing.
    pub fn take_up(&mut self) {
        let services = self.served();
        let mut held = Held::clone(&self.holder.held.borrow());
        held.retain(|name, credentials| {
            let is_served =
                |facts: &ServiceFacts| facts.name == *name && facts.protocol == credentials.protocol();
            services.iter().any(is_served)
        });
        for facts in &services {
            if held.contains_key(&facts.name) {
                continue;
            }
            if let Some(credentials) = self.load(facts) {
                held.insert(facts.name.clone(), Arc::new(credentials));
            }
        }
        self.publish(held);
    }

    /// Runs until every publisher of views has gone.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let wanted = Arc::clone(&self.holder.wanted);
        loop {
            self.take_up();
            let pause = if self.fetch_due().await {
                backoff.reset();
                self.until_due()
            } else {
                backoff.next_delay()
            };
            tokio::select! {
                changed = self.parts.views.changed() => if changed.is_err() { return },
                changed = self.parts.services.changed() => if changed.is_err() { return },
                () = wanted.more.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Services granted to this agent and in its own file, whose protocol it speaks to their backends.
    fn served(&self) -> Vec<ServiceFacts> {
        let view = self.parts.views.borrow().clone();
        let local = self.parts.services.borrow().clone();
        let granted = view.iter().flat_map(|view| view.services_of(self.parts.agent_id));
        granted
            .map(|record| &record.facts)
            .filter(|facts| facts.inspect && matches!(facts.protocol, Protocol::Postgres | Protocol::Ssh))
            .filter(|facts| local.contains_key(&facts.name))
            .cloned()
            .collect()
    }

    fn load(&self, facts: &ServiceFacts) -> Option<ServiceCredentials> {
        let (service, now) = (&facts.name, self.parts.clock.now());
        let stored = match self.parts.state.read_credentials(service) {
            Ok(stored) => stored?,
            Err(error) => {
                tracing::warn!(%service, %error, "the stored credentials cannot be read");
                return None;
            }
        };
        match ServiceCredentials::from_json(&stored, service, &self.parts.cluster, now) {
            Ok(credentials) => (credentials.protocol() == facts.protocol).then_some(credentials),
            Err(error) => {
                tracing::info!(%service, %error, "the stored credentials are not usable");
                None
            }
        }
    }

    fn publish(&self, held: Held) {
        let count = held
            .values()
            .map(|credentials| credentials.logins().count())
            .sum();
        self.parts.metrics.credentials_held(count);
        self.holder.held.send_replace(Arc::new(held));
    }

    /// Whether everything that is due has come.
    async fn fetch_due(&mut self) -> bool {
        let Some(view) = self.parts.views.borrow().clone() else {
            return true;
        };
        if self.refused_under != view.serial() {
            self.refused.clear();
            self.refused_under = view.serial();
        }
        let mut complete = true;
        for facts in self.served() {
            let service = facts.name.clone();
            let outcome = match self.task(&facts, &view).await {
                Task::Nothing => Ok(()),
                Task::Everything(sources) => self.fetch_all(&facts, sources).await,
                Task::Further(logins) => self.fetch_further(&facts, logins).await,
            };
            if let Err(error) = outcome {
                self.parts.metrics.credential_fetch_failed();
                tracing::warn!(%service, %error, "no credentials for the service's backend yet");
                complete = false;
            }
        }
        complete
    }

    async fn task(&self, facts: &ServiceFacts, view: &Arc<View>) -> Task {
        let local = self.parts.services.borrow().get(&facts.name).cloned();
        let sources = match (facts.protocol, local) {
            (Protocol::Ssh, Some(local)) => source::addresses(&local).await,
            (Protocol::Ssh | Protocol::Postgres | Protocol::Tcp | Protocol::Http, _) => Vec::new(),
        };
        let held = self.holder.held.borrow().get(&facts.name).cloned();
        let is_bound = |held: &ServiceCredentials| match self.bound.get(&facts.name) {
            Some(bound) => *bound == sources,
            None => held.is_bound_to(&sources),
        };
        let now = self.parts.clock.now();
        let Some(held) = held.filter(|held| now < held.renew_at && is_bound(held)) else {
            return Task::Everything(sources);
        };
        let told = told(facts.clone(), Arc::clone(view)).await;
        let wanted = self.holder.wanted.of(&facts.name, now - UNUSED_MAX);
        let is_missing = |login: &LoginName| {
            !held.has(login, now) && !self.refused.contains(&(facts.name.clone(), login.clone()))
        };
        let missing: BTreeSet<LoginName> = told.into_iter().chain(wanted).filter(is_missing).collect();
        match missing.is_empty() {
            true => Task::Nothing,
            false => Task::Further(missing.into_iter().take(ASKED_MAX).collect()),
        }
    }

    async fn fetch_all(&mut self, facts: &ServiceFacts, sources: Vec<IpAddr>) -> anyhow::Result<()> {
        let service = &facts.name;
        let mut keys = ServiceKeys::generate(facts.protocol)?;
        if facts.protocol == Protocol::Ssh {
            // Who has noted it once is not to be alarmed by a new one.
            let path = self.parts.state.ssh_host_key(service)?;
            keys = keys.showing(keys::load_or_create(&path, KeyKind::Ed25519)?);
        }
        let (csr, host_csr) = keys.requests()?;
        let logins = self
            .holder
            .wanted
            .of(service, self.parts.clock.now() - UNUSED_MAX);
        let request = v1::BackendCredentialsRequest {
            service: service.to_string(),
            csr,
            logins: logins.iter().map(ToString::to_string).collect(),
            source_addresses: sources.iter().map(ToString::to_string).collect(),
            host_csr,
            only: false,
        };
        let answer = self.parts.client.backend_credentials(request).await?;
        let now = self.parts.clock.now();
        let credentials = ServiceCredentials::take(keys, &answer, service, &self.parts.cluster, now)?;
        let count = credentials.logins().count();
        self.keep(service, credentials, &logins)?;
        self.bound.insert(service.clone(), sources);
        if answer.complete {
            self.told_incomplete.remove(service);
        } else if self.told_incomplete.insert(service.clone()) {
            tracing::warn!(
                %service, held = count,
                "the policy names more logins than are held in advance: the others are asked for when they are first used"
            );
        }
        tracing::info!(%service, logins = count, "credentials for the service's backend");
        Ok(())
    }

    async fn fetch_further(&mut self, facts: &ServiceFacts, logins: Vec<LoginName>) -> anyhow::Result<()> {
        let service = &facts.name;
        let Some(held) = self.holder.held.borrow().get(service).cloned() else {
            return Ok(());
        };
        let sources = self
            .bound
            .get(service)
            .cloned()
            .unwrap_or_else(|| held.bound_to());
        let request = v1::BackendCredentialsRequest {
            service: service.to_string(),
            csr: held.request()?,
            logins: logins.iter().map(ToString::to_string).collect(),
            source_addresses: sources.iter().map(ToString::to_string).collect(),
            host_csr: Vec::new(),
            only: true,
        };
        let answer = self.parts.client.backend_credentials(request).await?;
        let now = self.parts.clock.now();
        let credentials = held.with(&answer, service, &self.parts.cluster, now)?;
        self.keep(service, credentials, &logins)?;
        tracing::info!(%service, logins = answer.logins.len(), "credentials for further logins of the service's backend");
        Ok(())
    }

    /// On disk first: what sessions see is there again after a restart.
    fn keep(
        &mut self,
        service: &ServiceName,
        credentials: ServiceCredentials,
        asked: &[LoginName],
    ) -> anyhow::Result<()> {
        let now = self.parts.clock.now();
        for login in asked.iter().filter(|login| !credentials.has(login, now)) {
            tracing::info!(%service, %login, "no rule could give this login: it is not asked for again until the rules change");
            self.refused.insert((service.clone(), login.clone()));
        }
        self.parts
            .state
            .write_credentials(service, &credentials.to_json())?;
        let mut held = Held::clone(&self.holder.held.borrow());
        held.insert(service.clone(), Arc::new(credentials));
        self.publish(held);
        Ok(())
    }

    fn until_due(&self) -> Duration {
        let held = self.holder.held.borrow();
        let next = held.values().map(|credentials| credentials.renew_at).min();
        let left = next.map(|due| Duration::try_from(due - self.parts.clock.now()).unwrap_or_default());
        left.unwrap_or(SLEEP_MAX).clamp(Duration::from_secs(1), SLEEP_MAX)
    }
}

/// What is to be done for a service.
enum Task {
    Nothing,
    /// New keys and certificates, bound to where the backend sees this agent.
    Everything(Vec<IpAddr>),
    /// Certificates for these logins on the keys there are.
    Further(Vec<LoginName>),
}

/// The logins that the rules tell without knowing anybody.
async fn told(facts: ServiceFacts, view: Arc<View>) -> Vec<LoginName> {
    big_stack::run_async(move || view.policy().accounts(&facts, &[], ASKED_MAX).named).await
}
