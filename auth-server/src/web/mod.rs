//! The web pages at `<cluster>`.
