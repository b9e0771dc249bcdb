//! Erasing in SQLite. Deleted content is overwritten (`secure_delete`), and the write-ahead log, which holds pages as
//! they were before, is emptied.

use async_trait::async_trait;
use iap_identity::SessionId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite, Transaction};
use uuid::Uuid;

use super::SqliteStore;
use super::columns::{Columns, integer, milliseconds};
use crate::store::{Erasing, Erasure, ErasureStore, PayloadPlace, Payloads, PayloadsOf, StoreError};

/// How far a record's time may be from that in its id.
const ID_TIME_SLACK_MS: i64 = 2_000;

/// Takes payloads away with their salts and marks their records, and marks recordings. What is gone already is passed over.
pub(super) async fn erase(
    transaction: &mut Transaction<'static, Sqlite>,
    erasing: &Erasing,
) -> Result<(), StoreError> {
    insert_erasure(transaction, &erasing.erasure).await?;
    let act = erasing.erasure.id;
    for seq in &erasing.payloads {
        let deleted = sqlx::query("DELETE FROM payloads WHERE seq = ?")
            .bind(integer(*seq))
            .execute(&mut **transaction)
            .await?;
        if deleted.rows_affected() > 0 {
            sqlx::query("INSERT INTO erased_payloads (seq, erasure_id) VALUES (?, ?)")
                .bind(integer(*seq))
                .bind(act.as_bytes().as_slice())
                .execute(&mut **transaction)
                .await?;
        }
    }
    if let Some((session, numbers)) = &erasing.recordings {
        for number in numbers {
            sqlx::query(
                "INSERT OR IGNORE INTO erased_recordings (session_id, number, erasure_id) VALUES (?, ?, ?)",
            )
            .bind(session.as_bytes().as_slice())
            .bind(number)
            .bind(act.as_bytes().as_slice())
            .execute(&mut **transaction)
            .await?;
        }
    }
    Ok(())
}

async fn insert_erasure(
    transaction: &mut Transaction<'static, Sqlite>,
    erasure: &Erasure,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO erasures (erasure_id, at, by_name, reason) VALUES (?, ?, ?, ?)")
        .bind(erasure.id.as_bytes().as_slice())
        .bind(milliseconds(erasure.at))
        .bind(&erasure.by)
        .bind(&erasure.reason)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// The act that took away what belongs to a row, by the names that queries give its columns.
pub(super) fn erasure_from(columns: &Columns<'_>) -> Result<Option<Erasure>, StoreError> {
    let Some(at) = columns.time_or_none("erased_at")? else {
        return Ok(None);
    };
    Ok(Some(Erasure {
        id: columns.uuid("erasure_id")?,
        at,
        by: columns.text("by_name")?,
        reason: columns.text("erased_because")?,
    }))
}

fn place(row: &SqliteRow) -> Result<PayloadPlace, StoreError> {
    let columns = Columns::new("payload", row);
    Ok(PayloadPlace {
        seq: columns.number("seq")?,
        source: columns.uuid("source")?,
        source_seq: columns.number("source_seq")?,
        bytes: columns.number("bytes")?,
    })
}

/// A query over payloads and their records, up to and with its condition.
fn select(what: &'static str, of: &PayloadsOf) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(what);
    query.push(" FROM payloads JOIN records USING (seq) WHERE ");
    match of {
        PayloadsOf::Session(id) => {
            query.push("session_id = ").push_bind(id.as_bytes().as_slice());
        }
        PayloadsOf::Records(seqs) => {
            query.push("seq IN (");
            let mut list = query.separated(", ");
            for seq in seqs {
                list.push_bind(integer(*seq));
            }
            query.push(")");
        }
    }
    query
}

#[async_trait]
impl ErasureStore for SqliteStore {
    async fn record_with_id(&self, id: Uuid) -> Result<Option<u64>, StoreError> {
        let Some(made) = id.get_timestamp() else {
            return Ok(None);
        };
        let (seconds, nanoseconds) = made.to_unix();
        let made = integer(seconds.saturating_mul(1000)).saturating_add(i64::from(nanoseconds / 1_000_000));
        let text = id.hyphenated().to_string();
        let rows =
            sqlx::query("SELECT seq, bytes FROM records WHERE time BETWEEN ? AND ? AND instr(bytes, ?) > 0")
                .bind(made.saturating_sub(ID_TIME_SLACK_MS))
                .bind(made.saturating_add(ID_TIME_SLACK_MS))
                .bind(text.as_bytes())
                .fetch_all(&self.readers)
                .await?;
        for row in &rows {
            let columns = Columns::new("record", row);
            // Others may name it, as the session or login it is not.
            let record: serde_json::Value =
                serde_json::from_slice(&columns.bytes("bytes")?).unwrap_or_default();
            if record.get("id").and_then(serde_json::Value::as_str) == Some(text.as_str()) {
                return columns.number("seq").map(Some);
            }
        }
        Ok(None)
    }

    async fn payloads(&self, of: &PayloadsOf) -> Result<Payloads, StoreError> {
        let what = "SELECT count(*) AS count, coalesce(sum(length(payloads.bytes)), 0) AS bytes";
        let row = select(what, of).build().fetch_one(&self.readers).await?;
        let columns = Columns::new("payload", &row);
        Ok(Payloads {
            count: columns.number("count")?,
            bytes: columns.number("bytes")?,
        })
    }

    async fn payload_places(&self, of: &PayloadsOf, limit: u32) -> Result<Vec<PayloadPlace>, StoreError> {
        let what = "SELECT seq, source, source_seq, length(payloads.bytes) AS bytes";
        let mut query = select(what, of);
        query.push(" ORDER BY seq LIMIT ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.readers).await?;
        rows.iter().map(place).collect()
    }

    /// A reader that is at work for longer than the patience leaves it to the next time.
    async fn empty_log(&self) -> Result<(), StoreError> {
        let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&self.writer)
            .await?;
        if row.try_get::<i64, _>(0)? != 0 {
            tracing::warn!(
                "the database's log still holds what was erased: somebody is reading; it is emptied with the next erasure or stop"
            );
        }
        Ok(())
    }

    async fn erased_recordings(&self, session: SessionId) -> Result<Vec<(u32, Erasure)>, StoreError> {
        let rows = sqlx::query(
            "SELECT number, erasure_id, at AS erased_at, by_name, reason AS erased_because
             FROM erased_recordings JOIN erasures USING (erasure_id) WHERE session_id = ? ORDER BY number",
        )
        .bind(session.as_bytes().as_slice())
        .fetch_all(&self.readers)
        .await?;
        let mut erased = Vec::with_capacity(rows.len());
        for row in &rows {
            let columns = Columns::new("erased recording", row);
            if let Some(erasure) = erasure_from(&columns)? {
                erased.push((columns.number("number")?, erasure));
            }
        }
        Ok(erased)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use iap_audit::{Payload, SALT_BYTES};
    use time::OffsetDateTime;

    use super::*;
    use crate::store::{Appended, NewRecord, RecordStore as _};

    const COUNT: u64 = 400;
    /// From some in a page to several pages each.
    const SIZES: [usize; 6] = [20, 150, 900, 3_000, 5_000, 20_000];

    fn mark(seq: u64) -> String {
        format!("<{seq:06}>")
    }

    fn record(seq: u64) -> NewRecord {
        let size = SIZES.into_iter().cycle().nth(seq as usize).unwrap_or_default();
        let text = mark(seq).repeat(size / 8 + 1);
        NewRecord {
            source_seq: seq,
            previous: [0; 32],
            hash: [0; 32],
            bytes: b"{}".to_vec(),
            time: OffsetDateTime::UNIX_EPOCH,
            event: "agent.start".to_owned(),
            session: None,
            change: None,
            payload: Some(Payload::from_parts(&[1; SALT_BYTES], text.into_bytes()).unwrap()),
            erases: None,
        }
    }

    /// SQLite moves cells between pages as neighbours go: none may be left behind.
    #[tokio::test]
    async fn whatever_the_order_no_page_keeps_what_was_erased() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.db");
        let store = SqliteStore::open(&path).await.unwrap();
        let records: Vec<_> = (1..=COUNT).map(record).collect();
        for batch in records.chunks(50) {
            let appended = store
                .append_records(Uuid::nil(), batch, OffsetDateTime::UNIX_EPOCH, &[])
                .await;
            assert!(matches!(appended, Ok(Appended::Stored { stored: 50, .. })));
        }
        // All but every fifth, in an order that is none: 7 has no divisor in common with their number.
        let order = (0..COUNT).map(|step| step * 7 % COUNT + 1);
        let erased: Vec<u64> = order.filter(|seq| seq % 5 != 0).collect();
        for (number, seqs) in (1_u64..).zip(erased.chunks(9)) {
            let erasure = Erasure {
                id: Uuid::from_u128(number.into()),
                at: OffsetDateTime::UNIX_EPOCH,
                by: "admin".to_owned(),
                reason: String::new(),
            };
            let act = NewRecord {
                payload: None,
                erases: Some(Erasing {
                    erasure,
                    payloads: seqs.to_vec(),
                    recordings: None,
                }),
                ..record(number)
            };
            let (of_ours, now) = (Uuid::max(), OffsetDateTime::UNIX_EPOCH);
            let appended = store.append_records(of_ours, &[act], now, &[]).await;
            assert!(
                matches!(appended, Ok(Appended::Stored { stored: 1, .. })),
                "{appended:?}"
            );
            store.empty_log().await.unwrap();
        }
        let mut files = Vec::new();
        for ending in ["", "-wal"] {
            files.extend(std::fs::read(path.with_file_name(format!("auth.db{ending}"))).unwrap());
        }
        let marks = files.split(|byte| *byte == b'<').filter_map(|rest| rest.get(..6));
        let numbers = marks.filter_map(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let left: std::collections::BTreeSet<u64> = numbers.collect();
        let left: Vec<u64> = left.into_iter().collect();
        assert_eq!(left, (5..=COUNT).step_by(5).collect::<Vec<_>>());
        let all = PayloadsOf::Records((1..=COUNT).collect());
        assert_eq!(store.payloads(&all).await.unwrap().count, COUNT / 5);
        store.check_integrity().await.unwrap();
    }
}
