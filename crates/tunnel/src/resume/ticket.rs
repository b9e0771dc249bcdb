//! What `iap/1`'s two frames say of going on: how it is offered, asked for and granted.

use std::fmt;

use iap_identity::SessionId;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const TICKET_BYTES: usize = 32;

/// The right to go on with one session, of use to the holder of the session's certificate key alone. Compared in a time that
/// does not depend on its content.
#[derive(Clone, Copy)]
pub struct Ticket([u8; TICKET_BYTES]);

/// How a session may go on, as its agent grants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeOffer {
    /// For the next time.
    pub ticket: Ticket,
    /// Either end may have so many bytes on the way that the other has not acknowledged.
    pub window_bytes: usize,
    /// For so long the agent waits without a connection.
    pub seconds: u64,
    /// Whether the agent takes a repeat behind the hello of somebody who comes back.
    #[serde(default)]
    pub repeats: bool,
}

/// Going on with a session, as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// The session.
    pub session_id: SessionId,
    /// The newest ticket for it.
    pub ticket: Ticket,
    /// Where the client stands: it has read every byte before.
    pub position: u64,
}

impl Ticket {
    /// Takes random bytes as they come.
    #[must_use]
    pub fn from_random(bytes: [u8; TICKET_BYTES]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        let differences = self
            .0
            .iter()
            .zip(other.0)
            .fold(0, |all, (one, other)| all | (one ^ other));
        std::hint::black_box(differences) == 0
    }
}

impl Eq for Ticket {}

impl fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Ticket")
    }
}

impl Serialize for Ticket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&iap_identity::hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Ticket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let refused = || D::Error::custom("a ticket is 64 hexadecimal digits");
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        if digits.len() != TICKET_BYTES || !rest.is_empty() {
            return Err(refused());
        }
        let mut bytes = [0; TICKET_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits) {
            let pair = std::str::from_utf8(pair).map_err(|_| refused())?;
            let digits = pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(pair, 16)
                .ok()
                .filter(|_| digits)
                .ok_or_else(refused)?;
        }
        Ok(Self(bytes))
    }
}
