//! The client's certificate, judged inside the handshake: chain, class and possession by the runtime's
//! verifier, and for a client without `iap/1` the decision itself, so that a denial is a TLS alert.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use iap_identity::VerifiedPeer;
use iap_runtime::big_stack;
use iap_runtime::tls::{self, Demand, PeerVerifier};

use super::handshake::AttemptSeed;
use crate::decide::{Gate, Permit, Refusal};
use crate::session::Caller;
use crate::session::caller::session_classes;
use crate::view::View;

/// What was decided inside a handshake.
pub(super) type Decided = Arc<OnceLock<(Caller, Result<Permit, Refusal>)>>;

/// How a client learns of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    /// The handshake fails.
    ByAlert,
    /// The handshake goes on, and whoever reads `decided` tells it.
    Afterwards,
}

/// A verifier for one handshake whose decision comes after it.
pub(super) fn verifier(view: &View, gate: &Gate) -> PeerVerifier {
    let (bundle, accepted) = (Arc::clone(view.bundle()), session_classes());
    let verifier = gate.known_clients().verifier(bundle, accepted, Demand::Required);
    verifier.not_before(gate.now())
}

/// A verifier for one handshake that also decides; the outcome is left in `decided`.
pub(super) fn deciding_verifier(
    view: &View,
    gate: &Arc<Gate>,
    seed: AttemptSeed,
    decided: &Decided,
    tell: Tell,
) -> PeerVerifier {
    let (deciding, decided) = (Arc::clone(gate), Arc::clone(decided));
    verifier(view, gate).with_hook(Box::new(move |peer: &VerifiedPeer| {
        let caller = Caller::of(peer.clone()).ok_or(tls::Refusal::AccessDenied)?;
        let (gate, attempt) = (Arc::clone(&deciding), seed.attempt(caller.clone()));
        let decision = wait(big_stack::run_async(move || gate.decide_here(&attempt)));
        let verdict = match (&decision, tell) {
            (Ok(_), _) | (Err(_), Tell::Afterwards) => Ok(()),
            (Err(refusal), Tell::ByAlert) => Err(alert_of(refusal)),
        };
        let _ = decided.set((caller, decision));
        verdict
    }))
}

/// What a raw client learns of a refusal.
fn alert_of(refusal: &Refusal) -> tls::Refusal {
    match refusal {
        Refusal::Locked(_) | Refusal::Killed(_) => tls::Refusal::CertificateRevoked,
        _ if refusal.wants_renewal() => tls::Refusal::CertificateExpired,
        Refusal::Outage(_) | Refusal::NotServed | Refusal::Denied(_) | Refusal::Ceiling(_) => {
            tls::Refusal::AccessDenied
        }
    }
}

/// Waits for a decision on the handshake's own thread: rustls cannot pause a handshake here, and a decision
/// takes microseconds. Outside of the task's budget, which would never refill while this waits.
fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
