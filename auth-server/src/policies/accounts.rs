//! The accounts of a service that its agents hold credentials for ahead of need.

use std::sync::Arc;

use iap_policy::{Accounts, ServiceFacts, UserFacts};
use iap_runtime::big_stack;

use super::Policies;
use super::ask::facts_of_user;
use crate::context::AppContext;
use crate::rpc::RpcError;
use crate::store::UserRow;

/// Users looked at for logins that come of their names.
const USERS_MAX: u32 = 50_000;

impl Policies {
    /// The accounts that the applied rules could give at `service` to anybody who ever logged in, at most `max`.
    pub async fn accounts(
        &self,
        context: &AppContext,
        service: ServiceFacts,
        max: usize,
    ) -> Result<Accounts, RpcError> {
        let users = context.store.users(USERS_MAX).await?;
        let all_seen = users.len() < USERS_MAX as usize;
        let policy = Arc::clone(&self.current().policy);
        let look = move || {
            let users: Vec<UserFacts> = by_newest_login(users).into_iter().map(facts_of_user).collect();
            policy.accounts(&service, &users, max)
        };
        let found = big_stack::run_async(look).await;
        Ok(Accounts {
            complete: found.complete && all_seen,
            ..found
        })
    }
}

/// Where there are too many, those who have not come for longest go without.
fn by_newest_login(mut users: Vec<UserRow>) -> Vec<UserRow> {
    users.sort_by_key(|user| std::cmp::Reverse(user.last_login));
    users
}
