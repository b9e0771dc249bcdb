//! Which files there are, and which records they hold.

use std::path::PathBuf;

use crate::files::DataDir;

const SUFFIX: &str = ".records";

/// One file. Its first record's number is its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first_seq: u64,
    /// `first_seq - 1` while it is empty.
    pub(super) last_seq: u64,
    /// Durable bytes; anything behind them is the writer's business.
    pub(super) bytes: u64,
}

/// All files, oldest first. The last one is written to and is never removed, so that the chain's head stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) segments: Vec<Segment>,
    pub(super) acknowledged: u64,
}

impl Segment {
    pub(super) fn empty(first_seq: u64) -> Self {
        Self {
            first_seq,
            last_seq: first_seq.saturating_sub(1),
            bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last_seq < self.first_seq
    }

    pub(super) fn path(&self, directory: &DataDir) -> PathBuf {
        directory.join(&file_name(self.first_seq))
    }
}

impl Index {
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The file that holds record `seq`.
    pub(super) fn holding(&self, seq: u64) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| segment.first_seq <= seq && seq <= segment.last_seq)
    }

    /// The oldest record still here that is not acknowledged, or the next one to come.
    pub(super) fn first_wanted(&self) -> u64 {
        let oldest = self.segments.first().map_or(1, |segment| segment.first_seq);
        oldest.max(self.acknowledged.saturating_add(1))
    }

    /// Takes files out whose records are all acknowledged, but never the last one.
    pub(super) fn take_acknowledged(&mut self) -> Vec<Segment> {
        let acknowledged = self.acknowledged;
        let last = self.segments.len().saturating_sub(1);
        let done = self
            .segments
            .iter()
            .take(last)
            .take_while(|segment| segment.last_seq <= acknowledged)
            .count();
        self.segments.drain(..done).collect()
    }
}

pub(super) fn file_name(first_seq: u64) -> String {
    format!("{first_seq:020}{SUFFIX}")
}

/// The first record's number, if this is a segment's file name.
pub(super) fn first_seq_of(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(SUFFIX)?;
    let well_formed = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    well_formed.then(|| digits.parse().ok()).flatten()
}
