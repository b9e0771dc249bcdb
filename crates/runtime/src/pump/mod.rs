//! Moves a session's bytes between client and backend until one of them, a limit or an order ends it.
//!
//! Half-close passes in both directions. Buffers and pipes come from pools and are held only while bytes are on
//! their way, so a session at rest costs its sockets and little more.

mod buffers;
mod cancel;
mod duplex;
mod held;
mod idle;
mod idle_limit;
#[cfg(target_os = "linux")]
mod pipes;
#[cfg(target_os = "linux")]
#[path = "splice_linux.rs"]
mod splice;
#[cfg(not(target_os = "linux"))]
#[path = "splice_portable.rs"]
mod splice;
mod under_way;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use cancel::Cancellation;
pub use duplex::{copy, copy_saying, go_on};
pub use idle_limit::IdleLimit;
pub use splice::splice;
pub use under_way::{Relayed, Stretch, UnderWay, Yielded};

/// When a session ends for want of traffic.
#[derive(Debug, Clone, Copy)]
pub struct PumpLimits {
    /// No byte in either direction for this long.
    pub idle: Option<Duration>,
    /// The same, once one side has closed its direction.
    pub half_closed_idle: Option<Duration>,
}

/// Where a session's limits are looked up, anew each time something moves or one could end it. A limit may grow while it
/// runs; one that shrinks counts from the next look on, at the latest when the longer one would have ended.
pub trait LiveLimits {
    /// Those that hold now.
    fn now(&self) -> PumpLimits;

    /// For limits that say when they change, so that a session that rests looks at once: whom to wake then.
    fn wake_when_changed(&self, _pump: &Waker) {}
}

impl LiveLimits for PumpLimits {
    fn now(&self) -> PumpLimits {
        *self
    }
}

impl Default for PumpLimits {
    fn default() -> Self {
        Self {
            idle: None,
            half_closed_idle: Some(Duration::from_secs(600)),
        }
    }
}

/// Bytes delivered so far, readable while the session lives. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<CounterPair>);

#[derive(Debug, Default)]
struct CounterPair {
    to_backend: AtomicU64,
    to_client: AtomicU64,
}

impl Counters {
    /// Starting at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starting from what was delivered already.
    pub fn starting_at(bytes_in: u64, bytes_out: u64) -> Self {
        Self(Arc::new(CounterPair {
            to_backend: AtomicU64::new(bytes_in),
            to_client: AtomicU64::new(bytes_out),
        }))
    }

    /// Client to backend.
    pub fn bytes_in(&self) -> u64 {
        self.0.to_backend.load(Ordering::Relaxed)
    }

    /// Backend to client.
    pub fn bytes_out(&self) -> u64 {
        self.0.to_client.load(Ordering::Relaxed)
    }

    /// Counts what was delivered by other means than a pump.
    pub fn add(&self, bytes_in: u64, bytes_out: u64) {
        self.0.to_backend.fetch_add(bytes_in, Ordering::Relaxed);
        self.0.to_client.fetch_add(bytes_out, Ordering::Relaxed);
    }

    fn delivered(&self, to: Side, bytes: usize) {
        let count = match to {
            Side::Backend => &self.0.to_backend,
            Side::Client => &self.0.to_client,
        };
        count.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How a session ended.
#[derive(Debug)]
pub struct Closed {
    /// Bytes delivered from client to backend.
    pub bytes_in: u64,
    /// Bytes delivered from backend to client.
    pub bytes_out: u64,
    /// Why.
    pub reason: CloseReason,
}

/// Why a session ended.
#[derive(Debug)]
pub enum CloseReason {
    /// Both directions ended properly, the client's first.
    ClientClosed,
    /// Both directions ended properly, the backend's first.
    BackendClosed,
    /// The client's connection failed.
    ClientFailed(io::Error),
    /// The backend's connection failed.
    BackendFailed(io::Error),
    /// Nothing moved for too long.
    Idle,
    /// Somebody ordered the end.
    Cancelled(Arc<str>),
}

impl CloseReason {
    /// In the words of `close_reason` in the audit log. To a client and a proxy the agent is the backend.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::BackendClosed => "backend_closed",
            Self::ClientFailed(_) => "client_lost",
            Self::BackendFailed(_) => "backend_lost",
            Self::Idle => "idle_limit",
            Self::Cancelled(_) => "cut",
        }
    }
}

impl Closed {
    fn new(counters: &Counters, reason: CloseReason) -> Self {
        Self {
            bytes_in: counters.bytes_in(),
            bytes_out: counters.bytes_out(),
            reason,
        }
    }
}

/// The two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Who asked for it.
    Client,
    /// Who answers.
    Backend,
}

/// An end whose connection failed.
#[derive(Debug)]
struct Fault {
    side: Side,
    error: io::Error,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }

    fn at(self) -> impl Fn(io::Error) -> Fault {
        move |error| Fault { side: self, error }
    }

    fn closed(self) -> CloseReason {
        match self {
            Self::Client => CloseReason::ClientClosed,
            Self::Backend => CloseReason::BackendClosed,
        }
    }
}

/// A side that had closed before its connection failed has simply gone: what the other still had to say found
/// nobody there.
fn reason_of(first_closed: Option<Side>, fault: Option<Fault>) -> CloseReason {
    match (fault, first_closed) {
        (Some(fault), Some(side)) if fault.side == side => side.closed(),
        (
            Some(Fault {
                side: Side::Client,
                error,
            }),
            _,
        ) => CloseReason::ClientFailed(error),
        (
            Some(Fault {
                side: Side::Backend,
                error,
            }),
            _,
        ) => CloseReason::BackendFailed(error),
        (None, Some(side)) => side.closed(),
        (None, None) => Side::Client.closed(),
    }
}

/// Shutting down a connection that the peer has reset or left is no fault of anybody's.
fn ignore_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
