//! What one side of a channel has sent and the other has not been given yet.
//!
//! A mailbox takes everything at once, because whoever fills it must never wait: it is the task that also carries the
//! other direction. What bounds it is the window that the sender is granted ([`super::window`]).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Small pieces are joined up to this size, so that a flood of them costs what it weighs. Larger ones are cut: no window
/// bounds a packet of a client's, and no line of a recording may be longer than its readers take.
const JOINED_BYTES_MAX: usize = 32 * 1024;

/// One thing to be passed on, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parcel {
    /// Bytes.
    Data(Bytes),
    /// Bytes beside them: standard error.
    Extended(u32, Bytes),
    /// No more bytes.
    Eof,
    /// How the program ended.
    ExitStatus(u32),
    /// By which signal the program ended.
    ExitSignal(ExitSignal),
    /// The channel is over.
    Close,
}

impl Parcel {
    /// One bit for each kind without bytes.
    fn kind(&self) -> u8 {
        match self {
            Self::Data(_) | Self::Extended(..) => 0,
            Self::Eof => 1,
            Self::ExitStatus(_) => 2,
            Self::ExitSignal(_) => 4,
            Self::Close => 8,
        }
    }
}

/// RFC 4254 §6.10.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExitSignal {
    /// Without `SIG`.
    pub(super) name: String,
    pub(super) core_dumped: bool,
    pub(super) message: String,
    pub(super) language: String,
}

/// The queue. One fills it, one empties it.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    held: Mutex<Held>,
    arrived: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct Held {
    parcels: VecDeque<Filling>,
    bytes: usize,
    /// Which kinds of parcels without bytes were here: each comes once, however often a peer sends it, because no window
    /// bounds them.
    seen: u8,
    /// Nothing is wanted any more.
    is_shut: bool,
}

#[derive(Debug)]
enum Filling {
    Data(BytesMut),
    Extended(u32, BytesMut),
    Other(Parcel),
}

impl Mailbox {
    /// Takes bytes of the main stream.
    pub(super) fn data(&self, bytes: &[u8]) {
        let mut held = self.held();
        if held.is_shut || bytes.is_empty() {
            return;
        }
        held.bytes += bytes.len();
        for piece in bytes.chunks(JOINED_BYTES_MAX) {
            match held.parcels.back_mut() {
                Some(Filling::Data(last)) if last.len() + piece.len() <= JOINED_BYTES_MAX => {
                    last.extend_from_slice(piece);
                }
                _ => held.parcels.push_back(Filling::Data(BytesMut::from(piece))),
            }
        }
        drop(held);
        self.arrived.notify_one();
    }

    /// Takes bytes of the stream `code`.
    pub(super) fn extended(&self, code: u32, bytes: &[u8]) {
        let mut held = self.held();
        if held.is_shut || bytes.is_empty() {
            return;
        }
        held.bytes += bytes.len();
        for piece in bytes.chunks(JOINED_BYTES_MAX) {
            match held.parcels.back_mut() {
                Some(Filling::Extended(of, last))
                    if *of == code && last.len() + piece.len() <= JOINED_BYTES_MAX =>
                {
                    last.extend_from_slice(piece);
                }
                _ => held
                    .parcels
                    .push_back(Filling::Extended(code, BytesMut::from(piece))),
            }
        }
        drop(held);
        self.arrived.notify_one();
    }

    /// Takes anything else.
    pub(super) fn push(&self, parcel: Parcel) {
        let mut held = self.held();
        let kind = parcel.kind();
        if held.is_shut || held.seen & kind != 0 {
            return;
        }
        held.seen |= kind;
        held.parcels.push_back(match parcel {
            Parcel::Data(bytes) => Filling::Data(bytes.into()),
            Parcel::Extended(code, bytes) => Filling::Extended(code, bytes.into()),
            other => Filling::Other(other),
        });
        drop(held);
        self.arrived.notify_one();
    }

    /// From now on nothing is kept.
    pub(super) fn shut(&self) {
        let mut held = self.held();
        held.is_shut = true;
        held.parcels.clear();
        held.bytes = 0;
        drop(held);
        self.taken.notify_one();
    }

    /// How many bytes wait.
    pub(super) fn bytes(&self) -> usize {
        self.held().bytes
    }

    /// The next thing, as soon as there is one. To be called by one task alone.
    pub(super) async fn next(&self) -> Parcel {
        loop {
            if let Some(parcel) = self.take() {
                self.taken.notify_one();
                return parcel;
            }
            self.arrived.notified().await;
        }
    }

    /// Returns once something was taken since the last call, or at once. To be called by one task alone.
    pub(super) async fn drained(&self) {
        self.taken.notified().await;
    }

    fn take(&self) -> Option<Parcel> {
        let mut held = self.held();
        let parcel = match held.parcels.pop_front()? {
            Filling::Data(bytes) => Parcel::Data(bytes.freeze()),
            Filling::Extended(code, bytes) => Parcel::Extended(code, bytes.freeze()),
            Filling::Other(parcel) => parcel,
        };
        if let Parcel::Data(bytes) | Parcel::Extended(_, bytes) = &parcel {
            held.bytes = held.bytes.saturating_sub(bytes.len());
        }
        Some(parcel)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_went_in_comes_out_in_order_and_small_pieces_are_joined() {
        let mailbox = Mailbox::default();
        for byte in b"abc" {
            mailbox.data(std::slice::from_ref(byte));
        }
        mailbox.extended(1, b"warn");
        mailbox.data(b"d");
        mailbox.push(Parcel::ExitStatus(3));
        mailbox.push(Parcel::Close);
        assert_eq!(mailbox.bytes(), 8);
        let mut seen = Vec::new();
        while seen.last() != Some(&Parcel::Close) {
            seen.push(mailbox.next().await);
        }
        assert_eq!(
            seen,
            [
                Parcel::Data(Bytes::from_static(b"abc")),
                Parcel::Extended(1, Bytes::from_static(b"warn")),
                Parcel::Data(Bytes::from_static(b"d")),
                Parcel::ExitStatus(3),
                Parcel::Close,
            ]
        );
        assert_eq!(mailbox.bytes(), 0);
    }

    #[tokio::test]
    async fn a_flood_of_bytes_is_kept_in_pieces_of_a_bounded_size() {
        let mailbox = Mailbox::default();
        for _ in 0..100 {
            mailbox.data(&[0; 1000]);
        }
        let Parcel::Data(first) = mailbox.next().await else {
            panic!("no data")
        };
        assert!(
            first.len() > 30_000 && first.len() <= JOINED_BYTES_MAX,
            "{}",
            first.len()
        );
    }

    #[tokio::test]
    async fn a_packet_of_any_size_is_kept_in_pieces_of_a_bounded_size() {
        let mailbox = Mailbox::default();
        mailbox.data(&[7; 200_000]);
        mailbox.extended(1, &[7; 100_000]);
        let (mut data, mut errors) = (0, 0);
        while mailbox.bytes() > 0 {
            let length = match mailbox.next().await {
                Parcel::Data(bytes) => {
                    data += bytes.len();
                    bytes.len()
                }
                Parcel::Extended(1, bytes) => {
                    errors += bytes.len();
                    bytes.len()
                }
                other => panic!("{other:?}"),
            };
            assert!(length <= JOINED_BYTES_MAX, "{length}");
        }
        assert_eq!((data, errors), (200_000, 100_000));
    }

    #[test]
    fn what_no_window_bounds_comes_once() {
        let mailbox = Mailbox::default();
        for _ in 0..1000 {
            mailbox.push(Parcel::Eof);
            mailbox.push(Parcel::ExitStatus(1));
            mailbox.push(Parcel::Close);
        }
        let all: Vec<_> = std::iter::from_fn(|| mailbox.take()).collect();
        assert_eq!(all, [Parcel::Eof, Parcel::ExitStatus(1), Parcel::Close]);
    }

    #[test]
    fn a_mailbox_that_is_shut_keeps_nothing() {
        let mailbox = Mailbox::default();
        mailbox.data(b"before");
        mailbox.shut();
        mailbox.data(b"after");
        mailbox.push(Parcel::Eof);
        assert_eq!((mailbox.bytes(), mailbox.take()), (0, None));
    }
}
