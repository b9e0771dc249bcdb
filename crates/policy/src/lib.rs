//! The policy document and its decisions
