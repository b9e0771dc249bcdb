//! What several test suites share: a certificate authority of their own, folders, ports, waiting.
//! Knows nothing of the four programs.

pub mod browser;
pub mod certificates;
pub mod forgery;
pub mod relay;
pub mod waiting;

pub use browser::{Browser, Page};
pub use certificates::{Credential, TestCluster, random_serial};
pub use forgery::Forgery;
pub use relay::Relay;
pub use waiting::{free_port, temp, wait_until, wait_until_async};

/// A new id, for crates that may not make one themselves.
#[must_use]
pub fn new_uuid() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

/// The users' authority, for the unit tests of `iap-identity` itself: there the crate exists twice, and
/// only this one's types fit the kit.
pub const USER_CA: iap_identity::CaClass = iap_identity::CaClass::User;
