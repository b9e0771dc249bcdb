//! The rules that tie the facts of a leaf together: one function per class of certificate.

use crate::class::Class;
use crate::extension::{ExtensionError, IdentityExtension};
use crate::ids::{AgentId, AuthId, ProxyId};
use crate::leaf::Leaf;
use crate::names::{BotName, ClusterName, ServiceName, UserId};
use crate::peer::{AgentPeer, AuthPeer, BotPeer, PeerError, ProxyPeer, UserPeer, VerifiedPeer};
use crate::server_name::ServerName;
use crate::uri::Subject;

impl Leaf {
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
        self.matching_extension()?;
        self.require_usages(true, false)?;
        self.require_dns(&[])?;
        let Self {
            email,
            extension,
            serial,
            not_before,
            not_after,
            key_thumbprint,
            ..
        } = self;
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
        Ok(UserPeer {
            id,
            name: display_name(email, name)?,
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

/// The email where there is one, else the name the extension carries for want of one.
fn display_name(email: Option<String>, name: Option<String>) -> Result<String, PeerError> {
    match (email, name) {
        (Some(name), None) | (None, Some(name)) => Ok(name),
        (Some(_), Some(_)) | (None, None) => {
            Err(PeerError::Inconsistent("a user has exactly one display name"))
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
