//! What a person needs for the SSH services they may reach: certificates for those whose server sees them, and for all of
//! them the authority that vouches for the host. It comes with each certificate of theirs and lives as long.

use std::sync::Arc;

use iap_audit::UserRecord;
use iap_identity::{LoginId, LoginName, Request, RequestError, ServiceName};
use iap_proto::v1;
use time::OffsetDateTime;

use crate::authority::ServiceKeys;
use crate::authority::backend::{BackendIssueError, UserSshAsked, UserSshIssuer};
use crate::context::AppContext;

/// Services that certificates are issued for at once. Who may reach more names the one they want by its agent's inspection.
const SERVICES_MAX: usize = 128;
/// Accounts that one certificate names.
const LOGINS_MAX: usize = iap_identity::backend::SSH_PRINCIPALS_MAX;
const SSH: &str = "ssh";
const ANY: &str = "*";

/// Who it is for.
#[derive(Debug)]
pub struct Person {
    /// Their name and id.
    pub user: UserRecord,
    /// By which login.
    pub login_id: LoginId,
    /// The name they have at services that give everybody an account of their own.
    pub local: String,
    /// When their certificate ends.
    pub not_after: OffsetDateTime,
}

/// The key that SSH certificates are for, if any are wanted.
///
/// # Errors
/// When it is no request for a certificate.
pub fn request(csr: &[u8]) -> Result<Option<Request>, RequestError> {
    (!csr.is_empty()).then(|| Request::parse(csr)).transpose()
}

/// Issues for those of the `visible` services that speak SSH. What goes wrong is logged and left out: a login is good
/// without it.
pub async fn of(
    context: &AppContext,
    person: &Person,
    visible: &[v1::VisibleService],
    request: Option<&Request>,
) -> Vec<v1::SshAccess> {
    let Some(request) = request else {
        return Vec::new();
    };
    match issue(context, person, visible, request).await {
        Ok(access) => access,
        Err(error) => {
            tracing::error!(%error, user = person.user.name, "no SSH certificates");
            Vec::new()
        }
    }
}

async fn issue(
    context: &AppContext,
    person: &Person,
    visible: &[v1::VisibleService],
    request: &Request,
) -> Result<Vec<v1::SshAccess>, BackendIssueError> {
    let mut issuer = UserSshIssuer::new(
        &context.authority,
        &person.user,
        person.login_id,
        person.not_after,
    );
    let mut access = Vec::new();
    let services = visible
        .iter()
        .filter_map(|visible| Some((visible, visible.service.as_ref()?)));
    for (visible, service) in services
        .filter(|(_, service)| service.protocol == SSH)
        .take(SERVICES_MAX)
    {
        let Ok(name) = ServiceName::parse(&service.name) else {
            continue;
        };
        let keys: Arc<ServiceKeys> = context.authority.services.of(&name).await?;
        let logins = logins(visible, &person.local);
        let certificate = match service.inspect || logins.is_empty() {
            // The agent logs in by itself, or nobody does.
            true => Vec::new(),
            false => {
                let asked = UserSshAsked {
                    service: &name,
                    logins: &logins,
                    request,
                };
                issuer.issue(&asked, &keys)?.to_bytes()
            }
        };
        access.push(v1::SshAccess {
            service: service.name.clone(),
            certificate,
            user_authority: keys.ssh_user.to_bytes(),
            host_authority: keys.ssh_host.to_bytes(),
            login: visible.login.clone(),
        });
    }
    issuer.record().await?;
    Ok(access)
}

/// The accounts that the policy gives now, the default first. Any comes to the default and the person's own.
fn logins(visible: &v1::VisibleService, local: &str) -> Vec<LoginName> {
    let own = visible.logins.iter().any(|login| login == ANY).then_some(local);
    let default = Some(visible.login.as_str()).filter(|login| !login.is_empty());
    let named = visible
        .logins
        .iter()
        .map(String::as_str)
        .filter(|login| *login != ANY);
    let mut logins = Vec::new();
    for login in default.into_iter().chain(named).chain(own) {
        if let Ok(login) = LoginName::parse(login)
            && !logins.contains(&login)
        {
            logins.push(login);
        }
    }
    logins.truncate(LOGINS_MAX);
    logins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(logins: &[&str], default: &str) -> Vec<String> {
        let visible = v1::VisibleService {
            logins: logins.iter().map(ToString::to_string).collect(),
            login: default.to_owned(),
            ..v1::VisibleService::default()
        };
        let found = super::logins(&visible, "alice");
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_comes_first_and_each_login_once() {
        assert_eq!(names(&["deploy", "root"], "root"), ["root", "deploy"]);
        assert_eq!(names(&["deploy"], ""), ["deploy"]);
    }

    #[test]
    fn any_login_is_the_default_and_the_persons_own() {
        assert_eq!(names(&["*"], "deploy"), ["deploy", "alice"]);
        assert_eq!(names(&["*", "alice"], "alice"), ["alice"]);
    }
}
