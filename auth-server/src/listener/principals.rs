//! Connections with a certificate, counted by whose it is: nobody takes the places of all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iap_identity::VerifiedPeer;

use crate::rpc::Presented;

/// Connections by principal. Clones share the counts.
#[derive(Clone, Debug)]
pub(super) struct Principals {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    connections_max: usize,
    by_principal: HashMap<String, usize>,
}

/// One connection of a principal; dropping it ends the count.
#[derive(Debug)]
pub(super) struct Counted {
    principals: Principals,
    principal: String,
}

impl Principals {
    pub(super) fn new(connections_max: usize) -> Self {
        let open = Open {
            connections_max,
            by_principal: HashMap::new(),
        };
        Self {
            open: Arc::new(Mutex::new(open)),
        }
    }

    /// From now on so many for each. Whoever has more keeps them.
    pub(super) fn resize(&self, connections_max: usize) {
        self.open().connections_max = connections_max;
    }

    /// Counts a connection of that principal; nothing when it has as many as it may.
    pub(super) fn enter(&self, principal: String) -> Option<Counted> {
        let mut open = self.open();
        let count = open.by_principal.get(&principal).copied().unwrap_or(0);
        if count >= open.connections_max {
            return None;
        }
        open.by_principal.insert(principal.clone(), count + 1);
        drop(open);
        Some(Counted {
            principals: self.clone(),
            principal,
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.principals.open();
        match open.by_principal.get_mut(&self.principal) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(open.by_principal.remove(&self.principal)),
        }
    }
}

/// Class and id; none for who showed no certificate.
pub(super) fn principal_of(certificate: &Presented) -> Option<String> {
    let peer = match certificate {
        Presented::NoCertificate => return None,
        Presented::ExpiredAgent(agent) => return Some(format!("agent {}", agent.id)),
        Presented::ExpiredUser(user) => return Some(format!("user {}", user.id)),
        Presented::Valid { peer, .. } => peer.as_ref(),
    };
    Some(match peer {
        VerifiedPeer::User(user) => format!("user {}", user.id),
        VerifiedPeer::Bot(bot) => format!("bot {}", bot.name),
        VerifiedPeer::Agent(agent) => format!("agent {}", agent.id),
        VerifiedPeer::Proxy(proxy) => format!("proxy {}", proxy.id),
        VerifiedPeer::Auth(auth) => format!("auth {}", auth.id),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_principal_has_so_many_connections_and_others_are_not_held_up() {
        let principals = Principals::new(2);
        let enter = |who: &str| principals.enter(who.to_owned());
        let (first, second) = (enter("user a").unwrap(), enter("user a").unwrap());
        assert!(enter("user a").is_none());
        let other = enter("user b").unwrap();
        drop(first);
        let third = enter("user a").unwrap();
        drop((second, third, other));
        assert!(principals.open().by_principal.is_empty());
    }
}
