//! The profile's rules about form (RFC 5280 §4.1, §4.2), checked on finished bytes.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ParsedExtension, X509Extension};

use crate::ca::IssuerCertificate;
use crate::read;

/// A rule that a leaf breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LintError(&'static str);

/// Checks a leaf against every rule of form.
pub(crate) fn leaf(der: &[u8], issuer: &IssuerCertificate) -> Result<(), LintError> {
    let certificate = read::certificate(der).map_err(LintError)?;
    fields(&certificate, issuer)?;
    let mut seen = Seen::default();
    for extension in certificate.extensions() {
        seen.note(extension)?;
    }
    seen.complete()?;
    key_identifiers(&certificate, issuer)
}

fn fields(certificate: &X509Certificate<'_>, issuer: &IssuerCertificate) -> Result<(), LintError> {
    let issuer_certificate = read::certificate(issuer.der()).map_err(LintError)?;
    rule(
        read::not_after(certificate) <= issuer.not_after(),
        "it outlives its authority",
    )?;
    rule(
        certificate.raw_serial().len() == 20
            && certificate.raw_serial().first().is_some_and(|byte| *byte < 0x80),
        "its serial is not a positive number of 20 bytes",
    )?;
    rule(
        certificate.subject().iter().next().is_none(),
        "its subject is not empty",
    )?;
    rule(
        certificate.issuer().as_raw() == issuer_certificate.subject().as_raw(),
        "its issuer is not the authority's subject",
    )?;
    rule(
        !read::has_repeated_extension(certificate),
        "an extension occurs twice",
    )
}

/// The extensions a leaf must have; whether the identity extension belongs is the class's affair.
#[derive(Default)]
struct Seen {
    constraints: bool,
    key_usage: bool,
    extended_key_usage: bool,
    names: bool,
}

impl Seen {
    fn note(&mut self, extension: &X509Extension<'_>) -> Result<(), LintError> {
        let critical = extension.critical;
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) => {
                self.constraints = true;
                let plain = critical && !constraints.ca && constraints.path_len_constraint.is_none();
                rule(plain, "its basic constraints are not critical cA=FALSE")
            }
            ParsedExtension::KeyUsage(usage) => {
                self.key_usage = true;
                // digitalSignature is bit 0.
                rule(
                    critical && usage.flags == 1,
                    "its key usage is not critical digitalSignature",
                )
            }
            ParsedExtension::ExtendedKeyUsage(_) => {
                self.extended_key_usage = true;
                rule(!critical, "its extended key usage is critical")
            }
            ParsedExtension::SubjectAlternativeName(_) => {
                self.names = true;
                rule(
                    critical,
                    "its alternative names are not critical although its subject is empty",
                )
            }
            ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {
                rule(!critical, "a key identifier is critical")
            }
            _ if read::is_identity_extension(extension) => {
                rule(!critical, "its identity extension is critical")
            }
            _ => Err(LintError("it has an extension that belongs to no leaf")),
        }
    }

    fn complete(&self) -> Result<(), LintError> {
        rule(self.constraints, "it has no basic constraints")?;
        rule(self.key_usage, "it has no key usage")?;
        rule(self.extended_key_usage, "it has no extended key usage")?;
        rule(self.names, "it has no alternative names")
    }
}

fn key_identifiers(certificate: &X509Certificate<'_>, issuer: &IssuerCertificate) -> Result<(), LintError> {
    let own = read::key_identifier(&certificate.public_key().subject_public_key.data);
    rule(
        read::subject_key_identifier(certificate).as_deref() == Some(&own),
        "its subject key identifier is not that of its key",
    )?;
    rule(
        read::authority_key_identifier(certificate).as_deref() == Some(issuer.key_identifier()),
        "its authority key identifier is not that of its authority",
    )
}

const fn rule(holds: bool, otherwise: &'static str) -> Result<(), LintError> {
    if holds { Ok(()) } else { Err(LintError(otherwise)) }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use iap_testkit::{Forgery, TestCluster};
    use rcgen::{BasicConstraints, CustomExtension, IsCa, KeyUsagePurpose};

    use super::*;

    /// The verdict on a good user certificate after spoiling it.
    fn verdict(spoil: impl FnOnce(&mut Forgery)) -> Result<(), LintError> {
        let cluster = TestCluster::new("iap.example.com").unwrap();
        let mut forgery = Forgery::user(&cluster).unwrap();
        spoil(&mut forgery);
        // By bytes: the kit was built with the crate as others see it.
        let authority = cluster.bundle().authorities(iap_testkit::USER_CA)[0].to_vec();
        let der = forgery.signed_by(&cluster, iap_testkit::USER_CA).unwrap();
        leaf(&der, &IssuerCertificate::parse(&authority).unwrap())
    }

    #[test]
    fn a_good_leaf_passes() {
        assert_eq!(verdict(|_| {}), Ok(()));
    }

    #[test]
    fn every_rule_can_be_broken() {
        type Spoil = fn(&mut Forgery);
        let foreign = |forgery: &mut Forgery| {
            forgery.foreign_extension = Some(CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 32473, 9],
                vec![5, 0],
            ));
        };
        let spoils: [(Spoil, &str); 14] = [
            (
                |forgery| forgery.not_after += time::Duration::days(3000),
                "it outlives its authority",
            ),
            (
                |forgery| forgery.serial = vec![0x40; 19],
                "its serial is not a positive number of 20 bytes",
            ),
            (
                |forgery| forgery.serial = vec![0x80; 20],
                "its serial is not a positive number of 20 bytes",
            ),
            (
                |forgery| forgery.common_name = Some("alice".to_owned()),
                "its subject is not empty",
            ),
            (
                |forgery| forgery.extensions.push(vec![5, 0]),
                "an extension occurs twice",
            ),
            (
                |forgery| forgery.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
                "its basic constraints are not critical cA=FALSE",
            ),
            (
                |forgery| forgery.is_ca = IsCa::NoCa,
                "it has no basic constraints",
            ),
            (
                |forgery| forgery.key_usages.push(KeyUsagePurpose::KeyCertSign),
                "its key usage is not critical digitalSignature",
            ),
            (|forgery| forgery.key_usages.clear(), "it has no key usage"),
            (|forgery| forgery.usages.clear(), "it has no extended key usage"),
            (
                |forgery| forgery.critical = true,
                "its identity extension is critical",
            ),
            (foreign, "it has an extension that belongs to no leaf"),
            (
                |forgery| forgery.key_identifier = Some(vec![1; 20]),
                "its subject key identifier is not that of its key",
            ),
            (
                |forgery| forgery.names_authority = false,
                "its authority key identifier is not that of its authority",
            ),
        ];
        for (spoil, rule) in spoils {
            assert_eq!(verdict(spoil), Err(LintError(rule)));
        }
    }

    #[test]
    fn the_issuer_must_be_the_authority_given() {
        let (cluster, other) = (
            TestCluster::new("iap.example.com").unwrap(),
            TestCluster::new("iap.example.com").unwrap(),
        );
        let der = Forgery::user(&cluster)
            .unwrap()
            .signed_by(&cluster, iap_testkit::USER_CA)
            .unwrap();
        let authority = other.bundle().authorities(iap_testkit::USER_CA)[0].to_vec();
        let result = leaf(&der, &IssuerCertificate::parse(&authority).unwrap());
        assert_eq!(
            result,
            Err(LintError("its issuer is not the authority's subject"))
        );
    }
}
