//! The opinion of rustls-webpki, as any rustls client or server that knows only `ca.pem` would form it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::time::Duration;

use iap_identity::CaClass;
use iap_interop::{Specimen, specimens};
use iap_testkit::{Forgery, TestCluster};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

fn verify(
    cluster: &TestCluster,
    chain: &[CertificateDer<'_>],
    anchor: &CertificateDer<'_>,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let now = u64::try_from(cluster.now.unix_timestamp()).unwrap();
    EndEntityCert::try_from(&chain[0])?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor_from_trusted_cert(anchor)?],
            &chain[1..],
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            usage,
            None,
            None,
        )
        .map(drop)
}

#[test]
fn every_leaf_verifies_from_leaf_over_its_authority_to_the_root() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    for Specimen {
        name,
        credential,
        hosts,
        client,
        ..
    } in specimens(&cluster).unwrap()
    {
        let root = cluster.root().der();
        let as_client = verify(&cluster, &credential.chain, root, KeyUsage::client_auth());
        assert_eq!(as_client.is_ok(), client, "{name}: {as_client:?}");
        let as_server = verify(&cluster, &credential.chain, root, KeyUsage::server_auth());
        assert_eq!(as_server.is_ok(), !hosts.is_empty(), "{name}: {as_server:?}");
        let leaf = EndEntityCert::try_from(credential.leaf()).unwrap();
        for host in hosts {
            let host = ServerName::try_from(host).unwrap();
            assert_eq!(leaf.verify_is_valid_for_subject_name(&host), Ok(()), "{name}");
        }
        let other = ServerName::try_from("other.iap.example.com").unwrap();
        assert!(leaf.verify_is_valid_for_subject_name(&other).is_err(), "{name}");
    }
}

#[test]
fn an_authority_of_another_class_does_not_anchor() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    for Specimen {
        name,
        credential,
        authority,
        client,
        ..
    } in specimens(&cluster).unwrap()
    {
        let usage = if client {
            KeyUsage::client_auth()
        } else {
            KeyUsage::server_auth()
        };
        for class in CaClass::ALL {
            let result = verify(
                &cluster,
                &credential.chain[..1],
                cluster.issuer(class).der(),
                usage,
            );
            assert_eq!(
                result.is_ok(),
                class == authority,
                "{name} under {class}: {result:?}"
            );
        }
    }
}

#[test]
fn a_critical_identity_extension_would_shut_us_out() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let mut forgery = Forgery::user(&cluster).unwrap();
    forgery.critical = true;
    let chain = [forgery.signed_by(&cluster, CaClass::User).unwrap()];
    let result = verify(
        &cluster,
        &chain,
        cluster.issuer(CaClass::User).der(),
        KeyUsage::client_auth(),
    );
    assert_eq!(result, Err(webpki::Error::UnsupportedCriticalExtension));
}
