//! What carries the control messages between an agent and a proxy.

use std::fmt;

/// What a control connection runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControlWay {
    /// One stream of a QUIC connection, which survives a change of the agent's address.
    Quic,
    /// TLS over TCP, where UDP is blocked.
    Tls,
}

impl ControlWay {
    /// Both, the better first.
    pub const ALL: [Self; 2] = [Self::Quic, Self::Tls];

    /// What configuration, logs, metrics and `agents ls` call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for ControlWay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}
