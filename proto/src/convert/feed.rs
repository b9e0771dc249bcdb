//! Beats and locks.

use iap_identity::{Lock, LockKind, Locks};
use prost::Message as _;
use uuid::Uuid;

use super::{WireError, cluster, time_from_wire, time_to_wire};
use crate::domain::{Beat, LockList};
use crate::v1;

impl Beat {
    /// The payload to be signed.
    pub fn encode(&self) -> Vec<u8> {
        let wire = v1::Beat {
            cluster: self.cluster.to_string(),
            epoch: self.epoch,
            time_unix_ms: time_to_wire(self.time),
            snapshot_version: self.snapshot_version,
            lock_version: self.lock_version,
        };
        wire.encode_to_vec()
    }

    /// Reads a payload whose signature was checked.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let wire = v1::Beat::decode(payload).map_err(|error| WireError::new("Beat", error))?;
        Ok(Self {
            cluster: cluster("Beat.cluster", &wire.cluster)?,
            epoch: wire.epoch,
            time: time_from_wire("Beat.time_unix_ms", wire.time_unix_ms)?,
            snapshot_version: wire.snapshot_version,
            lock_version: wire.lock_version,
        })
    }
}

impl LockList {
    /// The payload to be signed.
    pub fn encode(&self) -> Vec<u8> {
        let wire = v1::LockList {
            cluster: self.cluster.to_string(),
            epoch: self.epoch,
            version: self.version,
            issued_unix_ms: time_to_wire(self.issued),
            locks: self.locks.iter().map(v1::Lock::from).collect(),
        };
        wire.encode_to_vec()
    }

    /// Reads a payload whose signature was checked.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let wire = v1::LockList::decode(payload).map_err(|error| WireError::new("LockList", error))?;
        let locks = wire
            .locks
            .into_iter()
            // A kind that came with a newer server hits nothing here; the others still have to cut.
            .filter(|lock| LockKind::parse(&lock.kind).is_some())
            .map(Lock::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            cluster: cluster("LockList.cluster", &wire.cluster)?,
            epoch: wire.epoch,
            version: wire.version,
            issued: time_from_wire("LockList.issued_unix_ms", wire.issued_unix_ms)?,
            locks: Locks::new(locks),
        })
    }
}

impl From<&Lock> for v1::Lock {
    fn from(lock: &Lock) -> Self {
        Self {
            lock_id: lock.id.to_string(),
            kind: lock.kind.as_str().to_owned(),
            target: lock.target.clone(),
            reason: lock.reason.clone(),
            created_by: lock.created_by.clone(),
            created_unix_ms: time_to_wire(lock.created_at),
            expires_unix_ms: lock.expires_at.map_or(0, time_to_wire),
        }
    }
}

impl TryFrom<v1::Lock> for Lock {
    type Error = WireError;

    fn try_from(wire: v1::Lock) -> Result<Self, WireError> {
        let expires_at = Some(wire.expires_unix_ms).filter(|unix_ms| *unix_ms != 0);
        Ok(Self {
            id: Uuid::parse_str(&wire.lock_id).map_err(|error| WireError::new("Lock.lock_id", error))?,
            kind: LockKind::parse(&wire.kind).ok_or_else(|| {
                WireError::new("Lock.kind", format_args!("{:?} is no kind of lock", wire.kind))
            })?,
            target: wire.target,
            reason: wire.reason,
            created_by: wire.created_by,
            created_at: time_from_wire("Lock.created_unix_ms", wire.created_unix_ms)?,
            expires_at: expires_at
                .map(|unix_ms| time_from_wire("Lock.expires_unix_ms", unix_ms))
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use iap_identity::ClusterName;
    use time::OffsetDateTime;

    fn cluster_name() -> ClusterName {
        ClusterName::parse("iap.example.com").unwrap()
    }

    fn lock(kind: LockKind, expires_at: Option<OffsetDateTime>) -> Lock {
        Lock {
            id: Uuid::from_u128(7),
            kind,
            target: "alice@example.com".into(),
            reason: "stolen laptop".into(),
            created_by: "admin@example.com".into(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            expires_at,
        }
    }

    #[test]
    fn a_beat_survives_the_wire() {
        let time = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(5);
        let beat = Beat {
            cluster: cluster_name(),
            epoch: 1,
            time,
            snapshot_version: 2,
            lock_version: 3,
        };
        assert_eq!(Beat::decode(&beat.encode()), Ok(beat));
    }

    #[test]
    fn locks_of_every_kind_survive_the_wire_with_and_without_an_end() {
        let end = Some(OffsetDateTime::UNIX_EPOCH + time::Duration::hours(1));
        let locks: Vec<_> = LockKind::ALL
            .iter()
            .flat_map(|kind| [lock(*kind, None), lock(*kind, end)])
            .collect();
        let list = LockList {
            cluster: cluster_name(),
            epoch: 1,
            version: 4,
            issued: OffsetDateTime::UNIX_EPOCH,
            locks: Locks::new(locks),
        };
        assert_eq!(LockList::decode(&list.encode()), Ok(list));
    }

    #[test]
    fn a_lock_of_an_unknown_kind_is_refused_rather_than_ignored() {
        let mut wire = v1::Lock::from(&lock(LockKind::User, None));
        wire.kind = "planet".into();
        assert_eq!(Lock::try_from(wire).unwrap_err().field, "Lock.kind");
    }
}
