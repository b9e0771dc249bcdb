//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS as a client (RFC 5802, RFC 7677, RFC 5929 for `tls-server-end-point`).
//!
//! Passwords are used as they are, without SASLprep (RFC 4013), which changes nothing for ASCII.

use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

/// PostgreSQL's default is 4,096; a backend must not keep an agent busy.
const ITERATIONS_MAX: u32 = 1_000_000;
const SERVER_MESSAGE_BYTES_MAX: usize = 4096;
const KEY_BYTES: usize = 32;

/// What the exchange is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelBinding {
    /// There is no TLS.
    Absent,
    /// There is TLS, and the server offers no binding.
    NotOffered,
    /// The hash of the server's certificate.
    EndPoint(Vec<u8>),
}

/// One exchange.
pub struct Scram {
    password: Vec<u8>,
    channel: ChannelBinding,
    nonce: String,
    server_signature: Option<Vec<u8>>,
    verified: bool,
}

/// Why it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ScramError {
    /// A message of the server that is none.
    #[error("the backend's SCRAM message is malformed")]
    Malformed,
    /// Another nonce than ours.
    #[error("the backend's SCRAM message answers somebody else")]
    OtherNonce,
    /// Too many iterations.
    #[error("the backend asks for more than {ITERATIONS_MAX} iterations of its SCRAM hash")]
    TooManyIterations,
    /// The server does not know the secret either.
    #[error("the backend has not proven that it knows the secret")]
    NotVerified,
}

impl Scram {
    /// An exchange with that secret and nonce.
    #[must_use]
    pub fn new(password: Vec<u8>, channel: ChannelBinding, nonce: String) -> Self {
        Self {
            password,
            channel,
            nonce,
            server_signature: None,
            verified: false,
        }
    }

    /// The client's first message. PostgreSQL takes the user from the startup message, and none from here.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}{}", self.header(), self.first_bare())
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    fn header(&self) -> &'static str {
        match self.channel {
            ChannelBinding::Absent => "n,,",
            ChannelBinding::NotOffered => "y,,",
            ChannelBinding::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// The client's final message.
    ///
    /// # Errors
    /// When the server's first one is not to be answered.
    pub fn answer(&mut self, server_first: &[u8]) -> Result<String, ScramError> {
        if self.server_signature.is_some() || server_first.len() > SERVER_MESSAGE_BYTES_MAX {
            return Err(ScramError::Malformed);
        }
        let server_first = std::str::from_utf8(server_first).map_err(|_| ScramError::Malformed)?;
        let (nonce, salt, iterations) = read_first(server_first)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::OtherNonce);
        }
        let mut bound = self.header().as_bytes().to_vec();
        if let ChannelBinding::EndPoint(hash) = &self.channel {
            bound.extend_from_slice(hash);
        }
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(bound));
        let message = format!("{},{server_first},{without_proof}", self.first_bare());
        let mut salted = [0; KEY_BYTES];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            &salt,
            &self.password,
            &mut salted,
        );
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        let signature = sign(stored_key.as_ref(), message.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(&signature)
            .map(|(key, mask)| key ^ mask)
            .collect();
        self.server_signature = Some(sign(&sign(&salted, b"Server Key"), message.as_bytes()));
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }

    /// Checks that the server knows the secret.
    ///
    /// # Errors
    /// When it does not.
    pub fn verify(&mut self, server_final: &[u8]) -> Result<(), ScramError> {
        let expected = self.server_signature.as_ref().ok_or(ScramError::Malformed)?;
        let proof = server_final.strip_prefix(b"v=").ok_or(ScramError::NotVerified)?;
        let proof = proof.split(|byte| *byte == b',').next().unwrap_or_default();
        let proof = STANDARD.decode(proof).map_err(|_| ScramError::Malformed)?;
        constant_time::verify_slices_are_equal(&proof, expected).map_err(|_| ScramError::NotVerified)?;
        self.verified = true;
        Ok(())
    }

    /// Whether the server has proven that it knows the secret.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified
    }
}

fn read_first(message: &str) -> Result<(&str, Vec<u8>, NonZeroU32), ScramError> {
    let mut attributes = message.split(',');
    let mut attribute = |name: &str| {
        let next = attributes
            .next()
            .and_then(|attribute| attribute.strip_prefix(name));
        next.ok_or(ScramError::Malformed)
    };
    let (nonce, salt, iterations) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
    let salt = STANDARD.decode(salt).map_err(|_| ScramError::Malformed)?;
    let iterations: u32 = iterations.parse().map_err(|_| ScramError::Malformed)?;
    if iterations > ITERATIONS_MAX {
        return Err(ScramError::TooManyIterations);
    }
    Ok((
        nonce,
        salt,
        NonZeroU32::new(iterations).ok_or(ScramError::Malformed)?,
    ))
}

fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
        .as_ref()
        .to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// RFC 7677 §3 has the user in its messages, PostgreSQL has none: the example is made with an empty one, by the
    /// formulas of RFC 5802 §3 in Python.
    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn scram(channel: ChannelBinding) -> Scram {
        Scram::new(b"pencil".to_vec(), channel, NONCE.to_owned())
    }

    #[test]
    fn the_exchange_is_the_one_the_formulas_give() {
        let mut scram = scram(ChannelBinding::Absent);
        assert_eq!(scram.first(), "n,,n=,r=rOprNGfwEbeRWgbNEkqO");
        let last = scram.answer(FIRST.as_bytes()).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=qvT2SWdEH5Q06albL+hjSYuUhCG7VndFyzIb7CK4n9k="
        );
        assert_eq!(
            scram.verify(b"v=3HO6Qt1M4MKJrmlKaoOqLAI0/0TV0HZe7J9H3MBtSOg="),
            Ok(())
        );
        assert!(scram.is_verified());
    }

    #[test]
    fn a_server_that_does_not_know_the_secret_is_found_out() {
        let mut scram = scram(ChannelBinding::Absent);
        scram.answer(FIRST.as_bytes()).unwrap();
        let other = format!("v={}", STANDARD.encode([7; 32]));
        assert_eq!(scram.verify(other.as_bytes()), Err(ScramError::NotVerified));
        assert_eq!(scram.verify(b"e=other-error"), Err(ScramError::NotVerified));
        assert!(!scram.is_verified());
    }

    #[test]
    fn foreign_nonces_and_endless_hashes_are_refused() {
        let answer = |text: &str| scram(ChannelBinding::Absent).answer(text.as_bytes());
        assert_eq!(answer("r=other,s=AAAA,i=4096"), Err(ScramError::OtherNonce));
        assert_eq!(
            answer("r=rOprNGfwEbeRWgbNEkqO,s=AAAA,i=4096"),
            Err(ScramError::OtherNonce)
        );
        let slow = "r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=1000001";
        assert_eq!(answer(slow), Err(ScramError::TooManyIterations));
        assert_eq!(
            answer("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=0"),
            Err(ScramError::Malformed)
        );
    }

    #[test]
    fn a_binding_says_to_which_channel_it_belongs() {
        let first = |channel| scram(channel).first();
        assert!(first(ChannelBinding::NotOffered).starts_with("y,,"));
        assert!(first(ChannelBinding::EndPoint(vec![1])).starts_with("p=tls-server-end-point,,"));
        let bound = |hash| scram(ChannelBinding::EndPoint(vec![hash])).answer(FIRST.as_bytes());
        assert_ne!(bound(1), bound(2));
    }
}
