//! The writing thread: gathers what waits, appends it, syncs once, answers everybody.

use std::sync::Arc;

use iap_audit::spool::encode_frame;
use iap_audit::{Chain, ChainHead, RecordBody, SealError, SpoolFrameError};
use tokio::sync::{mpsc, oneshot};

use super::disk::{Disk, SegmentFile};
use super::error::SpoolError;
use super::segments::Segment;
use super::{Receipt, Room, Shared, position};
use crate::files::sync_directory;

const GROUP_RECORDS_MAX: usize = 1024;
const GROUP_BYTES_MAX: usize = 4 << 20;
const RESERVE_FILE: &str = "reserve";
/// A file is at most this part of the whole space, so that acknowledging frees space bit by bit.
const SEGMENT_SHARE: u64 = 8;

/// A record to be written, and whom to tell. The body is kept until the end, because a full disk may mean sealing
/// a group anew without some of its records.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) body: RecordBody,
    pub(super) room: Room,
    /// Whether what was refused has to find room beside it.
    pub(super) after_refusals: bool,
    pub(super) reply: oneshot::Sender<Result<Receipt, SpoolError>>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    head: ChainHead,
    open: Option<OpenSegment>,
    reserve: Reserve,
    /// The longest frame that found no room, since room was last there for it too.
    refused_bytes: u64,
}

/// The file being appended to.
struct OpenSegment {
    first_seq: u64,
    file: Box<dyn SegmentFile>,
    bytes: u64,
    /// A write failed: what lies behind `bytes` must go before the next one.
    dirty: bool,
}

/// Whether the reserved space is allocated on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reserve {
    Held,
    Released,
}

/// Records sealed but not yet written.
struct Group {
    chain: Chain,
    frames: Vec<u8>,
    sealed: Vec<Sealed>,
}

struct Sealed {
    receipt: Receipt,
    job: Job,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: Box<dyn Disk>, head: ChainHead) -> Self {
        let mut writer = Self {
            shared,
            disk,
            head,
            open: None,
            reserve: Reserve::Released,
            refused_bytes: 0,
        };
        if let Err(error) = writer.take_reserve() {
            tracing::warn!(%error, "cannot reserve space for audit records; new sessions are refused");
        }
        writer
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut waiting = vec![first];
            while waiting.len() < GROUP_RECORDS_MAX {
                let Ok(job) = queue.try_recv() else { break };
                waiting.push(job);
            }
            self.write_all(waiting);
        }
    }

    fn write_all(&mut self, mut waiting: Vec<Job>) {
        if self.reserve == Reserve::Released {
            let _ = self.take_reserve();
        }
        while !waiting.is_empty() {
            let (group, rest) = self.gather(waiting);
            waiting = rest;
            if group.sealed.is_empty() {
                continue;
            }
            match self.commit(&group) {
                Ok(()) => self.publish(group),
                Err(SpoolError::Full) if self.reserve == Reserve::Held => {
                    self.release_reserve();
                    let again = group.sealed.into_iter().map(|sealed| sealed.job);
                    waiting.splice(0..0, again);
                }
                Err(error) => refuse(group, &error),
            }
        }
    }

    /// Seals what there is room for, refuses the rest, and leaves for later what is too much at once.
    fn gather(&mut self, waiting: Vec<Job>) -> (Group, Vec<Job>) {
        self.leave_finished_segment();
        let (used, limits) = (self.shared.index().bytes(), self.shared.limits);
        let free = limits.bytes_max.saturating_sub(limits.reserve_bytes);
        let mut group = Group {
            chain: Chain::from_head(self.head.clone()),
            frames: Vec::new(),
            sealed: Vec::new(),
        };
        let mut waiting = waiting.into_iter();
        while group.frames.len() < GROUP_BYTES_MAX {
            let Some(job) = waiting.next() else { break };
            let room = match (job.room, self.reserve) {
                (Room::Reserve, _) => limits.bytes_max,
                (Room::Free, Reserve::Held) => free,
                (Room::Free, Reserve::Released) => 0,
            };
            // What is longer than half of the whole may never find room again.
            let beside = match job.after_refusals {
                true => self.refused_bytes.min(free / 2),
                false => 0,
            };
            let refused = group.add(job, room.saturating_sub(used).saturating_sub(beside));
            self.refused_bytes = self.refused_bytes.max(refused);
        }
        (group, waiting.collect())
    }

    fn commit(&mut self, group: &Group) -> Result<(), SpoolError> {
        let next_seq = self.head.seq.saturating_add(1);
        let segment = match self.open.take() {
            Some(segment) => segment,
            None => self.begin_segment(next_seq)?,
        };
        let segment = self.open.insert(segment);
        segment.append(&group.frames).map_err(SpoolError::disk)
    }

    /// The records are durable: now readers and waiters may know.
    fn publish(&mut self, group: Group) {
        self.head = group.chain.head().clone();
        if let Some(open) = &self.open {
            let updated = Segment {
                first_seq: open.first_seq,
                last_seq: self.head.seq,
                bytes: open.bytes,
            };
            let mut index = self.shared.index();
            index
                .segments
                .pop_if(|segment| segment.first_seq == updated.first_seq);
            index.segments.push(updated);
        }
        self.shared.committed.send_replace(self.head.seq);
        for Sealed { receipt, job } in group.sealed {
            if job.after_refusals {
                self.refused_bytes = 0;
            }
            let _ = job.reply.send(Ok(receipt));
        }
        if let Err(error) = position::remove_acknowledged(&self.shared) {
            tracing::warn!(%error, "cannot remove acknowledged audit records");
        }
    }

    /// A full file is left behind, and so is one whose records are all acknowledged, so that it can go.
    fn leave_finished_segment(&mut self) {
        let limits = self.shared.limits;
        let segment_bytes = limits.segment_bytes.min(limits.bytes_max / SEGMENT_SHARE);
        let acknowledged = self.shared.index().acknowledged >= self.head.seq;
        let enough = if acknowledged {
            segment_bytes / SEGMENT_SHARE
        } else {
            segment_bytes
        };
        self.open = self
            .open
            .take()
            .filter(|open| open.bytes == 0 || open.bytes < enough);
    }

    fn begin_segment(&mut self, next_seq: u64) -> Result<OpenSegment, SpoolError> {
        let segment = Segment::empty(next_seq);
        let path = segment.path(&self.shared.directory);
        let file = self.disk.open(&path).map_err(SpoolError::disk)?;
        sync_directory(self.shared.directory.path()).map_err(SpoolError::file)?;
        // Whatever an earlier attempt left in it was never acknowledged to anybody.
        Ok(OpenSegment {
            first_seq: next_seq,
            file,
            bytes: 0,
            dirty: true,
        })
    }

    fn take_reserve(&mut self) -> std::io::Result<()> {
        let path = self.shared.directory.join(RESERVE_FILE);
        self.disk.reserve(&path, self.shared.limits.reserve_bytes)?;
        self.reserve = Reserve::Held;
        Ok(())
    }

    /// Gives the reserved blocks to the records they were kept for.
    fn release_reserve(&mut self) {
        tracing::warn!("the disk is full: audit records now use their reserve, new sessions are refused");
        let path = self.shared.directory.join(RESERVE_FILE);
        if let Err(error) = self.disk.reserve(&path, 0) {
            tracing::warn!(%error, "cannot release the space reserved for audit records");
        }
        self.reserve = Reserve::Released;
    }
}

impl OpenSegment {
    fn append(&mut self, frames: &[u8]) -> std::io::Result<()> {
        if self.dirty {
            self.file.truncate(self.bytes)?;
        }
        self.dirty = true;
        if let Err(error) = self.file.append(frames).and_then(|()| self.file.sync()) {
            let _ = self.file.truncate(self.bytes);
            return Err(error);
        }
        self.dirty = false;
        self.bytes += frames.len() as u64;
        Ok(())
    }
}

impl Group {
    /// Adds the job's record if it takes no more than `room` together with the others. Returns how long the frame is
    /// that finds none.
    fn add(&mut self, job: Job, room: u64) -> u64 {
        let before = self.chain.head().clone();
        let sealed = self.chain.seal(job.body.clone()).map_err(unrecordable);
        let framed = sealed.and_then(|record| {
            let mut frame = encode_frame(&record.bytes).map_err(unframeable)?;
            if let Some(payload) = job.body.payload() {
                frame.extend(encode_frame(&payload.encode()).map_err(unframeable)?);
            }
            Ok((record, frame))
        });
        let (error, refused_bytes) = match framed {
            Ok((record, frame)) if (self.frames.len() + frame.len()) as u64 <= room => {
                self.frames.extend(frame);
                let receipt = Receipt {
                    seq: record.seq,
                    hash_hex: record.hash_hex,
                };
                self.sealed.push(Sealed { receipt, job });
                return 0;
            }
            Ok((_, frame)) => (SpoolError::Full, frame.len() as u64),
            Err(error) => (error, 0),
        };
        self.chain = Chain::from_head(before);
        let _ = job.reply.send(Err(error));
        refused_bytes
    }
}

fn refuse(group: Group, error: &SpoolError) {
    for sealed in group.sealed {
        let _ = sealed.job.reply.send(Err(error.clone()));
    }
}

fn unframeable(error: SpoolFrameError) -> SpoolError {
    SpoolError::Unrecordable(error.to_string())
}

fn unrecordable(error: SealError) -> SpoolError {
    SpoolError::Unrecordable(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use iap_audit::{Event, EventKind, SourceId};
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_record_that_is_refused_leaves_no_gap_in_its_group() {
        let source = SourceId::from_uuid(Uuid::nil());
        let mut group = Group {
            chain: Chain::new(source),
            frames: Vec::new(),
            sealed: Vec::new(),
        };
        let mut add = |room| {
            let (reply, mut answer) = oneshot::channel();
            let body = Event::new(EventKind::AgentStart, OffsetDateTime::UNIX_EPOCH, Uuid::nil()).into_body();
            group.add(
                Job {
                    body,
                    room: Room::Free,
                    after_refusals: false,
                    reply,
                },
                room,
            );
            answer.try_recv()
        };
        assert!(add(u64::MAX).is_err(), "sealed: nobody is told before the sync");
        assert!(matches!(add(0), Ok(Err(SpoolError::Full))));
        assert!(add(u64::MAX).is_err());
        let numbers: Vec<u64> = group.sealed.iter().map(|sealed| sealed.receipt.seq).collect();
        assert_eq!(numbers, [1, 2]);
    }
}
