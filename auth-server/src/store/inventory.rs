//! Services, agents, proxies and the tokens they join with.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use iap_identity::{AgentId, ProxyId, ServiceName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Hash, StoreError};

/// A service as the centre records it, without its agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// One LDH label; the SNI's first.
    pub name: ServiceName,
    /// `tcp`, `postgres`, `ssh` or `http`.
    pub protocol: String,
    /// Whether the agent reads the protocol.
    pub inspect: bool,
    /// What policy selects by.
    pub labels: BTreeMap<String, String>,
    /// For people.
    pub description: String,
    /// Whom a denied user may ask.
    pub contact: String,
    /// The backend login when none is asked for.
    pub default_login: Option<String>,
    /// `required`, `best_effort` or `remote`.
    pub audit: String,
    /// For later protocols.
    pub recording: Option<String>,
    /// Age of the newest beat beyond which agents allow no new session, where that is less than their own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_feed_seconds: Option<u32>,
    /// The same for the newest beat that confirmed their rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_seconds: Option<u32>,
    /// How long live sessions then go on, where that is less than the agents' own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
}

/// A service to be created or replaced.
#[derive(Clone, Debug)]
pub struct ServiceChange {
    /// The record.
    pub row: ServiceRow,
    /// The agents granted it from now on; none keeps those that are.
    pub agents: Option<BTreeSet<AgentId>>,
}

/// A service and the agents granted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedService {
    /// The record.
    pub row: ServiceRow,
    /// Who may serve it.
    pub agents: BTreeSet<AgentId>,
}

/// What `apply_services` did, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicesApplied {
    /// New ones.
    pub created: Vec<ServiceName>,
    /// Changed ones.
    pub updated: Vec<ServiceName>,
    /// Those that were so already.
    pub unchanged: Vec<ServiceName>,
}

/// An enrolled agent.
#[derive(Clone, Debug)]
pub struct AgentRow {
    /// UUIDv7, new with every join.
    pub agent_id: AgentId,
    /// The host's name when it joined.
    pub host_name: String,
    /// Its newest known version.
    pub version: String,
    /// When it joined.
    pub joined_at: OffsetDateTime,
    /// When it was last heard of.
    pub last_seen: Option<OffsetDateTime>,
    /// Its newest certificate's serial, lower-case hex.
    pub serial: Option<String>,
    /// When that certificate ends.
    pub not_after: Option<OffsetDateTime>,
    /// The proxies it says it is connected to.
    pub proxies: Vec<ConnectedProxy>,
    /// The services in its own file.
    pub local_services: Vec<String>,
    /// The live sessions it says it has.
    pub live_sessions: u32,
}

/// A proxy as an agent is connected to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredProxy")]
pub struct ConnectedProxy {
    /// As the agent dials it.
    pub address: String,
    /// What carries the control messages: `quic` or `tls`.
    pub control: String,
    /// What carries sessions: `tcp`, `tls` or `quic`.
    pub data: String,
}

impl ConnectedProxy {
    /// What an agent does that reports nothing but the address.
    pub fn plain(address: String) -> Self {
        Self {
            address,
            control: "tls".to_owned(),
            data: "tcp".to_owned(),
        }
    }
}

/// Rows of before control connections had a choice hold the address alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredProxy {
    Address(String),
    Whole {
        address: String,
        control: String,
        data: String,
    },
}

impl From<StoredProxy> for ConnectedProxy {
    fn from(stored: StoredProxy) -> Self {
        match stored {
            StoredProxy::Address(address) => Self::plain(address),
            StoredProxy::Whole {
                address,
                control,
                data,
            } => Self {
                address,
                control,
                data,
            },
        }
    }
}

/// An enrolled proxy.
#[derive(Clone, Debug)]
pub struct ProxyRow {
    /// UUIDv7, new with every join.
    pub proxy_id: ProxyId,
    /// The host's name when it joined.
    pub host_name: String,
    /// Its newest known version.
    pub version: String,
    /// When it joined.
    pub joined_at: OffsetDateTime,
    /// When it was last heard of.
    pub last_seen: Option<OffsetDateTime>,
    /// Where agents and clients dial it; none until it first watched.
    pub public_address: Option<String>,
}

/// What an agent reports of itself; none leaves what is known.
#[derive(Clone, Debug, Default)]
pub struct AgentReport {
    /// Its version.
    pub version: Option<String>,
    /// Proxies it is connected to.
    pub proxies: Option<Vec<ConnectedProxy>>,
    /// Services in its own file.
    pub local_services: Option<Vec<String>>,
    /// Its live sessions.
    pub live_sessions: Option<u32>,
}

/// What a token lets join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A node agent.
    Agent,
    /// A proxy.
    Proxy,
}

impl TokenKind {
    /// The name on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenKind::Agent => "agent",
            TokenKind::Proxy => "proxy",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [TokenKind::Agent, TokenKind::Proxy]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

/// A join token; the secret itself is never stored.
#[derive(Clone, Debug)]
pub struct TokenRow {
    /// Its id, for `tokens ls` and `tokens rm`.
    pub token_id: Uuid,
    /// SHA-256 of the secret.
    pub secret_hash: Hash,
    /// What may join with it.
    pub kind: TokenKind,
    /// The services an agent is granted.
    pub services: Vec<ServiceName>,
    /// How often it could be used.
    pub uses: u32,
    /// How often it still can.
    pub uses_left: u32,
    /// Who made it.
    pub created_by: String,
    /// When.
    pub created_at: OffsetDateTime,
    /// Until when it can be used.
    pub expires_at: OffsetDateTime,
}

/// Why a token lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No such token, or one of another kind.
    #[error("this join token is not known: it was mistyped, removed, or is for another kind of server")]
    Unknown,
    /// Its time is over, used or not.
    #[error("this join token has expired: create a new one with `iapctl tokens create`")]
    Expired,
    /// Used up.
    #[error("this join token has been used already: create a new one with `iapctl tokens create`")]
    Used,
}

/// Services, agents, proxies, tokens.
#[async_trait]
pub trait InventoryStore: Send + Sync + 'static {
    /// Creates and replaces services; never removes one. All or none.
    async fn apply_services(
        &self,
        changes: &[ServiceChange],
        now: OffsetDateTime,
    ) -> Result<ServicesApplied, StoreError>;

    /// Removes a service and its grants; says whether it existed.
    async fn remove_service(&self, name: &ServiceName) -> Result<bool, StoreError>;

    /// Every service, by name.
    async fn services(&self) -> Result<Vec<GrantedService>, StoreError>;

    /// Whether the agent is granted the service.
    async fn is_granted(&self, agent: AgentId, service: &ServiceName) -> Result<bool, StoreError>;

    /// Keeps a new token.
    async fn create_token(&self, row: &TokenRow) -> Result<(), StoreError>;

    /// Tokens that can still be used at `now`.
    async fn tokens(&self, now: OffsetDateTime) -> Result<Vec<TokenRow>, StoreError>;

    /// Removes a token; says whether it existed.
    async fn remove_token(&self, token_id: Uuid) -> Result<bool, StoreError>;

    /// Redeems one use of an agent's token: enrols the agent and grants it the token's services
    /// (those that still exist), all in one transaction.
    async fn join_agent(
        &self,
        secret_hash: &Hash,
        agent: &AgentRow,
    ) -> Result<Result<TokenRow, TokenRefusal>, StoreError>;

    /// Redeems one use of a proxy's token.
    async fn join_proxy(
        &self,
        secret_hash: &Hash,
        proxy: &ProxyRow,
    ) -> Result<Result<TokenRow, TokenRefusal>, StoreError>;

    /// Every agent, by id.
    async fn agents(&self) -> Result<Vec<AgentRow>, StoreError>;

    /// The agent with that id.
    async fn agent(&self, id: AgentId) -> Result<Option<AgentRow>, StoreError>;

    /// Keeps what an agent reports; also marks it as seen.
    async fn agent_reported(
        &self,
        id: AgentId,
        report: &AgentReport,
        now: OffsetDateTime,
    ) -> Result<(), StoreError>;

    /// Keeps an agent's newest certificate.
    async fn agent_certified(
        &self,
        id: AgentId,
        serial: &str,
        not_after: OffsetDateTime,
    ) -> Result<(), StoreError>;

    /// Every proxy, by id.
    async fn proxies(&self) -> Result<Vec<ProxyRow>, StoreError>;

    /// The proxy with that id.
    async fn proxy(&self, id: ProxyId) -> Result<Option<ProxyRow>, StoreError>;

    /// Keeps what a proxy reports; says whether its public address changed.
    async fn proxy_reported(
        &self,
        id: ProxyId,
        version: &str,
        public_address: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError>;
}
