//! Sessions: dialling a service and carrying local connections to it.

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

pub use dial::Session;
pub use early::Early;
pub use listen::{LocalListener, Serving, listen_address};
pub use port::stable as stable_port;
pub use source::{Sessions, Wanted};
pub use span::SessionSpan;
pub use stream::SessionStream;

use iap_runtime::pump::{self, Cancellation, CloseReason, Closed, Counters, PumpLimits};
use tokio::io::{AsyncRead, AsyncWrite};

/// Moves bytes between a local stream and a session until either ends or the order comes.
pub async fn carry<L>(local: L, session: Session, cancellation: &Cancellation) -> Closed
where
    L: AsyncRead + AsyncWrite + Unpin,
{
    // Limits are the agent's: it says when a session has idled or lasted too long.
    let limits = PumpLimits {
        idle: pump::IdleLimit::default(),
        half_closed_idle: None,
    };
    let Session { stream, span, .. } = session;
    let closed = pump::copy(local, stream, &limits, &Counters::new(), cancellation).await;
    span.end(&closed);
    closed
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
