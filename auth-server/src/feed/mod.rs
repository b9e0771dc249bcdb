//! What agents and proxies live from: signed snapshots, locks, beats and the trust bundle.

use iap_proto::v1;

/// The feed's newest state.
#[derive(Clone, Debug)]
pub struct Feed {}

impl Feed {
    /// The trust bundle, signed, as `Login.Finish` and `Join` return it.
    pub fn bundle(&self) -> v1::Signed {
        v1::Signed::default()
    }
}
