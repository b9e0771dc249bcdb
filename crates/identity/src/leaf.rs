//! A leaf certificate read into facts. What they must be, class by class, is [`crate::consistency`]'s.

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::class::Class;
use crate::extension::{ExtensionError, IdentityExtension};
use crate::peer::PeerError;
use crate::read;
use crate::uri::IdentityUri;

/// RFC 5321 §4.5.3.1.3, less the brackets.
const EMAIL_BYTES_MAX: usize = 254;

/// What a leaf says. Nothing here has been verified yet.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) uri: IdentityUri,
    pub(crate) email: Option<String>,
    pub(crate) dns: Vec<String>,
    pub(crate) extension: Option<IdentityExtension>,
    pub(crate) client_auth: bool,
    pub(crate) server_auth: bool,
    pub(crate) serial: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) key_thumbprint: [u8; 32],
}

impl Leaf {
    pub(crate) fn read(der: &[u8]) -> Result<Self, PeerError> {
        let certificate = read::certificate(der).map_err(|what| PeerError::Malformed(what.to_owned()))?;
        let extension = identity_extension(&certificate)?;
        if read::has_repeated_extension(&certificate) {
            return Err(PeerError::Malformed("an extension occurs twice".to_owned()));
        }
        let names = Names::read(&certificate)?;
        let (client_auth, server_auth) = usages(&certificate);
        Ok(Self {
            uri: names.uri,
            email: names.email,
            dns: names.dns,
            extension,
            client_auth,
            server_auth,
            serial: read::serial_hex(&certificate),
            not_before: read::not_before(&certificate),
            not_after: read::not_after(&certificate),
            key_thumbprint: crate::sha256(certificate.public_key().raw),
        })
    }

    pub(crate) const fn class(&self) -> Class {
        self.uri.subject.class()
    }
}

/// Whether a display name can be carried as an rfc822Name: ASCII, one `@`, no blanks.
pub(crate) fn is_email(name: &str) -> bool {
    let plain = name.len() <= EMAIL_BYTES_MAX && name.bytes().all(|byte| byte.is_ascii_graphic());
    match name.split_once('@') {
        Some((local, domain)) => plain && !local.is_empty() && !domain.is_empty() && !domain.contains('@'),
        None => false,
    }
}

/// The subject alternative names: exactly one URI, at most one email, any DNS names, nothing else.
struct Names {
    uri: IdentityUri,
    email: Option<String>,
    dns: Vec<String>,
}

impl Names {
    fn read(certificate: &X509Certificate<'_>) -> Result<Self, PeerError> {
        let mut uris = Vec::new();
        let mut emails = Vec::new();
        let mut dns = Vec::new();
        for name in general_names(certificate) {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::RFC822Name(email) => emails.push(*email),
                GeneralName::DNSName(host) => dns.push((*host).to_owned()),
                GeneralName::OtherName(..)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::IPAddress(_)
                | GeneralName::RegisteredID(_)
                | GeneralName::Invalid(..) => {
                    return Err(PeerError::Inconsistent(
                        "it has an alternative name of a foreign type",
                    ));
                }
            }
        }
        let [uri] = uris.as_slice() else {
            return Err(PeerError::Inconsistent("it has not exactly one URI"));
        };
        let uri = IdentityUri::parse(uri).ok_or(PeerError::Inconsistent("its URI is of no known form"))?;
        let email = match emails.as_slice() {
            [] => None,
            [email] if is_email(email) => Some((*email).to_owned()),
            [..] => {
                return Err(PeerError::Inconsistent(
                    "it has a malformed or more than one email address",
                ));
            }
        };
        Ok(Self { uri, email, dns })
    }
}

fn general_names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a GeneralName<'a>> {
    certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
}

fn identity_extension(
    certificate: &X509Certificate<'_>,
) -> Result<Option<IdentityExtension>, ExtensionError> {
    let mut found = certificate
        .extensions()
        .iter()
        .filter(|extension| read::is_identity_extension(extension));
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(extension), None) => IdentityExtension::from_der(extension.value).map(Some),
        (Some(_), Some(_)) => Err(ExtensionError::Duplicate),
    }
}

/// (clientAuth, serverAuth); anything beside the two counts as neither.
fn usages(certificate: &X509Certificate<'_>) -> (bool, bool) {
    match certificate.extended_key_usage() {
        Ok(Some(usage)) => {
            let usage = usage.value;
            let foreign = usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            (usage.client_auth && !foreign, usage.server_auth && !foreign)
        }
        Ok(None) | Err(_) => (false, false),
    }
}
