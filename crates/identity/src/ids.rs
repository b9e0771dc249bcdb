//! Ids the plane makes: UUIDs, each in its own type. Text is the lower-case hyphenated form only.

use std::fmt;

use uuid::Uuid;

use crate::names::NameError;
use crate::text::text_traits;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes a UUID made by the caller (version 7 wherever order in time helps).
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// Reads the 16 bytes of a UUID.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| NameError::new($kind, &crate::text::hex(bytes), "is not 16 bytes"))
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the lower-case hyphenated form.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                match Uuid::try_parse(text) {
                    Ok(uuid) if uuid.hyphenated().to_string() == text => Ok(Self(uuid)),
                    Ok(_) | Err(_) => Err(NameError::new($kind, text, "is not a lower-case hyphenated UUID")),
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.hyphenated())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.hyphenated())
            }
        }
        text_traits!($name, NameError);
    };
}

uuid_id!(
    /// A joined agent; every join makes a new one.
    AgentId,
    "agent id"
);
uuid_id!(
    /// A joined proxy.
    ProxyId,
    "proxy id"
);
uuid_id!(
    /// One auth server.
    AuthId,
    "auth server id"
);
uuid_id!(
    /// One login of a user (UUIDv7): the key of locks and of the audit trail.
    LoginId,
    "login id"
);
uuid_id!(
    /// One session at an agent (UUIDv7).
    SessionId,
    "session id"
);
uuid_id!(
    /// One connection a proxy asks an agent to fetch.
    ConnectionId,
    "connection id"
);
uuid_id!(
    /// One `iapctl connect`, which may open several sessions.
    ConnectId,
    "connect id"
);
