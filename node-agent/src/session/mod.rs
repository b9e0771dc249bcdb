//! A session from its grant to its end record.
//!
//! Reading order: [`caller`] (who), [`facts`] (what the records say), [`started`] (the proof that the start
//! record is durable), [`live`] (the registry of what runs and how it is cut), [`review`] (who cuts it),
//! [`handover`] (how it outlives the agent).

pub mod caller;
pub mod facts;
pub(crate) mod handover;
pub mod live;
pub(crate) mod resumption;
pub mod review;
pub(crate) mod scribe;
pub(crate) mod spans;
pub mod started;

pub use caller::Caller;
pub use facts::{Ending, Resumes, SessionFacts, Target, Through};
pub use handover::{Handover, Inheritance};
pub use live::{Live, Presence, Registry};
pub(crate) use resumption::{Resumption, Resumptions};
pub(crate) use scribe::Scribe;
pub(crate) use spans::SESSION;
pub use started::Started;
