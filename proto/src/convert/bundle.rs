//! The trust bundle, before it is verified: only `TrustBundle::verify` makes one that may be used.

use iap_identity::{CaClass, RawBundle};
use prost::Message as _;

use super::{WireError, cluster};
use crate::v1;

/// The payload to be signed.
pub fn encode_bundle(bundle: &RawBundle) -> Vec<u8> {
    v1::Bundle::from(bundle).encode_to_vec()
}

/// Reads a payload, signed or not: a bundle proves itself by its root, not by its signature.
pub fn decode_bundle(payload: &[u8]) -> Result<RawBundle, WireError> {
    let wire = v1::Bundle::decode(payload).map_err(|error| WireError::new("Bundle", error))?;
    RawBundle::try_from(wire)
}

impl From<&RawBundle> for v1::Bundle {
    fn from(bundle: &RawBundle) -> Self {
        let authority = |(class, certificate): &(CaClass, Vec<u8>)| v1::Authority {
            class: class.as_str().to_owned(),
            certificate: certificate.clone(),
        };
        Self {
            cluster: bundle.cluster.to_string(),
            epoch: bundle.epoch,
            version: bundle.version,
            root: bundle.root.clone(),
            authorities: bundle.authorities.iter().map(authority).collect(),
            signing_keys: bundle.signing_keys.clone(),
        }
    }
}

impl TryFrom<v1::Bundle> for RawBundle {
    type Error = WireError;

    fn try_from(wire: v1::Bundle) -> Result<Self, WireError> {
        Ok(Self {
            cluster: cluster("Bundle.cluster", &wire.cluster)?,
            epoch: wire.epoch,
            version: wire.version,
            root: wire.root,
            authorities: wire
                .authorities
                .into_iter()
                .map(authority)
                .collect::<Result<_, _>>()?,
            signing_keys: wire.signing_keys,
        })
    }
}

fn authority(wire: v1::Authority) -> Result<(CaClass, Vec<u8>), WireError> {
    let class = CaClass::parse(&wire.class).ok_or_else(|| {
        WireError::new(
            "Authority.class",
            format_args!("{:?} is no class of authority", wire.class),
        )
    })?;
    Ok((class, wire.certificate))
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

    fn bundle() -> RawBundle {
        RawBundle {
            cluster: ClusterName::parse("iap.example.com").unwrap(),
            epoch: 1,
            version: 2,
            root: vec![1],
            authorities: CaClass::ALL.iter().map(|class| (*class, vec![2])).collect(),
            signing_keys: vec![vec![3]],
        }
    }

    #[test]
    fn a_bundle_survives_the_wire() {
        let read = decode_bundle(&encode_bundle(&bundle())).unwrap();
        assert_eq!(encode_bundle(&read), encode_bundle(&bundle()));
    }

    #[test]
    fn an_authority_of_an_unknown_class_is_refused() {
        let mut wire = v1::Bundle::from(&bundle());
        wire.authorities[0].class = "galaxy".into();
        assert_eq!(RawBundle::try_from(wire).err().unwrap().field, "Authority.class");
    }
}
