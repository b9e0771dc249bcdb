//! Opening a spool: what is there, is it one chain, and where does it go on.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use iap_audit::{ChainHead, Payload, RecordView, SourceId, SpoolReader};

use super::error::SpoolOpenError;
use super::position;
use super::segments::{Index, Segment, first_seq_of};
use crate::files::{DataDir, PRIVATE_FILE_MODE, io_error, permissions};

const LOCK_FILE: &str = "lock";

/// What was found when a spool was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Where the chain stands.
    pub head: ChainHead,
    /// The last acknowledged record; 0 before the first.
    pub acknowledged: u64,
    /// Bytes of a record that was being written when the machine stopped. Nobody had a receipt for it.
    pub torn_bytes: u64,
}

/// Takes the spool for this process, for as long as the file is held.
pub(super) fn lock(directory: &DataDir) -> Result<File, SpoolOpenError> {
    let path = directory.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    permissions::mode(&mut options, PRIVATE_FILE_MODE);
    let file = options
        .open(&path)
        .map_err(|source| io_error("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(SpoolOpenError::InUse {
            path: directory.path().to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(io_error("lock", &path, source).into()),
    }
}

/// Walks over every record. A torn tail of the last file is cut off.
pub(super) fn recover(directory: &DataDir, source: SourceId) -> Result<(Index, Recovery), SpoolOpenError> {
    let mut walk = Walk {
        source,
        head: None,
        torn_bytes: 0,
    };
    let mut index = Index::default();
    let names = segment_numbers(directory)?;
    let last = names.last().copied();
    for first_seq in names {
        let segment = walk.segment(directory, first_seq, last == Some(first_seq))?;
        index.segments.push(segment);
    }
    let acknowledged = position::load(directory, source)?;
    index.acknowledged = acknowledged.as_ref().map_or(0, |head| head.seq);
    let head = furthest(walk.head, acknowledged).unwrap_or_else(|| ChainHead::genesis(source));
    drop_empty_segment(directory, &mut index)?;
    drop_outrun_segments(directory, &mut index, &head)?;
    let recovery = Recovery {
        head,
        acknowledged: index.acknowledged,
        torn_bytes: walk.torn_bytes,
    };
    Ok((index, recovery))
}

struct Walk {
    source: SourceId,
    head: Option<ChainHead>,
    torn_bytes: u64,
}

impl Walk {
    fn segment(
        &mut self,
        directory: &DataDir,
        first_seq: u64,
        is_last: bool,
    ) -> Result<Segment, SpoolOpenError> {
        let mut segment = Segment::empty(first_seq);
        let path = segment.path(directory);
        let bytes = fs::read(&path).map_err(|source| io_error("read", &path, source))?;
        let scan = SpoolReader::new(&bytes).scan();
        let records = scan.records.iter().filter(|frame| !Payload::is_payload(frame));
        for record in records {
            let head = self.record(&path, first_seq, record)?;
            segment.last_seq = head.seq;
            self.head = Some(head);
        }
        segment.bytes = scan.good_length as u64;
        if scan.torn_bytes > 0 {
            if !is_last {
                let (last_seq, torn_bytes) = (segment.last_seq, scan.torn_bytes);
                return Err(SpoolOpenError::Damaged {
                    path,
                    last_seq,
                    torn_bytes,
                });
            }
            cut(&path, segment.bytes)?;
            self.torn_bytes = scan.torn_bytes as u64;
        }
        Ok(segment)
    }

    fn record(&self, path: &Path, first_seq: u64, bytes: &[u8]) -> Result<ChainHead, SpoolOpenError> {
        let view = RecordView::parse(bytes).map_err(|source| SpoolOpenError::Record {
            path: path.to_owned(),
            source,
        })?;
        if view.agent_id != self.source {
            let (expected, found) = (self.source, view.agent_id);
            return Err(SpoolOpenError::OtherSource {
                path: path.to_owned(),
                expected,
                found,
            });
        }
        let before = self.head.clone().unwrap_or_else(|| ChainHead {
            source: self.source,
            seq: first_seq.saturating_sub(1),
            hash_hex: view.agent_prev.clone(),
        });
        before.follow(&view).map_err(|source| SpoolOpenError::Chain {
            path: path.to_owned(),
            source,
        })
    }
}

fn segment_numbers(directory: &DataDir) -> Result<Vec<u64>, SpoolOpenError> {
    let list = |source| io_error("list", directory.path(), source);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory.path()).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        numbers.extend(name.to_str().and_then(first_seq_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What was acknowledged can no longer be given another content, even if it is gone from this disk.
fn furthest(on_disk: Option<ChainHead>, acknowledged: Option<ChainHead>) -> Option<ChainHead> {
    match (on_disk, acknowledged) {
        (Some(on_disk), Some(acknowledged)) if acknowledged.seq > on_disk.seq => Some(acknowledged),
        (Some(on_disk), _) => Some(on_disk),
        (None, acknowledged) => acknowledged,
    }
}

/// A file that was begun but got no whole record has a name that the next record may not have.
fn drop_empty_segment(directory: &DataDir, index: &mut Index) -> Result<(), SpoolOpenError> {
    let Some(segment) = index.segments.pop_if(|segment| segment.is_empty()) else {
        return Ok(());
    };
    remove(directory, &segment)
}

/// When more was acknowledged than this disk still has, the chain goes on behind a gap; everything before the gap
/// is acknowledged.
fn drop_outrun_segments(
    directory: &DataDir,
    index: &mut Index,
    head: &ChainHead,
) -> Result<(), SpoolOpenError> {
    if index
        .segments
        .last()
        .is_some_and(|segment| segment.last_seq < head.seq)
    {
        for segment in index.segments.drain(..) {
            remove(directory, &segment)?;
        }
    }
    Ok(())
}

fn remove(directory: &DataDir, segment: &Segment) -> Result<(), SpoolOpenError> {
    let path = segment.path(directory);
    Ok(fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?)
}

fn cut(path: &Path, bytes: u64) -> Result<(), SpoolOpenError> {
    let file = OpenOptions::new().write(true).open(path);
    let cut = file.and_then(|file| file.set_len(bytes).and_then(|()| file.sync_all()));
    Ok(cut.map_err(|source| io_error("cut the torn tail of", path, source))?)
}
