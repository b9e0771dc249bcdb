//! A new document becomes the policy: loaded, its tests run, its author not locked out, stored,
//! recorded, pushed.

use std::sync::Arc;

use iap_audit::EventKind;
use iap_policy::{LoadOptions, Policy, ServiceFacts, TestFailure, UserFacts};
use iap_proto::v1;
use iap_runtime::big_stack;

use super::{Applied, Policies};
use crate::context::AppContext;
use crate::feed::Affects;
use crate::rpc::{ErrorCode, RpcError, UserCaller};
use crate::store::{PolicyRow, hash_of};

/// A document that passed every check.
struct Checked {
    policy: Policy,
    warnings: Vec<String>,
    locks_out_author: bool,
}

/// What a document is checked with.
struct Checking {
    toml: String,
    options: LoadOptions,
    services: Vec<ServiceFacts>,
    current: Arc<Applied>,
    author: UserFacts,
}

impl Policies {
    /// Applies a document in the name of `author`.
    pub async fn apply(
        &self,
        context: &AppContext,
        author: &UserCaller,
        request: v1::PolicyApplyRequest,
    ) -> Result<v1::PolicyApplyReply, RpcError> {
        let _one_at_a_time = self.shared.applying.lock().await;
        let current = self.current();
        refuse_overtaken(&current, request.expected_version)?;
        let checking = Checking {
            toml: request.policy_toml.clone(),
            options: self.shared.options.clone(),
            services: service_facts(context),
            current: Arc::clone(&current),
            author: author.facts.clone(),
        };
        let checked = big_stack::run_async(move || checking.check())
            .await
            .map_err(RpcError::invalid)?;
        if current.version > 0 && request.policy_toml == current.toml {
            context.feed.publish_owed().await?;
            return Ok(reply(current.version, false, checked.warnings));
        }
        if checked.locks_out_author && !author.is_bootstrap_admin && !request.force {
            let text = "this policy takes policy.write from you, its author";
            return Err(RpcError::new(ErrorCode::NeedsForce, text));
        }
        if request.dry_run {
            return Ok(reply(current.version, true, checked.warnings));
        }
        let version = current.version + 1;
        self.keep(context, author, version, request.policy_toml, checked.policy)
            .await?;
        Ok(reply(version, true, checked.warnings))
    }

    async fn keep(
        &self,
        context: &AppContext,
        author: &UserCaller,
        version: u64,
        toml: String,
        policy: Policy,
    ) -> Result<(), RpcError> {
        let current = self.current();
        let vocabulary = current.vocabulary.advance(policy.vocabulary_groups(), version);
        let row = PolicyRow {
            version,
            sha256: hash_of(toml.as_bytes()),
            toml: toml.clone(),
            applied_by: author.facts.name.clone(),
            applied_at: context.clock.now(),
        };
        let groups = vocabulary
            .iter()
            .map(|(group, first)| (group.clone(), first))
            .collect();
        let event = context
            .audit
            .event(EventKind::PolicyApplied)?
            .user(&author.record())
            .login_id(&author.peer.login_id)
            .field("old_version", current.version)
            .field("new_version", version)
            .field("sha256", iap_audit::hash_hex(row.toml.as_bytes()));
        context.audit.record(event).await?;
        let applied = Applied {
            version,
            toml,
            policy: Arc::new(policy.with_version(version)),
            vocabulary,
        };
        let (store, shared) = (Arc::clone(&context.store), Arc::clone(&self.shared));
        let applying = async move {
            let is_next = store.apply_policy(&row, &groups).await?;
            if is_next {
                shared.current.store(Arc::new(applied));
            }
            Ok(is_next)
        };
        match context.feed.change(Affects::Snapshot, applying).await? {
            true => Ok(()),
            false => {
                self.catch_up(context).await?;
                Err(RpcError::conflict("another policy was applied at the same time"))
            }
        }
    }

    /// After a write whose outcome was not known: what is stored is the policy.
    async fn catch_up(&self, context: &AppContext) -> Result<(), RpcError> {
        let loaded = Self::load(&context.config, &context.store).await;
        let stored = loaded.map_err(RpcError::internal)?.current();
        if stored.version > self.current().version {
            self.shared.current.store(stored);
            context.feed.publish_snapshot().await?;
        }
        Ok(())
    }
}

impl Checking {
    /// Runs on a large stack. The error is every reason to refuse, in words.
    fn check(self) -> Result<Checked, String> {
        let policy = Policy::load_with(&self.toml, &self.options).map_err(|errors| errors.to_string())?;
        policy
            .run_tests_with(&self.services)
            .map_err(|failures| render(&failures))?;
        Ok(Checked {
            warnings: policy.warnings(&self.services),
            locks_out_author: policy.locks_out_author(&self.current.policy, &self.author),
            policy,
        })
    }
}

fn render(failures: &[TestFailure]) -> String {
    let mut text = format!("{} of the policy's own tests failed:", failures.len());
    for failure in failures {
        text.push_str(&format!(
            "\nline {}: {}: expected {}, got {}\n  {}",
            failure.line,
            failure.test,
            failure.expected,
            failure.got,
            failure.explanation.trim_end().replace('\n', "\n  ")
        ));
    }
    text
}

fn refuse_overtaken(current: &Applied, expected: u64) -> Result<(), RpcError> {
    if expected != 0 && expected != current.version {
        return Err(RpcError::conflict(format!(
            "the applied policy is version {}, not {expected}: somebody else has changed it",
            current.version
        )));
    }
    Ok(())
}

pub(super) fn service_facts(context: &AppContext) -> Vec<ServiceFacts> {
    context
        .feed
        .snapshot()
        .content
        .services
        .iter()
        .map(|service| service.facts.clone())
        .collect()
}

fn reply(version: u64, changed: bool, warnings: Vec<String>) -> v1::PolicyApplyReply {
    v1::PolicyApplyReply {
        version,
        changed,
        warnings,
    }
}
