//! Whether the sshd that answered is the one meant: its key by `known_hosts`, or its certificate by a CA.
//! russh proves that the server holds the key, and nothing else.

use std::io;
use std::path::Path;

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::{Algorithm, Fingerprint, HashAlg};
use russh::keys::{Certificate, PublicKey, PublicKeyOrCertificate};

use super::settings::{KnownBy, KnownServer};

/// More lines than this are not looked at.
const AUTHORITIES_MAX: usize = 64;

/// What an sshd may prove itself with.
#[derive(Debug)]
pub(super) struct Trusted {
    host: String,
    by: TrustedBy,
}

#[derive(Debug)]
enum TrustedBy {
    Keys(Vec<PublicKey>),
    Authorities(Vec<Fingerprint>),
}

/// Why a server is not the one meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum NotTrusted {
    /// A bare key where certificates are wanted.
    #[error("sshd showed a key without a certificate, and host_ca_file wants one")]
    NoCertificate,
    /// A certificate where keys are wanted.
    #[error("sshd showed a certificate, and known_hosts_file knows keys")]
    NoKey,
    /// Another key than the file has.
    #[error("sshd's key is not among the {known} that known_hosts_file has for {host}")]
    UnknownKey {
        /// As whom.
        host: String,
        /// How many keys it has.
        known: usize,
    },
    /// A certificate for users.
    #[error("sshd's certificate is not for hosts")]
    NotForHosts,
    /// For no name, which stands for all, or for others.
    #[error("sshd's certificate is not for {host}")]
    OtherHost {
        /// As whom.
        host: String,
    },
    /// It demands something that is not understood (PROTOCOL.certkeys: refuse).
    #[error("sshd's certificate has critical options, which host certificates do not have")]
    CriticalOptions,
    /// Not by one of the CAs, not now, or with a false signature.
    #[error("sshd's certificate is not valid now under host_ca_file")]
    Invalid,
}

impl Trusted {
    /// Reads the file. Blocks.
    pub(super) fn read(server: &KnownServer) -> io::Result<Self> {
        let by = match &server.by {
            KnownBy::KnownHosts(path) => {
                std::fs::metadata(path).map_err(|error| naming(path, &error))?;
                let keys = russh::keys::known_hosts::known_host_keys_path(&server.host, server.port, path)
                    .map_err(|error| naming(path, &io::Error::other(error)))?;
                let text = std::fs::read_to_string(path).map_err(|error| naming(path, &error))?;
                let keys = keys.into_iter().map(|(_, key)| key);
                TrustedBy::Keys(keys.filter(|key| !is_revoked(&text, key)).collect())
            }
            KnownBy::Authorities(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| naming(path, &error))?;
                let lines = text.lines().map(str::trim);
                let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
                let fingerprints = keys.take(AUTHORITIES_MAX).map(|line| {
                    PublicKey::from_openssh(line).map(|key| key.key_data().fingerprint(HashAlg::Sha256))
                });
                let fingerprints = fingerprints.collect::<Result<_, _>>();
                TrustedBy::Authorities(fingerprints.map_err(|error| naming(path, &io::Error::other(error)))?)
            }
        };
        Ok(Self {
            host: server.host.clone(),
            by,
        })
    }

    /// Whether certificates are wanted.
    pub(super) fn wants_certificates(&self) -> bool {
        matches!(self.by, TrustedBy::Authorities(_))
    }

    /// Whether a server that has several keys is to show one of this kind, as far as kinds are known.
    pub(super) fn prefers(&self, algorithm: &Algorithm) -> bool {
        let is_such = |key: &PublicKey| match (key.algorithm(), algorithm) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (known, wanted) => known == *wanted,
        };
        match &self.by {
            TrustedBy::Keys(known) => known.iter().any(is_such),
            TrustedBy::Authorities(_) => false,
        }
    }

    /// Judges what a server has proven possession of, at `now` in seconds since 1970.
    pub(super) fn check(&self, shown: &PublicKeyOrCertificate, now: u64) -> Result<(), NotTrusted> {
        match (&self.by, shown) {
            (TrustedBy::Keys(known), PublicKeyOrCertificate::PublicKey { key, .. }) => {
                let is_known = known.iter().any(|known| known.key_data() == key.key_data());
                is_known.then_some(()).ok_or_else(|| NotTrusted::UnknownKey {
                    host: self.host.clone(),
                    known: known.len(),
                })
            }
            (TrustedBy::Keys(_), PublicKeyOrCertificate::Certificate(_)) => Err(NotTrusted::NoKey),
            (TrustedBy::Authorities(_), PublicKeyOrCertificate::PublicKey { .. }) => {
                Err(NotTrusted::NoCertificate)
            }
            (TrustedBy::Authorities(authorities), PublicKeyOrCertificate::Certificate(certificate)) => {
                self.check_certificate(certificate, authorities, now)
            }
        }
    }

    fn check_certificate(
        &self,
        certificate: &Certificate,
        authorities: &[Fingerprint],
        now: u64,
    ) -> Result<(), NotTrusted> {
        if certificate.cert_type() != CertType::Host {
            return Err(NotTrusted::NotForHosts);
        }
        // PROTOCOL.certkeys lets an empty list stand for every host.
        let names = certificate.valid_principals();
        if !names.contains(&self.host) {
            return Err(NotTrusted::OtherHost {
                host: self.host.clone(),
            });
        }
        if certificate.critical_options().iter().next().is_some() {
            return Err(NotTrusted::CriticalOptions);
        }
        let valid = certificate.validate_at(now, authorities);
        valid.map_err(|_| NotTrusted::Invalid)
    }
}

/// Whether a line takes a key back (`sshd(8)`, "SSH_KNOWN_HOSTS FILE FORMAT"), for whichever host.
fn is_revoked(known_hosts: &str, key: &PublicKey) -> bool {
    let lines = known_hosts.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let is_revoking = words.next() == Some("@revoked");
        let (_hosts, kind, data) = (words.next()?, words.next()?, words.next()?);
        is_revoking.then(|| PublicKey::from_openssh(&format!("{kind} {data}")))
    });
    lines
        .flatten()
        .any(|revoked| revoked.key_data() == key.key_data())
}

pub(super) fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::certificate::Builder;
    use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};

    const NOW: u64 = 1_800_000_000;

    fn key(seed: u8) -> PrivateKey {
        let pair = Ed25519Keypair::from_seed(&[seed; 32]);
        PrivateKey::new(KeypairData::from(pair), "").unwrap()
    }

    fn certificate(ca: &PrivateKey, alter: impl FnOnce(&mut Builder)) -> PublicKeyOrCertificate {
        certificate_for(CertType::Host, ca, alter)
    }

    fn certificate_for(
        kind: CertType,
        ca: &PrivateKey,
        alter: impl FnOnce(&mut Builder),
    ) -> PublicKeyOrCertificate {
        let subject = key(7).public_key().key_data().clone();
        let mut builder = Builder::new(vec![1; 16], subject, NOW - 60, NOW + 60).unwrap();
        builder.cert_type(kind).unwrap();
        alter(&mut builder);
        PublicKeyOrCertificate::Certificate(builder.sign(ca).unwrap())
    }

    fn by_authority() -> Trusted {
        Trusted {
            host: "db.internal".to_owned(),
            by: TrustedBy::Authorities(vec![key(1).public_key().key_data().fingerprint(HashAlg::Sha256)]),
        }
    }

    fn named(name: &'static str) -> impl FnOnce(&mut Builder) {
        move |builder| {
            builder.valid_principal(name).unwrap();
        }
    }

    #[test]
    fn a_host_certificate_counts_for_its_name_its_time_and_its_authority_alone() {
        let trusted = by_authority();
        let good = certificate(&key(1), named("db.internal"));
        assert_eq!(trusted.check(&good, NOW), Ok(()));
        assert_eq!(trusted.check(&good, NOW + 61), Err(NotTrusted::Invalid));
        assert_eq!(trusted.check(&good, NOW - 61), Err(NotTrusted::Invalid));
        let others = certificate(&key(2), named("db.internal"));
        assert_eq!(trusted.check(&others, NOW), Err(NotTrusted::Invalid));
        let host = "db.internal".to_owned();
        let elsewhere = certificate(&key(1), named("web.internal"));
        assert_eq!(
            trusted.check(&elsewhere, NOW),
            Err(NotTrusted::OtherHost { host: host.clone() })
        );
        let for_all = certificate(&key(1), |builder| {
            builder.all_principals_valid().unwrap();
        });
        assert_eq!(trusted.check(&for_all, NOW), Err(NotTrusted::OtherHost { host }));
    }

    #[test]
    fn a_users_certificate_and_one_with_critical_options_are_refused() {
        let trusted = by_authority();
        let users = certificate_for(CertType::User, &key(1), named("db.internal"));
        assert_eq!(trusted.check(&users, NOW), Err(NotTrusted::NotForHosts));
        let critical = certificate(&key(1), |builder| {
            builder.valid_principal("db.internal").unwrap();
            builder.critical_option("force-command", "/bin/true").unwrap();
        });
        assert_eq!(trusted.check(&critical, NOW), Err(NotTrusted::CriticalOptions));
    }

    #[test]
    fn a_key_that_a_line_revokes_counts_no_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |seed| key(seed).public_key().to_openssh().unwrap();
        let text = format!(
            "db.internal {}\ndb.internal {}\n@revoked * {}\n@cert-authority * {}\n",
            line(3),
            line(4),
            line(3),
            line(5)
        );
        std::fs::write(file.path(), text).unwrap();
        let server = KnownServer {
            host: "db.internal".to_owned(),
            port: 22,
            by: KnownBy::KnownHosts(file.path().to_owned()),
        };
        let trusted = Trusted::read(&server).unwrap();
        for (seed, is_known) in [(3, false), (4, true), (5, false)] {
            let shown = PublicKeyOrCertificate::from(key(seed).public_key().clone());
            assert_eq!(trusted.check(&shown, NOW).is_ok(), is_known, "{seed}");
        }
    }

    #[test]
    fn a_key_counts_if_the_file_has_it_and_instead_of_a_certificate_never() {
        let bare = |seed| PublicKeyOrCertificate::from(key(seed).public_key().clone());
        let trusted = Trusted {
            host: "db.internal".to_owned(),
            by: TrustedBy::Keys(vec![key(3).public_key().clone()]),
        };
        assert_eq!(trusted.check(&bare(3), NOW), Ok(()));
        assert!(matches!(
            trusted.check(&bare(4), NOW),
            Err(NotTrusted::UnknownKey { known: 1, .. })
        ));
        assert_eq!(
            by_authority().check(&bare(1), NOW),
            Err(NotTrusted::NoCertificate)
        );
    }
}
