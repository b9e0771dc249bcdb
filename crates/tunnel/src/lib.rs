//! What the proxy, the agent and `iapctl` say to each other, as values: control messages, the dial-back
//! preface and its one-use tokens, the table of routes, the `iap/1` frames, the PostgreSQL preamble and last words.
//!
//! Nothing here reads a clock, draws a random number or touches a socket: time, randomness and bytes are
//! arguments, so that every rule can be tested with hostile input and virtual time.

pub mod alpn;
pub mod control;
pub mod fatal;
pub mod frame;
pub mod pending;
pub mod pool;
pub mod postgres;
pub mod preface;
pub mod resume;
pub mod routes;
pub mod status;
pub mod watch;
pub mod ways;

pub use alpn::{ALPN_CONTROL, ALPN_DATA, ALPN_IAP, ALPN_RESUME, ALPN_WATCH};
pub use control::{
    CONTROL_FRAME_BYTES_MAX, CONTROL_VERSION, ControlMessage, Conversation, RefusedService, RunId, Side,
    Violation,
};
pub use fatal::{Boundaries, Fatal, NotPostgres, StartupMachine, StartupStep};
pub use frame::{FrameError, LengthPrefixed};
pub use pending::{IssueError, PendingOpens, RedeemError};
pub use pool::{Pool, PoolLimits, PoolRefusal};
pub use postgres::{CancelRequest, PreambleError, PreambleMachine, PreambleStep, cancel_handle};
pub use preface::{PREFACE_BYTES, PoolPreface, Preface, PrefaceError, Token};
pub use routes::Routes;
pub use status::{FRAME_BYTES_MAX, Hello, Status, StatusError, StepUp};
pub use watch::{WATCH_FRAME_BYTES_MAX, WatchFrame, WatchFrameError, WatchRequest};
pub use ways::{ControlWay, DataOffer, DataWay};
