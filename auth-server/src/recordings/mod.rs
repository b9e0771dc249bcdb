//! Recordings of terminals: agents send them piece by piece, while they are made and after, and whoever may replays them.
//!
//! Each is a file in `data_dir/recordings/<session>/`, and beside it where its pieces begin. What it must hash to stands in
//! the trail (`session.recording`), which came another way. What was erased leaves a mark in the database, and is not taken
//! again.

mod read;
pub mod retention;
mod store;
mod upload;

pub use read::{Parts, list, place, read, told};
pub use store::{Library, LibraryError, Name, RecordingCounts};
pub use upload::receive;
