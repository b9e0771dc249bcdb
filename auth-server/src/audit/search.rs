//! Finds records by an expression, the newest first, and hands them out the oldest first.

use std::sync::Arc;

use iap_audit::{EventKind, Payload};
use iap_policy::Filter;
use iap_proto::v1;
use iap_runtime::big_stack;
use serde_json::Map;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::context::AppContext;
use crate::rpc::{RpcError, UserCaller};
use crate::store::{RecordRange, StoredRecord};

const MATCHES_DEFAULT: u32 = 1000;
const MATCHES_MAX: u32 = 10_000;
const MATCHED_BYTES_MAX: usize = 64 << 20;
const PAGE_RECORDS: u32 = 500;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The records as text, the oldest first.
    pub records: Vec<String>,
    /// Whether the search ended at a limit, so that older ones may match too.
    pub more: bool,
}

/// The records that match: of more than the limit the newest. Asking is itself recorded.
pub async fn search(
    context: &AppContext,
    caller: &UserCaller,
    request: v1::AuditSearchRequest,
) -> Result<Found, RpcError> {
    let limit = match request.limit {
        0 => MATCHES_DEFAULT,
        limit if limit <= MATCHES_MAX => limit,
        _ => {
            return Err(RpcError::invalid(format!(
                "at most {MATCHES_MAX} records can be asked for"
            )));
        }
    };
    let filter = parse(request.expression.clone()).await?;
    let event = context
        .audit
        .event(EventKind::AuditSearched)?
        .user(&caller.record());
    // Whoever looks for a secret writes it down here: it must be possible to erase that too.
    let written = Map::from_iter([("expression".to_owned(), request.expression.into())]);
    let payload = Payload::of(&written, context.random.bytes()?).map_err(RpcError::internal)?;
    context.audit.record(event.payload(payload)).await?;
    let range = RecordRange {
        before_seq: i64::MAX as u64,
        // The clock of whoever made a record may be wrong by any amount.
        since: time_or(request.since_unix_ms, PrimitiveDateTime::MIN.assume_utc())?,
        until: time_or(request.until_unix_ms, PrimitiveDateTime::MAX.assume_utc())?,
    };
    let mut found = find(context, filter, range, limit as usize).await?;
    found.records.reverse();
    Ok(found)
}

async fn find(
    context: &AppContext,
    filter: Arc<Filter>,
    mut range: RecordRange,
    limit: usize,
) -> Result<Found, RpcError> {
    let (mut found, mut bytes) = (Found::default(), 0);
    loop {
        let page = context.store.records(range, PAGE_RECORDS).await?;
        let Some(last) = page.last() else { return Ok(found) };
        range.before_seq = last.seq;
        let room = Room {
            records: limit - found.records.len(),
            bytes: MATCHED_BYTES_MAX - bytes,
        };
        let (matching, is_full) = matching(Arc::clone(&filter), page, room).await;
        bytes += matching.iter().map(String::len).sum::<usize>();
        found.records.extend(matching);
        if is_full {
            found.more = true;
            return Ok(found);
        }
    }
}

/// What more can be found.
struct Room {
    records: usize,
    bytes: usize,
}

async fn parse(expression: String) -> Result<Arc<Filter>, RpcError> {
    let parsed = big_stack::run_async(move || Filter::parse(&expression)).await;
    parsed.map(Arc::new).map_err(RpcError::invalid)
}

/// The newest that match, the newest first, and whether there was no room for another: one beyond the last tells.
async fn matching(filter: Arc<Filter>, page: Vec<StoredRecord>, room: Room) -> (Vec<String>, bool) {
    let matches = move |record: StoredRecord| {
        let rows = record.rows().into_iter().map(serde_json::Value::Object);
        let matching: Vec<_> = rows.rev().filter(|row| filter.matches(row)).collect();
        // Without anything beside it, to the byte as it was sealed.
        let as_sealed = !record.is_more_than_its_bytes();
        let sealed = move || String::from_utf8_lossy(&record.bytes).into_owned();
        matching.into_iter().map(move |row| match as_sealed {
            true => sealed(),
            false => row.to_string(),
        })
    };
    big_stack::run_async(move || {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for record in page.into_iter().flat_map(matches) {
            bytes += record.len();
            if found.len() >= room.records || bytes > room.bytes {
                return (found, true);
            }
            found.push(record);
        }
        (found, false)
    })
    .await
}

fn time_or(unix_ms: i64, default: OffsetDateTime) -> Result<OffsetDateTime, RpcError> {
    match unix_ms {
        0 => Ok(default),
        _ => iap_proto::convert::time_from_wire("AuditSearchRequest", unix_ms).map_err(RpcError::invalid),
    }
}
