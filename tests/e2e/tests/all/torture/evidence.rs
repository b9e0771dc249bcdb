//! What was written down: copies of the agents' own files as they come and go, and the auth server's log.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iap_audit::{Payload, RecordView, SpoolReader, verify_link};
use iap_identity::SessionId;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use uuid::Uuid;

/// Shorter than any file of a spool lives: it goes only after a round trip to the auth server.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Links every file of the agents' spools into a folder of its own, so that what they held can be read after they
/// have deleted it.
pub(super) struct Witness {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Witness {
    pub(super) fn watch(spools: [PathBuf; 2], folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, kept) = (Arc::clone(&stop), folder.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                spools.iter().for_each(|spool| link_new(spool, &kept));
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Self {
            folder,
            stop,
            thread: Some(thread),
        }
    }

    /// Every whole record that was ever seen on an agent's disk.
    pub(super) fn records(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let mut records = Vec::new();
        for file in std::fs::read_dir(&self.folder).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let frames = SpoolReader::new(&bytes).filter(|frame| !Payload::is_payload(frame));
            records.extend(frames.map(<[u8]>::to_vec));
        }
        records
    }
}

/// A linked file keeps its inode, so a name that is used again is told apart.
fn link_new(spool: &Path, kept: &Path) {
    for entry in std::fs::read_dir(spool).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".records") {
            let link = kept.join(format!("{}-{name}", entry.ino()));
            // It is linked already, or was deleted just now.
            let _ = std::fs::hard_link(entry.path(), link);
        }
    }
}

/// The last record that the auth server acknowledged, as the agent wrote it down.
pub(super) fn acknowledged(spool: &Path) -> u64 {
    let text = std::fs::read_to_string(spool.join("acknowledged")).unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|seq| seq.parse().ok())
        .unwrap_or(0)
}

/// The last record on the agent's disk.
pub(super) fn written(spool: &Path) -> u64 {
    let files = std::fs::read_dir(spool).into_iter().flatten().flatten();
    let records = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|it| it == "records"));
    let newest = records.filter_map(|path| {
        let bytes = std::fs::read(path).ok()?;
        let frames = SpoolReader::new(&bytes);
        let last = frames.filter(|frame| !Payload::is_payload(frame)).last()?;
        Some(RecordView::parse(last).unwrap().agent_seq)
    });
    newest.max().unwrap_or(0)
}

/// The auth server's log, read beside it.
pub(super) struct Log(SqlitePool);

impl Log {
    pub(super) async fn open(database: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(database)
            .read_only(true)
            .busy_timeout(Duration::from_secs(10));
        Self(SqlitePool::connect_with(options).await.unwrap())
    }

    /// The newest number of a source.
    pub(super) async fn newest(&self, source: Uuid) -> u64 {
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(source_seq) FROM records WHERE source = ?")
            .bind(source.as_bytes().as_slice())
            .fetch_one(&self.0)
            .await
            .unwrap();
        newest.unwrap_or(0).cast_unsigned()
    }

    /// Whether the session's start is there.
    pub(super) async fn has_start(&self, session: SessionId) -> bool {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM records WHERE session_id = ? AND event = 'session.start'",
        )
        .bind(session.as_bytes().as_slice())
        .fetch_one(&self.0)
        .await
        .unwrap();
        count > 0
    }

    /// Sessions with a start and no end.
    pub(super) async fn open_sessions(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM sessions WHERE \"end\" IS NULL")
            .fetch_one(&self.0)
            .await
            .unwrap()
    }

    /// Every record, by source and number.
    pub(super) async fn records(&self) -> Vec<Vec<u8>> {
        sqlx::query_scalar("SELECT bytes FROM records ORDER BY source, source_seq")
            .fetch_all(&self.0)
            .await
            .unwrap()
    }
}

/// What is in the log, once it has been found to be without fault.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) records: usize,
    pub(super) sessions: usize,
    pub(super) ended_by_a_killed_agent: usize,
}

/// Who was where, as others saw it.
pub(super) struct Seen {
    /// Records on the agents' own disks.
    pub(super) on_disk: Vec<Vec<u8>>,
    /// Sessions that sent their id to the backend, and how often.
    pub(super) reached: BTreeMap<SessionId, u64>,
    /// Connections the backend accepted.
    pub(super) accepted: u64,
    /// Sessions a client was told of.
    pub(super) granted: Vec<SessionId>,
}

/// Holds the log against what others saw; every fault in one message.
pub(super) fn examine(log: &[Vec<u8>], seen: &Seen) -> Result<Findings, String> {
    let mut faults = Vec::new();
    let views: Vec<RecordView> = log
        .iter()
        .map(|bytes| RecordView::parse(bytes).unwrap())
        .collect();
    chains(&views, &mut faults);
    on_disk(log, &views, &seen.on_disk, &mut faults);
    let findings = sessions(&views, seen, &mut faults);
    match faults.is_empty() {
        true => Ok(findings),
        false => Err(faults.join("\n")),
    }
}

/// Each source's records are one chain from its first, no event is there twice, and the server raised no alarm.
fn chains(views: &[RecordView], faults: &mut Vec<String>) {
    let mut ids = BTreeSet::new();
    for (index, view) in views.iter().enumerate() {
        let previous = index.checked_sub(1).map(|index| &views[index]);
        let previous = previous.filter(|previous| previous.agent_id == view.agent_id);
        if let Err(error) = verify_link(previous, view) {
            faults.push(format!("record {} of {}: {error}", view.agent_seq, view.agent_id));
        }
        if !ids.insert(view.id) {
            faults.push(format!("the event {} is there twice", view.id));
        }
        if view.event == "audit.alarm" {
            faults.push(format!("an alarm: {:?}", view.fields.get("reason")));
        }
    }
}

/// What an agent had on its disk is in the log, byte for byte.
fn on_disk(log: &[Vec<u8>], views: &[RecordView], disk: &[Vec<u8>], faults: &mut Vec<String>) {
    let by_number: BTreeMap<_, _> = views
        .iter()
        .zip(log)
        .map(|(view, bytes)| ((view.agent_id, view.agent_seq), bytes))
        .collect();
    for bytes in disk {
        let view = RecordView::parse(bytes).unwrap();
        match by_number.get(&(view.agent_id, view.agent_seq)) {
            Some(stored) if *stored == bytes => {}
            Some(_) => faults.push(format!("record {} of {} differs", view.agent_seq, view.agent_id)),
            None => faults.push(format!("record {} of {} is lost", view.agent_seq, view.agent_id)),
        }
    }
}

/// Every session has one start and one end, and nobody saw a session that is not on record.
fn sessions(views: &[RecordView], seen: &Seen, faults: &mut Vec<String>) -> Findings {
    let mut counts: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
    let mut lost = 0;
    for view in views {
        let Some(session) = view.session_id else { continue };
        let count = counts.entry(session).or_default();
        match view.event.as_str() {
            "session.start" => count.0 += 1,
            "session.end" => count.1 += 1,
            _ => {}
        }
        let reason = view.fields.get("close_reason");
        lost += usize::from(reason.is_some_and(|reason| reason == "agent_lost"));
    }
    for (session, count) in &counts {
        if *count != (1, 1) {
            faults.push(format!(
                "session {session} has {} starts and {} ends",
                count.0, count.1
            ));
        }
    }
    for (session, times) in &seen.reached {
        if *times != 1 || !counts.contains_key(session.as_uuid()) {
            faults.push(format!(
                "session {session} reached the backend {times} times; on record: {:?}",
                counts.get(session.as_uuid())
            ));
        }
    }
    for session in seen
        .granted
        .iter()
        .filter(|session| !counts.contains_key(session.as_uuid()))
    {
        faults.push(format!("session {session} was granted and is not on record"));
    }
    if seen.accepted > counts.len() as u64 {
        faults.push(format!(
            "the backend saw {} connections, {} sessions are on record",
            seen.accepted,
            counts.len()
        ));
    }
    Findings {
        records: views.len(),
        sessions: counts.len(),
        ended_by_a_killed_agent: lost,
    }
}

mod tests {
    use iap_audit::{Chain, CloseReason, Event, EventKind};
    use iap_identity::AgentId;

    use super::*;

    const SESSION: Uuid = Uuid::from_u128(7);

    fn log_of(kinds: &[EventKind]) -> Vec<Vec<u8>> {
        let mut chain = Chain::new(AgentId::from_uuid(Uuid::from_u128(1)));
        let seal = |kind: &EventKind| {
            let event = Event::new(
                *kind,
                std::time::SystemTime::UNIX_EPOCH.into(),
                iap_testkit::new_uuid(),
            )
            .session(&SessionId::from_uuid(SESSION))
            .close(CloseReason::ClientClosed, None);
            chain.seal(event).unwrap().bytes
        };
        kinds.iter().map(seal).collect()
    }

    fn seen(on_disk: &[Vec<u8>]) -> Seen {
        let id = SessionId::from_uuid(SESSION);
        Seen {
            on_disk: on_disk.to_vec(),
            reached: [(id, 1)].into(),
            accepted: 1,
            granted: vec![id],
        }
    }

    #[test]
    fn a_whole_log_is_found_to_be_whole() {
        let log = log_of(&[EventKind::SessionStart, EventKind::SessionEnd]);
        assert_eq!(examine(&log, &seen(&log)).unwrap().sessions, 1);
    }

    #[test]
    fn what_is_lost_altered_or_there_twice_is_found() {
        use EventKind::{SessionEnd, SessionStart};
        let log = log_of(&[SessionStart, SessionEnd]);
        let fault = |log: &[Vec<u8>], seen: &Seen| examine(log, seen).unwrap_err();
        assert!(
            fault(&log[..1], &seen(&log)).contains("record 2"),
            "a lost record"
        );
        assert!(
            fault(&log[1..], &seen(&[])).contains("0 starts and 1 ends"),
            "a lost start"
        );
        let other = log_of(&[SessionStart, SessionEnd]);
        assert!(
            fault(&other, &seen(&log)).contains("differs"),
            "other bytes under the same number"
        );
        let twice = log_of(&[SessionStart, SessionEnd, SessionEnd]);
        assert!(
            fault(&twice, &seen(&[])).contains("1 starts and 2 ends"),
            "a second end"
        );
        let mut unrecorded = seen(&log);
        unrecorded.granted.push(SessionId::from_uuid(Uuid::from_u128(8)));
        assert!(
            fault(&log, &unrecorded).contains("is not on record"),
            "a session nobody recorded"
        );
        let mut uncounted = seen(&log);
        uncounted.accepted = 2;
        assert!(
            fault(&log, &uncounted).contains("saw 2 connections"),
            "a backend reached without a record"
        );
    }
}
