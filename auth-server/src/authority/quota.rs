//! How many certificates one principal gets in an hour: a loop or a stolen key fills neither the log nor the disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use iap_identity::{AgentId, Profile, UserId};
use iap_runtime::config::InForce;
use time::{Duration, OffsetDateTime};

use crate::break_glass;
use crate::config::Limits;

/// The window counted in; it begins with a principal's first certificate.
const WINDOW: Duration = Duration::HOUR;
/// Principals counted at once. All are enrolled or logged in: beyond it, newcomers are not counted.
const PRINCIPALS_MAX: usize = 262_144;

const USER_KEY: &str = "limits.certificates_per_user_per_hour_max";
const AGENT_KEY: &str = "limits.certificates_per_agent_per_hour_max";

/// Names can change and be shared; ids cannot.
fn key_of_user(id: &UserId) -> String {
    format!("user {id}")
}

/// The counts of this server.
#[derive(Debug)]
pub struct Quotas {
    limits: InForce<Limits>,
    windows: Mutex<HashMap<String, Window>>,
}

#[derive(Debug)]
struct Window {
    began: OffsetDateTime,
    issued: u32,
    /// Whether its first refusal was recorded.
    told: bool,
}

/// The principal has had as many certificates as it may have within an hour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{principal} has had {max} certificates within an hour, as many as {key} allows; try again in {} min",
    (.retry_after.whole_seconds() + 59) / 60
)]
pub struct QuotaExceeded {
    /// Class and id.
    pub principal: String,
    /// The limit.
    pub max: u32,
    /// Its key in the configuration.
    pub key: &'static str,
    /// When there is another one.
    pub retry_after: Duration,
    /// Whether this is the first refusal of the hour, which is recorded.
    pub is_news: bool,
}

impl Quotas {
    /// Nothing issued yet.
    pub fn new(limits: InForce<Limits>) -> Self {
        Self {
            limits,
            windows: Mutex::default(),
        }
    }

    /// Counts one certificate that is about to be issued. The auth server's own are not limited.
    pub fn take(&self, profile: &Profile, now: OffsetDateTime) -> Result<(), QuotaExceeded> {
        let limits = self.limits.now();
        let alike = |principal: String| (principal.clone(), principal);
        let ((counted_by, principal), max, key) = match profile {
            // Who has a shell on this host and is in need of it has no time to wait.
            Profile::User(user) if user.login_method == break_glass::LOGIN_METHOD => return Ok(()),
            Profile::User(user) => (
                (key_of_user(&user.id), format!("user {}", user.name)),
                limits.certificates_per_user_per_hour_max,
                USER_KEY,
            ),
            Profile::Bot(bot) => (
                alike(format!("bot {}", bot.name)),
                limits.certificates_per_bot_per_hour_max,
                "limits.certificates_per_bot_per_hour_max",
            ),
            Profile::Agent(agent) => (
                alike(format!("agent {}", agent.id)),
                limits.certificates_per_agent_per_hour_max,
                AGENT_KEY,
            ),
            Profile::ServiceLeaf { agent, .. } => (
                alike(format!("agent {agent}")),
                limits.certificates_per_agent_per_hour_max,
                AGENT_KEY,
            ),
            Profile::Proxy(proxy) => (
                alike(format!("proxy {}", proxy.id)),
                limits.certificates_per_proxy_per_hour_max,
                "limits.certificates_per_proxy_per_hour_max",
            ),
            Profile::Auth(_) => return Ok(()),
        };
        self.count(counted_by, principal, 1, max, key, now)
    }

    /// Counts certificates for backends that an agent is about to be issued, all or none.
    pub fn take_for_agent(
        &self,
        agent: AgentId,
        certificates: usize,
        now: OffsetDateTime,
    ) -> Result<(), QuotaExceeded> {
        let max = self.limits.now().certificates_per_agent_per_hour_max;
        let many = u32::try_from(certificates).unwrap_or(u32::MAX);
        let principal = format!("agent {agent}");
        self.count(principal.clone(), principal, many, max, AGENT_KEY, now)
    }

    /// Whether a user has none left and was told so before, so that asking anybody about it is in vain. The first
    /// refusal is left to [`Quotas::take`], whose caller records it.
    pub fn check_user(&self, id: &UserId, name: &str, now: OffsetDateTime) -> Result<(), QuotaExceeded> {
        let max = self.limits.now().certificates_per_user_per_hour_max;
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let has_none = |window: &&Window| window.told && window.issued >= max && !window.is_over(now);
        match windows.get(&key_of_user(id)).filter(has_none) {
            Some(window) => Err(QuotaExceeded {
                principal: format!("user {name}"),
                max,
                key: USER_KEY,
                retry_after: window.began + WINDOW - now,
                is_news: false,
            }),
            None => Ok(()),
        }
    }

    fn count(
        &self,
        counted_by: String,
        principal: String,
        many: u32,
        max: u32,
        key: &'static str,
        now: OffsetDateTime,
    ) -> Result<(), QuotaExceeded> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= PRINCIPALS_MAX && !windows.contains_key(&counted_by) {
            windows.retain(|_, window| !window.is_over(now));
            if windows.len() >= PRINCIPALS_MAX {
                return Ok(());
            }
        }
        let fresh = || Window {
            began: now,
            issued: 0,
            told: false,
        };
        let window = windows.entry(counted_by).or_insert_with(fresh);
        if window.is_over(now) {
            *window = fresh();
        }
        let issued = window.issued.saturating_add(many);
        if issued <= max {
            window.issued = issued;
            return Ok(());
        }
        Err(QuotaExceeded {
            principal,
            max,
            key,
            retry_after: window.began + WINDOW - now,
            is_news: !std::mem::replace(&mut window.told, true),
        })
    }
}

impl Window {
    /// Also when the clock was set back: nobody waits for longer than an hour.
    fn is_over(&self, now: OffsetDateTime) -> bool {
        now < self.began || now - self.began >= WINDOW
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn take(quotas: &Quotas, who: &str, now: OffsetDateTime) -> Result<(), QuotaExceeded> {
        quotas.count(who.to_owned(), who.to_owned(), 1, 2, "limits.x", now)
    }

    #[test]
    fn a_principal_gets_so_many_in_an_hour_and_others_are_not_held_up() {
        let quotas = Quotas::new(InForce::new(Limits::default()));
        assert!(take(&quotas, "user a", NOW).is_ok() && take(&quotas, "user a", NOW).is_ok());
        let refused = take(&quotas, "user a", NOW + Duration::minutes(50)).unwrap_err();
        assert!(refused.is_news);
        assert_eq!(refused.retry_after, Duration::minutes(10));
        assert!(refused.to_string().ends_with("try again in 10 min"), "{refused}");
        assert!(
            !take(&quotas, "user a", NOW + Duration::minutes(51))
                .unwrap_err()
                .is_news
        );
        assert!(take(&quotas, "user b", NOW + Duration::minutes(50)).is_ok());
        assert!(take(&quotas, "user a", NOW + WINDOW).is_ok());
    }

    #[test]
    fn a_user_without_any_left_is_known_before_anybody_is_asked_and_once_told() {
        let limits = Limits {
            certificates_per_user_per_hour_max: 1,
            ..Limits::default()
        };
        let quotas = Quotas::new(InForce::new(limits));
        let [one, other] = ["s1", "s2"].map(|subject| UserId::derive("okta", "https://issuer", subject));
        let take = |id: &UserId| quotas.count(key_of_user(id), "user alice".to_owned(), 1, 1, USER_KEY, NOW);
        take(&one).unwrap();
        quotas.check_user(&one, "alice", NOW).unwrap();
        assert!(take(&one).unwrap_err().is_news);
        assert!(quotas.check_user(&one, "alice", NOW).is_err());
        assert!(quotas.check_user(&one, "alice", NOW + WINDOW).is_ok());
        take(&other).expect("somebody else of the same name");
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nobody_out() {
        let quotas = Quotas::new(InForce::new(Limits::default()));
        assert!(take(&quotas, "user a", NOW).is_ok() && take(&quotas, "user a", NOW).is_ok());
        assert!(take(&quotas, "user a", NOW - Duration::days(1)).is_ok());
    }
}
