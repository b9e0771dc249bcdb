//! The applied policy and the way a new one becomes it.

/// The applied policy; an immutable snapshot with one writer.
#[derive(Clone, Debug)]
pub struct Policies {}
