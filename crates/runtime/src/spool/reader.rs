//! Reads durable records back.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::PoisonError;

use iap_audit::spool::SPOOL_HEAD_BYTES;
use iap_audit::{Payload, RECORD_BYTES_MAX, SpoolReader, hash_hex};

use super::error::SpoolError;
use super::segments::Segment;
use super::{Shared, SpooledRecord};

/// Where the last read ended, so that the next one need not begin at the start of its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    segment: u64,
    next_seq: u64,
    offset: u64,
}

/// Records of one file, from `from` or the first one not acknowledged.
pub(super) fn unacknowledged(
    shared: &Shared,
    from: u64,
    records_max: usize,
    bytes_max: usize,
) -> Result<Vec<SpooledRecord>, SpoolError> {
    let seq = from.max(shared.index().first_wanted());
    from_seq(shared, seq, records_max, bytes_max)
}

/// Records of one file, from `from` or the first one that is still here.
pub(super) fn held(
    shared: &Shared,
    from: u64,
    records_max: usize,
    bytes_max: usize,
) -> Result<Vec<SpooledRecord>, SpoolError> {
    let oldest = shared
        .index()
        .segments
        .first()
        .map_or(1, |segment| segment.first_seq);
    from_seq(shared, from.max(oldest), records_max, bytes_max)
}

fn from_seq(
    shared: &Shared,
    seq: u64,
    records_max: usize,
    bytes_max: usize,
) -> Result<Vec<SpooledRecord>, SpoolError> {
    let segment = shared.index().holding(seq).cloned();
    let Some(segment) = segment else {
        return Ok(Vec::new());
    };
    let records = match read(shared, &segment, seq, records_max, bytes_max) {
        // Acknowledged and removed in the meantime: there is nothing to send from it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(SpoolError::disk)?,
    };
    if let Some(last) = records.last() {
        let hash = hash_hex(&last.bytes);
        *shared.last_read.lock().unwrap_or_else(PoisonError::into_inner) = Some((last.seq, hash));
    }
    Ok(records)
}

/// One record's hash. That of the last that was read is known: it is the one that is acknowledged next, and to look for it
/// would be to read the whole of its file.
pub(super) fn hash_of(shared: &Shared, seq: u64) -> Result<String, SpoolError> {
    let known = shared.last_read.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.clone().filter(|(known, _)| *known == seq);
    match known {
        Some((_, hash)) => Ok(hash),
        None => Ok(hash_hex(&record(shared, seq)?.bytes)),
    }
}

fn record(shared: &Shared, seq: u64) -> Result<SpooledRecord, SpoolError> {
    let segment = shared.index().holding(seq).cloned();
    let found = match segment {
        Some(segment) => read(shared, &segment, seq, 1, 0).map_err(SpoolError::disk)?.pop(),
        None => None,
    };
    let missing = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("record {seq} is not in the spool"),
        )
    };
    found.ok_or_else(|| SpoolError::disk(missing()))
}

fn read(
    shared: &Shared,
    segment: &Segment,
    seq: u64,
    records_max: usize,
    bytes_max: usize,
) -> io::Result<Vec<SpooledRecord>> {
    let start = start_of(shared, segment, seq);
    // The last record may be as long as records get, and so may its payload.
    let longest = 2 * (RECORD_BYTES_MAX + SPOOL_HEAD_BYTES);
    let heads = records_max.saturating_mul(2 * SPOOL_HEAD_BYTES);
    let wanted = bytes_max.saturating_add(longest).saturating_add(heads) as u64;
    let available = segment.bytes.saturating_sub(start.offset);
    // Without a cursor the record may lie anywhere in the file.
    let length = if start.next_seq == seq {
        wanted.min(available)
    } else {
        available
    };
    let bytes = read_range(shared, segment, start.offset, length)?;
    let mut frames = SpoolReader::new(&bytes);
    let mut next = start;
    let (mut found, mut found_bytes) = (Vec::new(), 0);
    while let Some(frame) = frames.next() {
        if Payload::is_payload(frame) {
            found_bytes += frame.len();
            if let Some(record) = found.last_mut() {
                attach(record, frame);
            }
            next.offset = start.offset + frames.good_length() as u64;
            continue;
        }
        if next.next_seq >= seq {
            found_bytes += frame.len();
            if !found.is_empty() && (found.len() >= records_max || found_bytes > bytes_max) {
                break;
            }
            found.push(SpooledRecord {
                seq: next.next_seq,
                bytes: frame.to_vec(),
                payload: None,
            });
        }
        next.next_seq += 1;
        next.offset = start.offset + frames.good_length() as u64;
    }
    *shared.cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
    Ok(found)
}

fn attach(record: &mut SpooledRecord, frame: &[u8]) {
    match Payload::decode(frame) {
        Ok(payload) => record.payload = Some(payload),
        Err(error) => tracing::error!(record = record.seq, %error, "a payload in the spool cannot be read"),
    }
}

fn start_of(shared: &Shared, segment: &Segment, seq: u64) -> Cursor {
    let kept = *shared.cursor.lock().unwrap_or_else(PoisonError::into_inner);
    let usable = kept.filter(|cursor| cursor.segment == segment.first_seq && cursor.next_seq == seq);
    usable.unwrap_or(Cursor {
        segment: segment.first_seq,
        next_seq: segment.first_seq,
        offset: 0,
    })
}

fn read_range(shared: &Shared, segment: &Segment, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(segment.path(&shared.directory))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}
