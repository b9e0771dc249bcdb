//! The handshake: TLS 1.3 with a client certificate, one configuration per connection, nothing resumable.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iap_identity::{PeerError, ServiceName, SessionId};
use iap_policy::Protocol;
use iap_runtime::tls::{self, FixedIdentity, PeerVerifier, Replay, ServerStream};
use iap_tunnel::{ALPN_IAP, ALPN_RESUME, ALPN_WATCH};

use super::greet::{Greeted, Talk};
use super::stream::DataStream;
use super::verifier::{Decided, Tell, deciding_verifier, verifier};
use crate::decide::{Attempt, Gate, Permit, Refusal};
use crate::handlers;
use crate::session::Caller;

/// The encrypted stream to the client. In a box: each step that it is handed through would hold its size once more.
pub type ClientStream = Box<ServerStream<Replay<DataStream>>>;

/// What is known of an attempt before the caller is.
#[derive(Debug, Clone)]
pub(super) struct AttemptSeed {
    pub(super) session_id: SessionId,
    pub(super) service: ServiceName,
    pub(super) client: SocketAddr,
}

impl AttemptSeed {
    pub(super) fn attempt(&self, caller: Caller) -> Attempt {
        Attempt {
            session_id: self.session_id,
            caller,
            service: self.service.clone(),
            client: self.client,
            login: None,
            database: None,
        }
    }
}

/// A client whose possession of a user's or bot's certificate is proven.
pub(super) struct Entered {
    pub(super) stream: ClientStream,
    pub(super) caller: Caller,
    pub(super) entry: Entry,
}

/// How it goes on.
pub(super) enum Entry {
    /// A hello frame comes next, then the decision.
    Framed { resumable: bool },
    /// A request to watch a session comes next, then the decision.
    Watch,
    /// The service's own first message comes next, then the decision.
    Inspected,
    /// The decision was made in the handshake.
    Raw(Permit),
    /// It was a refusal, and the service's protocol has words for that.
    Refused(Refusal),
}

/// Why there was no handshake.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotEntered {
    /// The agent has nothing to verify with yet.
    #[error("nothing to verify certificates with yet")]
    NotReady,
    /// The certificate was refused.
    #[error(transparent)]
    Certificate(PeerError),
    /// Possession was proven and the session refused; the client has its alert.
    #[error("refused: {}", .1.detail())]
    Refused(Box<Caller>, Refusal),
    /// Anything else that went wrong, by the peer or the network.
    #[error(transparent)]
    Tls(#[from] tls::HandshakeError),
    /// A handshake without a caller: the verifier's contract is broken.
    #[error("the handshake ended without a caller")]
    NoCaller,
}

impl NotEntered {
    /// Whether the client had proven who it is.
    pub(super) fn is_authenticated(&self) -> bool {
        matches!(self, Self::Refused(..))
    }

    /// A word for the counter of failures.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::NotReady | Self::NoCaller => "agent",
            Self::Certificate(error) => peer_label(error),
            Self::Refused(..) => "refused",
            Self::Tls(tls::HandshakeError::TimedOut { .. }) => "timeout",
            Self::Tls(_) => "tls",
        }
    }
}

fn peer_label(error: &PeerError) -> &'static str {
    match error {
        PeerError::Expired { .. } => "expired",
        PeerError::NotYetValid { .. } => "not_yet_valid",
        PeerError::WrongCluster { .. } => "wrong_cluster",
        PeerError::WrongClass { .. } => "wrong_class",
        PeerError::UnknownIssuer => "unknown_issuer",
        PeerError::WrongName { .. }
        | PeerError::WrongUsage
        | PeerError::Extension(_)
        | PeerError::Malformed(_)
        | PeerError::Inconsistent(_) => "bad_certificate",
    }
}

/// A client that did not come in, and its connection where there is an alert to be read on it: to be given a
/// [`tls::farewell`] once the proxy has heard.
pub(super) struct Rejected {
    pub(super) error: NotEntered,
    pub(super) stream: Option<Replay<DataStream>>,
}

impl From<NotEntered> for Rejected {
    fn from(error: NotEntered) -> Self {
        Self { error, stream: None }
    }
}

/// Completes the handshake of a greeted connection within `patience`. Without a seed nothing is attempted: a session is
/// gone on with, or watched.
pub(super) async fn shake_hands(
    greeted: Greeted,
    seed: Option<AttemptSeed>,
    gate: &Arc<Gate>,
    patience: Duration,
) -> Result<Entered, Rejected> {
    let view = gate.view().ok_or(NotEntered::NotReady)?;
    let decided = Decided::default();
    let protocol = greeted
        .service
        .as_ref()
        .and_then(|service| view.protocol_of(service));
    let inspected = seed.as_ref().is_some_and(|seed| {
        let service = view.service_for(&seed.service, gate.agent_id());
        service.is_some_and(|service| handlers::sees_login_late(&service.facts))
    });
    let clients = Arc::new(match (greeted.talk, seed) {
        (Talk::Raw, Some(seed)) if !inspected => {
            // A PostgreSQL client shows its user an error message, and of an alert only the name.
            let tell = match protocol {
                Some(Protocol::Postgres) => Tell::Afterwards,
                Some(Protocol::Tcp | Protocol::Ssh | Protocol::Http) | None => Tell::ByAlert,
            };
            deciding_verifier(&view, gate, seed, &decided, tell)
        }
        (Talk::Framed | Talk::Resumable | Talk::Watch | Talk::Raw, _) => verifier(&view, gate),
    });
    let answer = answer(&greeted, protocol);
    let identity = Arc::new(FixedIdentity(Arc::clone(&greeted.certified)));
    let talk = greeted.talk;
    let config = tls::server_config(identity, Arc::clone(&clients) as _, answer.as_slice());
    let config =
        config.map_err(|error| NotEntered::Tls(tls::HandshakeError::Failed(std::io::Error::other(error))))?;
    match tls::answer(greeted.stream, config, patience).await {
        Ok(stream) => {
            let mut stream = Box::new(stream);
            // Who it is has been read out of them.
            stream.forget_certificates();
            Ok(entered(stream, talk, &clients, &decided)?)
        }
        Err(unanswered) => {
            let (error, stream) = unanswered.into_parts();
            let error = explain(error, &clients, &decided);
            Err(Rejected { error, stream })
        }
    }
}

fn entered(
    stream: ClientStream,
    talk: Talk,
    clients: &PeerVerifier,
    decided: &Decided,
) -> Result<Entered, NotEntered> {
    // The peer is there only if it has proven possession.
    let peer = clients.peer().ok_or(NotEntered::NoCaller)?;
    let caller = Caller::of(peer).ok_or(NotEntered::NoCaller)?;
    let entry = match decided.get() {
        None => match talk {
            Talk::Framed => Entry::Framed { resumable: false },
            Talk::Resumable => Entry::Framed { resumable: true },
            Talk::Watch => Entry::Watch,
            Talk::Raw => Entry::Inspected,
        },
        Some((_, Ok(permit))) => Entry::Raw(permit.clone()),
        Some((_, Err(refusal))) => Entry::Refused(refusal.clone()),
    };
    Ok(Entered {
        stream,
        caller,
        entry,
    })
}

fn explain(error: tls::HandshakeError, clients: &PeerVerifier, decided: &Decided) -> NotEntered {
    match (clients.refusal(), decided.get()) {
        (Some(refused), _) => NotEntered::Certificate(refused.clone()),
        (None, Some((caller, Err(refusal)))) => {
            NotEntered::Refused(Box::new(caller.clone()), refusal.clone())
        }
        (None, Some((_, Ok(_))) | None) => NotEntered::Tls(error),
    }
}

/// The one protocol to answer with; none where the client named only protocols that this kind of service
/// does not know (RFC 7301 §3.1 lets a server ignore the extension).
fn answer(greeted: &Greeted, protocol: Option<Protocol>) -> Option<&'static str> {
    match greeted.talk {
        Talk::Framed => return Some(ALPN_IAP),
        Talk::Resumable => return Some(ALPN_RESUME),
        Talk::Watch => return Some(ALPN_WATCH),
        Talk::Raw => {}
    }
    let own = match protocol? {
        Protocol::Postgres => "postgresql",
        Protocol::Http => "http/1.1",
        Protocol::Ssh => "ssh",
        Protocol::Tcp => return None,
    };
    greeted
        .alpn
        .iter()
        .any(|offered| offered == own.as_bytes())
        .then_some(own)
}
