//! Judging announcements: a name counts only with a valid leaf for exactly that name, issued to exactly this
//! agent.

use iap_identity::{AgentId, ServiceName, TrustBundle, verify_service_leaf};
use iap_tunnel::RefusedService;
use time::OffsetDateTime;

/// A name and the leaf that proves it (DER).
pub(crate) type Offered = (ServiceName, Vec<u8>);

/// What became of an announcement.
pub(crate) struct Judged {
    /// Kept with their leaves, to be judged again when time passes or trust changes.
    pub(crate) accepted: Vec<Offered>,
    pub(crate) refused: Vec<RefusedService>,
    /// The last moment at which all that was accepted still is; absent where nothing was.
    pub(crate) until: Option<OffsetDateTime>,
}

impl Judged {
    pub(crate) fn names(&self) -> Vec<ServiceName> {
        self.accepted.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// Judges each offer by itself; those beyond `services_max` are refused unread.
pub(crate) fn judge(
    offers: Vec<Offered>,
    agent: &AgentId,
    bundle: &TrustBundle,
    services_max: usize,
    now: OffsetDateTime,
) -> Judged {
    let mut judged = Judged {
        accepted: Vec::new(),
        refused: Vec::new(),
        until: None,
    };
    for (name, leaf) in offers {
        let verdict = if judged.accepted.len() >= services_max {
            Err(format!(
                "more than {services_max} services (limits.services_per_agent_max)"
            ))
        } else if judged.accepted.iter().any(|(accepted, _)| *accepted == name) {
            Err("announced twice".to_owned())
        } else {
            proves(&name, &leaf, agent, bundle, now)
        };
        match verdict {
            Ok(not_after) => {
                judged.accepted.push((name, leaf));
                judged.until = Some(judged.until.map_or(not_after, |until| until.min(not_after)));
            }
            Err(reason) => judged.refused.push(RefusedService { name, reason }),
        }
    }
    judged
}

fn proves(
    name: &ServiceName,
    leaf: &[u8],
    agent: &AgentId,
    bundle: &TrustBundle,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, String> {
    match verify_service_leaf(leaf, agent, bundle, now) {
        Ok(found) if found.service == *name => Ok(found.not_after),
        Ok(found) => Err(format!("the leaf is for {}", found.service)),
        Err(error) => Err(format!("the leaf is refused: {error}")),
    }
}
