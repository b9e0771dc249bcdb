//! What a PostgreSQL client says before TLS (PostgreSQL protocol 3, "SSL Session Encryption" and "Message
//! Formats"): eight bytes that ask for TLS or for GSSAPI, or a request to cancel.
//!
//! Sans-IO: bytes go in as they arrive, the answer to send comes out. Bytes that a client, or somebody on the
//! way, stuffed behind a request before it was answered are refused: they would otherwise be taken for the
//! start of the protected stream (CVE-2021-23222 and its kin).

use iap_identity::AgentId;
use thiserror::Error;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const REQUEST_BYTES: usize = 8;
const CANCEL_BYTES_MIN: usize = 12;
/// Protocol 3.2 lengthens the cancel key to at most 256 bytes.
const CANCEL_BYTES_MAX: usize = 12 + 256;
const TLS_HANDSHAKE: u8 = 0x16;

/// Follows one client through the preamble.
#[derive(Debug, Default)]
pub struct PreambleMachine {
    buffer: Vec<u8>,
    gss_refused: bool,
}

/// What the shell does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreambleStep {
    /// Read more and push it.
    NeedMore,
    /// Send `N`, then read on.
    RefuseGss,
    /// Send `S`; the next byte is the first of the ClientHello.
    StartTls,
    /// Send nothing: the client goes straight to TLS after its `N`. These bytes are the ClientHello's first.
    DirectTls(Vec<u8>),
    /// A request to cancel; it is answered by closing.
    Cancel(CancelRequest),
}

/// The handle and key that an agent once gave the client.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// Tells the proxy which agent to ask.
    pub process_id: u32,
    /// Checked by that agent alone.
    pub key: Vec<u8>,
}

impl CancelRequest {
    /// A key as long as keys are.
    pub fn new(process_id: u32, key: Vec<u8>) -> Option<Self> {
        (1..=CANCEL_BYTES_MAX - CANCEL_BYTES_MIN)
            .contains(&key.len())
            .then_some(Self { process_id, key })
    }

    /// The agent that gave the number: see [`cancel_handle`].
    pub fn handle(&self) -> u16 {
        let [high, low, _, _] = self.process_id.to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

/// The upper half of every `process_id` that an agent gives, by which proxies find it again: the random end of its id.
/// Another agent may have the same; each checks keys for itself.
pub fn cancel_handle(agent: &AgentId) -> u16 {
    let [.., high, low] = *agent.as_uuid().as_bytes();
    u16::from_be_bytes([high, low])
}

impl std::fmt::Debug for CancelRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CancelRequest")
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

impl PreambleMachine {
    /// A client that has said nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes everything that could be read by now and says what to do. After `StartTls`, `DirectTls`,
    /// `Cancel` or an error the machine has done its work.
    pub fn push(&mut self, bytes: &[u8]) -> Result<PreambleStep, PreambleError> {
        self.buffer.extend_from_slice(bytes);
        if self.gss_refused && self.buffer.first() == Some(&TLS_HANDSHAKE) {
            return Ok(PreambleStep::DirectTls(std::mem::take(&mut self.buffer)));
        }
        let Some((head, body)) = self.buffer.split_first_chunk::<REQUEST_BYTES>() else {
            return Ok(PreambleStep::NeedMore);
        };
        let (length, code) = split_head(*head);
        match code {
            SSL_REQUEST => {
                alone(length, body)?;
                Ok(PreambleStep::StartTls)
            }
            GSSENC_REQUEST => {
                alone(length, body)?;
                self.refuse_gss()
            }
            CANCEL_REQUEST => cancel(length, body),
            _ => Err(PreambleError::Plaintext),
        }
    }

    fn refuse_gss(&mut self) -> Result<PreambleStep, PreambleError> {
        if self.gss_refused {
            return Err(PreambleError::RepeatedGss);
        }
        self.gss_refused = true;
        self.buffer.clear();
        Ok(PreambleStep::RefuseGss)
    }
}

fn split_head(head: [u8; REQUEST_BYTES]) -> (usize, u32) {
    let [a, b, c, d, e, f, g, h] = head;
    let length = u32::from_be_bytes([a, b, c, d]);
    (
        usize::try_from(length).unwrap_or(usize::MAX),
        u32::from_be_bytes([e, f, g, h]),
    )
}

fn alone(length: usize, body: &[u8]) -> Result<(), PreambleError> {
    if length != REQUEST_BYTES {
        return Err(PreambleError::Length);
    }
    if !body.is_empty() {
        return Err(PreambleError::StuffedBytes);
    }
    Ok(())
}

fn cancel(length: usize, body: &[u8]) -> Result<PreambleStep, PreambleError> {
    if !(CANCEL_BYTES_MIN + 1..=CANCEL_BYTES_MAX).contains(&length) {
        return Err(PreambleError::Length);
    }
    let expected = length - REQUEST_BYTES;
    if body.len() > expected {
        return Err(PreambleError::StuffedBytes);
    }
    match body.split_first_chunk::<4>() {
        Some((process_id, key)) if body.len() == expected => Ok(PreambleStep::Cancel(CancelRequest {
            process_id: u32::from_be_bytes(*process_id),
            key: key.to_vec(),
        })),
        Some(_) | None => Ok(PreambleStep::NeedMore),
    }
}

/// Why a client that began like PostgreSQL is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PreambleError {
    /// Bytes behind a request that had not been answered.
    #[error("bytes were stuffed behind an unanswered PostgreSQL request")]
    StuffedBytes,
    /// GSSAPI asked for twice.
    #[error("GSSAPI encryption was asked for again after it had been refused")]
    RepeatedGss,
    /// A length that does not fit its request.
    #[error("the PostgreSQL request has a length that does not belong to it")]
    Length,
    /// A start without TLS, or no PostgreSQL at all.
    #[error("the client starts without TLS; set sslmode=verify-full")]
    Plaintext,
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
    use proptest::prelude::*;

    fn request(code: u32) -> Vec<u8> {
        [8u32.to_be_bytes(), code.to_be_bytes()].concat()
    }

    fn cancel_request(key: &[u8]) -> Vec<u8> {
        let length = u32::try_from(12 + key.len()).unwrap();
        [
            &length.to_be_bytes()[..],
            &CANCEL_REQUEST.to_be_bytes(),
            &77u32.to_be_bytes(),
            key,
        ]
        .concat()
    }

    fn after_gss() -> PreambleMachine {
        let mut machine = PreambleMachine::new();
        assert_eq!(
            machine.push(&request(GSSENC_REQUEST)),
            Ok(PreambleStep::RefuseGss)
        );
        machine
    }

    #[test]
    fn a_request_for_tls_is_granted_byte_by_byte_or_whole() {
        assert_eq!(
            PreambleMachine::new().push(&request(SSL_REQUEST)),
            Ok(PreambleStep::StartTls)
        );
        let mut machine = PreambleMachine::new();
        let request = request(SSL_REQUEST);
        for byte in &request[..7] {
            assert_eq!(machine.push(&[*byte]), Ok(PreambleStep::NeedMore));
        }
        assert_eq!(machine.push(&request[7..]), Ok(PreambleStep::StartTls));
    }

    #[test]
    fn gssapi_is_refused_once_and_tls_may_follow() {
        assert_eq!(
            after_gss().push(&request(SSL_REQUEST)),
            Ok(PreambleStep::StartTls)
        );
        assert_eq!(
            after_gss().push(&request(GSSENC_REQUEST)),
            Err(PreambleError::RepeatedGss)
        );
    }

    #[test]
    fn a_client_may_go_straight_to_tls_after_gssapi_was_refused_but_not_before() {
        assert_eq!(
            after_gss().push(&[0x16, 3, 1]),
            Ok(PreambleStep::DirectTls(vec![0x16, 3, 1]))
        );
        let mut machine = PreambleMachine::new();
        assert_eq!(
            machine.push(&[0x16, 3, 1, 0, 0, 0, 0, 0]),
            Err(PreambleError::Plaintext)
        );
    }

    #[test]
    fn bytes_stuffed_behind_a_request_are_refused() {
        for code in [SSL_REQUEST, GSSENC_REQUEST] {
            let mut stuffed = request(code);
            stuffed.push(0x16);
            assert_eq!(
                PreambleMachine::new().push(&stuffed),
                Err(PreambleError::StuffedBytes)
            );
        }
        let stuffed = [request(GSSENC_REQUEST), request(SSL_REQUEST)].concat();
        assert_eq!(
            PreambleMachine::new().push(&stuffed),
            Err(PreambleError::StuffedBytes)
        );
        let stuffed = [cancel_request(&[1, 2, 3, 4]), vec![0]].concat();
        assert_eq!(
            PreambleMachine::new().push(&stuffed),
            Err(PreambleError::StuffedBytes)
        );
    }

    #[test]
    fn a_cancel_request_is_recognised_with_short_and_long_keys() {
        for key in [vec![1, 2, 3, 4], vec![9; 256]] {
            let expected = PreambleStep::Cancel(CancelRequest {
                process_id: 77,
                key: key.clone(),
            });
            assert_eq!(PreambleMachine::new().push(&cancel_request(&key)), Ok(expected));
        }
        assert_eq!(
            PreambleMachine::new().push(&cancel_request(&[9; 257])),
            Err(PreambleError::Length)
        );
        assert_eq!(
            PreambleMachine::new().push(&cancel_request(&[])),
            Err(PreambleError::Length)
        );
    }

    #[test]
    fn a_plaintext_start_is_turned_away() {
        let start = [&9u32.to_be_bytes()[..], &196_608u32.to_be_bytes(), &[0]].concat();
        assert_eq!(PreambleMachine::new().push(&start), Err(PreambleError::Plaintext));
    }

    #[test]
    fn a_cancel_key_does_not_appear_in_debug_output() {
        let request = CancelRequest {
            process_id: 77,
            key: vec![201, 202],
        };
        assert!(!format!("{request:?}").contains("201"));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_hold_the_machine_to_its_bound(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..30),
        ) {
            let mut machine = PreambleMachine::new();
            for piece in &pieces {
                match machine.push(piece) {
                    Ok(PreambleStep::NeedMore) => prop_assert!(machine.buffer.len() < CANCEL_BYTES_MAX),
                    Ok(PreambleStep::RefuseGss) => prop_assert!(machine.buffer.is_empty()),
                    Ok(PreambleStep::StartTls | PreambleStep::DirectTls(_) | PreambleStep::Cancel(_)) | Err(_) => break,
                }
            }
        }
    }
}
