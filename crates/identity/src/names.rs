//! Names people choose: clusters, services, bots, groups, logins; and the ids of users derived from
//! what their identity provider says. A value exists only in its valid form: `parse` is the only door.

use std::fmt;

use crate::ids::AgentId;
use crate::text::text_traits;

/// The upper bound X.520 sets for `organizationName`, which carries the cluster name in CA subjects.
pub const CLUSTER_NAME_BYTES_MAX: usize = 64;
/// RFC 1035 §2.3.4.
pub const LABEL_BYTES_MAX: usize = 63;
/// Longest `connector:group`.
pub const GROUP_NAME_BYTES_MAX: usize = 128;
/// PostgreSQL's `NAMEDATALEN - 1`, above every login limit of the supported protocols.
pub const LOGIN_NAME_BYTES_MAX: usize = 63;

/// Labels that are never services.
pub const RESERVED_LABELS: [&str; 4] = ["auth", "proxy", "agent", "www"];

/// A name that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} {problem}")]
pub struct NameError {
    kind: &'static str,
    value: String,
    problem: &'static str,
}

impl NameError {
    const SHOWN_CHARS_MAX: usize = 80;

    pub(crate) fn new(kind: &'static str, value: &str, problem: &'static str) -> Self {
        let value = value.chars().take(Self::SHOWN_CHARS_MAX).collect();
        Self { kind, value, problem }
    }
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Reads the name, or says what is wrong with it.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                $check(text).map_err(|problem| NameError::new($kind, text, problem))?;
                Ok(Self(text.to_owned()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        text_traits!($name, NameError);
    };
}

text_name!(
    /// The DNS suffix and trust domain of a cluster: lower-case LDH labels, at most 64 bytes.
    ClusterName,
    "cluster name",
    check_cluster
);
text_name!(
    /// One lower-case LDH label that is not reserved.
    ServiceName,
    "service name",
    check_service
);
text_name!(
    /// One lower-case LDH label.
    BotName,
    "bot name",
    check_label
);
text_name!(
    /// `connector:group`, at most 128 bytes.
    GroupName,
    "group name",
    check_group
);
text_name!(
    /// An account at a backend: a database user, an SSH login.
    LoginName,
    "login name",
    check_login
);
text_name!(
    /// `u-` and 26 characters of base32, derived from connector, issuer and subject.
    UserId,
    "user id",
    check_user_id
);

impl ClusterName {
    /// `<service>.<cluster>`.
    pub fn service_host(&self, service: &ServiceName) -> String {
        format!("{service}.{self}")
    }

    /// `auth.<cluster>`, the auth server's API.
    pub fn auth_host(&self) -> String {
        format!("auth.{self}")
    }

    /// `proxy.<cluster>`, the agents' control channel.
    pub fn proxy_host(&self) -> String {
        format!("proxy.{self}")
    }

    /// `<agent-id>.agent.<cluster>`, where a resumed session comes back.
    pub fn agent_host(&self, agent: &AgentId) -> String {
        format!("{agent}.agent.{self}")
    }
}

impl GroupName {
    /// The name of `group` as `connector` reports it.
    pub fn new(connector: &str, group: &str) -> Result<Self, NameError> {
        Self::parse(&format!("{connector}:{group}"))
    }

    /// The part before the first colon.
    pub fn connector(&self) -> &str {
        self.0.split_once(':').map_or("", |(connector, _)| connector)
    }

    /// The part after the first colon: the group as its connector calls it.
    pub fn group(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, group)| group)
    }
}

impl UserId {
    /// The id of the principal (connector, issuer, subject): base32 of the first 128 bits of SHA-256
    /// over the three, each preceded by its length as u32 big-endian. Stable for as long as the
    /// provider keeps the subject; a changed email changes nothing.
    pub fn derive(connector: &str, issuer: &str, subject: &str) -> Self {
        let mut input = Vec::with_capacity(12 + connector.len() + issuer.len() + subject.len());
        for part in [connector, issuer, subject] {
            input.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            input.extend_from_slice(part.as_bytes());
        }
        let digest = crate::sha256(&input);
        Self(format!("u-{}", base32_of_128_bits(&digest)))
    }
}

/// RFC 4648 §6, lower case, without padding: 26 characters of the first 16 bytes.
fn base32_of_128_bits(bytes: &[u8; 32]) -> String {
    const ALPHABET: [char; 32] = [
        'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's', 't',
        'u', 'v', 'w', 'x', 'y', 'z', '2', '3', '4', '5', '6', '7',
    ];
    let value = bytes
        .iter()
        .take(16)
        .fold(0_u128, |value, byte| value << 8 | u128::from(*byte));
    // 26 × 5 = 130 bits: the last character carries three bits and two zeros.
    (0..26)
        .map(|position| {
            let shift = 123_i32 - 5 * position;
            let five_bits = if shift >= 0 {
                value >> shift
            } else {
                value << -shift
            } & 0x1f;
            ALPHABET.get(five_bits as usize).copied().unwrap_or('a')
        })
        .collect()
}

pub(crate) fn check_label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("is empty or has an empty label");
    }
    if text.len() > LABEL_BYTES_MAX {
        return Err("is longer than 63 bytes");
    }
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        return Err("may only have lower-case letters, digits and hyphens");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("may not start or end with a hyphen");
    }
    Ok(())
}

fn check_cluster(text: &str) -> Result<(), &'static str> {
    if text.len() > CLUSTER_NAME_BYTES_MAX {
        return Err("is longer than 64 bytes");
    }
    for label in text.split('.') {
        check_label(label)?;
    }
    let last = text.rsplit('.').next().unwrap_or(text);
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("looks like an IP address: its last label is a number");
    }
    Ok(())
}

fn check_service(text: &str) -> Result<(), &'static str> {
    check_label(text)?;
    if RESERVED_LABELS.contains(&text) {
        return Err("is reserved");
    }
    Ok(())
}

fn check_group(text: &str) -> Result<(), &'static str> {
    if text.len() > GROUP_NAME_BYTES_MAX {
        return Err("is longer than 128 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character");
    }
    match text.split_once(':') {
        Some((connector, group)) if !connector.is_empty() && !group.is_empty() => Ok(()),
        Some(_) | None => Err("is not of the form connector:group"),
    }
}

fn check_login(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > LOGIN_NAME_BYTES_MAX {
        return Err("is longer than 63 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character");
    }
    Ok(())
}

fn check_user_id(text: &str) -> Result<(), &'static str> {
    let digits = text.strip_prefix("u-").ok_or("does not start with u-")?;
    let base32 = |byte: u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte);
    if digits.len() != 26 || !digits.bytes().all(base32) {
        return Err("is not u- and 26 characters of lower-case base32");
    }
    // Two spare bits: one spelling per id.
    if !digits.ends_with(['a', 'e', 'i', 'm', 'q', 'u', 'y', '4']) {
        return Err("has stray bits in its last character");
    }
    Ok(())
}
