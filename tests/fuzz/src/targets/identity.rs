//! The identity extension has one encoding and reads as another DER parser reads it; a certificate that was
//! changed by a single bit, or made by somebody else, is nobody.

use std::sync::OnceLock;

use iap_identity::{CertificateDer, Class, ClassSet, IdentityExtension, verify_client, verify_service_leaf};
use iap_testkit::{Forgery, TestCluster};
use x509_parser::der_parser::ber::{BerObject, BerObjectContent};
use x509_parser::der_parser::der::parse_der;

use super::Seeds;
use crate::input::choice;

const ANYBODY: ClassSet = ClassSet::of(&Class::ALL);

pub(crate) fn run(bytes: &[u8]) {
    match choice(bytes, 3) {
        Some((0, der)) => extension(der),
        Some((1, patches)) => patched(patches),
        Some((_, der)) => foreign(der),
        None => {}
    }
}

fn extension(der: &[u8]) {
    let Ok(read) = IdentityExtension::from_der(der) else {
        return;
    };
    let written = read.to_der().unwrap_or_else(|error| panic!("{error}: {read:?}"));
    assert_eq!(written, der, "one encoding per value");
    let (rest, object) = parse_der(der).unwrap_or_else(|error| panic!("the other parser: {error}"));
    assert!(rest.is_empty());
    let fields = object.as_sequence().unwrap();
    assert_eq!(fields[0].as_u64(), Ok(1));
    assert_eq!(fields[2].as_str(), Ok(read.cluster.as_str()));
    assert_eq!(fields[3].as_str(), Ok(read.principal.as_str()));
    let mut texts = Vec::new();
    fields.iter().for_each(|field| collect(field, &mut texts));
    for group in &read.groups {
        assert!(
            texts.iter().any(|text| text == group.as_str()),
            "{group} is in both"
        );
    }
}

/// Every text in `object`, those inside explicit tags too.
fn collect(object: &BerObject<'_>, texts: &mut Vec<String>) {
    match &object.content {
        BerObjectContent::UTF8String(text) => texts.push((*text).to_owned()),
        BerObjectContent::Sequence(items) => items.iter().for_each(|item| collect(item, texts)),
        BerObjectContent::Unknown(any) => {
            if let Ok((_, inner)) = parse_der(any.data) {
                collect(&inner, texts);
            }
        }
        _ => {}
    }
}

/// A real certificate with bytes changed: (position, difference) in threes.
fn patched(patches: &[u8]) {
    let (cluster, user) = plane();
    let mut der = user.clone();
    for patch in patches.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([patch[0], patch[1]])) % der.len();
        der[place] ^= patch[2];
    }
    let result = verify_client(
        &[CertificateDer::from(der.as_slice())],
        ANYBODY,
        cluster.bundle(),
        cluster.now,
    );
    assert_eq!(result.is_ok(), der == *user, "{result:?}");
}

/// Whatever somebody else sends.
fn foreign(der: &[u8]) {
    let (cluster, _) = plane();
    let chain = [CertificateDer::from(der)];
    assert!(verify_client(&chain, ANYBODY, cluster.bundle(), cluster.now).is_err());
    let agent = iap_identity::AgentId::from_uuid(super::snapshot::ID);
    assert!(verify_service_leaf(der, &agent, cluster.bundle(), cluster.now).is_err());
}

/// A cluster of this process and a user's certificate.
fn plane() -> &'static (TestCluster, Vec<u8>) {
    static PLANE: OnceLock<(TestCluster, Vec<u8>)> = OnceLock::new();
    PLANE.get_or_init(|| {
        let cluster = TestCluster::new("iap.example.com").unwrap();
        let user = cluster.user("alice@example.com", &["engineering"]).unwrap();
        let der = user.leaf().to_vec();
        (cluster, der)
    })
}

pub(crate) fn seeds() -> Seeds {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let user = Forgery::user(&cluster).unwrap().extensions.remove(0);
    let mut full = IdentityExtension::from_der(&user).unwrap();
    full.mfa_time = full.auth_time;
    full.device_id = Some("laptop-7".to_owned());
    full.name = Some("Alice Example".to_owned());
    if let Some(idp) = &mut full.idp {
        idp.acr = Some("phr".to_owned());
    }
    let bare = IdentityExtension::new(
        Class::Agent,
        cluster.name.clone(),
        super::snapshot::ID.to_string(),
    );
    let id = super::snapshot::ID;
    let credentials = [
        (
            "user",
            cluster.user("alice@example.com", &["engineering", "oncall"]),
        ),
        ("bot", cluster.bot("deployer")),
        ("agent", cluster.agent(iap_identity::AgentId::from_uuid(id))),
        (
            "leaf",
            cluster.service_leaf(iap_identity::AgentId::from_uuid(id), "db-prod"),
        ),
        ("proxy", cluster.proxy(iap_identity::ProxyId::from_uuid(id))),
        ("auth", cluster.auth(iap_identity::AuthId::from_uuid(id))),
    ];
    let mut seeds = vec![
        ("extension-user".to_owned(), [&[0], user.as_slice()].concat()),
        (
            "extension-full".to_owned(),
            [&[0], full.to_der().unwrap().as_slice()].concat(),
        ),
        (
            "extension-bare".to_owned(),
            [&[0], bare.to_der().unwrap().as_slice()].concat(),
        ),
        ("unchanged".to_owned(), vec![1, 0, 0, 0]),
        ("changed".to_owned(), vec![1, 0, 0x90, 1, 1, 0x20, 0x80]),
    ];
    for (name, credential) in credentials {
        let der = credential.unwrap().leaf().to_vec();
        seeds.push((format!("certificate-{name}"), [&[2], der.as_slice()].concat()));
    }
    seeds
}
