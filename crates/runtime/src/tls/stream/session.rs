//! TLS 1.3 once the handshake is over (RFC 8446 §4.6, §5 and §6), without I/O: records are opened and sealed in their
//! caller's buffers.

#[cfg(test)]
mod tests;

use std::io::IoSlice;
use std::ops::Range;

use rustls::{AlertDescription, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved};

use super::keys::{
    ALERT, APPLICATION_DATA, Content, FRAGMENT_BYTES_MAX, HANDSHAKE, HEADER_BYTES, Keys, PROTECTION_BYTES,
    opened_bytes,
};
use super::schedule::{End, Schedule};

const CHANGE_CIPHER_SPEC: u8 = 20;
/// The last content type that there is, of heartbeats.
const CONTENT_TYPE_MAX: u8 = 24;
/// As rustls: what is longer is refused before it has arrived. What is too long in between is when it is opened.
const PROTECTED_BYTES_MAX: usize = FRAGMENT_BYTES_MAX + 2048;
const HANDSHAKE_HEADER_BYTES: usize = 4;
/// As rustls.
const HANDSHAKE_BYTES_MAX: usize = 0xffff;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const KEY_UPDATE_BYTES: usize = HANDSHAKE_HEADER_BYTES + 1;
const ALERT_BYTES: usize = 2;
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// Records in a row without content.
const EMPTY_RECORDS_MAX: u8 = 32;
/// KeyUpdates without application data in between.
const KEY_UPDATES_MAX: u8 = 32;
/// Alerts that say nothing, in all.
const WARNINGS_MAX: u8 = 4;

/// One end of an established connection.
pub(super) struct Session {
    end: End,
    schedule: Schedule,
    opening: Keys,
    sealing: Keys,
    /// With the same keys, so many records are sealed and no more.
    sealed_max: u64,
    /// The front of a handshake message, the rest of which has not arrived.
    handshake: Vec<u8>,
    empty_records: u8,
    key_updates: u8,
    warnings: u8,
}

/// What a record was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opened {
    /// Application data, so much of it at the front of the target.
    Into(usize),
    /// Application data, in its place in the record.
    InPlace(Range<usize>),
    /// Nothing for the application.
    Nothing,
    /// The peer sends no more.
    Closed,
}

/// What was wrong with what the peer sent, and what it is told.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: Error,
    pub(super) alert: Option<AlertDescription>,
}

impl Fault {
    fn new(error: impl Into<Error>, alert: AlertDescription) -> Self {
        Self {
            error: error.into(),
            alert: Some(alert),
        }
    }

    /// It has said itself that it is over.
    fn told(alert: AlertDescription) -> Self {
        Self {
            error: Error::AlertReceived(alert),
            alert: None,
        }
    }

    fn unexpected(what: PeerMisbehaved) -> Self {
        Self::new(what, AlertDescription::UnexpectedMessage)
    }

    fn malformed(what: InvalidMessage) -> Self {
        Self::new(what, AlertDescription::DecodeError)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let alert = match &error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
            _ => AlertDescription::InternalError,
        };
        Self::new(error, alert)
    }
}

impl Session {
    /// `keys` are those it begins with; what follows them comes out of the schedule.
    pub(super) fn new(end: End, keys: ExtractedSecrets, schedule: Schedule) -> Result<Self, Error> {
        Ok(Self {
            end,
            sealed_max: schedule.sealed_max(),
            schedule,
            opening: Keys::new(keys.rx)?,
            sealing: Keys::new(keys.tx)?,
            handshake: Vec::new(),
            empty_records: 0,
            key_updates: 0,
            warnings: 0,
        })
    }

    /// Opens one record: into `target` if that has room for all it may hold, else in place. What has to be answered is
    /// sealed to the end of `answer`.
    ///
    /// After a fault there is no going on.
    pub(super) fn open(
        &mut self,
        record: &mut [u8],
        target: &mut [u8],
        answer: &mut Vec<u8>,
    ) -> Result<Opened, Fault> {
        match record.first() {
            Some(&APPLICATION_DATA) => {}
            // Nothing is sent in the clear any more. For a record of this type rustls has a name.
            Some(&CHANGE_CIPHER_SPEC) => {
                return Err(Fault::unexpected(
                    PeerMisbehaved::IllegalMiddleboxChangeCipherSpec,
                ));
            }
            _ => {
                return Err(Fault::new(
                    Error::DecryptError,
                    AlertDescription::UnexpectedMessage,
                ));
            }
        }
        let fits = opened_bytes(record.len()).is_some_and(|bytes| bytes <= target.len());
        if fits {
            let content = self.opening.open_into(record, target)?;
            let bytes = target.get(..content.length).unwrap_or_default();
            return self.take(content, bytes, Opened::Into(content.length), answer);
        }
        let content = self.opening.open_in_place(record)?;
        let place = HEADER_BYTES..HEADER_BYTES + content.length;
        let bytes = record.get(place.clone()).unwrap_or_default();
        self.take(content, bytes, Opened::InPlace(place), answer)
    }

    /// What is to be done with content of which `data` is said if that is what it is.
    fn take(
        &mut self,
        content: Content,
        bytes: &[u8],
        data: Opened,
        answer: &mut Vec<u8>,
    ) -> Result<Opened, Fault> {
        // RFC 8446 §5.1: nothing comes between the records of one handshake message.
        if !self.handshake.is_empty() && content.content_type != HANDSHAKE {
            return Err(Fault::unexpected(
                PeerMisbehaved::MessageInterleavedWithHandshakeMessage,
            ));
        }
        self.count_empty(content)?;
        match content.content_type {
            APPLICATION_DATA => {
                self.key_updates = 0;
                Ok(match content.length {
                    0 => Opened::Nothing,
                    _ => data,
                })
            }
            ALERT => self.take_alert(bytes),
            HANDSHAKE => {
                self.take_handshake(bytes, answer)?;
                Ok(Opened::Nothing)
            }
            _ => Err(Fault::new(
                InvalidMessage::InvalidContentType,
                AlertDescription::UnexpectedMessage,
            )),
        }
    }

    fn count_empty(&mut self, content: Content) -> Result<(), Fault> {
        if content.length > 0 {
            self.empty_records = 0;
            return Ok(());
        }
        if self.empty_records == EMPTY_RECORDS_MAX {
            return Err(Fault::unexpected(PeerMisbehaved::TooManyEmptyFragments));
        }
        self.empty_records += 1;
        Ok(())
    }

    /// RFC 8446 §6.
    fn take_alert(&mut self, bytes: &[u8]) -> Result<Opened, Fault> {
        let &[level, description] = bytes else {
            let what = match bytes.len() {
                0 | 1 => InvalidMessage::MissingData("alert"),
                _ => InvalidMessage::TrailingData("alert"),
            };
            return Err(Fault::malformed(what));
        };
        let description = AlertDescription::from(description);
        let received = Error::AlertReceived(description);
        match (level, description) {
            (WARNING | FATAL, AlertDescription::CloseNotify) => Ok(Opened::Closed),
            (FATAL, _) => Err(Fault::told(description)),
            (WARNING, AlertDescription::UserCanceled) => {
                if self.warnings == WARNINGS_MAX {
                    return Err(Fault::unexpected(PeerMisbehaved::TooManyWarningAlertsReceived));
                }
                self.warnings += 1;
                Ok(Opened::Nothing)
            }
            (WARNING, _) => Err(Fault::new(received, AlertDescription::DecodeError)),
            _ => Err(Fault::new(received, AlertDescription::IllegalParameter)),
        }
    }

    /// Messages may share a record, or stretch over several.
    fn take_handshake(&mut self, bytes: &[u8], answer: &mut Vec<u8>) -> Result<(), Fault> {
        let mut messages = std::mem::take(&mut self.handshake);
        messages.extend_from_slice(bytes);
        let mut rest = &*messages;
        while let &[kind, high, middle, low, ref behind @ ..] = rest {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if length > HANDSHAKE_BYTES_MAX {
                return Err(Fault::malformed(InvalidMessage::HandshakePayloadTooLarge));
            }
            let Some((body, behind)) = behind.split_at_checked(length) else {
                break;
            };
            self.take_message(kind, body, behind.is_empty(), answer)?;
            rest = behind;
        }
        let done = messages.len() - rest.len();
        if done < messages.len() {
            messages.drain(..done);
            if done > 0 {
                messages.shrink_to_fit();
            }
            // With its capacity: a message in a thousand records is not copied a thousand times.
            self.handshake = messages;
        }
        Ok(())
    }

    fn take_message(
        &mut self,
        kind: u8,
        body: &[u8],
        is_last: bool,
        answer: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match (kind, self.end) {
            (KEY_UPDATE, _) => self.take_key_update(body, is_last, answer),
            // Sessions are never resumed: what is in it is of no use.
            (NEW_SESSION_TICKET, End::Client) => check_ticket(body).map_err(Fault::malformed),
            _ => Err(Fault::new(
                InvalidMessage::InvalidContentType,
                AlertDescription::UnexpectedMessage,
            )),
        }
    }

    /// RFC 8446 §4.6.3. An answer that has not left yet is one to this as well.
    fn take_key_update(&mut self, body: &[u8], is_last: bool, answer: &mut Vec<u8>) -> Result<(), Fault> {
        if !is_last {
            // RFC 8446 §5.1: what follows would have been protected by the keys before.
            return Err(Fault::unexpected(PeerMisbehaved::KeyEpochWithPendingFragment));
        }
        if self.key_updates == KEY_UPDATES_MAX {
            return Err(Fault::unexpected(PeerMisbehaved::TooManyKeyUpdateRequests));
        }
        self.key_updates += 1;
        match body {
            [0] => {}
            [1] if !answer.is_empty() => {}
            [1] => {
                let mut record = [0; KEY_UPDATE_BYTES + PROTECTION_BYTES];
                let length = self.seal_key_update(&mut record)?;
                answer.extend_from_slice(record.get(..length).unwrap_or_default());
            }
            [_] => {
                let what = InvalidMessage::InvalidKeyUpdate;
                return Err(Fault::new(what, AlertDescription::IllegalParameter));
            }
            [] => return Err(Fault::malformed(InvalidMessage::MissingData("KeyUpdate"))),
            _ => return Err(Fault::malformed(InvalidMessage::TrailingData("KeyUpdate"))),
        }
        self.opening = self.schedule.next_opening()?;
        Ok(())
    }

    /// Says that other keys come, and takes them; the peer need not do the same.
    fn seal_key_update(&mut self, space: &mut [u8]) -> Result<usize, Error> {
        let length = self.sealing.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], space)?;
        self.sealing = self.schedule.next_sealing()?;
        Ok(length)
    }

    /// Seals as much of the application's data as `space` takes. Returns how much that is, and how many bytes the records
    /// have.
    pub(super) fn seal(&mut self, pieces: &[IoSlice<'_>], space: &mut [u8]) -> Result<(usize, usize), Error> {
        let mut data = Gather::of(pieces);
        let (mut taken, mut filled) = (0, 0);
        while !data.is_empty() {
            let room = space.get_mut(filled..).unwrap_or_default();
            // The last record that the keys may protect says that others come.
            if self.sealing.sequence().saturating_add(1) >= self.sealed_max {
                if room.len() < KEY_UPDATE_BYTES + 2 * PROTECTION_BYTES + 1 {
                    break;
                }
                filled += self.seal_key_update(room)?;
                continue;
            }
            let most = room
                .len()
                .saturating_sub(PROTECTION_BYTES)
                .min(FRAGMENT_BYTES_MAX);
            if most == 0 {
                break;
            }
            let (length, record) = match data.next(most) {
                Next::Whole(content) => (content.len(), self.sealing.seal(APPLICATION_DATA, content, room)?),
                Next::Parts(length) => {
                    let write = |place: &mut [u8]| data.copy_to(place);
                    (
                        length,
                        self.sealing.seal_written(APPLICATION_DATA, length, room, write)?,
                    )
                }
            };
            (taken, filled) = (taken + length, filled + record);
        }
        Ok((taken, filled))
    }

    /// Seals an alert to the end of `messages`.
    pub(super) fn seal_alert(
        &mut self,
        alert: AlertDescription,
        messages: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let level = match alert {
            AlertDescription::CloseNotify => WARNING,
            _ => FATAL,
        };
        let mut record = [0; ALERT_BYTES + PROTECTION_BYTES];
        let length = self.sealing.seal(ALERT, &[level, alert.into()], &mut record)?;
        messages.extend_from_slice(record.get(..length).unwrap_or_default());
        Ok(())
    }
}

/// Whether that can be a NewSessionTicket (RFC 8446 §4.6.1): lifetime and age, a nonce, a ticket, and extensions.
fn check_ticket(body: &[u8]) -> Result<(), InvalidMessage> {
    let missing = InvalidMessage::MissingData("NewSessionTicket");
    let (_, behind) = body.split_at_checked(8).ok_or(missing)?;
    let (_, behind) = counted::<1>(behind).ok_or(missing)?;
    let (ticket, behind) = counted::<2>(behind).ok_or(missing)?;
    let (mut extensions, behind) = counted::<2>(behind).ok_or(missing)?;
    if ticket.is_empty() {
        return Err(InvalidMessage::IllegalEmptyValue);
    }
    while !extensions.is_empty() {
        let (_, extension) = extensions.split_at_checked(2).ok_or(missing)?;
        (_, extensions) = counted::<2>(extension).ok_or(missing)?;
    }
    match behind {
        [] => Ok(()),
        _ => Err(InvalidMessage::TrailingData("NewSessionTicket")),
    }
}

/// What a length of so many bytes counts, and what is behind it.
fn counted<const BYTES: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, behind) = bytes.split_first_chunk::<BYTES>()?;
    let length = length
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    behind.split_at_checked(length)
}

/// How long the record at the front of `bytes` is; nothing before its header is there. What cannot be one is refused as soon
/// as that is seen.
pub(super) fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let wrong = match *bytes {
        [outer, ..] if !(CHANGE_CIPHER_SPEC..=CONTENT_TYPE_MAX).contains(&outer) => {
            InvalidMessage::InvalidContentType
        }
        [_, major, _, ..] if major != 3 => InvalidMessage::UnknownProtocolVersion,
        [outer, _, _, high, low, ..] => match usize::from(u16::from_be_bytes([high, low])) {
            0 if outer != APPLICATION_DATA => InvalidMessage::InvalidEmptyPayload,
            PROTECTED_BYTES_MAX.. => InvalidMessage::MessageTooLarge,
            length => return Ok(Some(HEADER_BYTES + length)),
        },
        _ => return Ok(None),
    };
    Err(Fault::malformed(wrong))
}

/// Bytes that lie in several places, in their order.
struct Gather<'a, 'b> {
    pieces: &'a [IoSlice<'b>],
    /// So much of the first was taken.
    taken: usize,
}

/// The next of them.
enum Next<'a> {
    /// In one place.
    Whole(&'a [u8]),
    /// So many, in several.
    Parts(usize),
}

impl<'a> Gather<'a, '_> {
    fn of(pieces: &'a [IoSlice<'_>]) -> Gather<'a, 'a> {
        let mut data = Gather { pieces, taken: 0 };
        data.skip_empty();
        data
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn skip_empty(&mut self) {
        while let Some((first, rest)) = self.pieces.split_first()
            && self.taken == first.len()
        {
            (self.pieces, self.taken) = (rest, 0);
        }
    }

    fn first(&self) -> &'a [u8] {
        let first = self.pieces.first().map_or(&[][..], |piece| &**piece);
        first.get(self.taken..).unwrap_or_default()
    }

    /// At most `most` bytes; those in one place are taken with it, others by [`copy_to`](Self::copy_to).
    fn next(&mut self, most: usize) -> Next<'a> {
        let first = self.first();
        let behind = self.pieces.get(1..).unwrap_or_default();
        if first.len() >= most || behind.iter().all(|piece| piece.is_empty()) {
            let whole = first.get(..most).unwrap_or(first);
            self.taken += whole.len();
            self.skip_empty();
            return Next::Whole(whole);
        }
        let length = behind
            .iter()
            .fold(first.len(), |sum, piece| sum.saturating_add(piece.len()));
        Next::Parts(length.min(most))
    }

    fn copy_to(&mut self, place: &mut [u8]) {
        let mut filled = 0;
        while filled < place.len() && !self.is_empty() {
            let (first, room) = (self.first(), place.get_mut(filled..).unwrap_or_default());
            let count = first.len().min(room.len());
            if let (Some(room), Some(bytes)) = (room.get_mut(..count), first.get(..count)) {
                room.copy_from_slice(bytes);
            }
            filled += count;
            self.taken += count;
            self.skip_empty();
        }
    }
}
