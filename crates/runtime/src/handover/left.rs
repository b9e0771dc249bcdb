//! What the predecessor has left: sd_listen_fds_with_names(3).

use std::os::fd::OwnedFd;

use listenfd::ListenFd;

use super::Parcel;

/// No more names than this are read.
const NAMES_MAX: usize = 1 << 20;

/// A parcel that this process was given at its start, and the name it was stored under.
#[derive(Debug)]
pub struct Left {
    /// The name.
    pub name: String,
    /// What lies in it.
    pub parcel: Parcel,
}

impl Left {
    /// What the environment (`LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`) names, as far as it can be a parcel. Ask once:
    /// they are handed out once. What else was passed stays where it is.
    #[must_use]
    pub fn from_environment() -> Vec<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').take(NAMES_MAX);
        let mut passed = ListenFd::from_env();
        let mut left = Vec::new();
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            match passed.take_unix_datagram(index) {
                Ok(Some(socket)) => left.push(Self {
                    name,
                    parcel: OwnedFd::from(socket).into(),
                }),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(index, name, %error, "a descriptor was passed that is not left by an agent");
                }
            }
        }
        left
    }
}
