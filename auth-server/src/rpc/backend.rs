//! `iap.v1.Agent/BackendCredentials`: what an agent logs in to a service's backend with, ahead of need, so that no
//! session waits for us.

use std::net::IpAddr;

use iap_audit::UserRecord;
use iap_identity::backend::{SSH_HOST_CERTIFICATE_LIFE_MAX, SshHostKey};
use iap_identity::{AgentPeer, LoginName, Request as CertificateRequest, ServiceName};
use iap_policy::{Protocol, ServiceFacts};
use iap_proto::v1;

use super::RpcError;
use crate::authority::ServiceKeys;
use crate::authority::backend::{BackendAsked, BackendIssueError, SshHostAsked};
use crate::authority::sources::ADDRESSES_PER_AGENT_MAX;
use crate::context::AppContext;
use crate::policies::service_named;

/// Accounts of one service that certificates are issued for.
pub(super) const LOGINS_MAX: usize = 512;
/// Accounts that an agent may name beside those the policy tells.
const LOGINS_ASKED_MAX: usize = 64;
/// How long a server's own certificate lives unless somebody says otherwise.
const SSH_HOST_LIFE_DEFAULT: time::Duration = time::Duration::days(90);
const SSH_HOST_LIFE_MIN: time::Duration = time::Duration::minutes(5);

/// Answers an agent that the gate let through.
pub(super) async fn credentials(
    context: &AppContext,
    agent: &AgentPeer,
    asked: &v1::BackendCredentialsRequest,
) -> Result<v1::BackendCredentialsReply, RpcError> {
    let name = ServiceName::parse(&asked.service).map_err(RpcError::invalid)?;
    if !context.store.is_granted(agent.id, &name).await? {
        let text = format!("the service {name} is not granted to this agent");
        return Err(RpcError::denied(text));
    }
    let service = service_named(context, &name)?;
    let request = CertificateRequest::parse(&asked.csr).map_err(RpcError::invalid)?;
    let source_addresses = source_addresses(&asked.source_addresses)?;
    let (logins, complete) = logins(context, &service, &asked.logins, asked.only).await?;
    let keys = context.authority.services.of(&name).await;
    let keys = keys.map_err(RpcError::internal)?;
    let issuing = BackendAsked {
        agent: agent.id,
        service: &name,
        logins: &logins,
        request: &request,
        source_addresses,
    };
    let reply = match service.protocol {
        Protocol::Postgres => client_logins(context, &issuing, &keys).await?,
        Protocol::Ssh => ssh_logins(context, &issuing, &keys, &asked.host_csr).await?,
        Protocol::Tcp | Protocol::Http => {
            let text = format!(
                "{name} speaks {}, for whose backends there are no credentials",
                service.protocol.as_str()
            );
            return Err(RpcError::invalid(text));
        }
    };
    Ok(v1::BackendCredentialsReply { complete, ..reply })
}

async fn client_logins(
    context: &AppContext,
    issuing: &BackendAsked<'_>,
    keys: &ServiceKeys,
) -> Result<v1::BackendCredentialsReply, RpcError> {
    let issued = context.authority.issue_client_logins(issuing, keys).await?;
    let to_wire = |leaf: &iap_identity::backend::ClientLeaf| v1::BackendLogin {
        login: leaf.login().to_string(),
        certificate: leaf.der().to_vec(),
    };
    Ok(v1::BackendCredentialsReply {
        logins: issued.iter().map(to_wire).collect(),
        authority: keys.client.der().to_vec(),
        ..v1::BackendCredentialsReply::default()
    })
}

async fn ssh_logins(
    context: &AppContext,
    issuing: &BackendAsked<'_>,
    keys: &ServiceKeys,
    host_csr: &[u8],
) -> Result<v1::BackendCredentialsReply, RpcError> {
    let issued = context.authority.issue_ssh_logins(issuing, keys).await?;
    let host_certificate = match host_csr {
        [] => Vec::new(),
        csr => {
            let request = CertificateRequest::parse(csr).map_err(RpcError::invalid)?;
            let issuing = BackendAsked {
                request: &request,
                logins: &[],
                source_addresses: Vec::new(),
                ..*issuing
            };
            let names = ssh_host_names(context, issuing.service);
            let certificate = context.authority.issue_ssh_host(&issuing, names, keys).await?;
            certificate.to_bytes()
        }
    };
    let to_wire =
        |(login, certificate): &(LoginName, iap_identity::backend::SshCertificate)| v1::BackendLogin {
            login: login.to_string(),
            certificate: certificate.to_bytes(),
        };
    Ok(v1::BackendCredentialsReply {
        logins: issued.iter().map(to_wire).collect(),
        authority: keys.ssh_user.to_bytes(),
        host_certificate,
        host_authority: keys.ssh_host.to_bytes(),
        ..v1::BackendCredentialsReply::default()
    })
}

/// Certifies the own key of a service's SSH server, in the name of whoever vouches for it.
pub(super) async fn sign_ssh_host(
    context: &AppContext,
    author: &UserRecord,
    asked: &v1::SshHostSignRequest,
) -> Result<v1::SshHostSignReply, RpcError> {
    let name = ServiceName::parse(&asked.service).map_err(RpcError::invalid)?;
    let service = service_named(context, &name)?;
    if service.protocol != Protocol::Ssh {
        let protocol = service.protocol.as_str();
        return Err(RpcError::invalid(format!("{name} speaks {protocol}, not ssh")));
    }
    let key = SshHostKey::parse(&asked.public_key).map_err(RpcError::invalid)?;
    let life = match asked.ttl_seconds {
        0 => SSH_HOST_LIFE_DEFAULT,
        seconds => time::Duration::seconds(seconds.into()),
    };
    if life < SSH_HOST_LIFE_MIN || life > SSH_HOST_CERTIFICATE_LIFE_MAX {
        let (least, most) = (
            SSH_HOST_LIFE_MIN.whole_minutes(),
            SSH_HOST_CERTIFICATE_LIFE_MAX.whole_days(),
        );
        let text = format!("a server's certificate lives between {least} minutes and {most} days");
        return Err(RpcError::invalid(text));
    }
    let keys = context.authority.services.of(&name).await;
    let keys = keys.map_err(RpcError::internal)?;
    let asked = SshHostAsked {
        author,
        service: &name,
        names: ssh_host_names(context, &name),
        key: &key,
        life,
    };
    let certificate = context.authority.sign_ssh_host(asked, &keys).await?;
    Ok(v1::SshHostSignReply {
        certificate: certificate.to_bytes(),
        authority: keys.ssh_host.to_bytes(),
        not_after_unix_ms: iap_proto::convert::time_to_wire(certificate.not_after()),
    })
}

/// What clients call an SSH service: its full name, by which known hosts are kept.
fn ssh_host_names(context: &AppContext, service: &ServiceName) -> Vec<String> {
    vec![context.authority.cluster.service_host(service)]
}

/// The accounts the policy tells, then those the agent was asked for, as far as a rule could give them.
async fn logins(
    context: &AppContext,
    service: &ServiceFacts,
    asked: &[String],
    only: bool,
) -> Result<(Vec<LoginName>, bool), RpcError> {
    if asked.len() > LOGINS_ASKED_MAX {
        let text = format!("at most {LOGINS_ASKED_MAX} logins can be asked for");
        return Err(RpcError::invalid(text));
    }
    let room = LOGINS_MAX - asked.len();
    let accounts = context.policies.accounts(context, service.clone(), room).await?;
    let mut logins = match only {
        true => Vec::new(),
        false => accounts.named.clone(),
    };
    for login in asked {
        let login = LoginName::parse(login).map_err(RpcError::invalid)?;
        if accounts.could_be(&login) && !logins.contains(&login) {
            logins.push(login);
        }
    }
    Ok((logins, accounts.complete))
}

pub(super) fn source_addresses(given: &[String]) -> Result<Vec<IpAddr>, RpcError> {
    if given.len() > ADDRESSES_PER_AGENT_MAX {
        let text = format!("at most {ADDRESSES_PER_AGENT_MAX} source addresses can be named");
        return Err(RpcError::invalid(text));
    }
    let parse = |text: &String| {
        let address: IpAddr = text
            .parse()
            .map_err(|_| RpcError::invalid(format!("{text:?} is no IP address")))?;
        Ok(address.to_canonical())
    };
    given.iter().map(parse).collect()
}

impl From<BackendIssueError> for RpcError {
    fn from(error: BackendIssueError) -> Self {
        match error {
            BackendIssueError::Quota(exceeded) => {
                RpcError::new(super::ErrorCode::TooMany, exceeded.to_string())
            }
            BackendIssueError::Ssh(
                error @ (iap_identity::backend::SshIssueError::Key
                | iap_identity::backend::SshIssueError::Principals),
            ) => RpcError::invalid(error),
            BackendIssueError::Keys(_)
            | BackendIssueError::Client(_)
            | BackendIssueError::Ssh(_)
            | BackendIssueError::Record(_)
            | BackendIssueError::NoRandomness(_) => RpcError::internal(error),
        }
    }
}
