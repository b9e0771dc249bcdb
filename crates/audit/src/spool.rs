//! How records lie in a spool file: u32 big-endian length, the first four bytes of the record's SHA-256, the
//! record. A record's [`Payload`](crate::Payload) lies behind it in the same form. A machine that lost its power leaves a torn tail; the reader says where the good part ends.

use aws_lc_rs::digest::{SHA256, digest};
use thiserror::Error;

use crate::record::RECORD_BYTES_MAX;

/// Bytes in front of each record.
pub const SPOOL_HEAD_BYTES: usize = LENGTH_BYTES + CHECK_BYTES;

const LENGTH_BYTES: usize = 4;
const CHECK_BYTES: usize = 4;

/// A record as it is appended to a spool file.
pub fn encode_frame(record: &[u8]) -> Result<Vec<u8>, SpoolFrameError> {
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    if record.is_empty() || record.len() > RECORD_BYTES_MAX {
        return Err(SpoolFrameError { bytes: record.len() });
    }
    let mut frame = Vec::with_capacity(SPOOL_HEAD_BYTES + record.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&check(record));
    frame.extend_from_slice(record);
    Ok(frame)
}

/// Walks over the records of a spool file; ends at the first frame that is not whole.
#[derive(Debug, Clone)]
pub struct SpoolReader<'a> {
    rest: &'a [u8],
    good_length: usize,
}

/// What a spool file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan<'a> {
    /// The records, in order.
    pub records: Vec<&'a [u8]>,
    /// Where the last whole frame ends; the file is to be cut here before it is appended to.
    pub good_length: usize,
    /// Bytes behind that: a torn tail, or damage.
    pub torn_bytes: usize,
}

impl<'a> SpoolReader<'a> {
    /// A reader over a file's content.
    pub fn new(file: &'a [u8]) -> Self {
        Self {
            rest: file,
            good_length: 0,
        }
    }

    /// Where the frames handed out so far end.
    pub fn good_length(&self) -> usize {
        self.good_length
    }

    /// Everything at once.
    pub fn scan(mut self) -> Scan<'a> {
        let records: Vec<_> = self.by_ref().collect();
        Scan {
            records,
            good_length: self.good_length,
            torn_bytes: self.rest.len(),
        }
    }
}

impl<'a> Iterator for SpoolReader<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>()?;
        let (expected, rest) = rest.split_first_chunk::<CHECK_BYTES>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        // A hole full of zeros, as file systems leave it, is no empty record.
        if length == 0 || length > RECORD_BYTES_MAX {
            return None;
        }
        let (record, rest) = rest.split_at_checked(length)?;
        if check(record) != *expected {
            return None;
        }
        self.rest = rest;
        self.good_length += SPOOL_HEAD_BYTES + length;
        Some(record)
    }
}

fn check(record: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = digest(&SHA256, record);
    digest
        .as_ref()
        .first_chunk::<CHECK_BYTES>()
        .copied()
        .unwrap_or_default()
}

/// A record that no spool takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a spooled record has 1 to {RECORD_BYTES_MAX} bytes, not {bytes}")]
pub struct SpoolFrameError {
    /// Its length.
    pub bytes: usize,
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

    fn file(records: &[Vec<u8>]) -> Vec<u8> {
        records
            .iter()
            .flat_map(|record| encode_frame(record).unwrap())
            .collect()
    }

    #[test]
    fn an_altered_byte_ends_the_good_part_before_its_frame() {
        let mut file = file(&[b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let second = 2 * SPOOL_HEAD_BYTES + 3;
        file[second] ^= 1;
        let scan = SpoolReader::new(&file).scan();
        assert_eq!(scan.records, vec![b"one"]);
        assert_eq!(scan.good_length, SPOOL_HEAD_BYTES + 3);
        assert_eq!(scan.torn_bytes, file.len() - scan.good_length);
    }

    #[test]
    fn a_hole_of_zeros_is_no_record() {
        let scan = SpoolReader::new(&[0; 64]).scan();
        assert_eq!(
            (scan.records.len(), scan.good_length, scan.torn_bytes),
            (0, 0, 64)
        );
    }

    #[test]
    fn a_record_of_no_bytes_or_too_many_is_not_spooled() {
        assert_eq!(encode_frame(b""), Err(SpoolFrameError { bytes: 0 }));
        assert!(encode_frame(&vec![b'x'; RECORD_BYTES_MAX + 1]).is_err());
        assert!(encode_frame(&vec![b'x'; RECORD_BYTES_MAX]).is_ok());
    }

    proptest! {
        #[test]
        fn a_tail_torn_anywhere_loses_only_the_records_it_cuts(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..8),
            torn_at in any::<proptest::sample::Index>(),
        ) {
            let whole = file(&records);
            let length = torn_at.index(whole.len() + 1);
            let scan = SpoolReader::new(&whole[..length]).scan();
            let mut end = 0;
            let complete: Vec<&[u8]> = records
                .iter()
                .take_while(|record| {
                    end += SPOOL_HEAD_BYTES + record.len();
                    end <= length
                })
                .map(Vec::as_slice)
                .collect();
            let good: usize = complete.iter().map(|record| SPOOL_HEAD_BYTES + record.len()).sum();
            prop_assert_eq!(scan.records, complete);
            prop_assert_eq!(scan.good_length, good);
            prop_assert_eq!(scan.torn_bytes, length - good);
        }

        #[test]
        fn arbitrary_bytes_never_yield_a_good_part_beyond_their_end(file in proptest::collection::vec(any::<u8>(), 0..200)) {
            let scan = SpoolReader::new(&file).scan();
            prop_assert_eq!(scan.good_length + scan.torn_bytes, file.len());
        }
    }
}
