//! The secrets that a connection's next keys are made from (RFC 8446 §7.1 to §7.3).
//!
//! rustls makes the first and has a schedule of its own, which holds the peer's certificates and the connection's
//! configuration for as long as the connection lives: for most of them that would be more than everything else. So they are
//! taken from it when it makes them, as whoever logs keys gets them, and its schedule is let go.

use std::fmt;
use std::sync::OnceLock;

use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{Error, KeyLog, SupportedCipherSuite, Tls13CipherSuite};
use zeroize::Zeroizing;

use super::keys::{KEY_BYTES_MAX, Keys, NONCE_BYTES};

/// The first traffic secrets of one connection, which are there once its handshake is over. They are logged nowhere.
#[derive(Default)]
pub(super) struct TrafficSecrets {
    client: OnceLock<OkmBlock>,
    server: OnceLock<OkmBlock>,
}

/// They are secret.
impl fmt::Debug for TrafficSecrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TrafficSecrets").finish_non_exhaustive()
    }
}

impl TrafficSecrets {
    /// Whose it is that goes by this name in a log of keys.
    fn named(&self, label: &str) -> Option<&OnceLock<OkmBlock>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&self.server),
            _ => None,
        }
    }
}

impl KeyLog for TrafficSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if let Some(place) = self.named(label) {
            // The first secret of a direction is made once.
            let _ = place.set(OkmBlock::new(secret));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        self.named(label).is_some()
    }
}

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Server,
}

/// The newest secret of each direction.
pub(super) struct Schedule {
    suite: &'static Tls13CipherSuite,
    opening: OkmBlock,
    sealing: OkmBlock,
}

impl Schedule {
    /// That of a connection whose handshake is over.
    pub(super) fn new(
        end: End,
        suite: SupportedCipherSuite,
        secrets: &TrafficSecrets,
    ) -> Result<Self, Error> {
        let Some(suite) = suite.tls13() else {
            return Err(Error::General("not TLS 1.3".to_owned()));
        };
        let (own, peer) = match end {
            End::Client => (&secrets.client, &secrets.server),
            End::Server => (&secrets.server, &secrets.client),
        };
        let first = |secret: &OnceLock<OkmBlock>| secret.get().cloned().ok_or(Error::HandshakeNotComplete);
        Ok(Self {
            suite,
            opening: first(peer)?,
            sealing: first(own)?,
        })
    }

    /// So many records may be sealed with one key.
    pub(super) fn sealed_max(&self) -> u64 {
        self.suite.common.confidentiality_limit
    }

    /// Keys that follow those that open what the peer sends.
    pub(super) fn next_opening(&mut self) -> Result<Keys, Error> {
        next(self.suite, &mut self.opening)
    }

    /// Keys that follow those that seal what it is sent.
    pub(super) fn next_sealing(&mut self) -> Result<Keys, Error> {
        next(self.suite, &mut self.sealing)
    }
}

/// The next secret in place of this one (§7.2), and its keys (§7.3).
fn next(suite: &'static Tls13CipherSuite, secret: &mut OkmBlock) -> Result<Keys, Error> {
    let expander = suite.hkdf_provider.expander_for_okm(secret);
    let mut following = Zeroizing::new([0; OkmBlock::MAX_LEN]);
    let following = expand(&*expander, "traffic upd", &mut *following, expander.hash_len())?;
    *secret = OkmBlock::new(following);
    let expander = suite.hkdf_provider.expander_for_okm(secret);
    let (mut key, mut iv) = (Zeroizing::new([0; KEY_BYTES_MAX]), [0; NONCE_BYTES]);
    let algorithm = Keys::algorithm(suite)?;
    let key = expand(&*expander, "key", &mut *key, algorithm.key_len())?;
    expand(&*expander, "iv", &mut iv, NONCE_BYTES)?;
    Keys::first(algorithm, key, iv)
}

/// HKDF-Expand-Label without a context (§7.1), into the front of `space`.
fn expand<'a>(
    expander: &dyn HkdfExpander,
    label: &str,
    space: &'a mut [u8],
    bytes: usize,
) -> Result<&'a [u8], Error> {
    const PREFIX: &str = "tls13 ";
    let too_long = || Error::General("a key that is too long".to_owned());
    let target = space.get_mut(..bytes).ok_or_else(too_long)?;
    let length = u16::try_from(bytes).map_err(|_| too_long())?.to_be_bytes();
    let label_bytes = u8::try_from(PREFIX.len() + label.len()).map_err(|_| too_long())?;
    let info = [
        &length[..],
        &[label_bytes],
        PREFIX.as_bytes(),
        label.as_bytes(),
        &[0],
    ];
    expander.expand_slice(&info, target).map_err(|_| too_long())?;
    Ok(target)
}
