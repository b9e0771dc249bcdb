//! The one table of who may call what. An RPC without a row is denied; a test holds the table against
//! the schema's descriptors.

use iap_identity::{Class, ClassSet};
use iap_policy::Verb;

/// Who may call an RPC.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Which certificates, or their absence.
    pub callers: Callers,
    /// One of these admin verbs is needed; none when empty.
    pub verbs: &'static [Verb],
}

/// Which connections an RPC accepts.
#[derive(Clone, Copy, Debug)]
pub enum Callers {
    /// Those without a client certificate: the request brings its own proof.
    NoCertificate,
    /// Those whose certificate is of one of these classes and valid now.
    Classes(ClassSet),
    /// An agent, also one whose certificate expired up to 30 days ago.
    AgentOrExpired,
    /// A user, also one whose certificate expired up to 12 hours ago while the login goes on.
    UserOrExpired,
}

impl Row {
    /// Whether the login has to be recent: so it is where only verbs that change policy, tokens, CAs or
    /// locks will do.
    pub fn needs_recent_login(&self) -> bool {
        !self.verbs.is_empty() && self.verbs.iter().all(|verb| verb.needs_recent_auth())
    }
}

const USER: Callers = Callers::Classes(ClassSet::of(&[Class::User]));
const AGENT: Callers = Callers::Classes(ClassSet::of(&[Class::Agent]));
const PROXY: Callers = Callers::Classes(ClassSet::of(&[Class::Proxy]));

const fn open(path: &'static str) -> Row {
    Row {
        path,
        callers: Callers::NoCertificate,
        verbs: &[],
    }
}

const fn row(path: &'static str, callers: Callers) -> Row {
    Row {
        path,
        callers,
        verbs: &[],
    }
}

const fn admin(path: &'static str, verbs: &'static [Verb]) -> Row {
    Row {
        path,
        callers: USER,
        verbs,
    }
}

/// Every RPC there is. Reading what one may write is allowed to those who may write it.
pub const TABLE: &[Row] = &[
    open("/iap.v1.Login/Start"),
    open("/iap.v1.Login/Await"),
    open("/iap.v1.Login/Finish"),
    open("/iap.v1.Join/JoinAgent"),
    open("/iap.v1.Join/JoinProxy"),
    row("/iap.v1.User/Renew", Callers::UserOrExpired),
    row("/iap.v1.User/Logout", USER),
    row("/iap.v1.User/Services", USER),
    row("/iap.v1.User/Whoami", USER),
    // Others than oneself: policy.read, checked where the request is read.
    row("/iap.v1.User/Explain", USER),
    // Others' sessions: audit.read, likewise.
    row("/iap.v1.User/Sessions", USER),
    row("/iap.v1.User/Session", USER),
    // Others' recordings: recording.read, likewise.
    row("/iap.v1.User/Recordings", USER),
    row("/iap.v1.User/Recording", USER),
    row("/iap.v1.User/SessionPlace", USER),
    row("/iap.v1.Agent/Renew", Callers::AgentOrExpired),
    row("/iap.v1.Agent/ServiceLeaf", AGENT),
    row("/iap.v1.Agent/Watch", AGENT),
    row("/iap.v1.Agent/AppendAudit", AGENT),
    row("/iap.v1.Agent/Status", AGENT),
    row("/iap.v1.Agent/UploadRecording", AGENT),
    // The service's grant is checked where the request is read.
    row("/iap.v1.Agent/BackendCredentials", AGENT),
    row("/iap.v1.Proxy/Renew", PROXY),
    row("/iap.v1.Proxy/Watch", PROXY),
    admin("/iap.v1.Admin/ServicesApply", &[Verb::ServiceWrite]),
    admin(
        "/iap.v1.Admin/ServicesList",
        &[Verb::InventoryRead, Verb::ServiceWrite],
    ),
    admin("/iap.v1.Admin/ServicesRemove", &[Verb::ServiceWrite]),
    admin("/iap.v1.Admin/PolicyApply", &[Verb::PolicyWrite]),
    admin("/iap.v1.Admin/PolicyGet", &[Verb::PolicyRead, Verb::PolicyWrite]),
    admin("/iap.v1.Admin/TokenCreate", &[Verb::TokenWrite]),
    admin(
        "/iap.v1.Admin/TokensList",
        &[Verb::InventoryRead, Verb::TokenWrite],
    ),
    admin("/iap.v1.Admin/TokenRemove", &[Verb::TokenWrite]),
    admin("/iap.v1.Admin/LockAdd", &[Verb::LockWrite]),
    admin("/iap.v1.Admin/LocksList", &[Verb::InventoryRead, Verb::LockWrite]),
    admin("/iap.v1.Admin/LockRemove", &[Verb::LockWrite]),
    admin("/iap.v1.Admin/SessionKill", &[Verb::SessionKill]),
    admin("/iap.v1.Admin/AgentsList", &[Verb::InventoryRead]),
    admin("/iap.v1.Admin/WhoCan", &[Verb::PolicyRead, Verb::PolicyWrite]),
    admin(
        "/iap.v1.Admin/ServiceAuthorities",
        &[Verb::InventoryRead, Verb::ServiceWrite],
    ),
    admin("/iap.v1.Admin/SshHostSign", &[Verb::CaSign]),
    admin("/iap.v1.Admin/AuditSearch", &[Verb::AuditRead]),
    admin("/iap.v1.Admin/AuditErase", &[Verb::AuditErase]),
];

/// The row of an RPC.
pub fn row_of(path: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.path == path)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]

    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    fn schema() -> BTreeSet<String> {
        let files = FileDescriptorSet::decode(iap_proto::DESCRIPTORS).unwrap();
        let mut paths = BTreeSet::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    paths.insert(format!(
                        "/{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
        paths
    }

    #[test]
    fn every_rpc_of_the_schema_has_exactly_one_row() {
        let rows: Vec<String> = TABLE.iter().map(|row| row.path.to_owned()).collect();
        let unique: BTreeSet<String> = rows.iter().cloned().collect();
        assert_eq!(rows.len(), unique.len(), "a row is there twice");
        assert_eq!(unique, schema());
        assert!(schema().len() > 30, "the schema was read");
    }

    #[test]
    fn every_admin_rpc_needs_a_verb() {
        for row in TABLE.iter().filter(|row| row.path.starts_with("/iap.v1.Admin/")) {
            assert!(!row.verbs.is_empty(), "{}", row.path);
        }
    }

    #[test]
    fn rpcs_that_change_policy_tokens_or_locks_need_a_recent_login() {
        let recent: BTreeSet<&str> = TABLE
            .iter()
            .filter(|row| row.needs_recent_login())
            .map(|row| row.path)
            .collect();
        for method in [
            "PolicyApply",
            "TokenCreate",
            "TokenRemove",
            "LockAdd",
            "LockRemove",
            "AuditErase",
            "SshHostSign",
        ] {
            assert!(
                recent.contains(format!("/iap.v1.Admin/{method}").as_str()),
                "{method}"
            );
        }
        assert!(!recent.contains("/iap.v1.Admin/PolicyGet"));
    }
}
