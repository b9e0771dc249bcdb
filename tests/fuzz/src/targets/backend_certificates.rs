//! Certificates for backends: nothing but what the service's own authority has signed is one, and of what it has signed
//! nothing that OpenSSH would take for more than it should be.

use std::sync::OnceLock;

use iap_identity::backend::{
    ClientCa, ClientLeaf, SshAuthority, SshCertificate, SshCertificateKind, SshProfile, issue_client_leaf,
    issue_ssh_certificate, self_signed_client_ca, ssh_public_key,
};
use iap_identity::{LoginName, Request, ServiceName, certificate_request};
use iap_testkit::random_serial;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use ssh_key::certificate::Builder;
use ssh_key::private::Ed25519Keypair;
use time::{Duration, OffsetDateTime};

use super::Seeds;
use crate::input::choice;

pub(crate) fn run(bytes: &[u8]) {
    match choice(bytes, 4) {
        Some((0, patches)) => patched_ssh(patches),
        Some((1, patches)) => patched_leaf(patches),
        Some((2, foreign)) => foreign_bytes(foreign),
        Some((_, wishes)) => signed(wishes),
        None => {}
    }
}

/// A service's authorities of this process, and what they have issued.
struct Made {
    now: OffsetDateTime,
    ca: ClientCa,
    leaf: Vec<u8>,
    authority: SshAuthority,
    ssh: Vec<u8>,
    /// An SSH authority whose key ssh-key itself can sign with.
    careless: ssh_key::PrivateKey,
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let now = OffsetDateTime::now_utc();
        let cluster = "iap.example.com".parse().unwrap();
        let service = ServiceName::parse("db-prod").unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let serial = || random_serial().unwrap();
        let ca = self_signed_client_ca(&cluster, &service, &key, now - Duration::HOUR, serial()).unwrap();
        let request = Request::parse(&certificate_request(&key).unwrap()).unwrap();
        let login = LoginName::parse("readonly").unwrap();
        let leaf = issue_client_leaf(&request, &login, &ca, &key, now, serial()).unwrap();
        let signer = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let profile = SshProfile {
            kind: SshCertificateKind::User,
            key_id: "alice@example.com".to_owned(),
            principals: vec!["alice".to_owned()],
            source_addresses: vec![[10, 0, 0, 1].into()],
            extensions: Vec::new(),
            life: Duration::HOUR,
        };
        let public = ssh_public_key(&request).unwrap();
        let ssh = issue_ssh_certificate(&public, &profile, &signer, now, serial(), [9; 32]).unwrap();
        Made {
            now,
            leaf: leaf.der().to_vec(),
            authority: SshAuthority::of_signer(&signer).unwrap(),
            ssh: ssh.to_bytes(),
            careless: Ed25519Keypair::from_seed(&[3; 32]).into(),
            ca,
        }
    })
}

fn verify(bytes: &[u8], authority: &SshAuthority) -> Option<SshCertificate> {
    SshCertificate::verify(bytes, SshCertificateKind::User, authority, made().now).ok()
}

/// (position, difference) in threes.
fn patch(original: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for patch in patches.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([patch[0], patch[1]])) % bytes.len();
        bytes[place] ^= patch[2];
    }
    bytes
}

fn patched_ssh(patches: &[u8]) {
    let made = made();
    let bytes = patch(&made.ssh, patches);
    assert_eq!(verify(&bytes, &made.authority).is_some(), bytes == made.ssh);
}

fn patched_leaf(patches: &[u8]) {
    let made = made();
    let der = patch(&made.leaf, patches);
    let verified = ClientLeaf::verify(&der, &made.ca, made.now);
    assert_eq!(verified.is_ok(), der == made.leaf, "{verified:?}");
}

fn foreign_bytes(bytes: &[u8]) {
    let made = made();
    assert!(verify(bytes, &made.authority).is_none());
    assert!(ClientLeaf::verify(bytes, &made.ca, made.now).is_err());
    assert!(ClientCa::parse(bytes).is_err() || bytes == made.ca.der().as_ref());
    if let Ok(authority) = SshAuthority::from_bytes(bytes) {
        assert_eq!(authority.to_bytes(), bytes, "one spelling per key");
    }
}

/// An authority that signs whatever it is asked to: a count of principals, then texts up to zero bytes.
fn signed(wishes: &[u8]) {
    let made = made();
    let Some((&count, texts)) = wishes.split_first() else {
        return;
    };
    let texts: Vec<String> = texts
        .split(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect();
    let from = u64::try_from(made.now.unix_timestamp()).unwrap() - 60;
    let key = Ed25519Keypair::from_seed(&[4; 32]).public;
    let mut builder = Builder::new([1; 32], ssh_key::public::KeyData::from(key), from, from + 600).unwrap();
    builder.all_principals_valid().unwrap();
    let (principals, options) = texts.split_at(usize::from(count).min(texts.len()));
    for principal in principals {
        builder.valid_principal(principal).unwrap();
    }
    for (position, option) in options.iter().enumerate() {
        let _already_there = match position % 2 {
            0 => builder.critical_option(option, option),
            _ => builder.extension(option, ""),
        };
    }
    let bytes = builder.sign(&made.careless).unwrap().to_bytes().unwrap();
    let authority = SshAuthority::parse(&made.careless.public_key().to_openssh().unwrap()).unwrap();
    if let Some(accepted) = verify(&bytes, &authority) {
        assert_eq!(accepted.principals(), principals);
        assert!(
            !principals.is_empty()
                && principals
                    .iter()
                    .all(|name| !name.is_empty() && !name.contains(['*', '?', ',']))
        );
        for option in accepted.certificate().critical_options().keys() {
            assert_eq!(option, "source-address");
        }
    }
}

pub(crate) fn seeds() -> Seeds {
    let made = made();
    let authority = made.authority.to_bytes();
    vec![
        ("ssh-unchanged".to_owned(), vec![0, 0, 0, 0]),
        ("ssh-changed".to_owned(), vec![0, 0, 0x40, 1]),
        ("leaf-unchanged".to_owned(), vec![1, 0, 0, 0]),
        ("leaf-changed".to_owned(), vec![1, 0, 0x90, 1]),
        ("foreign-ssh".to_owned(), [&[2][..], &made.ssh, &[0]].concat()),
        ("foreign-leaf".to_owned(), [&[2][..], &made.leaf, &[0]].concat()),
        ("authority".to_owned(), [&[2][..], &authority].concat()),
        ("signed-good".to_owned(), [&[3, 1][..], b"alice"].concat()),
        ("signed-nobody".to_owned(), vec![3, 0]),
        ("signed-pattern".to_owned(), [&[3, 2][..], b"alice\0*"].concat()),
        (
            "signed-options".to_owned(),
            [&[3, 1][..], b"alice\0force-command\0permit-pty"].concat(),
        ),
    ]
}
