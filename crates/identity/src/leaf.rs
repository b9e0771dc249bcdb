//! A leaf certificate read into facts, and the rules that tie those facts together by class:
//! DESIGN §5's table, one function per column.

use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::class::Class;
use crate::extension::{ExtensionError, IdentityExtension};
use crate::ids::{AgentId, AuthId, ProxyId};
use crate::names::{BotName, ClusterName, ServiceName, UserId};
use crate::peer::{AgentPeer, AuthPeer, BotPeer, PeerError, ProxyPeer, UserPeer, VerifiedPeer};
use crate::read;
use crate::server_name::ServerName;
use crate::uri::{IdentityUri, Subject};

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

    /// The peer behind a client certificate, if all its parts agree.
    pub(crate) fn into_peer(self) -> Result<VerifiedPeer, PeerError> {
        match self.uri.subject.clone() {
            Subject::User(id) => self.into_user(id).map(VerifiedPeer::User),
            Subject::Bot(name) => self.into_bot(name).map(VerifiedPeer::Bot),
            Subject::Agent(id) => self.into_agent(id).map(VerifiedPeer::Agent),
            Subject::Proxy(id) => self.into_proxy(id).map(VerifiedPeer::Proxy),
            Subject::Auth(id) => self.into_auth(id).map(VerifiedPeer::Auth),
            Subject::Workload(_) => Err(PeerError::WrongClass {
                found: Class::Workload,
            }),
        }
    }

    /// The agent and the service of a service leaf, if all its parts agree.
    pub(crate) fn service_leaf(&self) -> Result<(AgentId, ServiceName), PeerError> {
        let Subject::Agent(agent) = self.uri.subject else {
            return Err(PeerError::WrongClass { found: self.class() });
        };
        if self.extension.is_some() {
            return Err(ExtensionError::Unexpected.into());
        }
        self.require_usages(false, true)?;
        self.require_no_email()?;
        let [host] = self.dns.as_slice() else {
            return Err(PeerError::Inconsistent("a service leaf has exactly one DNS name"));
        };
        match ServerName::parse(host, &self.uri.cluster) {
            Ok(ServerName::Service(service)) if self.uri.cluster.service_host(&service) == *host => {
                Ok((agent, service))
            }
            Ok(_) | Err(_) => Err(PeerError::Inconsistent(
                "a service leaf's DNS name is not a service's",
            )),
        }
    }

    fn into_user(self, id: UserId) -> Result<UserPeer, PeerError> {
        let Self {
            email,
            dns,
            extension,
            serial,
            not_before,
            not_after,
            key_thumbprint,
            ..
        } = {
            self.matching_extension()?;
            self.require_usages(true, false)?;
            self
        };
        let Some(extension) = extension else {
            return Err(ExtensionError::Missing.into());
        };
        let IdentityExtension {
            kind: _,
            cluster: _,
            principal: _,
            login_id: Some(login_id),
            auth_time: Some(auth_time),
            login_deadline: Some(login_deadline),
            generation: Some(generation),
            idp: Some(idp),
            login_method: Some(login_method),
            mfa_time,
            device_id,
            groups,
            groups_vocabulary: Some(groups_vocabulary),
            groups_as_of: Some(groups_as_of),
            name,
        } = extension
        else {
            return Err(PeerError::Inconsistent(
                "a user's identity extension lacks a login field",
            ));
        };
        if not_after > login_deadline {
            return Err(PeerError::Inconsistent("it outlives its login deadline"));
        }
        if !dns.is_empty() {
            return Err(PeerError::Inconsistent("a user has no DNS name"));
        }
        let name = match (email, name) {
            (Some(email), None) => email,
            (None, Some(name)) => name,
            (Some(_), Some(_)) | (None, None) => {
                return Err(PeerError::Inconsistent("a user has exactly one display name"));
            }
        };
        Ok(UserPeer {
            id,
            name,
            login_id,
            auth_time,
            login_deadline,
            generation,
            idp,
            login_method,
            mfa_time,
            device_id,
            groups,
            groups_vocabulary,
            groups_as_of,
            serial,
            not_before,
            not_after,
            key_thumbprint,
        })
    }

    fn into_bot(self, name: BotName) -> Result<BotPeer, PeerError> {
        let extension = self.matching_extension()?;
        let (login_id, generation) = (extension.login_id, extension.generation.unwrap_or(0));
        self.require_usages(true, false)?;
        self.require_no_email()?;
        self.require_dns(&[])?;
        let Self {
            serial,
            not_before,
            not_after,
            key_thumbprint,
            ..
        } = self;
        Ok(BotPeer {
            name,
            login_id,
            generation,
            serial,
            not_before,
            not_after,
            key_thumbprint,
        })
    }

    fn into_agent(self, id: AgentId) -> Result<AgentPeer, PeerError> {
        let generation = self.matching_extension()?.generation.unwrap_or(0);
        self.require_machine(&[self.uri.cluster.agent_host(&id)])?;
        let Self {
            serial,
            not_before,
            not_after,
            key_thumbprint,
            ..
        } = self;
        Ok(AgentPeer {
            id,
            generation,
            serial,
            not_before,
            not_after,
            key_thumbprint,
        })
    }

    fn into_proxy(self, id: ProxyId) -> Result<ProxyPeer, PeerError> {
        self.matching_extension()?;
        self.require_machine(&proxy_hosts(&self.uri.cluster))?;
        let Self {
            serial,
            not_before,
            not_after,
            key_thumbprint,
            ..
        } = self;
        Ok(ProxyPeer {
            id,
            serial,
            not_before,
            not_after,
            key_thumbprint,
        })
    }

    fn into_auth(self, id: AuthId) -> Result<AuthPeer, PeerError> {
        self.matching_extension()?;
        self.require_machine(&auth_hosts(&self.uri.cluster))?;
        let Self {
            serial,
            not_before,
            not_after,
            key_thumbprint,
            ..
        } = self;
        Ok(AuthPeer {
            id,
            serial,
            not_before,
            not_after,
            key_thumbprint,
        })
    }

    /// The extension, which must say what the URI says. (That the URI's class has signed it is path
    /// validation's business: the anchor is chosen by that class.)
    fn matching_extension(&self) -> Result<&IdentityExtension, PeerError> {
        let extension = self.extension.as_ref().ok_or(ExtensionError::Missing)?;
        if extension.kind != self.class() {
            return Err(PeerError::Inconsistent("the extension's kind is not the URI's"));
        }
        if extension.cluster != self.uri.cluster {
            return Err(PeerError::Inconsistent(
                "the extension's cluster is not the URI's",
            ));
        }
        if extension.principal != self.uri.subject.principal() {
            return Err(PeerError::Inconsistent(
                "the extension's principal is not the URI's",
            ));
        }
        Ok(extension)
    }

    fn require_machine(&self, hosts: &[String]) -> Result<(), PeerError> {
        self.require_usages(true, true)?;
        self.require_no_email()?;
        self.require_dns(hosts)
    }

    fn require_usages(&self, client_auth: bool, server_auth: bool) -> Result<(), PeerError> {
        if (self.client_auth, self.server_auth) == (client_auth, server_auth) {
            Ok(())
        } else {
            Err(PeerError::Inconsistent(
                "the extended key usage is not that of its class",
            ))
        }
    }

    fn require_no_email(&self) -> Result<(), PeerError> {
        match self.email {
            Some(_) => Err(PeerError::Inconsistent("only users have an email address")),
            None => Ok(()),
        }
    }

    fn require_dns(&self, hosts: &[String]) -> Result<(), PeerError> {
        if self.dns == hosts {
            Ok(())
        } else {
            Err(PeerError::Inconsistent(
                "the DNS names are not those of its class",
            ))
        }
    }
}

/// The DNS names of a proxy's certificate.
pub(crate) fn proxy_hosts(cluster: &ClusterName) -> [String; 1] {
    [cluster.proxy_host()]
}

/// The DNS names of an auth server's certificate.
pub(crate) fn auth_hosts(cluster: &ClusterName) -> [String; 2] {
    [cluster.auth_host(), cluster.to_string()]
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
