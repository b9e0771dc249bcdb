//! The second step: a ClientHello for a service of ours.

use std::sync::Arc;

use iap_identity::{ClusterName, ServerName, ServiceName};
use iap_runtime::tls::{self, AlertDescription, ClientHelloError, ClientHelloLimits, Replay};

use super::fetch::Fetched;
use super::read_ahead::ReadAhead;
use super::stream::DataStream;
use crate::leaves::{Leaf, Offer};

/// ALPN of resumed sessions, which this agent does not speak yet and must not take for a backend's bytes.
const ALPN_RESUME: &str = "iap-resume/1";

/// [`iap_tunnel::ALPN_IAP`] as text.
pub(super) const ALPN_IAP_NAME: &str = "iap/1";

/// How the client wants to talk after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Talk {
    /// `iap/1`: a hello frame, a status frame, then bytes.
    Framed,
    /// Bytes from the start; a denial is an alert.
    Raw,
}

/// A connection whose ClientHello asks for a service this agent holds a leaf for.
pub(super) struct Greeted {
    pub(super) stream: Replay<ReadAhead<DataStream>>,
    pub(super) service: ServiceName,
    pub(super) leaf: Arc<Leaf>,
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
    /// No server name, or none of this cluster's services.
    #[error("the client asks for no service of this cluster")]
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

/// Reads the ClientHello and finds the leaf it asks for; answers anything else with an alert.
pub(super) async fn greet(
    fetched: Fetched,
    said: Option<&ServiceName>,
    cluster: &ClusterName,
    offer: &Offer,
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
        .and_then(|sni| ServerName::parse(sni, cluster).ok());
    let found = select(asked, said, offer).and_then(|(service, leaf)| {
        let only_resume = facts.offers(ALPN_RESUME) && facts.alpn.len() == 1;
        if only_resume {
            Err(GreetError::NoProtocol)
        } else {
            Ok((service, leaf))
        }
    });
    match found {
        Ok((service, leaf)) => {
            let framed = facts.offers(ALPN_IAP_NAME);
            let talk = if framed { Talk::Framed } else { Talk::Raw };
            Ok(Greeted {
                stream: Replay::new(bytes, ReadAhead::new(stream)),
                service,
                leaf,
                talk,
                alpn: facts.alpn,
            })
        }
        Err(error) => Err(turn_away(stream, error).await),
    }
}

fn select(
    asked: Option<ServerName>,
    said: Option<&ServiceName>,
    offer: &Offer,
) -> Result<(ServiceName, Arc<Leaf>), GreetError> {
    let Some(ServerName::Service(asked)) = asked else {
        return Err(GreetError::NoService);
    };
    if said != Some(&asked) {
        let said = said.map_or_else(|| "the agent itself".to_owned(), ServiceName::to_string);
        return Err(GreetError::NameMismatch { asked, said });
    }
    match offer.leaf(&asked) {
        Some(leaf) => Ok((asked, leaf)),
        None => Err(GreetError::NoLeaf(asked)),
    }
}

async fn turn_away(mut stream: DataStream, error: GreetError) -> GreetError {
    if let Some(alert) = error.alert() {
        let _ = tls::send_alert(&mut stream, alert).await;
    }
    error
}
