//! The party at the other end of a session: a user or a bot, and nobody else.

use std::sync::Arc;

use iap_audit::UserRecord;
use iap_identity::{BotPeer, Class, ClassSet, LoginId, UserPeer, VerifiedPeer};
use iap_policy::UserFacts;
use time::OffsetDateTime;

/// The classes whose certificates open sessions.
pub const SESSION_CLASSES: &[Class] = &[Class::User, Class::Bot];

/// [`SESSION_CLASSES`] as the verifier takes them.
#[must_use]
pub fn session_classes() -> ClassSet {
    ClassSet::of(SESSION_CLASSES)
}

/// Somebody whose certificate was verified for a session. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    peer: Arc<VerifiedPeer>,
}

impl Caller {
    /// The caller behind a verified certificate; `None` for a class that opens no sessions.
    #[must_use]
    pub fn of(peer: impl Into<Arc<VerifiedPeer>>) -> Option<Self> {
        let peer = peer.into();
        match &*peer {
            VerifiedPeer::User(_) | VerifiedPeer::Bot(_) => Some(Self { peer }),
            VerifiedPeer::Agent(_) | VerifiedPeer::Proxy(_) | VerifiedPeer::Auth(_) => None,
        }
    }

    /// The verified certificate.
    #[must_use]
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// What policy looks at.
    #[must_use]
    pub fn facts(&self) -> UserFacts {
        match (self.user(), self.bot()) {
            (Some(user), _) => UserFacts::from_peer(user),
            (None, Some(bot)) => UserFacts::bot(bot.name.as_str()),
            (None, None) => UserFacts::bot(&self.peer.principal()),
        }
    }

    /// How records name them.
    #[must_use]
    pub fn record(&self) -> UserRecord {
        let id = self.peer.principal();
        match self.user() {
            Some(user) => UserRecord {
                id,
                name: user.name.clone(),
                kind: "user".to_owned(),
            },
            None => UserRecord {
                name: id.clone(),
                id,
                kind: "bot".to_owned(),
            },
        }
    }

    /// The login behind the certificate.
    #[must_use]
    pub fn login_id(&self) -> Option<LoginId> {
        match self.user() {
            Some(user) => Some(user.login_id),
            None => self.bot().and_then(|bot| bot.login_id),
        }
    }

    /// The hard end of the login; a bot has none.
    #[must_use]
    pub fn login_deadline(&self) -> Option<OffsetDateTime> {
        self.user().map(|user| user.login_deadline)
    }

    fn user(&self) -> Option<&UserPeer> {
        match &*self.peer {
            VerifiedPeer::User(user) => Some(user),
            VerifiedPeer::Bot(_)
            | VerifiedPeer::Agent(_)
            | VerifiedPeer::Proxy(_)
            | VerifiedPeer::Auth(_) => None,
        }
    }

    fn bot(&self) -> Option<&BotPeer> {
        match &*self.peer {
            VerifiedPeer::Bot(bot) => Some(bot),
            VerifiedPeer::User(_)
            | VerifiedPeer::Agent(_)
            | VerifiedPeer::Proxy(_)
            | VerifiedPeer::Auth(_) => None,
        }
    }
}
