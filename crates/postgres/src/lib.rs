//! PostgreSQL's protocol, version 3, as one who stands between client and backend reads it (PostgreSQL documentation,
//! "Frontend/Backend Protocol").
//!
//! Sans-IO, and pure: bytes, the time and randomness are arguments. Nothing here changes what passes: bytes are looked at
//! where they go by, and no message need be held to be looked at. What must be read whole (startup, statements) has a bound;
//! what streams (rows, COPY data) has none, because of it only the head is read.

mod backend;
mod capture;
mod mask;
mod messages;
mod scram;
mod startup;
mod statements;
mod values;

pub use backend::{Authentication, ErrorFields, Login, LoginError, LoginStep, Method, encode};
pub use capture::{Captured, captured_text};
pub use mask::mask_passwords;
pub use messages::{Malformed, Message, Messages};
pub use scram::{ChannelBinding, Scram, ScramError};
pub use startup::{Startup, StartupError, StartupReader, StartupSaid};
pub use statements::{
    CaptureLimits, Copied, Direction, Outcome, Parameters, Statement, TooMuch, Tracker, Transaction,
};
