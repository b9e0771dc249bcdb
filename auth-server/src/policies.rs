//! The applied policy, the way a new one becomes it, and what it says to a user.

mod accounts;
mod apply;
mod ask;
mod who_can;

pub(crate) use ask::service_named;

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use iap_identity::{GroupName, UserPeer};
use iap_policy::{Connectors, LoadOptions, Policy, PolicyErrors, UserFacts, Verb, Vocabulary};
use iap_runtime::big_stack;
use tokio::sync::Mutex;

use crate::authority::UserLogin;
use crate::break_glass;
use crate::config::Config;
use crate::context::AppContext;
use crate::rpc::UserCaller;
use crate::store::{SharedStore, StoreError};

/// The applied policy; an immutable snapshot with one writer.
#[derive(Clone, Debug)]
pub struct Policies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: LoadOptions,
    current: ArcSwap<Applied>,
    /// Held while a document is checked and stored: versions follow each other.
    applying: Mutex<()>,
}

/// One applied document.
#[derive(Debug)]
pub struct Applied {
    /// 0 before the first document: nobody may do anything.
    pub version: u64,
    /// The document, byte for byte.
    pub toml: String,
    /// The same, loaded.
    pub policy: Arc<Policy>,
    /// The version that first named each group.
    pub vocabulary: Vocabulary,
}

/// Why the server cannot start with the policy it has.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored document does not load, though it once did: other connectors or reserved logins are
    /// configured now.
    #[error("the stored policy does not load with this configuration:\n{0}")]
    Load(PolicyErrors),
}

impl Applied {
    /// Those of a user's groups that certificates carry: the ones the policy names.
    pub fn named(&self, groups: &[GroupName]) -> Vec<GroupName> {
        groups
            .iter()
            .filter(|group| self.vocabulary.first_version(group).is_some())
            .cloned()
            .collect()
    }
}

impl Policies {
    /// Loads the stored policy.
    pub async fn load(config: &Config, store: &SharedStore) -> Result<Self, PoliciesError> {
        let options = load_options(config);
        let (version, toml) = match store.policy().await? {
            Some(row) => (row.version, row.toml),
            None => (0, String::new()),
        };
        let vocabulary = Vocabulary::new(store.vocabulary().await?);
        let (source, with) = (toml.clone(), options.clone());
        let loaded = big_stack::run_async(move || Policy::load_with(&source, &with)).await;
        let policy = Arc::new(loaded.map_err(PoliciesError::Load)?.with_version(version));
        let current = ArcSwap::from_pointee(Applied {
            version,
            toml,
            policy,
            vocabulary,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                current,
                applying: Mutex::new(()),
            }),
        })
    }

    /// The applied policy.
    pub fn current(&self) -> Arc<Applied> {
        self.shared.current.load_full()
    }

    /// A user as the policy sees them now: their groups are those last read from the provider, which is
    /// what their next certificate will carry.
    pub async fn caller(&self, context: &AppContext, peer: &UserPeer) -> Result<UserCaller, StoreError> {
        let mut facts = UserFacts::from_peer(peer);
        if let Some(user) = context.store.user(&peer.id).await? {
            facts.groups = user.groups;
            facts.groups_vocabulary = None;
        }
        let is_bootstrap_admin = context.config.bootstrap_admins.contains(&peer.name)
            || peer.login_method == break_glass::LOGIN_METHOD;
        let verbs = match is_bootstrap_admin {
            true => BTreeSet::from(Verb::ALL),
            false => self.current().policy.admin_verbs(&facts),
        };
        Ok(UserCaller {
            peer: peer.clone(),
            facts,
            verbs,
            is_bootstrap_admin,
        })
    }
}

/// What a login's facts are to the policy, before there is a certificate.
pub fn facts_of_login(login: &UserLogin) -> UserFacts {
    UserFacts {
        id: login.user_id.to_string(),
        name: login.name.clone(),
        kind: iap_identity::Class::User,
        groups: login.groups.clone(),
        groups_vocabulary: None,
        auth_time: Some(login.auth_time),
        mfa_time: login.mfa_time,
        acr: login.idp.acr.clone(),
        idp: login.idp.connector.clone(),
        login_method: login.login_method.clone(),
    }
}

pub(crate) fn load_options(config: &Config) -> LoadOptions {
    let single = match config.connectors.as_slice() {
        [only] => Some(only.name.as_str()),
        [] | [_, ..] => None,
    };
    LoadOptions {
        connectors: Connectors::single(single),
        reserved_logins: config.reserved_logins.iter().cloned().collect(),
    }
}
