//! Frames of a u32 big-endian length and that many bytes, with a bound on what a peer can make us hold.

use thiserror::Error;

/// Bytes of the length that precedes each frame.
pub const LENGTH_BYTES: usize = 4;

/// Cuts a stream into length-prefixed frames and builds such frames.
///
/// Bytes go in with [`push`](Self::push) in whatever pieces they arrive; frames come out of
/// [`next_frame`](Self::next_frame). A length beyond the bound is refused as soon as its four bytes are
/// known, before anything is allocated for it; after an error the decoder stays failed.
#[derive(Debug)]
pub struct LengthPrefixed {
    frame_bytes_max: usize,
    /// What arrived and has not been handed out. `consumed <= buffer.len()`.
    buffer: Vec<u8>,
    consumed: usize,
    failed: Option<FrameError>,
}

impl LengthPrefixed {
    /// A decoder that accepts frames of at most `frame_bytes_max` bytes, the length itself not counted.
    pub fn new(frame_bytes_max: usize) -> Self {
        Self {
            frame_bytes_max,
            buffer: Vec::new(),
            consumed: 0,
            failed: None,
        }
    }

    /// Takes the next piece of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, or `None` until more bytes have arrived.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let Some((length, rest)) = self.pending().split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes > self.frame_bytes_max {
            return Err(self.fail(FrameError::TooLong {
                length,
                frame_bytes_max: self.frame_bytes_max,
            }));
        }
        let Some(frame) = rest.get(..bytes) else {
            return Ok(None);
        };
        let frame = frame.to_vec();
        self.consumed += LENGTH_BYTES + bytes;
        if self.consumed == self.buffer.len() {
            // Between frames a decoder holds nothing.
            self.buffer = Vec::new();
            self.consumed = 0;
        }
        Ok(Some(frame))
    }

    /// How many bytes wait for the rest of their frame.
    pub fn buffered(&self) -> usize {
        self.pending().len()
    }

    /// What followed the frames taken so far. After an `iap/1` hello or status these are the first raw
    /// bytes of the session, which may ride in the same packet.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.buffer.split_off(self.consumed.min(self.buffer.len()))
    }

    /// The payload with its length in front.
    pub fn encode(&self, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
        encode(payload, self.frame_bytes_max)
    }

    fn pending(&self) -> &[u8] {
        self.buffer.get(self.consumed..).unwrap_or_default()
    }

    fn fail(&mut self, error: FrameError) -> FrameError {
        self.failed = Some(error);
        self.buffer = Vec::new();
        self.consumed = 0;
        error
    }
}

/// The payload with its length in front; refused beyond `frame_bytes_max`.
pub fn encode(payload: &[u8], frame_bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if payload.len() > frame_bytes_max {
        return Err(FrameError::TooLong {
            length,
            frame_bytes_max,
        });
    }
    let mut frame = Vec::with_capacity(LENGTH_BYTES + payload.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    Ok(frame)
}

/// Why a stream is no sequence of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The peer announced, or the caller offered, more than one frame may hold.
    #[error("a frame of {length} bytes exceeds the limit of {frame_bytes_max}")]
    TooLong {
        /// The length announced.
        length: u32,
        /// The most this stream allows.
        frame_bytes_max: usize,
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
    use proptest::prelude::*;

    fn drain(decoder: &mut LengthPrefixed) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
        frames
    }

    #[test]
    fn a_frame_at_the_limit_passes_and_one_byte_more_does_not() {
        assert_eq!(encode(&[7; 8], 8).unwrap().len(), 12);
        assert_eq!(
            encode(&[7; 9], 8),
            Err(FrameError::TooLong {
                length: 9,
                frame_bytes_max: 8
            })
        );
        let mut decoder = LengthPrefixed::new(8);
        decoder.push(&encode(&[7; 8], 8).unwrap());
        assert_eq!(drain(&mut decoder), vec![vec![7; 8]]);
    }

    #[test]
    fn an_excessive_length_is_refused_before_its_bytes_arrive_and_for_good() {
        let mut decoder = LengthPrefixed::new(16);
        decoder.push(&17u32.to_be_bytes());
        let refused = FrameError::TooLong {
            length: 17,
            frame_bytes_max: 16,
        };
        assert_eq!(decoder.next_frame(), Err(refused));
        decoder.push(&encode(b"later", 16).unwrap());
        assert_eq!(decoder.next_frame(), Err(refused));
        assert_eq!(decoder.buffered(), 0);
    }

    #[test]
    fn bytes_behind_a_frame_are_handed_on_untouched() {
        let mut decoder = LengthPrefixed::new(16);
        let mut stream = encode(b"hello", 16).unwrap();
        stream.extend_from_slice(b"raw bytes");
        decoder.push(&stream);
        assert_eq!(decoder.next_frame().unwrap().unwrap(), b"hello");
        assert_eq!(decoder.into_rest(), b"raw bytes");
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_stream(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..12),
            cuts in proptest::collection::vec(1usize..40, 1..60),
        ) {
            let stream: Vec<u8> = payloads.iter().flat_map(|payload| encode(payload, 64).unwrap()).collect();
            let mut decoder = LengthPrefixed::new(64);
            let (mut frames, mut at, mut cut) = (Vec::new(), 0, cuts.iter().cycle());
            while at < stream.len() {
                let end = (at + cut.next().unwrap()).min(stream.len());
                decoder.push(&stream[at..end]);
                frames.extend(drain(&mut decoder));
                at = end;
            }
            prop_assert_eq!(frames, payloads);
            prop_assert_eq!(decoder.buffered(), 0);
        }

        #[test]
        fn arbitrary_bytes_never_make_the_decoder_hold_more_than_it_was_given(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..48), 0..16),
        ) {
            let mut decoder = LengthPrefixed::new(32);
            let mut given = 0;
            for piece in &pieces {
                decoder.push(piece);
                given += piece.len();
                while let Ok(Some(frame)) = decoder.next_frame() {
                    prop_assert!(frame.len() <= 32);
                }
                prop_assert!(decoder.buffered() <= given.min(32 + LENGTH_BYTES + piece.len()));
            }
        }
    }
}
