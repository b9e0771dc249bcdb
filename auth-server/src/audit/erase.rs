//! Erasing what lies beside records, and recordings, by somebody who may. The act goes on record in the very transaction
//! that takes away, and names each record, so that the trail alone tells what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iap_audit::{Event, EventKind, UserRecord};
use iap_identity::SessionId;
use iap_proto::v1;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::context::AppContext;
use crate::recordings;
use crate::recordings::retention::{self, RECORDINGS_MAX};
use crate::rpc::{RpcError, UserCaller};
use crate::store::{Erasing, Erasure, PayloadPlace, Payloads, PayloadsOf, SessionRow};

/// Records that one call names.
const RECORDS_MAX: usize = 100;
/// Payloads that one call takes away: others' writes wait meanwhile.
const PAYLOADS_MAX: u32 = 1000;
/// The same in bytes, beside the first.
const PAYLOAD_BYTES_MAX: u64 = 16 << 20;
/// Records of a session's recordings that are looked at.
const TOLD_MAX: u32 = 100_000;
const REASON_BYTES_MAX: usize = 512;

/// Of what.
#[derive(Debug)]
struct Target {
    session: Option<SessionRow>,
    is_live: bool,
    payloads: PayloadsOf,
}

/// Which recordings, and how much of them is here.
#[derive(Debug, Default)]
struct Recordings {
    numbers: BTreeSet<u32>,
    bytes: u64,
    /// Beyond what one call takes.
    left: u64,
}

/// What one call takes away.
#[derive(Debug, Default)]
struct Taking {
    places: Vec<PayloadPlace>,
    recordings: Recordings,
}

/// Which of both somebody wants erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    Both,
    Payloads,
    Recordings,
}

impl Only {
    fn parse(word: &str) -> Result<Self, RpcError> {
        match word {
            "" => Ok(Self::Both),
            "payloads" => Ok(Self::Payloads),
            "recordings" => Ok(Self::Recordings),
            other => Err(RpcError::invalid(format!(
                "{other:?} is neither payloads nor recordings"
            ))),
        }
    }
}

/// Erases as much as one call takes, or says how much there is.
///
/// # Errors
/// When it names nothing that is here, or cannot be recorded.
pub async fn erase(
    context: &Arc<AppContext>,
    caller: &UserCaller,
    request: v1::AuditEraseRequest,
) -> Result<v1::AuditEraseReply, RpcError> {
    let reason = request.reason.trim();
    if reason.len() > REASON_BYTES_MAX {
        let text = format!("a reason has at most {REASON_BYTES_MAX} bytes");
        return Err(RpcError::invalid(text));
    }
    let only = Only::parse(&request.only)?;
    let target = target(context, &request).await?;
    let mut there = Payloads::default();
    let mut taking = Taking::default();
    if only != Only::Recordings {
        there = context.store.payloads(&target.payloads).await?;
        taking.places = bounded(
            context
                .store
                .payload_places(&target.payloads, PAYLOADS_MAX)
                .await?,
        );
    }
    if let Some(session) = &target.session
        && only != Only::Payloads
    {
        taking.recordings = recordings_of(context, session).await?;
    }
    let taken = match request.dry_run {
        true => there,
        false => taking.payloads(),
    };
    let reply = v1::AuditEraseReply {
        payloads: taken.count,
        payload_bytes: taken.bytes,
        payloads_left: there.count.saturating_sub(taken.count),
        is_live: target.is_live,
        recordings: match request.dry_run {
            true => taking.recordings.numbers.len() as u64 + taking.recordings.left,
            false => taking.recordings.numbers.len() as u64,
        },
        recording_bytes: taking.recordings.bytes,
        recordings_left: match request.dry_run {
            true => 0,
            false => taking.recordings.left,
        },
    };
    if !request.dry_run && !taking.is_nothing() {
        let (context, user) = (Arc::clone(context), caller.record());
        let reason = reason.to_owned();
        let act = async move { take(&context, user, target.session, taking, reason).await };
        // Whoever asked may leave meanwhile: what is on record is done all the same.
        tokio::spawn(act).await.map_err(RpcError::internal)??;
    }
    Ok(reply)
}

async fn target(context: &AppContext, request: &v1::AuditEraseRequest) -> Result<Target, RpcError> {
    match (request.session_id.as_slice(), request.record_ids.as_slice()) {
        ([], []) => Err(RpcError::invalid("name a session or records")),
        (session, []) => of_session(context, session).await,
        ([], _) if request.only == "recordings" => Err(RpcError::invalid("records have no recordings")),
        ([], records) => of_records(context, records).await,
        (_, _) => Err(RpcError::invalid("name a session or records, not both")),
    }
}

async fn of_session(context: &AppContext, id: &[u8]) -> Result<Target, RpcError> {
    let id = SessionId::from_bytes(id).map_err(RpcError::invalid)?;
    let session = context.store.session(id).await?;
    let session = session.ok_or_else(|| RpcError::not_found(format!("there is no session {id}")))?;
    Ok(Target {
        is_live: session.end.is_none(),
        session: Some(session),
        payloads: PayloadsOf::Session(id),
    })
}

async fn of_records(context: &AppContext, ids: &[Vec<u8>]) -> Result<Target, RpcError> {
    if ids.len() > RECORDS_MAX {
        let text = format!("at most {RECORDS_MAX} records can be named");
        return Err(RpcError::invalid(text));
    }
    let mut seqs = Vec::with_capacity(ids.len());
    for id in ids {
        let id = Uuid::from_slice(id).map_err(RpcError::invalid)?;
        let seq = context.store.record_with_id(id).await?;
        seqs.push(seq.ok_or_else(|| RpcError::not_found(format!("there is no record {id}")))?);
    }
    Ok(Target {
        session: None,
        is_live: false,
        payloads: PayloadsOf::Records(seqs),
    })
}

/// Those that are here, and those that the trail tells of and that may still come.
async fn recordings_of(context: &AppContext, session: &SessionRow) -> Result<Recordings, RpcError> {
    let (library, id) = (Arc::clone(&context.recordings), session.session_id);
    let held = tokio::task::spawn_blocking(move || library.of_session(id)).await;
    let held: BTreeMap<u32, u64> = held.map_err(RpcError::internal)?.into_iter().collect();
    let mut numbers: BTreeSet<u32> = held.keys().copied().collect();
    for record in recordings::told(context, session, TOLD_MAX).await? {
        let number = record.get("recording").and_then(Value::as_u64);
        numbers.extend(number.and_then(|number| u32::try_from(number).ok()));
    }
    for (number, _) in context.store.erased_recordings(id).await? {
        numbers.remove(&number);
    }
    let taken: BTreeSet<u32> = numbers.iter().copied().take(RECORDINGS_MAX).collect();
    Ok(Recordings {
        bytes: taken.iter().filter_map(|number| held.get(number)).sum(),
        left: (numbers.len() - taken.len()) as u64,
        numbers: taken,
    })
}

impl Taking {
    fn payloads(&self) -> Payloads {
        Payloads {
            count: self.places.len() as u64,
            bytes: self.places.iter().map(|place| place.bytes).sum(),
        }
    }

    fn is_nothing(&self) -> bool {
        self.places.is_empty() && self.recordings.numbers.is_empty()
    }

    fn describe(&self, event: Event) -> Event {
        let mut event = event;
        let payloads = self.payloads();
        if payloads.count > 0 {
            event = event
                .field("payloads", payloads.count)
                .field("erased_bytes", payloads.bytes)
                .field("erased", named(&self.places));
        }
        if !self.recordings.numbers.is_empty() {
            let numbers: Vec<u32> = self.recordings.numbers.iter().copied().collect();
            event = event
                .field("recordings", numbers)
                .field("recording_bytes", self.recordings.bytes);
        }
        event
    }
}

async fn take(
    context: &AppContext,
    user: UserRecord,
    session: Option<SessionRow>,
    taking: Taking,
    reason: String,
) -> Result<(), RpcError> {
    let now = context.clock.now();
    let erasure = Erasure {
        id: context.random.uuid_v7(now)?,
        at: now,
        by: user.name.clone(),
        reason,
    };
    let event = context.audit.event(EventKind::AuditErased)?.user(&user);
    let session = session.map(|session| session.session_id);
    let event = match &session {
        Some(session) => event.session(session),
        None => event,
    };
    let event = taking.describe(event.field("erasure_id", erasure.id.to_string()));
    let event = match erasure.reason.as_str() {
        "" => event,
        reason => event.reason(reason),
    };
    let (numbers, payloads) = (taking.recordings.numbers, taking.places.len());
    let recordings = session.filter(|_| !numbers.is_empty());
    let erasing = Erasing {
        payloads: taking.places.iter().map(|place| place.seq).collect(),
        recordings: recordings.map(|session| (session, numbers.iter().copied().collect())),
        erasure,
    };
    let by = erasing.erasure.by.clone();
    context.audit.record_erasing(event, erasing).await?;
    if payloads > 0 {
        tracing::warn!(%by, payloads, "payloads of records were erased");
        context.store.empty_log().await?;
    }
    match recordings {
        Some(session) => retention::remove(context, session, numbers).await,
        None => Ok(()),
    }
}

/// As many as one call takes; at least one.
fn bounded(mut places: Vec<PayloadPlace>) -> Vec<PayloadPlace> {
    let mut bytes = 0;
    let fitting = places.iter().take_while(|place| {
        let is_first = bytes == 0;
        bytes += place.bytes;
        is_first || bytes <= PAYLOAD_BYTES_MAX
    });
    let fitting = fitting.count();
    places.truncate(fitting);
    places
}

/// The records by their sources' own numbers.
fn named(places: &[PayloadPlace]) -> Vec<Value> {
    let mut sources: BTreeMap<Uuid, Vec<u64>> = BTreeMap::new();
    for place in places {
        sources.entry(place.source).or_default().push(place.source_seq);
    }
    let of_source =
        |(source, numbers): (Uuid, Vec<u64>)| json!({ "agent_id": source.to_string(), "agent_seq": numbers });
    sources.into_iter().map(of_source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seq: u64, bytes: u64) -> PayloadPlace {
        PayloadPlace {
            seq,
            source: Uuid::from_u128(u128::from(seq % 2)),
            source_seq: seq,
            bytes,
        }
    }

    #[test]
    fn one_call_takes_what_fits_and_at_least_one() {
        let half = PAYLOAD_BYTES_MAX / 2;
        let taken =
            |bytes: &[u64]| bounded((1..).zip(bytes).map(|(seq, bytes)| place(seq, *bytes)).collect()).len();
        assert_eq!(taken(&[half, half, 1]), 2);
        assert_eq!(taken(&[PAYLOAD_BYTES_MAX + 1, 1]), 1);
        assert_eq!(taken(&[]), 0);
    }

    #[test]
    fn records_are_named_as_their_sources_number_them() {
        let named = named(&[place(1, 5), place(2, 5), place(3, 5)]);
        let expected = json!([
            { "agent_id": Uuid::from_u128(0).to_string(), "agent_seq": [2] },
            { "agent_id": Uuid::from_u128(1).to_string(), "agent_seq": [1, 3] },
        ]);
        assert_eq!(Value::from(named), expected);
    }
}
