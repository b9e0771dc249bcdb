//! Signed objects: from what was received to what may be believed. Signature, cluster and content are checked
//! in that order; freshness (epoch, version, time) is the holder's to compare with what it has.

use iap_identity::{
    BundleError, ClusterName, Pin, SignedError, SignedKind, TrustBundle, VerifiedPayload, verify_signed,
};
use thiserror::Error;
use time::OffsetDateTime;

use crate::convert::WireError;
use crate::convert::bundle::decode_bundle;
use crate::domain::{Beat, LockList, Snapshot};
use crate::v1::Signed;

/// Why a signed object is not believed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Not signed by a key that the root certifies.
    #[error(transparent)]
    Signature(#[from] SignedError),
    /// Signed, and still not what it should be.
    #[error(transparent)]
    Content(#[from] WireError),
    /// A bundle that its root does not vouch for.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Signed for another cluster.
    #[error("the object is of the cluster {found}, not of {expected}")]
    OtherCluster {
        /// Ours.
        expected: ClusterName,
        /// The object's.
        found: ClusterName,
    },
}

/// A snapshot, provided a key of the bundle signed it for the bundle's cluster.
pub fn open_snapshot(signed: &Signed, bundle: &TrustBundle) -> Result<Snapshot, OpenError> {
    let snapshot = Snapshot::decode(verified(signed, SignedKind::Snapshot, bundle)?.bytes())?;
    same_cluster(bundle, &snapshot.cluster)?;
    Ok(snapshot)
}

/// A beat, likewise.
pub fn open_beat(signed: &Signed, bundle: &TrustBundle) -> Result<Beat, OpenError> {
    let beat = Beat::decode(verified(signed, SignedKind::Beat, bundle)?.bytes())?;
    same_cluster(bundle, &beat.cluster)?;
    Ok(beat)
}

/// A list of locks, likewise.
pub fn open_locks(signed: &Signed, bundle: &TrustBundle) -> Result<LockList, OpenError> {
    let locks = LockList::decode(verified(signed, SignedKind::Locks, bundle)?.bytes())?;
    same_cluster(bundle, &locks.cluster)?;
    Ok(locks)
}

/// A bundle, provided its root has the pin, the root certifies everything in it, and one of the keys it
/// holds signed it.
pub fn open_bundle(
    signed: &Signed,
    pin: &Pin,
    cluster: &ClusterName,
    now: OffsetDateTime,
) -> Result<TrustBundle, OpenError> {
    let bundle = TrustBundle::verify(decode_bundle(&signed.payload)?, pin, cluster, now)?;
    verified(signed, SignedKind::Bundle, &bundle)?;
    Ok(bundle)
}

fn verified<'a>(
    signed: &'a Signed,
    kind: SignedKind,
    bundle: &TrustBundle,
) -> Result<VerifiedPayload<'a>, SignedError> {
    verify_signed(bundle, &signed.key_id, kind, &signed.payload, &signed.signature)
}

fn same_cluster(bundle: &TrustBundle, found: &ClusterName) -> Result<(), OpenError> {
    if bundle.cluster() == found {
        return Ok(());
    }
    Err(OpenError::OtherCluster {
        expected: bundle.cluster().clone(),
        found: found.clone(),
    })
}
