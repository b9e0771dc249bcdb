//! The conversation between an agent and the proxy on the control connection: its messages, and which of
//! them may come from which side at which moment.

use std::net::SocketAddr;

use iap_identity::{ConnectionId, ServiceName};
use thiserror::Error;

use crate::postgres::CancelRequest;
use crate::preface::Token;

/// The version this build speaks. Version N talks to N and to N − 1.
pub const CONTROL_VERSION: u32 = 1;

/// The oldest version this build speaks.
pub const CONTROL_VERSION_OLDEST: u32 = oldest_spoken(CONTROL_VERSION);

const fn oldest_spoken(ours: u32) -> u32 {
    if ours > 1 { ours - 1 } else { 1 }
}

/// The most one control message may take on the wire.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1024 * 1024;

/// One message on a control connection. `Open` carries a token, so no `Debug`: log [`name`](Self::name).
#[derive(Clone)]
pub enum ControlMessage {
    /// Both directions, first.
    Hello {
        /// The newest version the sender speaks.
        version: u32,
        /// Program and version, for logs.
        software: String,
        /// What sessions can run over; see [`DataOffer`](crate::DataOffer).
        data: String,
        /// Of an agent: which run of the program speaks.
        run: Option<RunId>,
    },
    /// Agent to proxy: every service it offers now, each with the leaf it holds for it (DER).
    Announce {
        /// The complete list; replaces the one before.
        services: Vec<(ServiceName, Vec<u8>)>,
    },
    /// Proxy to agent: what became of the announcement.
    Announced {
        /// Names that now route to this agent.
        accepted: Vec<ServiceName>,
        /// Names that do not, each with its reason.
        refused: Vec<RefusedService>,
    },
    /// Proxy to agent: somebody asks for a service, dial back for them.
    Open {
        /// Goes into the dial-back preface.
        connection_id: ConnectionId,
        /// Goes into the dial-back preface, once.
        token: Token,
        /// Which connection to fetch, never who may enter: the client's own server name decides that.
        /// `None` when the client asked for the agent itself (`<agent-id>.agent.<cluster>`).
        service: Option<ServiceName>,
        /// As the proxy saw it; asserted, not proven.
        client_address: SocketAddr,
        /// The connection, dialled in advance, on which the client's first bytes are already. An agent that has
        /// it no more dials back.
        pooled: Option<ConnectionId>,
    },
    /// Agent to proxy: it would dial so many connections in advance.
    PoolAsk {
        /// How many.
        connections: u32,
    },
    /// Proxy to agent: it may. Each token is good for one connection.
    PoolTokens {
        /// Go into the prefaces.
        tokens: Vec<(ConnectionId, Token)>,
        /// How long such a connection is kept without a client.
        idle_seconds: u32,
    },
    /// Agent to proxy: it will not dial back.
    OpenRefused {
        /// Of the `Open` refused.
        connection_id: ConnectionId,
        /// For the proxy's log.
        reason: String,
    },
    /// Agent to proxy: whether the client proved who it is. Feeds the throttle by source.
    Verdict {
        /// Of the connection judged.
        connection_id: ConnectionId,
        /// The handshake ended with a valid certificate.
        authenticated: bool,
    },
    /// Agent to proxy: the client of a connection can go on with its session over another one, as soon as this one ends.
    Resumable {
        /// Of the connection.
        connection_id: ConnectionId,
    },
    /// Proxy to agent: a PostgreSQL client, who need not be anybody in particular, shows what an agent with this agent's
    /// handle has given. Only to agents whose hello says that they understand it.
    Cancel(CancelRequest),
    /// Both directions; answered by a `Pong` of the same number.
    Ping(u64),
    /// The answer to a `Ping`.
    Pong(u64),
    /// Proxy to agent: no more sessions will come this way.
    Drain {
        /// When the proxy will close what is left.
        deadline_seconds: u32,
    },
}

/// Tells one run of an agent's program from the next. A control connection that is made anew in the same run is a
/// move; one made in another shows that the run before has ended, however still its connection lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunId([u8; RunId::BYTES]);

impl RunId {
    /// Its length.
    pub const BYTES: usize = 16;

    /// An id of bytes that no other run has.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl ControlMessage {
    /// What logs call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Announce { .. } => "announce",
            Self::Announced { .. } => "announced",
            Self::Open { .. } => "open",
            Self::PoolAsk { .. } => "pool_ask",
            Self::PoolTokens { .. } => "pool_tokens",
            Self::OpenRefused { .. } => "open_refused",
            Self::Verdict { .. } => "verdict",
            Self::Resumable { .. } => "resumable",
            Self::Cancel(_) => "cancel",
            Self::Ping(_) => "ping",
            Self::Pong(_) => "pong",
            Self::Drain { .. } => "drain",
        }
    }

    /// Who may send it, once the hellos are exchanged.
    fn senders(&self) -> Senders {
        match self {
            Self::Hello { .. } | Self::Ping(_) | Self::Pong(_) => Senders::Both,
            Self::Announce { .. }
            | Self::PoolAsk { .. }
            | Self::OpenRefused { .. }
            | Self::Verdict { .. }
            | Self::Resumable { .. } => Senders::Only(Side::Agent),
            Self::Announced { .. }
            | Self::Open { .. }
            | Self::PoolTokens { .. }
            | Self::Cancel(_)
            | Self::Drain { .. } => Senders::Only(Side::Proxy),
        }
    }
}

/// A service that was announced and is not routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedService {
    /// As announced.
    pub name: ServiceName,
    /// A sentence for the agent's operator.
    pub reason: String,
}

/// The two ends of a control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Dials, announces, dials back.
    Agent,
    /// Listens, routes, opens.
    Proxy,
}

enum Senders {
    Both,
    Only(Side),
}

/// Holds the peer of a control connection to the order of the conversation: one hello, first, of a version
/// we speak; afterwards only messages that its side may send.
#[derive(Debug)]
pub struct Conversation {
    peer: Side,
    state: State,
}

#[derive(Debug)]
enum State {
    ExpectHello,
    Established { version: u32 },
}

impl Conversation {
    /// A conversation whose other end is `peer` and has said nothing yet.
    pub fn with(peer: Side) -> Self {
        Self {
            peer,
            state: State::ExpectHello,
        }
    }

    /// Hands the message back when the peer may send it now. Any violation ends the connection.
    pub fn accept(&mut self, message: ControlMessage) -> Result<ControlMessage, Violation> {
        match (&self.state, &message) {
            (State::ExpectHello, ControlMessage::Hello { version, .. }) => {
                self.state = State::Established {
                    version: spoken_version(CONTROL_VERSION, *version)?,
                };
                Ok(message)
            }
            (State::ExpectHello, _) => Err(Violation::BeforeHello {
                message: message.name(),
            }),
            (State::Established { .. }, ControlMessage::Hello { .. }) => Err(Violation::SecondHello),
            (State::Established { .. }, _) => match message.senders() {
                Senders::Both => Ok(message),
                Senders::Only(side) if side == self.peer => Ok(message),
                Senders::Only(_) => Err(Violation::WrongSide {
                    message: message.name(),
                }),
            },
        }
    }

    /// The version both ends speak, once the peer's hello is in.
    pub fn version(&self) -> Option<u32> {
        match self.state {
            State::ExpectHello => None,
            State::Established { version } => Some(version),
        }
    }
}

/// Each side names its newest version; both speak the older of the two, provided it is at most one behind
/// the newer.
fn spoken_version(ours: u32, peers: u32) -> Result<u32, Violation> {
    let spoken = peers.min(ours);
    if spoken < oldest_spoken(ours) || peers > ours + 1 {
        return Err(Violation::Version { version: peers });
    }
    Ok(spoken)
}

/// What a peer did against the rules of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// The first message was something else.
    #[error("the peer sent {message} before its hello")]
    BeforeHello {
        /// Its name.
        message: &'static str,
    },
    /// A hello where the conversation had begun.
    #[error("the peer sent a second hello")]
    SecondHello,
    /// A version too far from ours.
    #[error(
        "the peer speaks control version {version}; this side speaks {CONTROL_VERSION_OLDEST} to {CONTROL_VERSION}"
    )]
    Version {
        /// What the peer named.
        version: u32,
    },
    /// A message that only the other side may send.
    #[error("the peer sent {message}, which only the other side may send")]
    WrongSide {
        /// Its name.
        message: &'static str,
    },
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    fn hello(version: u32) -> ControlMessage {
        ControlMessage::Hello {
            version,
            software: "test".into(),
            data: "tcp".into(),
            run: None,
        }
    }

    #[test]
    fn anything_before_the_hello_is_a_violation() {
        let mut conversation = Conversation::with(Side::Agent);
        let refused = conversation.accept(ControlMessage::Announce { services: Vec::new() });
        assert_eq!(
            refused.err(),
            Some(Violation::BeforeHello { message: "announce" })
        );
    }

    #[test]
    fn a_second_hello_is_a_violation() {
        let mut conversation = Conversation::with(Side::Agent);
        assert!(conversation.accept(hello(1)).is_ok());
        assert_eq!(conversation.version(), Some(1));
        assert_eq!(conversation.accept(hello(1)).err(), Some(Violation::SecondHello));
    }

    #[test]
    fn a_version_too_far_away_is_refused_and_the_next_one_is_not() {
        for refused in [0, CONTROL_VERSION + 2, u32::MAX] {
            let outcome = Conversation::with(Side::Proxy).accept(hello(refused));
            assert_eq!(outcome.err(), Some(Violation::Version { version: refused }));
        }
        let mut conversation = Conversation::with(Side::Proxy);
        assert!(conversation.accept(hello(CONTROL_VERSION + 1)).is_ok());
        assert_eq!(conversation.version(), Some(CONTROL_VERSION));
    }

    /// What an upgrade in steps relies on, at versions that are still to come too.
    #[test]
    fn neighbouring_versions_speak_the_older_one_and_others_refuse_each_other() {
        for one in 1..=6_u32 {
            for other in 1..=6_u32 {
                let (here, there) = (spoken_version(one, other), spoken_version(other, one));
                if one.abs_diff(other) <= 1 {
                    assert_eq!((here, there), (Ok(one.min(other)), Ok(one.min(other))));
                } else {
                    assert_eq!(here, Err(Violation::Version { version: other }));
                    assert_eq!(there, Err(Violation::Version { version: one }));
                }
            }
        }
    }

    #[test]
    fn an_agent_may_not_send_what_only_a_proxy_sends() {
        let mut conversation = Conversation::with(Side::Agent);
        assert!(conversation.accept(hello(1)).is_ok());
        let refused = conversation.accept(ControlMessage::Drain { deadline_seconds: 1 });
        assert_eq!(refused.err(), Some(Violation::WrongSide { message: "drain" }));
        assert!(conversation.accept(ControlMessage::Ping(4)).is_ok());
    }

    #[test]
    fn a_proxy_may_not_send_what_only_an_agent_sends() {
        let mut conversation = Conversation::with(Side::Proxy);
        assert!(conversation.accept(hello(1)).is_ok());
        let refused = conversation.accept(ControlMessage::Announce { services: Vec::new() });
        assert_eq!(refused.err(), Some(Violation::WrongSide { message: "announce" }));
        assert!(
            conversation
                .accept(ControlMessage::Announced {
                    accepted: Vec::new(),
                    refused: Vec::new()
                })
                .is_ok()
        );
    }
}
