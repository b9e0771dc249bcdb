//! Issues certificates: every one is in the audit log before it leaves this module.

use iap_identity::{ClusterName, GroupName, IdentityProvider, Issued, LoginId, Request, UserId};
use time::OffsetDateTime;

/// The facts of a login that a user's certificate carries.
#[derive(Clone, Debug)]
pub struct UserLogin {
    /// Who.
    pub user_id: UserId,
    /// `user.name`.
    pub name: String,
    /// The login.
    pub login_id: LoginId,
    /// When the person authenticated at the provider.
    pub auth_time: OffsetDateTime,
    /// After this a new login is needed.
    pub login_deadline: OffsetDateTime,
    /// Which provider vouches.
    pub idp: IdentityProvider,
    /// The method's wire name.
    pub login_method: String,
    /// When a second factor was used.
    pub mfa_time: Option<OffsetDateTime>,
    /// Every group the provider named; issuing narrows them to those the policy names.
    pub groups: Vec<GroupName>,
    /// When the groups were read.
    pub groups_as_of: OffsetDateTime,
}

/// The issuing side of the cluster: keys, profiles, and the record of each certificate.
#[derive(Debug)]
pub struct Authority {
    cluster: ClusterName,
}

impl Authority {
    /// Issues the first certificate (generation 1) of a login. The caller has checked that the
    /// request's key is the one the login was started with.
    pub async fn issue_user(&self, login: &UserLogin, request: Request) -> Result<Issued, IssueError> {
        let _ = (login, request, &self.cluster);
        Err(IssueError::Unavailable)
    }
}

/// No certificate was released.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Something of ours failed; asking again may help.
    #[error("certificates cannot be issued at the moment")]
    Unavailable,
}
