//! What a spool promises, also when the disk or the machine fails.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iap_audit::{Event, EventKind, RecordView, verify_link};
use time::OffsetDateTime;
use uuid::Uuid;

use super::disk::SegmentFile;
use super::*;

const SOURCE: Uuid = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001);
const ALL: usize = usize::MAX;

fn source() -> SourceId {
    SourceId::from_uuid(SOURCE)
}

fn event(note: &str) -> Event {
    Event::new(
        EventKind::AgentStart,
        OffsetDateTime::UNIX_EPOCH,
        Uuid::from_u128(7),
    )
    .reason(note)
}

/// Roomy, and without a reserve on the test machine's disk.
fn limits() -> SpoolLimits {
    SpoolLimits {
        bytes_max: 1 << 20,
        reserve_bytes: 0,
        segment_bytes: 1 << 16,
    }
}

fn open(directory: &Path, limits: SpoolLimits) -> (Spool, Recovery) {
    Spool::open(directory, limits, source()).unwrap()
}

async fn append(spool: &Spool, note: &str) -> Result<Receipt, SpoolError> {
    spool.append(event(note), Room::Free).await
}

async fn notes(spool: &Spool, from: u64) -> Vec<String> {
    let records = all(spool, from).await;
    let note = |record: &SpooledRecord| {
        let view = RecordView::parse(&record.bytes).unwrap();
        assert_eq!(view.agent_seq, record.seq);
        view.fields["reason"].as_str().unwrap().to_owned()
    };
    records.iter().map(note).collect()
}

async fn all(spool: &Spool, from: u64) -> Vec<SpooledRecord> {
    let mut found: Vec<SpooledRecord> = Vec::new();
    loop {
        let next = found.last().map_or(from, |last| last.seq + 1);
        let batch = spool.unacknowledged(next, ALL, 10_000).await.unwrap();
        if batch.is_empty() {
            return found;
        }
        found.extend(batch);
    }
}

fn assert_one_chain(records: &[SpooledRecord]) {
    let views: Vec<_> = records
        .iter()
        .map(|record| RecordView::parse(&record.bytes).unwrap())
        .collect();
    for pair in views.windows(2) {
        verify_link(Some(&pair[0]), &pair[1]).unwrap();
    }
}

fn segment_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "records"))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn records_are_numbered_linked_and_read_back_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, recovery) = open(&directory.path().join("spool"), limits());
    assert_eq!((recovery.head.seq, recovery.torn_bytes), (0, 0));
    for (index, note) in ["one", "two", "three"].iter().enumerate() {
        assert_eq!(append(&spool, note).await.unwrap().seq, index as u64 + 1);
    }
    assert_eq!(notes(&spool, 0).await, ["one", "two", "three"]);
    assert_eq!(notes(&spool, 3).await, ["three"]);
    assert_eq!(notes(&spool, 4).await, Vec::<String>::new());
    let records = all(&spool, 1).await;
    assert_one_chain(&records);
    assert_eq!(*spool.committed().borrow(), 3);
}

#[tokio::test]
async fn a_receipt_carries_the_hash_of_the_stored_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(&directory.path().join("spool"), limits());
    let receipt = append(&spool, "one").await.unwrap();
    let stored = all(&spool, 1).await;
    assert_eq!(receipt.hash_hex, iap_audit::hash_hex(&stored[0].bytes));
}

#[tokio::test]
async fn many_writers_at_once_make_one_chain_over_several_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let (spool, _) = open(
        &path,
        SpoolLimits {
            segment_bytes: 4096,
            ..limits()
        },
    );
    for round in 0..8 {
        let writers = (0..25).map(|writer| {
            let spool = spool.clone();
            tokio::spawn(async move { append(&spool, &format!("{round}.{writer}")).await.unwrap().seq })
        });
        let mut numbers = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            numbers.push(writer.await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (round * 25 + 1..=round * 25 + 25).collect::<Vec<_>>());
    }
    let records = all(&spool, 1).await;
    assert_eq!(records.len(), 200);
    assert_one_chain(&records);
    assert!(segment_files(&path).len() > 2);
}

#[tokio::test]
async fn reads_keep_to_their_limits_but_give_at_least_one_record() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(&directory.path().join("spool"), limits());
    for note in ["one", "two", "three"] {
        append(&spool, note).await.unwrap();
    }
    let count = async |from, records, bytes| spool.unacknowledged(from, records, bytes).await.unwrap().len();
    assert_eq!(count(1, 2, ALL).await, 2);
    assert_eq!(count(1, ALL, 1).await, 1);
    assert_eq!(count(2, 1, 1).await, 1);
    assert_eq!(count(1, ALL, ALL).await, 3);
    assert_eq!(count(3, ALL, ALL).await, 1);
}

#[tokio::test]
async fn the_chain_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let (spool, _) = open(&path, limits());
    let first = append(&spool, "one").await.unwrap();
    drop(spool);
    let (spool, recovery) = open(&path, limits());
    assert_eq!((recovery.head.seq, recovery.head.hash_hex), (1, first.hash_hex));
    append(&spool, "two").await.unwrap();
    drop(spool);
    let (spool, recovery) = open(&path, limits());
    assert_eq!(recovery.head.seq, 2);
    let records = all(&spool, 1).await;
    assert_eq!(records.len(), 2);
    assert_one_chain(&records);
}

#[tokio::test]
async fn a_last_frame_torn_at_any_byte_loses_no_record_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let (spool, _) = open(&whole, limits());
    append(&spool, "one").await.unwrap();
    append(&spool, "two").await.unwrap();
    let before_last = spool.usage().bytes as usize;
    append(&spool, "three").await.unwrap();
    drop(spool);
    let file = segment_files(&whole).remove(0);
    let bytes = fs::read(&file).unwrap();
    for length in before_last..bytes.len() {
        let torn = directory.path().join(format!("torn-{length}"));
        crate::files::create_private_directory(&torn).unwrap();
        let copy = torn.join(file.file_name().unwrap());
        fs::copy(&file, &copy).unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(&copy)
            .unwrap()
            .set_len(length as u64)
            .unwrap();
        let (spool, recovery) = open(&torn, limits());
        assert_eq!(recovery.torn_bytes as usize, length - before_last);
        assert_eq!(notes(&spool, 1).await, ["one", "two"]);
        // Each append waits for a disk: not at every byte.
        if length % 16 == 0 {
            assert_eq!(append(&spool, "again").await.unwrap().seq, 3);
            let records = all(&spool, 1).await;
            assert_one_chain(&records);
            assert_eq!(records.len(), 3);
        }
    }
}

#[tokio::test]
async fn acknowledged_files_go_and_the_position_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let small = SpoolLimits {
        segment_bytes: 600,
        ..limits()
    };
    let (spool, _) = open(&path, small);
    for number in 1..=20 {
        append(&spool, &number.to_string()).await.unwrap();
    }
    let files = segment_files(&path).len();
    spool.acknowledge(15).await.unwrap();
    assert!(segment_files(&path).len() < files);
    assert_eq!(notes(&spool, 0).await, ["16", "17", "18", "19", "20"]);
    spool.acknowledge(3).await.unwrap();
    spool.acknowledge(99).await.unwrap();
    assert_eq!(notes(&spool, 0).await, Vec::<String>::new());
    drop(spool);
    let (spool, recovery) = open(&path, small);
    assert_eq!((recovery.acknowledged, recovery.head.seq), (20, 20));
    assert_eq!(append(&spool, "21").await.unwrap().seq, 21);
    assert_eq!(notes(&spool, 0).await, ["21"]);
}

#[tokio::test]
async fn a_chain_whose_files_are_gone_goes_on_behind_what_was_acknowledged() {
    // Acknowledged is mostly the last record that was read, and may be any other.
    for read in [0, 1, 2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spool");
        let (spool, _) = open(&path, limits());
        append(&spool, "one").await.unwrap();
        let two = append(&spool, "two").await.unwrap();
        append(&spool, "three").await.unwrap();
        assert_eq!(
            spool.unacknowledged(0, read, 10_000).await.unwrap().len(),
            read.max(1)
        );
        spool.acknowledge(2).await.unwrap();
        drop(spool);
        for file in segment_files(&path) {
            fs::remove_file(file).unwrap();
        }
        let (spool, _) = open(&path, limits());
        assert_eq!(append(&spool, "three again").await.unwrap().seq, 3);
        let view = RecordView::parse(&all(&spool, 1).await[0].bytes).unwrap();
        assert_eq!(view.agent_prev, two.hash_hex);
        drop(spool);
        open(&path, limits());
    }
}

#[tokio::test]
async fn new_sessions_are_refused_when_only_the_reserve_is_left_and_ends_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = SpoolLimits {
        bytes_max: 4000,
        reserve_bytes: 1500,
        segment_bytes: 1 << 16,
    };
    let (spool, _) = open(&directory.path().join("spool"), tiny);
    let refused = loop {
        if let Err(error) = append(&spool, "start").await {
            break error;
        }
    };
    assert!(matches!(refused, SpoolError::Full), "{refused}");
    assert!(
        spool.usage().bytes <= 2500 && spool.usage().bytes > 2000,
        "{:?}",
        spool.usage()
    );
    let mut ends = 0;
    while spool.append(event("end"), Room::Reserve).await.is_ok() {
        ends += 1;
    }
    assert!(
        ends >= 3 && spool.usage().bytes <= 4000,
        "{ends} {:?}",
        spool.usage()
    );
    let last = *spool.committed().borrow();
    spool.acknowledge(last).await.unwrap();
    append(&spool, "room again").await.unwrap();
    assert_one_chain(&all(&spool, 1).await);
}

#[tokio::test]
async fn a_spool_that_refused_a_record_has_room_again_once_that_record_would_fit() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = SpoolLimits {
        bytes_max: 8000,
        reserve_bytes: 0,
        segment_bytes: 1 << 16,
    };
    let (spool, _) = open(&directory.path().join("spool"), tiny);
    let long = "x".repeat(900);
    while append(&spool, &long).await.is_ok() {}
    let gap = || spool.append_after_refusals(event("gap"));
    assert!(matches!(gap().await, Err(SpoolError::Full)));
    append(&spool, "short records still fit").await.unwrap();
    let last = *spool.committed().borrow();
    spool.acknowledge(last).await.unwrap();
    gap().await.unwrap();
    append(&spool, &long).await.unwrap();
    // What was refused before that counts no longer.
    while spool.usage().bytes < 7000 {
        append(&spool, "short").await.unwrap();
    }
    gap().await.unwrap();
}

#[tokio::test]
async fn a_record_that_never_finds_room_does_not_keep_a_spool_full() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = SpoolLimits {
        bytes_max: 4000,
        reserve_bytes: 1500,
        segment_bytes: 1 << 16,
    };
    let (spool, _) = open(&directory.path().join("spool"), tiny);
    assert!(matches!(
        append(&spool, &"x".repeat(3000)).await,
        Err(SpoolError::Full)
    ));
    spool.append_after_refusals(event("gap")).await.unwrap();
}

#[tokio::test]
async fn an_event_that_cannot_be_recorded_harms_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(&directory.path().join("spool"), limits());
    let long = "x".repeat(iap_audit::RECORD_BYTES_MAX);
    let (before, refused, after) =
        tokio::join!(append(&spool, "a"), append(&spool, &long), append(&spool, "b"));
    assert!(matches!(refused, Err(SpoolError::Unrecordable(_))));
    assert_eq!((before.unwrap().seq, after.unwrap().seq), (1, 2));
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let (spool, _) = open(&path, limits());
    assert!(matches!(
        Spool::open(&path, limits(), source()),
        Err(SpoolOpenError::InUse { .. })
    ));
    drop(spool);
    open(&path, limits());
}

#[tokio::test]
async fn damage_before_the_last_file_and_foreign_records_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let (spool, _) = open(
        &path,
        SpoolLimits {
            segment_bytes: 600,
            ..limits()
        },
    );
    for number in 0..10 {
        append(&spool, &number.to_string()).await.unwrap();
    }
    drop(spool);
    let other = SourceId::from_uuid(Uuid::nil());
    assert!(matches!(
        Spool::open(&path, limits(), other),
        Err(SpoolOpenError::OtherSource { .. })
    ));
    let first = segment_files(&path).remove(0);
    let mut bytes = fs::read(&first).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&first, bytes).unwrap();
    assert!(matches!(
        Spool::open(&path, limits(), source()),
        Err(SpoolOpenError::Damaged { .. })
    ));
}

#[tokio::test]
async fn a_missing_file_in_the_middle_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let (spool, _) = open(
        &path,
        SpoolLimits {
            segment_bytes: 600,
            ..limits()
        },
    );
    for number in 0..10 {
        append(&spool, &number.to_string()).await.unwrap();
    }
    drop(spool);
    fs::remove_file(&segment_files(&path)[1]).unwrap();
    assert!(matches!(
        Spool::open(&path, limits(), source()),
        Err(SpoolOpenError::Chain { .. })
    ));
}

/// A disk that fails when told to: half of the bytes arrive.
#[derive(Debug, Default, Clone)]
struct Faulty(Arc<Faults>);

#[derive(Debug, Default)]
struct Faults {
    full: AtomicBool,
    reserve_held: AtomicBool,
    /// While the reserve is held, a full disk has no block; afterwards it has these bytes.
    freed_bytes: AtomicUsize,
    broken_sync: AtomicBool,
}

struct FaultyFile(Faulty, Box<dyn SegmentFile>);

impl Disk for Faulty {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(FaultyFile(self.clone(), FileDisk.open(path)?)))
    }

    fn reserve(&self, _path: &Path, bytes: u64) -> io::Result<()> {
        if bytes > 0 && self.0.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.reserve_held.store(bytes > 0, Ordering::SeqCst);
        if bytes == 0 {
            self.0.freed_bytes.store(2000, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl SegmentFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let faults = &self.0.0;
        let freed = faults.freed_bytes.load(Ordering::SeqCst);
        if faults.full.load(Ordering::SeqCst) && bytes.len() > freed {
            self.1.append(&bytes[..bytes.len() / 2])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        faults
            .freed_bytes
            .store(freed.saturating_sub(bytes.len()), Ordering::SeqCst);
        self.1.append(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.0.0.broken_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("medium error"));
        }
        self.1.sync()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        if self.0.0.broken_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("medium error"));
        }
        self.1.truncate(bytes)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_sessions_gives_the_reserve_to_ends_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let disk = Faulty::default();
    let limits = SpoolLimits {
        reserve_bytes: 2000,
        ..limits()
    };
    let (spool, _) = Spool::open_on(Box::new(disk.clone()), &path, limits, source()).unwrap();
    append(&spool, "before").await.unwrap();
    disk.0.full.store(true, Ordering::SeqCst);
    assert!(matches!(append(&spool, "start").await, Err(SpoolError::Full)));
    assert!(!disk.0.reserve_held.load(Ordering::SeqCst));
    assert_eq!(spool.append(event("end"), Room::Reserve).await.unwrap().seq, 2);
    assert!(matches!(append(&spool, "start").await, Err(SpoolError::Full)));
    disk.0.full.store(false, Ordering::SeqCst);
    assert_eq!(append(&spool, "after").await.unwrap().seq, 3);
    assert!(disk.0.reserve_held.load(Ordering::SeqCst));
    assert_eq!(notes(&spool, 1).await, ["before", "end", "after"]);
    drop(spool);
    let (spool, recovery) = open(&path, limits);
    assert_eq!(recovery.torn_bytes, 0);
    assert_one_chain(&all(&spool, 1).await);
}

#[tokio::test]
async fn a_failed_sync_gives_no_receipt_and_its_records_never_become_part_of_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let disk = Faulty::default();
    let (spool, _) = Spool::open_on(Box::new(disk.clone()), &path, limits(), source()).unwrap();
    append(&spool, "one").await.unwrap();
    disk.0.broken_sync.store(true, Ordering::SeqCst);
    assert!(matches!(append(&spool, "lost").await, Err(SpoolError::Disk(_))));
    assert!(matches!(
        append(&spool, "lost too").await,
        Err(SpoolError::Disk(_))
    ));
    assert_eq!(notes(&spool, 1).await, ["one"]);
    disk.0.broken_sync.store(false, Ordering::SeqCst);
    assert_eq!(append(&spool, "two").await.unwrap().seq, 2);
    drop(spool);
    let (spool, _) = open(&path, limits());
    assert_eq!(notes(&spool, 1).await, ["one", "two"]);
    assert_one_chain(&all(&spool, 1).await);
}

#[cfg(target_os = "linux")]
#[test]
fn the_systems_full_disk_is_recognised() {
    let mut full = FileDisk.open(Path::new("/dev/full")).unwrap();
    let error = full.append(b"x").unwrap_err();
    assert!(matches!(SpoolError::disk(error), SpoolError::Full));
}

#[test]
fn the_reserve_takes_blocks_and_gives_them_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("reserve");
    for bytes in [1 << 16, 1 << 16, 0, 1 << 12] {
        FileDisk.reserve(&path, bytes).unwrap();
        let length = fs::metadata(&path).unwrap().len();
        assert!(
            cfg!(not(target_os = "linux")) || length == bytes,
            "{length} for {bytes}"
        );
    }
}

fn with_payload(note: &str) -> Event {
    let fields = serde_json::json!({ "statement": note });
    let payload = Payload::of(fields.as_object().unwrap(), [7; SALT_BYTES]).unwrap();
    event(note).payload(payload)
}

#[tokio::test]
async fn a_payload_is_read_back_beside_its_record_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spool");
    let (spool, _) = open(&path, limits());
    spool.append(event("without"), Room::Free).await.unwrap();
    for note in ["one", "two"] {
        spool.append(with_payload(note), Room::Free).await.unwrap();
    }
    drop(spool);
    let (spool, recovery) = open(&path, limits());
    assert_eq!((recovery.head.seq, recovery.torn_bytes), (3, 0));
    spool
        .append(with_payload(&"three".repeat(1000)), Room::Free)
        .await
        .unwrap();
    // One by one by the cursor, and from the middle without it.
    for from in [1, 2, 4] {
        let found = all(&spool, from).await;
        let numbers: Vec<u64> = found.iter().map(|record| record.seq).collect();
        assert_eq!(numbers, (from..=4).collect::<Vec<_>>());
        for record in &found {
            let view = RecordView::parse(&record.bytes).unwrap();
            match (&record.payload, record.seq) {
                (None, 1) => {}
                (Some(payload), 2..=4) => payload.belongs_to(&view).unwrap(),
                (other, seq) => panic!("{seq}: {other:?}"),
            }
        }
        assert_one_chain(&found);
    }
    spool.acknowledge(3).await.unwrap();
    assert_eq!(all(&spool, 0).await.len(), 1);
}
