//! The second step: a ClientHello for a service of ours.

use std::sync::Arc;

use iap_identity::{AgentId, ClusterName, ServerName, ServiceName};
use iap_runtime::tls::{
    self, AlertDescription, CertifiedKey, ClientHelloError, ClientHelloFacts, ClientHelloLimits, Replay,
};
use iap_tunnel::{ALPN_IAP, ALPN_RESUME, ALPN_WATCH};

use super::fetch::Fetched;
use super::stream::DataStream;
use crate::leaves::Offer;

/// How the client wants to talk after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Talk {
    /// `iap/1`: a hello frame, a status frame, then bytes.
    Framed,
    /// `iap-resume/1`: the same two, then frames.
    Resumable,
    /// `iap-watch/1`: a request, a status frame, then what a session shows.
    Watch,
    /// Bytes from the start; a denial is an alert.
    Raw,
}

/// A connection whose ClientHello asks for a service this agent holds a leaf for, or for the agent itself.
pub(super) struct Greeted {
    pub(super) stream: Replay<DataStream>,
    /// Nothing: to go on with a session, or to watch one.
    pub(super) service: Option<ServiceName>,
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) talk: Talk,
    /// What the client offered, in its order.
    pub(super) alpn: Vec<Vec<u8>>,
}

/// Why a connection got no further than its ClientHello.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetError {
    /// No ClientHello.
    #[error(transparent)]
    Hello(#[from] ClientHelloError),
    /// No server name, or none of this cluster's services, or another agent.
    #[error("the client asks for no service of this cluster and not for this agent")]
    NoService,
    /// The client asks for another service than the proxy said.
    #[error("the client asks for {asked}, the proxy said {said}")]
    NameMismatch {
        /// By the client's server name.
        asked: ServiceName,
        /// By the proxy's `Open`.
        said: String,
    },
    /// A service this agent holds no leaf for.
    #[error("this agent holds no certificate for {0}")]
    NoLeaf(ServiceName),
    /// Only protocols this agent does not speak.
    #[error("the client speaks only a protocol this agent does not")]
    NoProtocol,
}

impl GreetError {
    /// The alert that answers it (RFC 8446 §6.2).
    fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Hello(error) => error.alert(),
            Self::NoService | Self::NameMismatch { .. } | Self::NoLeaf(_) => {
                Some(AlertDescription::UnrecognisedName)
            }
            Self::NoProtocol => Some(AlertDescription::NoApplicationProtocol),
        }
    }
}

/// What this agent answers with.
pub(super) struct Own<'a> {
    pub(super) id: AgentId,
    pub(super) cluster: &'a ClusterName,
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) offer: &'a Offer,
    /// Whether sessions may be gone on with.
    pub(super) resumes: bool,
}

/// Reads the ClientHello and finds the certificate it asks for; answers anything else with an alert.
pub(super) async fn greet(
    fetched: Fetched,
    said: Option<&ServiceName>,
    own: Own<'_>,
    limits: ClientHelloLimits,
) -> Result<Greeted, GreetError> {
    let Fetched { mut stream, first } = fetched;
    let (facts, bytes) = match tls::peek(&mut stream, first, limits).await {
        Ok(read) => read,
        Err(error) => return Err(turn_away(stream, error.into()).await),
    };
    let asked = facts
        .sni
        .as_deref()
        .and_then(|sni| ServerName::parse(sni, own.cluster).ok());
    let found = own.select(asked, said).and_then(|(service, certified)| {
        let talk = own.talk(&facts, service.as_ref())?;
        Ok((service, certified, talk))
    });
    match found {
        Ok((service, certified, talk)) => Ok(Greeted {
            stream: Replay::new(bytes, stream),
            service,
            certified,
            talk,
            alpn: facts.alpn,
        }),
        Err(error) => Err(turn_away(stream, error).await),
    }
}

impl Own<'_> {
    fn select(
        &self,
        asked: Option<ServerName>,
        said: Option<&ServiceName>,
    ) -> Result<(Option<ServiceName>, Arc<CertifiedKey>), GreetError> {
        let asked = match asked {
            Some(ServerName::Service(asked)) => asked,
            Some(ServerName::Agent(asked)) if asked == self.id && said.is_none() => {
                return Ok((None, Arc::clone(&self.certified)));
            }
            Some(ServerName::Agent(_) | ServerName::Auth | ServerName::Cluster | ServerName::Proxy)
            | None => {
                return Err(GreetError::NoService);
            }
        };
        if said != Some(&asked) {
            let said = said.map_or_else(|| "the agent itself".to_owned(), ServiceName::to_string);
            return Err(GreetError::NameMismatch { asked, said });
        }
        match self.offer.leaf(&asked) {
            Some(leaf) => Ok((Some(asked), Arc::clone(&leaf.certified))),
            None => Err(GreetError::NoLeaf(asked)),
        }
    }

    /// At the agent's own name sessions are gone on with or watched, and nothing else is done. Whoever speaks a protocol of ours alone
    /// must not be taken for somebody whose bytes are the backend's.
    fn talk(&self, facts: &ClientHelloFacts, service: Option<&ServiceName>) -> Result<Talk, GreetError> {
        let resumes = facts.offers(ALPN_RESUME);
        let framed = facts.offers(ALPN_IAP);
        match service {
            None if facts.offers(ALPN_WATCH) => Ok(Talk::Watch),
            None if resumes => Ok(Talk::Resumable),
            Some(_) if resumes && self.resumes => Ok(Talk::Resumable),
            Some(_) if framed => Ok(Talk::Framed),
            Some(_) if facts.alpn.is_empty() || !facts.alpn.iter().all(|name| is_ours(name)) => Ok(Talk::Raw),
            Some(_) | None => Err(GreetError::NoProtocol),
        }
    }
}

/// A protocol of ours, perhaps of a newer version.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(b"iap/") || name.starts_with(b"iap-")
}

async fn turn_away(mut stream: DataStream, error: GreetError) -> GreetError {
    if let Some(alert) = error.alert() {
        let _ = tls::send_alert(&mut stream, alert).await;
    }
    error
}
