//! Where no service manager keeps descriptors: an agent that is started beside another of the same state directory asks it
//! for its sessions, upon which that one ends.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iap_runtime::handover::{Left, Successor, ask_predecessor};
use iap_runtime::shutdown::Shutdown;
use tokio::net::UnixListener;

/// Nobody but the agent's own user may connect.
const SOCKET_MODE: u32 = 0o600;
/// How long a predecessor may say nothing beyond the grace that its sessions have. Its drain may be longer than this
/// agent's; then it is not waited for.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(120);
/// When the system has no descriptor for one who asks.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Asks the agent that runs in this state directory for its sessions, if one does. Blocks until it has ended, or has said
/// nothing for longer than a `drain` takes.
pub(crate) fn ask(path: &Path, drain: Duration) -> Option<Vec<Left>> {
    let asked = ask_predecessor(path, drain.saturating_add(PREDECESSOR_TIMEOUT));
    asked.unwrap_or_else(|error| {
        tracing::warn!(%error, "the agent that runs already leaves nothing");
        Some(Vec::new())
    })
}

/// Listens for a successor at `path`, and tells this agent to stop once one asks.
#[derive(Debug)]
pub(crate) struct Succession {
    pub(crate) path: PathBuf,
    pub(crate) successor: Successor,
    pub(crate) shutdown: Shutdown,
}

impl Succession {
    /// Never returns: an agent that cannot listen, for want of a shorter path, say, runs without a successor.
    pub(crate) async fn run(self) {
        if let Err(error) = self.listen().await {
            tracing::warn!(path = %self.path.display(), %error, "no successor can ask for this agent's sessions");
        }
        std::future::pending().await
    }

    async fn listen(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Within the state directory, which nobody else can enter.
        let listener = UnixListener::bind(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        let own = std::fs::metadata(&self.path)?.uid();
        loop {
            let accepted = listener.accept().await;
            let accepted = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream)));
            let (user, stream) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a successor asked in vain");
                    tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
                    continue;
                }
            };
            if user != own {
                tracing::warn!(user, "another user asked for this agent's sessions");
                continue;
            }
            let came = stream.into_std().and_then(|stream| self.successor.came(stream));
            match came {
                Ok(()) => self.shutdown.trigger("another agent was started in its place"),
                Err(error) => tracing::warn!(%error, "another successor asked for this agent's sessions"),
            }
        }
    }
}
