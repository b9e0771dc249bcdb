//! Every kind of event there is: its name, its stable code and what it means.

/// Declares the kinds once, so that names, codes and the list of all kinds cannot drift apart.
macro_rules! kinds {
    ($($(#[$meaning:meta])* $kind:ident = $name:literal, $code:literal;)+) => {
        /// What happened. The letter of a code names the area, the last one the weight: `I`nformation,
        /// `W`arning, `E`rror.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum EventKind {
            $($(#[$meaning])* $kind,)+
        }

        impl EventKind {
            /// Every kind, in the order of the reference.
            pub const ALL: &'static [EventKind] = &[$(EventKind::$kind,)+];

            /// The `event` field.
            pub fn as_str(&self) -> &'static str {
                match self { $(EventKind::$kind => $name,)+ }
            }

            /// The `code` field.
            pub fn code(&self) -> &'static str {
                match self { $(EventKind::$kind => $code,)+ }
            }
        }
    };
}

kinds! {
    /// A session was allowed and is about to reach its backend.
    SessionStart = "session.start", "S1000I";
    /// A session is over.
    SessionEnd = "session.end", "S1001I";
    /// Policy or a lock refused a session to somebody who proved who they are.
    SessionDenied = "session.denied", "S1002W";
    /// An allowed session could not reach its backend.
    SessionConnectFailed = "session.connect_failed", "S1003W";
    /// The server name seen by the agent was not the one the proxy spoke of.
    SessionNameMismatch = "session.name_mismatch", "S1004E";
    /// The client of a session came back over another connection.
    SessionResume = "session.resume", "S1005I";
    /// Somebody who proved who they are wanted to go on with a session that is not theirs, or with a ticket that was used before.
    SessionResumeRefused = "session.resume_refused", "S1006W";
    /// An agent took a session over from its predecessor.
    SessionHandover = "session.handover", "S1007I";
    /// The client of a session named another database or login than it was let in with, and may use it.
    SessionLogin = "session.login", "S1020I";
    /// A statement in a session that is inspected.
    SessionStatement = "session.statement", "S1021I";
    /// What is about to run in an SSH session: a shell, a command or a subsystem.
    SessionCommand = "session.command", "S1030I";
    /// A file went over an SSH session, or was changed through it.
    SessionFile = "session.file", "S1031I";
    /// Somebody asked for a connection to another port through an SSH session.
    SessionForward = "session.forward", "S1032I";
    /// A recording is over, or could not be made.
    SessionRecording = "session.recording", "S1033I";
    /// Somebody begins to watch a session while it runs.
    SessionWatch = "session.watch", "S1034I";
    /// Somebody watches a session no longer.
    SessionWatchEnd = "session.watch_end", "S1035I";
    /// Somebody who proved who they are wanted to watch a session and may not, or one that is not there.
    SessionWatchRefused = "session.watch_refused", "S1036W";
    /// An agent began its work.
    AgentStart = "agent.start", "A1000I";
    /// An agent ended its work in order.
    AgentStop = "agent.stop", "A1001I";
    /// Records that could not be written, and how many.
    AgentGap = "agent.gap", "A1002W";
    /// The auth server began its work.
    AuthStart = "auth.start", "A1100I";
    /// A copy of everything, keys included, is about to be made.
    AuthBackup = "auth.backup", "A1101I";
    /// The auth server goes on from a backup.
    AuthRestored = "auth.restored", "A1102W";
    /// Somebody asked to log in.
    LoginStart = "login.start", "L1000I";
    /// Somebody is logged in.
    LoginSuccess = "login.success", "L1001I";
    /// Somebody could not log in.
    LoginFailure = "login.failure", "L1002W";
    /// Somebody ended their login.
    LoginLogout = "login.logout", "L1003I";
    /// A certificate of an earlier generation was used again: both holders are locked.
    LoginReused = "login.reused", "L1004E";
    /// The identity provider withdrew a login: it is locked.
    LoginWithdrawn = "login.withdrawn", "L1005W";
    /// The identity provider names other groups for a person than before.
    LoginRegrouped = "login.regrouped", "L1006I";
    /// A certificate is about to be released.
    CertificateIssued = "certificate.issued", "C1000I";
    /// A certificate was asked for and refused.
    CertificateRefused = "certificate.refused", "C1001W";
    /// A machine joined the cluster.
    JoinSuccess = "join.success", "J1000I";
    /// A machine could not join.
    JoinFailure = "join.failure", "J1001W";
    /// A join token was made.
    TokenCreated = "token.created", "T1000I";
    /// A join token was withdrawn.
    TokenRemoved = "token.removed", "T1001I";
    /// A policy document took effect.
    PolicyApplied = "policy.applied", "P1000I";
    /// A service was added or changed.
    ServiceApplied = "service.applied", "R1000I";
    /// A service was removed.
    ServiceRemoved = "service.removed", "R1001I";
    /// A lock took effect.
    LockAdded = "lock.added", "K1000I";
    /// A lock was lifted.
    LockRemoved = "lock.removed", "K1001I";
    /// Whoever administers the host takes all admin verbs for some minutes.
    AdminBreakGlass = "admin.break_glass", "D1001W";
    /// Somebody asked for a change or a sight they have no verb for.
    AdminDenied = "admin.denied", "D1000W";
    /// Somebody read the audit trail.
    AuditSearched = "audit.searched", "X1000I";
    /// Somebody takes away what lies beside records, or recordings.
    AuditErased = "audit.erased", "X1004W";
    /// Recordings are erased because they are kept no longer.
    RecordingExpired = "recording.expired", "X1005I";
    /// Somebody replayed the recording of another's session.
    RecordingPlayed = "recording.played", "X1003I";
    /// The trail contradicts itself.
    AuditAlarm = "audit.alarm", "X1001E";
    /// Records of an agent are gone with a database that was lost.
    AuditLost = "audit.lost", "X1002W";
}

/// What the names of events begin with that agents write.
const OF_AGENTS: [&str; 2] = ["session.", "agent."];

impl EventKind {
    /// Whether agents write it. Of these the auth server writes the end of a session whose agent was lost.
    #[must_use]
    pub fn is_of_agents(&self) -> bool {
        OF_AGENTS.iter().any(|area| self.as_str().starts_with(area))
    }

    /// The kind of an `event` field; nothing for a kind this build does not know.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|kind| kind.as_str() == name).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_codes_are_unique_and_well_formed() {
        let names: BTreeSet<_> = EventKind::ALL.iter().map(EventKind::as_str).collect();
        let codes: BTreeSet<_> = EventKind::ALL.iter().map(EventKind::code).collect();
        assert_eq!(names.len(), EventKind::ALL.len());
        assert_eq!(codes.len(), EventKind::ALL.len());
        for code in codes {
            let (area, rest) = code.split_at(1);
            let (number, weight) = rest.split_at(4);
            assert!(area.chars().all(|letter| letter.is_ascii_uppercase()), "{code}");
            assert!(number.chars().all(|digit| digit.is_ascii_digit()), "{code}");
            assert!(["I", "W", "E"].contains(&weight), "{code}");
        }
    }

    #[test]
    fn a_kind_is_found_again_by_its_name() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(*kind));
        }
        assert_eq!(EventKind::parse("session.begin"), None);
    }
}
