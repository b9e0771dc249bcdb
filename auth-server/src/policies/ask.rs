//! What the policy says to a user: which services they see, and why a question is answered as it is.

use std::net::IpAddr;
use std::sync::Arc;

use iap_identity::{Class, GroupName, LoginName, ServiceName, UserId};
use iap_policy::{
    Asked, Connectors, Decision, Effect, Policy, Question, ServiceFacts, UserFacts, Verb, Visible, Vocabulary,
};
use iap_proto::v1;
use iap_runtime::big_stack;
use serde_json::json;
use time::OffsetDateTime;

use super::Policies;
use crate::context::AppContext;
use crate::rpc::{RpcError, UserCaller};
use crate::store::UserRow;

const GROUPS_ASKED_MAX: usize = 256;
const DATABASE_BYTES_MAX: usize = 63;

/// A question with everything it needs, so that it can move to a large stack.
struct Asking {
    /// What the answer cannot know.
    note: Option<String>,
    policy: Arc<Policy>,
    vocabulary: Vocabulary,
    user: UserFacts,
    service: ServiceFacts,
    login: Option<LoginName>,
    database: Option<String>,
    client_ip: IpAddr,
    now: OffsetDateTime,
}

impl Policies {
    /// The services a user sees, from that address, now.
    pub async fn visible(
        &self,
        context: &AppContext,
        user: UserFacts,
        client_ip: IpAddr,
    ) -> Vec<v1::VisibleService> {
        let (applied, snapshot, now) = (self.current(), context.feed.snapshot(), context.clock.now());
        let look = move || {
            let services = snapshot.content.services.iter();
            let see = |service: &iap_proto::ServiceRecord| {
                let facts = &service.facts;
                let seen = applied
                    .policy
                    .visible(&user, facts, &applied.vocabulary, client_ip, now)?;
                Some(visible_to_wire(service, seen))
            };
            services.filter_map(see).collect()
        };
        big_stack::run_async(look).await
    }

    /// Explains a decision: the caller's own, or another's to those who may read the policy.
    pub async fn explain(
        &self,
        context: &AppContext,
        caller: &UserCaller,
        client_ip: IpAddr,
        request: v1::ExplainRequest,
    ) -> Result<v1::ExplainReply, RpcError> {
        let reads_policy = caller.may(Verb::PolicyRead);
        let asks_beyond =
            !request.user.is_empty() || !request.groups.is_empty() || !request.policy_toml.is_empty();
        if asks_beyond && !reads_policy {
            let text =
                "explaining decisions about others, with other groups or by another policy needs policy.read";
            return Err(RpcError::denied(text));
        }
        let asking = self.asking(context, caller, client_ip, &request).await?;
        big_stack::run_async(move || match reads_policy {
            true => asking.explain(),
            false => asking.answer(),
        })
        .await
        .map_err(RpcError::internal)
    }

    async fn asking(
        &self,
        context: &AppContext,
        caller: &UserCaller,
        client_ip: IpAddr,
        request: &v1::ExplainRequest,
    ) -> Result<Asking, RpcError> {
        let applied = self.current();
        let service = ServiceName::parse(&request.service).map_err(RpcError::invalid)?;
        let service = service_named(context, &service)?;
        let login = Some(request.login.as_str()).filter(|login| !login.is_empty());
        let client_ip = match request.client_ip.as_str() {
            "" => client_ip,
            text => text
                .parse()
                .map_err(|_| RpcError::invalid(format!("{text:?} is no IP address")))?,
        };
        if request.database.len() > DATABASE_BYTES_MAX {
            return Err(RpcError::invalid(format!(
                "a database's name has at most {DATABASE_BYTES_MAX} bytes"
            )));
        }
        let (policy, vocabulary) = match request.policy_toml.is_empty() {
            true => (Arc::clone(&applied.policy), applied.vocabulary.clone()),
            // A document that is not applied has named no group yet.
            false => (
                self.load_other(request.policy_toml.clone()).await?,
                Vocabulary::default(),
            ),
        };
        let (user, known) = self.asked_about(context, caller, request).await?;
        let note = (!known && request.groups.is_empty()).then(|| {
            format!(
                "{} has never logged in, so their groups are not known: name those to assume with --groups",
                user.name
            )
        });
        Ok(Asking {
            note,
            policy,
            vocabulary,
            user,
            service,
            login: login
                .map(LoginName::parse)
                .transpose()
                .map_err(RpcError::invalid)?,
            database: Some(request.database.clone()).filter(|database| !database.is_empty()),
            client_ip,
            now: context.clock.now(),
        })
    }

    async fn load_other(&self, toml: String) -> Result<Arc<Policy>, RpcError> {
        let options = self.shared.options.clone();
        let loaded = big_stack::run_async(move || Policy::load_with(&toml, &options)).await;
        loaded.map(Arc::new).map_err(RpcError::invalid)
    }

    /// The caller, or somebody else as of their last login; `groups` overrides what is known.
    async fn asked_about(
        &self,
        context: &AppContext,
        caller: &UserCaller,
        request: &v1::ExplainRequest,
    ) -> Result<(UserFacts, bool), RpcError> {
        let (mut facts, known) = match request.user.as_str() {
            "" => (caller.facts.clone(), true),
            user => other_user(context, user).await?,
        };
        if !request.groups.is_empty() {
            facts.groups = self.groups(&request.groups)?;
            facts.groups_vocabulary = None;
        }
        Ok((facts, known))
    }

    fn groups(&self, names: &[String]) -> Result<Vec<GroupName>, RpcError> {
        if names.len() > GROUPS_ASKED_MAX {
            return Err(RpcError::invalid(format!(
                "at most {GROUPS_ASKED_MAX} groups can be asked about"
            )));
        }
        let group = |name: &String| match (&self.shared.options.connectors, name.contains(':')) {
            (Connectors::One(connector), false) => GroupName::new(connector, name),
            (Connectors::One(_) | Connectors::Several | Connectors::Unknown, _) => GroupName::parse(name),
        };
        names
            .iter()
            .map(group)
            .collect::<Result<_, _>>()
            .map_err(RpcError::invalid)
    }
}

/// A service that exists, as the newest snapshot has it.
pub(crate) fn service_named(context: &AppContext, name: &ServiceName) -> Result<ServiceFacts, RpcError> {
    let snapshot = context.feed.snapshot();
    let found = snapshot
        .content
        .services
        .iter()
        .find(|known| known.facts.name == *name);
    let found = found.ok_or_else(|| RpcError::not_found(format!("there is no service {name}")))?;
    Ok(found.facts.clone())
}

/// Somebody as of their last login.
pub(super) fn facts_of_user(known: UserRow) -> UserFacts {
    UserFacts {
        id: known.user_id.to_string(),
        name: known.name,
        kind: Class::User,
        groups: known.groups,
        groups_vocabulary: None,
        auth_time: Some(known.last_login),
        mfa_time: None,
        acr: None,
        idp: known.connector,
        login_method: "browser".to_owned(),
    }
}

/// Somebody else by name or id; `false` with a stranger, of whom nothing but the name is known.
async fn other_user(context: &AppContext, user: &str) -> Result<(UserFacts, bool), RpcError> {
    let known = match UserId::parse(user) {
        Ok(id) => context.store.user(&id).await?,
        Err(_) => context.store.users_by_name(user).await?.into_iter().next(),
    };
    if let Some(known) = known {
        return Ok((facts_of_user(known), true));
    }
    // As they would arrive: just logged in, through the one provider there is.
    let idp = match context.config.connectors.as_slice() {
        [only] => only.name.clone(),
        [] | [_, ..] => String::new(),
    };
    let stranger = UserFacts {
        id: String::new(),
        name: user.to_owned(),
        kind: Class::User,
        groups: Vec::new(),
        groups_vocabulary: None,
        auth_time: Some(context.clock.now()),
        mfa_time: None,
        acr: None,
        idp,
        login_method: "browser".to_owned(),
    };
    Ok((stranger, false))
}

impl Asking {
    fn question(&self) -> Question<'_> {
        Question {
            user: &self.user,
            service: &self.service,
            login: Asked::Visible(self.login.as_ref()),
            database: Asked::Visible(self.database.as_deref()),
            client_ip: self.client_ip,
            now: self.now,
        }
    }

    /// Everything, for those who may read the policy anyway.
    fn explain(&self) -> Result<v1::ExplainReply, serde_json::Error> {
        let explanation = self.policy.explain(&self.question(), &self.vocabulary);
        let mut json = serde_json::to_value(&explanation)?;
        let mut text = explanation.render();
        if let Some(note) = &self.note {
            text.push_str(&format!("{note}\n"));
        }
        if let Some(object) = json.as_object_mut() {
            object.insert("note".to_owned(), self.note.clone().into());
        }
        Ok(v1::ExplainReply {
            json: json.to_string(),
            text,
            allowed: explanation.effect == Effect::Allow,
        })
    }

    /// The grant in full; a denial in the one sentence that tells no deny rule from a missing allow rule.
    fn answer(&self) -> Result<v1::ExplainReply, serde_json::Error> {
        match self.policy.evaluate(&self.question(), &self.vocabulary) {
            Decision::Grant(_) => self.explain(),
            Decision::Denial(denial) => {
                let json = json!({
                    "effect": "deny",
                    "code": null,
                    "rule": null,
                    "policy_version": denial.policy_version,
                    "user": self.user.name,
                    "service": self.service.name,
                    "login": self.login,
                    "detail": denial.text,
                    "note": null,
                    "rules": [],
                });
                Ok(v1::ExplainReply {
                    json: json.to_string(),
                    text: format!("{}\n", denial.text),
                    allowed: false,
                })
            }
        }
    }
}

fn visible_to_wire(service: &iap_proto::ServiceRecord, seen: Visible) -> v1::VisibleService {
    v1::VisibleService {
        service: Some(v1::Service::from(service)),
        logins: seen.logins,
        databases: seen.databases,
        login: seen.login.map(|login| login.to_string()).unwrap_or_default(),
    }
}
