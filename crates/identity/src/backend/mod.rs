//! What proves a login to a private backend: certificates of the authorities that each service has for itself.
//!
//! They stand apart from everything else here. The authorities are self-signed and never under the cluster's root,
//! because a backend that trusts one of them must not thereby trust its siblings (OpenSSL accepts every
//! certificate under a common root). Their certificates say what the backend understands: an account's name, and
//! nothing of who uses it. Nothing of ours accepts them.

mod client_ca;
mod client_leaf;
mod ssh;
mod ssh_host_key;
mod ssh_issue;

use time::Duration;

pub use client_ca::{ClientCa, self_signed_client_ca};
pub use client_leaf::{ClientLeaf, ClientLeafError, ClientLeafIssueError, issue_client_leaf};
pub use ssh::{
    SSH_PRINCIPALS_MAX, SshAuthority, SshCertificate, SshCertificateError, SshCertificateKind, SshExtension,
};
pub use ssh_host_key::{SshHostKey, SshHostKeyError};
pub use ssh_issue::{SshIssueError, SshProfile, issue_ssh_certificate, ssh_public_key};

/// The longest any certificate for a backend lives.
pub const BACKEND_CERTIFICATE_LIFE_MAX: Duration = Duration::hours(24);
/// The longest a certificate for a server that shows it lives. Servers that are not ours cannot renew it.
pub const SSH_HOST_CERTIFICATE_LIFE_MAX: Duration = Duration::days(366);
