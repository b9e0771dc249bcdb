//! Telling a backend who comes: a PROXY v2 header ahead of the client's bytes, with the caller's identity in its
//! extensions (docs/protocol.md). For backends that log or show it; what a caller may do was decided before.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use iap_identity::{ClusterName, ServerName};
use iap_runtime::proxy_protocol::extensions::{AUTHORITY, SERVICE, UNIQUE_ID, USER_ID, USER_KIND, USER_NAME};
use iap_runtime::proxy_protocol::{self, ExtensionTooLong, Extensions};
use serde::Deserialize;

use crate::session::SessionFacts;

/// Whether a backend is told who comes: `service.proxy_protocol` in the agent's own file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Introduction {
    /// The client's bytes alone.
    #[default]
    None,
    /// A PROXY header, version 2, first.
    V2,
}

impl Introduction {
    /// What goes ahead of the client's bytes to a backend at `server`; a Unix socket has no address.
    pub(super) fn bytes(
        self,
        cluster: &ClusterName,
        facts: &SessionFacts,
        server: Option<SocketAddr>,
    ) -> Result<Vec<u8>, ExtensionTooLong> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::V2 => {
                let server = server.unwrap_or_else(|| unspecified_like(facts.client));
                Ok(proxy_protocol::encode_with(
                    facts.client,
                    server,
                    &extensions(cluster, facts)?,
                ))
            }
        }
    }
}

fn extensions(cluster: &ClusterName, facts: &SessionFacts) -> Result<Extensions, ExtensionTooLong> {
    let user = facts.caller.record();
    let mut extensions = Extensions::default();
    extensions.push(
        AUTHORITY,
        &ServerName::Service(facts.service.clone()).host(cluster),
    )?;
    extensions.push(UNIQUE_ID, &facts.session_id.to_string())?;
    extensions.push(USER_NAME, &user.name)?;
    extensions.push(USER_ID, &user.id)?;
    extensions.push(USER_KIND, &user.kind)?;
    extensions.push(SERVICE, facts.service.as_str())?;
    Ok(extensions)
}

fn unspecified_like(client: SocketAddr) -> SocketAddr {
    match client.ip().to_canonical().is_ipv4() {
        true => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        false => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}
