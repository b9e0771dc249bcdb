//! What several test suites share: a certificate authority of their own, folders, ports, waiting.
//! Knows nothing of the four programs.

pub mod certificates;
pub mod forgery;
pub mod waiting;

pub use certificates::{Credential, TestCluster};
pub use forgery::Forgery;
pub use waiting::{free_port, temp, wait_until, wait_until_async};
