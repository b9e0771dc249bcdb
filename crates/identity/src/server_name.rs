//! Server names: which of the cluster's doors a TLS ClientHello asks for.

use crate::ids::AgentId;
use crate::names::{ClusterName, RESERVED_LABELS, ServiceName, check_label};

/// RFC 1035 §2.3.4, without the trailing dot.
pub const SERVER_NAME_BYTES_MAX: usize = 253;

/// A door of the cluster, as named by the SNI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerName {
    /// `<cluster>`: the auth server's web pages.
    Cluster,
    /// `auth.<cluster>`: the auth server's API.
    Auth,
    /// `proxy.<cluster>`: the proxy's control channel.
    Proxy,
    /// `<service>.<cluster>`: an agent that serves it.
    Service(ServiceName),
    /// `<agent-id>.agent.<cluster>`: one certain agent.
    Agent(AgentId),
}

/// Why a server name is no door of this cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerNameError {
    /// Not a DNS name in the preferred syntax (RFC 1123 §2.1, RFC 6066 §3).
    #[error("the server name is not a valid DNS name")]
    Malformed,
    /// A DNS name, but nothing here answers to it.
    #[error("the server name does not belong to this cluster")]
    Unknown,
    /// A label kept free on purpose.
    #[error("the server name is reserved")]
    Reserved,
}

impl ServerName {
    /// Reads an SNI. DNS names compare without regard to case; the result is lower case.
    pub fn parse(sni: &str, cluster: &ClusterName) -> Result<Self, ServerNameError> {
        if sni.len() > SERVER_NAME_BYTES_MAX {
            return Err(ServerNameError::Malformed);
        }
        let name = sni.to_ascii_lowercase();
        if name.split('.').any(|label| check_label(label).is_err()) {
            return Err(ServerNameError::Malformed);
        }
        if name == cluster.as_str() {
            return Ok(Self::Cluster);
        }
        let prefix = name
            .strip_suffix(cluster.as_str())
            .and_then(|rest| rest.strip_suffix('.'))
            .ok_or(ServerNameError::Unknown)?;
        Self::parse_prefix(prefix)
    }

    /// The DNS name of this door.
    pub fn host(&self, cluster: &ClusterName) -> String {
        match self {
            Self::Cluster => cluster.to_string(),
            Self::Auth => cluster.auth_host(),
            Self::Proxy => cluster.proxy_host(),
            Self::Service(service) => cluster.service_host(service),
            Self::Agent(agent) => cluster.agent_host(agent),
        }
    }

    fn parse_prefix(prefix: &str) -> Result<Self, ServerNameError> {
        match prefix.split_once('.') {
            None => match prefix {
                "auth" => Ok(Self::Auth),
                "proxy" => Ok(Self::Proxy),
                label if RESERVED_LABELS.contains(&label) => Err(ServerNameError::Reserved),
                label => ServiceName::parse(label)
                    .map(Self::Service)
                    .map_err(|_| ServerNameError::Malformed),
            },
            Some((id, "agent")) => AgentId::parse(id)
                .map(Self::Agent)
                .map_err(|_| ServerNameError::Unknown),
            Some(_) => Err(ServerNameError::Unknown),
        }
    }
}
