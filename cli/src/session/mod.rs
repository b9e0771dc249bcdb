//! Sessions: dialling a service and carrying local connections to it.

mod cancelling;
mod dial;
mod early;
mod listen;
mod peer;
mod port;
mod redial;
mod refusal;
#[cfg(target_os = "linux")]
mod sock_diag;
#[cfg(unix)]
mod socket;
mod source;
mod span;
mod stream;
mod watch;

pub use dial::Session;
pub use early::Early;
pub use listen::{LocalListener, Serving, listen_address};
pub use port::stable as stable_port;
pub use source::{Sessions, Wanted};
pub use span::SessionSpan;
pub use stream::SessionStream;
pub use watch::{WatchAnswer, Watched, watch};

use futures_util::FutureExt as _;
use iap_runtime::pump::{self, Cancellation, CloseReason, Closed, Counters, PumpLimits};
use tokio::io::{AsyncRead, AsyncWrite};

/// Limits are the agent's: it says when a session has idled or lasted too long.
const NO_LIMITS: &PumpLimits = &PumpLimits {
    idle: None,
    half_closed_idle: None,
};

/// Moves bytes between a local stream and a session until either ends or the order comes.
pub fn carry<L>(local: L, session: Session, cancellation: &Cancellation) -> impl Future<Output = Closed>
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    let Session { stream, span, .. } = session;
    let carrying = pump::copy(local, stream, NO_LIMITS, Counters::new(), cancellation);
    carrying.inspect(|closed| span.end(closed))
}

/// What went wrong between us and the agent, if anything did.
pub fn fault(closed: &Closed) -> Option<String> {
    match &closed.reason {
        CloseReason::BackendFailed(error) => Some(error.to_string()),
        CloseReason::ClientClosed
        | CloseReason::BackendClosed
        | CloseReason::ClientFailed(_)
        | CloseReason::Idle
        | CloseReason::Cancelled(_) => None,
    }
}
