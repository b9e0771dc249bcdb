//! After a restart: sessions that have a start and no end get one, before anything is announced.

use futures_util::{StreamExt as _, stream};
use iap_audit::{Event, RecordView};
use iap_runtime::spool::{Room, SpoolError};

use super::live_set::LiveSet;
use super::{Journal, JournalError};
use crate::session::facts::lost_event;
use crate::session::handover::handed::{Handed, unusable};
use crate::state::StateDir;

const PAGE_RECORDS: usize = 1000;
const PAGE_BYTES: usize = 1024 * 1024;
/// Ends that wait for the disk together: whatever waits is synced once.
const ENDS_AT_ONCE: usize = 1024;

/// Writes `agent_lost` for every session that the file of live sessions and the spool leave open and that was not
/// `handed` over. Returns the records that found no room: only the auth server can make some, so the agent must run for
/// that.
pub(super) async fn end_lost_sessions(
    journal: &Journal,
    state: &StateDir,
    handed: &mut Handed,
) -> Result<Vec<Event>, JournalError> {
    let mut set = LiveSet::load(state)?;
    let mut from = 0;
    loop {
        let page = journal
            .spool()
            .unacknowledged(from, PAGE_RECORDS, PAGE_BYTES)
            .await?;
        let Some(last) = page.last() else { break };
        from = last.seq + 1;
        for record in &page {
            match RecordView::parse(&record.bytes) {
                Ok(view) => set.replay(&view),
                Err(error) => {
                    tracing::error!(seq = record.seq, %error, "a record of the spool is not understood")
                }
            }
        }
    }
    let ends = set.open().filter_map(|start| {
        let (now, id) = journal.stamp();
        match handed.claims(&start) {
            Ok(()) => None,
            Err(None) => Some(lost_event(&start, now, id, None)),
            Err(Some(why)) => Some(lost_event(&start, now, id, unusable(&why).detail)),
        }
    });
    let ends: Vec<_> = ends.collect();
    let lost = ends.len();
    let waiting = write_ends(journal, ends).await?;
    if waiting.is_empty() && lost > 0 {
        tracing::warn!(
            sessions = lost,
            "sessions of an earlier run had no end; they have one now"
        );
    }
    if !waiting.is_empty() {
        tracing::error!(
            sessions = waiting.len(),
            "the audit spool has no room for the ends of an earlier run's sessions; nothing is announced before they are written"
        );
    }
    Ok(waiting)
}

/// Writes `ends` until all of them are durable.
pub(super) async fn keep_writing(journal: Journal, mut ends: Vec<Event>) {
    while !ends.is_empty() {
        tokio::time::sleep(super::RETRY_EVERY).await;
        match write_ends(&journal, ends).await {
            Ok(waiting) => ends = waiting,
            // The next run finds them.
            Err(_stopped) => return,
        }
    }
    tracing::warn!("the ends of an earlier run's sessions are written");
    journal.0.recovered.send_replace(true);
}

/// Writes ends, and returns those that found no room.
async fn write_ends(journal: &Journal, ends: Vec<Event>) -> Result<Vec<Event>, SpoolError> {
    let mut waiting = Vec::new();
    let writing = stream::iter(ends).map(|end| async move {
        let appended = journal.append(end.clone(), Room::Reserve).await;
        (end, appended)
    });
    let mut written = std::pin::pin!(writing.buffered(ENDS_AT_ONCE));
    while let Some((end, appended)) = written.next().await {
        match appended {
            Ok(_) => {}
            Err(SpoolError::Full | SpoolError::Disk(_) | SpoolError::File(_)) => waiting.push(end),
            Err(error @ SpoolError::Unrecordable(_)) => journal.lost(&error),
            Err(SpoolError::Stopped) => return Err(SpoolError::Stopped),
        }
    }
    Ok(waiting)
}
