//! `who-can`: everybody who ever logged in and may reach a service now, and the rules that are about it.

use std::net::IpAddr;
use std::sync::Arc;

use iap_identity::ServiceName;
use iap_policy::{Policy, ServiceFacts, Visible, Vocabulary};
use iap_proto::v1;
use iap_runtime::big_stack;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::Policies;
use super::ask::{facts_of_user, service_named};
use crate::authority::format_time;
use crate::context::AppContext;
use crate::rpc::RpcError;
use crate::store::UserRow;

/// Users looked at; beyond, the answer says that it is not complete.
const USERS_MAX: u32 = 50_000;

struct Looking {
    policy: Arc<Policy>,
    vocabulary: Vocabulary,
    service: ServiceFacts,
    client_ip: IpAddr,
    now: OffsetDateTime,
}

impl Policies {
    /// Who may reach a service, from `client_ip` (the caller's, where none is asked about) and now.
    pub async fn who_can(
        &self,
        context: &AppContext,
        client_ip: IpAddr,
        request: v1::WhoCanRequest,
    ) -> Result<String, RpcError> {
        let service = ServiceName::parse(&request.service).map_err(RpcError::invalid)?;
        let client_ip = match request.client_ip.as_str() {
            "" => client_ip,
            text => text
                .parse()
                .map_err(|_| RpcError::invalid(format!("{text:?} is no IP address")))?,
        };
        let applied = self.current();
        let looking = Looking {
            policy: Arc::clone(&applied.policy),
            vocabulary: applied.vocabulary.clone(),
            service: service_named(context, &service)?,
            client_ip,
            now: context.clock.now(),
        };
        let users = context.store.users(USERS_MAX).await?;
        let complete = users.len() < USERS_MAX as usize;
        let found = big_stack::run_async(move || looking.answer(users, complete)).await;
        found.map_err(RpcError::internal)
    }
}

impl Looking {
    fn answer(&self, users: Vec<UserRow>, complete: bool) -> Result<String, serde_json::Error> {
        let looked_at = users.len();
        let users: Vec<Value> = users
            .into_iter()
            .filter_map(|user| self.reach(user).transpose())
            .collect::<Result<_, _>>()?;
        let answer = json!({
            "service": self.service.name,
            "policy_version": self.policy.version(),
            "client_ip": self.client_ip,
            "users": users,
            "users_looked_at": looked_at,
            "complete": complete,
            "rules": self.policy.about_service(&self.service),
        });
        Ok(answer.to_string())
    }

    fn reach(&self, user: UserRow) -> Result<Option<Value>, serde_json::Error> {
        let last_login = format_time(user.last_login);
        let groups = user.groups.clone();
        let mut facts = facts_of_user(user);
        // Whoever comes has just logged in: how old a login may be is for the moment they come.
        facts.auth_time = Some(self.now);
        let seen = self
            .policy
            .visible(&facts, &self.service, &self.vocabulary, self.client_ip, self.now);
        let Some(Visible {
            logins,
            databases,
            login,
        }) = seen
        else {
            return Ok(None);
        };
        Ok(Some(json!({
            "user": facts.name,
            "user_id": facts.id,
            "groups": groups,
            "logins": logins,
            "databases": databases,
            "default_login": login,
            "last_login": last_login,
        })))
    }
}
