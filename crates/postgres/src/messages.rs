//! A stream of messages, each a type byte, a length that counts itself, and a body, looked at as it goes by.

use thiserror::Error;

const HEAD_BYTES: usize = 5;
const LENGTH_BYTES: usize = 4;

/// Follows one direction of a connection. Of each message it keeps as much as whoever asks wants to see, and no more.
#[derive(Debug, Default)]
pub struct Messages {
    head: [u8; HEAD_BYTES],
    known: usize,
    left: usize,
    /// Nothing while only the head counts, or while a body lies whole in what arrived.
    kept: Vec<u8>,
    wanted: usize,
}

/// A message that has gone by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u8,
    /// How long its body was.
    pub length: usize,
    /// The body's first bytes, as many as were asked for.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// Whether the body is all there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.body.len() == self.length
    }
}

/// A length that no message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a PostgreSQL message has an impossible length")]
pub struct Malformed;

impl Messages {
    /// Before the first message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the next byte begins a message.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.known == 0
    }

    /// Takes what goes by. `wanted` says, by type and length of the body, how many of its bytes are to be seen; `seen` is
    /// called as each message ends. What follows a failure is not looked at.
    ///
    /// # Errors
    /// At a length that no message has, or what `seen` fails with.
    pub fn push<E: From<Malformed>>(
        &mut self,
        mut bytes: &[u8],
        wanted: impl Fn(u8, usize) -> usize,
        mut seen: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            if self.known < HEAD_BYTES {
                bytes = self.take_head(bytes);
                if self.known < HEAD_BYTES {
                    return Ok(());
                }
                let (kind, length) = self.read_head()?;
                self.left = length;
                self.wanted = wanted(kind, length).min(length);
                self.kept.clear();
            }
            // A message without a body ends with its head.
            if self.left > 0 && bytes.is_empty() {
                return Ok(());
            }
            let (kind, length) = self.read_head()?;
            let is_first = self.left == length;
            let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= piece.len();
            bytes = rest;
            if self.left > 0 {
                self.keep(piece);
                continue;
            }
            self.known = 0;
            if is_first {
                let body = piece.get(..self.wanted).unwrap_or(piece);
                seen(Message { kind, length, body })?;
            } else {
                self.keep(piece);
                let body = std::mem::take(&mut self.kept);
                seen(Message {
                    kind,
                    length,
                    body: &body,
                })?;
            }
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = self.wanted.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(piece.get(..room).unwrap_or(piece));
    }

    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let taken = (HEAD_BYTES - self.known).min(bytes.len());
        let (piece, rest) = bytes.split_at(taken);
        for (slot, byte) in self.head.iter_mut().skip(self.known).zip(piece) {
            *slot = *byte;
        }
        self.known += taken;
        rest
    }

    fn read_head(&self) -> Result<(u8, usize), Malformed> {
        let [kind, a, b, c, d] = self.head;
        // The protocol's lengths are signed (Int32).
        let length = i32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        Ok((kind, length.checked_sub(LENGTH_BYTES).ok_or(Malformed)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    type Seen = (u8, usize, Vec<u8>);

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    fn push(
        messages: &mut Messages,
        bytes: &[u8],
        keep: usize,
        into: &mut Vec<Seen>,
    ) -> Result<(), Malformed> {
        messages.push(
            bytes,
            |_, _| keep,
            |message| {
                into.push((message.kind, message.length, message.body.to_vec()));
                Ok(())
            },
        )
    }

    #[test]
    fn a_message_without_a_body_is_seen_with_its_last_byte() {
        let mut seen = Vec::new();
        let mut messages = Messages::new();
        push(&mut messages, &message(b'S', b""), 9, &mut seen).unwrap();
        assert_eq!(seen, [(b'S', 0, Vec::new())]);
        assert!(messages.is_between());
    }

    #[test]
    fn lengths_below_four_and_negative_ones_are_refused() {
        for length in [0u32, 3, 0x8000_0000, u32::MAX] {
            let bytes = [&b"Q"[..], &length.to_be_bytes()].concat();
            let refused = push(&mut Messages::new(), &bytes, 9, &mut Vec::new());
            assert_eq!(refused, Err(Malformed), "{length}");
        }
    }

    #[test]
    fn a_message_of_two_gigabytes_takes_no_more_than_what_is_wanted_of_it() {
        let head = [&b"d"[..], &0x7fff_ffffu32.to_be_bytes()].concat();
        let mut messages = Messages::new();
        push(&mut messages, &head, 16, &mut Vec::new()).unwrap();
        for _ in 0..1000 {
            push(&mut messages, &[7; 4096], 16, &mut Vec::new()).unwrap();
        }
        assert_eq!(messages.kept, [7; 16]);
        assert!(messages.kept.capacity() < 8192);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            sent in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
            cuts in proptest::collection::vec(1usize..30, 1..40),
            keep in 0usize..50,
        ) {
            let whole: Vec<u8> = sent.iter().flat_map(|(kind, body)| message(*kind, body)).collect();
            let expected: Vec<Seen> = sent
                .iter()
                .map(|(kind, body)| (*kind, body.len(), body[..keep.min(body.len())].to_vec()))
                .collect();
            let (mut messages, mut seen, mut rest) = (Messages::new(), Vec::new(), whole.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                push(&mut messages, piece, keep, &mut seen).unwrap();
                rest = after;
            }
            prop_assert_eq!(seen, expected);
            prop_assert!(messages.is_between());
        }
    }
}
