//! After a restart: sessions that have a start and no end get one, before anything is announced.

use iap_audit::RecordView;
use iap_runtime::spool::Room;

use super::live_set::LiveSet;
use super::{Journal, JournalError};
use crate::session::facts::lost_event;
use crate::state::StateDir;

const PAGE_RECORDS: usize = 1000;
const PAGE_BYTES: usize = 1024 * 1024;

/// Writes `agent_lost` for every session that the file of live sessions and the spool leave open.
pub(super) async fn end_lost_sessions(journal: &Journal, state: &StateDir) -> Result<(), JournalError> {
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
    let mut lost = 0_u64;
    for start in set.open() {
        let (now, id) = journal.stamp();
        journal.append(lost_event(&start, now, id), Room::Reserve).await?;
        lost += 1;
    }
    if lost > 0 {
        tracing::warn!(
            sessions = lost,
            "sessions of an earlier run had no end; they have one now"
        );
    }
    Ok(())
}
