//! A person's groups changed at the identity provider: the record says how, and sessions that the groups
//! left do not allow are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use iap_audit::{EventKind, UserRecord};
use iap_identity::{Class, GroupName, LockKind, LoginId};
use iap_policy::UserFacts;
use iap_proto::v1;
use serde_json::Value;

use super::Logins;
use super::vouch::ourselves;
use crate::locks::{self, NewLock};
use crate::rpc::RpcError;
use crate::store::{SessionFilter, SessionRow, UserRow};

/// Live sessions of one person that are looked at.
const SESSIONS_MAX: u32 = 10_000;
/// A session that was cut has long ended by then.
const CUT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Groups named in a lock's reason.
const GROUPS_NAMED_MAX: usize = 4;
/// Groups of each direction in a record.
const GROUPS_RECORDED_MAX: usize = 256;

impl Logins {
    /// Keeps what a provider has said about a person, and returns what is kept. Groups that were read later than
    /// these stay, and so do they in what is returned.
    ///
    /// What a change of groups asks for comes first, and only then are the groups kept: whatever fails is done
    /// again the next time the provider says the same.
    ///
    /// # Errors
    /// When the store, a record or a lock fails; then the person stands as before.
    pub(super) async fn keep_person(&self, login: LoginId, read: UserRow) -> Result<UserRow, RpcError> {
        let _turn = self.person_turns.take(&read.user_id).await;
        let store = &self.context.store;
        let Some(known) = store.user(&read.user_id).await? else {
            store.upsert_user(&read).await?;
            return Ok(read);
        };
        let mut kept = UserRow {
            last_login: read.last_login.max(known.last_login),
            ..read
        };
        if known.groups_as_of > kept.groups_as_of {
            kept.groups.clone_from(&known.groups);
            kept.groups_as_of = known.groups_as_of;
        }
        if known.groups != kept.groups {
            self.groups_changed(login, &known, &kept).await?;
        }
        store.upsert_user(&kept).await?;
        Ok(kept)
    }

    async fn groups_changed(&self, login: LoginId, before: &UserRow, now: &UserRow) -> Result<(), RpcError> {
        let missing = |from: &UserRow, at: &UserRow| -> Vec<GroupName> {
            let there: BTreeSet<_> = at.groups.iter().collect();
            let gone = from.groups.iter().filter(|group| !there.contains(group));
            gone.cloned().collect()
        };
        let (removed, added) = (missing(before, now), missing(now, before));
        let event = self.context.audit.event(EventKind::LoginRegrouped)?;
        let user = UserRecord {
            id: now.user_id.to_string(),
            name: before.name.clone(),
            kind: "user".to_owned(),
        };
        let event = event
            .user(&user)
            .login_id(&login)
            .field("connector", now.connector.as_str())
            .field("added", names(&added, GROUPS_RECORDED_MAX))
            .field("removed", names(&removed, GROUPS_RECORDED_MAX));
        self.context.audit.record(event).await?;
        let mattered = self.context.policies.current().named(&removed);
        match mattered.is_empty() {
            true => Ok(()),
            false => self.cut_sessions(now, &mattered).await,
        }
    }

    /// Cuts the live sessions that the policy no longer allows this person. What a session was allowed by is
    /// not looked at: whoever is not seen to be allowed is cut, and may ask again.
    async fn cut_sessions(&self, user: &UserRow, removed: &[GroupName]) -> Result<(), RpcError> {
        let filter = SessionFilter {
            user_id: Some(user.user_id.to_string()),
            live_only: true,
            limit: SESSIONS_MAX,
            ..SessionFilter::default()
        };
        let live = self.context.store.sessions(&filter).await?;
        let mut seen: BTreeMap<IpAddr, Vec<v1::VisibleService>> = BTreeMap::new();
        for session in live {
            let (client, login) = self.start_of(&session).await?;
            if let std::collections::btree_map::Entry::Vacant(place) = seen.entry(client) {
                let context = &self.context;
                place.insert(context.policies.visible(context, facts(user), client).await);
            }
            let visible = seen.get(&client).map(Vec::as_slice).unwrap_or_default();
            if !allows(visible, &session.service, login.as_deref()) {
                self.cut(&session, removed).await?;
            }
        }
        Ok(())
    }

    /// Where the session's client is, and the login it was granted, as its start record says.
    async fn start_of(&self, session: &SessionRow) -> Result<(IpAddr, Option<String>), RpcError> {
        let records = self
            .context
            .store
            .session_records(session.session_id, 0, 1)
            .await?;
        let start: Value = records
            .first()
            .and_then(|record| serde_json::from_slice(&record.bytes).ok())
            .unwrap_or_default();
        let text = |field: &str| start.get(field).and_then(Value::as_str);
        let client = text("client_ip").and_then(|ip| ip.parse().ok());
        Ok((
            client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            text("login").map(str::to_owned),
        ))
    }

    async fn cut(&self, session: &SessionRow, removed: &[GroupName]) -> Result<(), RpcError> {
        let lock = NewLock {
            kind: LockKind::Session,
            target: session.session_id.to_string(),
            reason: format!(
                "groups were taken away at the identity provider: {}",
                names(removed, GROUPS_NAMED_MAX).join(", ")
            ),
            life: Some(CUT_LIFE),
        };
        locks::add_by_rule(&self.context, &ourselves(&self.context), lock).await?;
        Ok(())
    }
}

fn allows(visible: &[v1::VisibleService], service: &str, login: Option<&str>) -> bool {
    let found = visible
        .iter()
        .find(|seen| seen.service.as_ref().is_some_and(|record| record.name == service));
    found.is_some_and(|seen| match login {
        Some(login) => seen
            .logins
            .iter()
            .any(|allowed| allowed == login || allowed == "*"),
        None => true,
    })
}

fn facts(user: &UserRow) -> UserFacts {
    UserFacts {
        id: user.user_id.to_string(),
        name: user.name.clone(),
        kind: Class::User,
        groups: user.groups.clone(),
        groups_vocabulary: None,
        auth_time: Some(user.last_login),
        acr: None,
        mfa_time: None,
        idp: user.connector.clone(),
        login_method: "browser".to_owned(),
    }
}

fn names(groups: &[GroupName], most: usize) -> Vec<String> {
    groups.iter().take(most).map(ToString::to_string).collect()
}
