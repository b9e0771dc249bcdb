//! Audit records and the view of sessions in SQLite.

use async_trait::async_trait;
use iap_audit::RecordView;
use iap_identity::SessionId;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::SqliteStore;
use super::columns::{Columns, integer, milliseconds};
use super::erasures::{erase, erasure_from};
use crate::store::{
    Appended, Fault, Hash, NewRecord, RecordRange, RecordStore, SessionChange, SessionFilter, SessionRow,
    StoreError, StoredRecord, hash_of,
};

fn stored_from(row: &SqliteRow) -> Result<StoredRecord, StoreError> {
    let columns = Columns::new("record", row);
    Ok(StoredRecord {
        seq: columns.number("seq")?,
        source: columns.uuid("source")?,
        bytes: columns.bytes("bytes")?,
        payload: columns.bytes_or_none("payload")?,
        erasure: erasure_from(&columns)?,
    })
}

/// Everything that a [`StoredRecord`] tells.
const STORED: &str = "SELECT seq, source, records.bytes, payloads.bytes AS payload,
    erasure_id, erasures.at AS erased_at, by_name, reason AS erased_because
    FROM records LEFT JOIN payloads USING (seq)
    LEFT JOIN erased_payloads USING (seq) LEFT JOIN erasures USING (erasure_id)";

/// A query over the records of one session, which further conditions follow.
fn of_session(id: SessionId) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(STORED);
    query
        .push(" WHERE session_id = ")
        .push_bind(id.as_bytes().to_vec());
    query
}

impl SqliteStore {
    async fn stored(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<StoredRecord>, StoreError> {
        let rows = query.build().fetch_all(&self.readers).await?;
        rows.iter().map(stored_from).collect()
    }
}

fn session_from(row: &SqliteRow) -> Result<SessionRow, StoreError> {
    let columns = Columns::new("session", row);
    Ok(SessionRow {
        session_id: SessionId::from_uuid(columns.uuid("session_id")?),
        user_id: columns.text("user_id")?,
        user_name: columns.text("user_name")?,
        service: columns.text("service")?,
        agent: columns.text("agent")?,
        start: columns.time("start")?,
        end: columns.time_or_none("end")?,
        bytes_in: columns.number("bytes_in")?,
        bytes_out: columns.number("bytes_out")?,
        close_reason: columns.text_or_none("close_reason")?,
        decision: columns.text("decision")?,
    })
}

async fn newest(
    transaction: &mut Transaction<'static, Sqlite>,
    source: Uuid,
) -> Result<(u64, Hash), StoreError> {
    let row =
        sqlx::query("SELECT source_seq, hash FROM records WHERE source = ? ORDER BY source_seq DESC LIMIT 1")
            .bind(source.as_bytes().as_slice())
            .fetch_optional(&mut **transaction)
            .await?;
    row.as_ref().map_or(Ok((0, [0; 32])), |row| {
        let columns = Columns::new("record", row);
        Ok((columns.number("source_seq")?, columns.hash("hash")?))
    })
}

async fn stored_bytes(
    transaction: &mut Transaction<'static, Sqlite>,
    source: Uuid,
    source_seq: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(
        sqlx::query_scalar("SELECT bytes FROM records WHERE source = ? AND source_seq = ?")
            .bind(source.as_bytes().as_slice())
            .bind(integer(source_seq))
            .fetch_optional(&mut **transaction)
            .await?,
    )
}

async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    source: Uuid,
    record: &NewRecord,
    received_at: OffsetDateTime,
) -> Result<(), StoreError> {
    let seq = sqlx::query(
        "INSERT INTO records (source, source_seq, hash, bytes, time, event, session_id, received_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(source.as_bytes().as_slice())
    .bind(integer(record.source_seq))
    .bind(record.hash.as_slice())
    .bind(record.bytes.as_slice())
    .bind(milliseconds(record.time))
    .bind(&record.event)
    .bind(record.session.as_ref().map(|id| id.as_bytes().to_vec()))
    .bind(milliseconds(received_at))
    .execute(&mut **transaction)
    .await?
    .last_insert_rowid();
    if let Some(payload) = &record.payload {
        sqlx::query("INSERT INTO payloads (seq, salt, bytes) VALUES (?, ?, ?)")
            .bind(seq)
            .bind(payload.salt().as_slice())
            .bind(payload.bytes())
            .execute(&mut **transaction)
            .await?;
    }
    if let (Some(session), Some(change)) = (record.session, &record.change) {
        change_session(transaction, session, record.time, change).await?;
    }
    match &record.erases {
        Some(erasing) => erase(transaction, erasing).await,
        None => Ok(()),
    }
}

/// Where a record that fills a gap does not fit between its neighbours, as far as these are here.
async fn misfits(
    transaction: &mut Transaction<'static, Sqlite>,
    source: Uuid,
    record: &NewRecord,
) -> Result<Vec<Fault>, StoreError> {
    let (number, mut faults) = (record.source_seq, Vec::new());
    let before = match number {
        1 => Some([0; 32]),
        _ => stored_bytes(transaction, source, number - 1)
            .await?
            .map(|bytes| hash_of(&bytes)),
    };
    if before.is_some_and(|hash| hash != record.previous) {
        faults.push(Fault::BrokenLink { source_seq: number });
    }
    let after = stored_bytes(transaction, source, number + 1).await?;
    let follows = |bytes: Vec<u8>| {
        let view = RecordView::parse(&bytes);
        view.is_ok_and(|view| iap_identity::hex_to_32(&view.agent_prev) == Some(record.hash))
    };
    if after.is_some_and(|bytes| !follows(bytes)) {
        faults.push(Fault::BrokenLink {
            source_seq: number + 1,
        });
    }
    Ok(faults)
}

/// A session belongs to the agent that started it: another agent's records neither replace nor end it.
async fn change_session(
    transaction: &mut Transaction<'static, Sqlite>,
    session: SessionId,
    time: OffsetDateTime,
    change: &SessionChange,
) -> Result<(), StoreError> {
    let changing = match change {
        SessionChange::Start {
            user_id,
            user_name,
            service,
            agent,
            decision,
        } => sqlx::query(
            "INSERT OR IGNORE INTO sessions (session_id, user_id, user_name, service, agent, start, decision)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(session.as_bytes().to_vec())
        .bind(user_id)
        .bind(user_name)
        .bind(service)
        .bind(agent)
        .bind(milliseconds(time))
        .bind(decision),
        SessionChange::End {
            agent,
            bytes_in,
            bytes_out,
            close_reason,
        } => sqlx::query(
            "UPDATE sessions SET \"end\" = ?, bytes_in = ?, bytes_out = ?, close_reason = ?
             WHERE session_id = ? AND agent = ?",
        )
        .bind(milliseconds(time))
        .bind(integer(*bytes_in))
        .bind(integer(*bytes_out))
        .bind(close_reason)
        .bind(session.as_bytes().to_vec())
        .bind(agent),
        SessionChange::Lost { agent, close_reason } => sqlx::query(
            "UPDATE sessions SET \"end\" = ?, close_reason = ?
             WHERE session_id = ? AND agent = ? AND \"end\" IS NULL",
        )
        .bind(milliseconds(time))
        .bind(close_reason)
        .bind(session.as_bytes().to_vec())
        .bind(agent),
    };
    changing.execute(&mut **transaction).await?;
    Ok(())
}

#[async_trait]
impl RecordStore for SqliteStore {
    async fn append_records(
        &self,
        source: Uuid,
        records: &[NewRecord],
        received_at: OffsetDateTime,
        alarmed: &[Fault],
    ) -> Result<Appended, StoreError> {
        let mut transaction = self.begin().await?;
        let (mut last, mut last_hash) = newest(&mut transaction, source).await?;
        let (mut stored, mut faults) = (0, Vec::new());
        for record in records {
            let source_seq = record.source_seq;
            if source_seq <= last {
                match stored_bytes(&mut transaction, source, source_seq).await? {
                    Some(bytes) if bytes == record.bytes => continue,
                    Some(_) => {
                        faults.push(Fault::OtherContent { source_seq });
                        continue;
                    }
                    None => faults.extend(misfits(&mut transaction, source, record).await?),
                }
            } else {
                if source_seq != last + 1 {
                    let first = last + 1;
                    faults.push(Fault::Missing { first, source_seq });
                } else if record.previous != last_hash {
                    faults.push(Fault::BrokenLink { source_seq });
                }
                (last, last_hash) = (source_seq, record.hash);
            }
            insert(&mut transaction, source, record, received_at).await?;
            stored += 1;
        }
        if faults != alarmed {
            return Ok(Appended::Faulty(faults));
        }
        transaction.commit().await?;
        Ok(Appended::Stored { last, stored })
    }

    async fn newest_record(&self, source: Uuid) -> Result<Option<(u64, Hash)>, StoreError> {
        let mut transaction = self.readers.begin().await?;
        let (last, hash) = newest(&mut transaction, source).await?;
        Ok((last > 0).then_some((last, hash)))
    }

    async fn records(&self, range: RecordRange, limit: u32) -> Result<Vec<StoredRecord>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(STORED);
        query.push(" WHERE seq < ").push_bind(integer(range.before_seq));
        query.push(" AND time >= ").push_bind(milliseconds(range.since));
        query.push(" AND time <= ").push_bind(milliseconds(range.until));
        query
            .push(" ORDER BY seq DESC LIMIT ")
            .push_bind(i64::from(limit));
        self.stored(query).await
    }

    async fn session_records(
        &self,
        id: SessionId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let mut query = of_session(id);
        query.push(" AND seq > ").push_bind(integer(after_seq));
        query.push(" ORDER BY seq LIMIT ").push_bind(i64::from(limit));
        self.stored(query).await
    }

    async fn session_records_of_kind(
        &self,
        id: SessionId,
        event: &str,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let mut query = of_session(id);
        query.push(" AND event = ").push_bind(event.to_owned());
        query.push(" ORDER BY seq LIMIT ").push_bind(i64::from(limit));
        self.stored(query).await
    }

    async fn sessions(&self, filter: &SessionFilter) -> Result<Vec<SessionRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM sessions
             WHERE (?1 IS NULL OR user_id = ?1) AND (?2 IS NULL OR user_name = ?2 OR user_id = ?2)
               AND (?3 IS NULL OR service = ?3) AND (NOT ?4 OR \"end\" IS NULL) AND start >= ?5
             ORDER BY start DESC, session_id DESC LIMIT ?6",
        )
        .bind(&filter.user_id)
        .bind(&filter.user)
        .bind(&filter.service)
        .bind(filter.live_only)
        .bind(filter.since.map_or(i64::MIN, milliseconds))
        .bind(i64::from(filter.limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(session_from).collect()
    }

    async fn sessions_of_absent_agents(
        &self,
        absent_since: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT sessions.* FROM sessions
             LEFT JOIN agents ON lower(hex(agent_id)) = replace(agent, '-', '')
             WHERE \"end\" IS NULL AND start < ?1 AND coalesce(last_seen, joined_at, 0) < ?1
             ORDER BY start LIMIT ?2",
        )
        .bind(milliseconds(absent_since))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(session_from).collect()
    }

    async fn session(&self, id: SessionId) -> Result<Option<SessionRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM sessions WHERE session_id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(session_from).transpose()
    }
}
