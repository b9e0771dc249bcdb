//! What carries the control messages between an agent and a proxy, and what carries sessions.

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

/// What a session runs over between agent and proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataWay {
    /// A TCP connection that the agent dials back: the cheapest.
    Tcp,
    /// The same inside TLS to `proxy.<cluster>`, for networks that let nothing else out.
    Tls,
    /// A stream of the QUIC connection that carries the control messages.
    Quic,
}

impl DataWay {
    /// All of them, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Quic];

    /// What configuration, hellos, logs, metrics and `agents ls` call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }
}

impl fmt::Display for DataWay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// What an end can do with sessions, as its hello says it: words between commas, of which unknown ones are
/// ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOffer {
    tls: bool,
    quic: bool,
    pool: bool,
    cancel: bool,
}

/// The word for connections that are dialled in advance.
const POOL: &str = "pool";
/// The word of an agent that understands `Cancel`.
const CANCEL: &str = "cancel";

impl DataOffer {
    /// Everything this build can do.
    pub const OWN: Self = Self {
        tls: true,
        quic: true,
        pool: true,
        cancel: true,
    };

    /// Reads a hello's word. Ends of before there was a choice say `tcp`, which everyone can.
    pub fn parse(text: &str) -> Self {
        let says = |word: &str| text.split(',').any(|said| said.trim() == word);
        Self {
            tls: says(DataWay::Tls.as_str()),
            quic: says(DataWay::Quic.as_str()),
            pool: says(POOL),
            cancel: says(CANCEL),
        }
    }

    /// Whether requests to cancel may be handed on to it.
    pub fn takes_cancels(self) -> bool {
        self.cancel
    }

    /// Whether TCP connections can be dialled in advance.
    pub fn has_pool(self) -> bool {
        self.pool
    }

    /// Whether sessions can run over `way`.
    pub fn has(self, way: DataWay) -> bool {
        match way {
            DataWay::Tcp => true,
            DataWay::Tls => self.tls,
            DataWay::Quic => self.quic,
        }
    }
}

impl fmt::Display for DataOffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = DataWay::ALL.into_iter().filter(|way| self.has(*way));
        for (index, way) in ways.enumerate() {
            if index > 0 {
                out.write_str(",")?;
            }
            out.write_str(way.as_str())?;
        }
        if self.pool {
            write!(out, ",{POOL}")?;
        }
        if self.cancel {
            write!(out, ",{CANCEL}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_survives_the_hello_and_unknown_words_are_ignored() {
        assert_eq!(DataOffer::parse(&DataOffer::OWN.to_string()), DataOffer::OWN);
        assert_eq!(DataOffer::OWN.to_string(), "tcp,tls,quic,pool,cancel");
        let newer = DataOffer::parse("tcp, carrier-pigeon ,quic");
        assert!(newer.has(DataWay::Quic) && !newer.has(DataWay::Tls));
    }

    #[test]
    fn an_end_of_before_there_was_a_choice_has_tcp_alone() {
        for text in ["tcp", ""] {
            let offer = DataOffer::parse(text);
            assert!(!offer.has_pool() && !offer.takes_cancels());
            assert_eq!(
                DataWay::ALL.map(|way| offer.has(way)),
                [true, false, false],
                "{text}"
            );
        }
    }
}
