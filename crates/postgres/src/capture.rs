//! Text as a record keeps it: cut at a bound that is stated, and without passwords.

use std::sync::Arc;

use crate::mask::mask_passwords;

/// A text, or its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captured {
    /// What is kept, passwords masked.
    pub text: Arc<str>,
    /// How long the whole was, in bytes.
    pub bytes: usize,
    /// Whether less than the whole is kept.
    pub truncated: bool,
}

/// What is kept of a text of `bytes` bytes, of which `seen` are the first.
#[must_use]
pub fn captured_text(seen: &[u8], bytes: usize, bytes_max: usize) -> Captured {
    let kept = seen.get(..bytes_max).unwrap_or(seen);
    let truncated = kept.len() < bytes;
    let text = match std::str::from_utf8(kept) {
        Ok(text) => text.into(),
        // A character that the cut goes through is left out; what is no UTF-8 shows as that.
        Err(error) if truncated && error.error_len().is_none() => {
            let whole = kept.get(..error.valid_up_to()).unwrap_or_default();
            String::from_utf8_lossy(whole)
        }
        Err(_) => String::from_utf8_lossy(kept),
    };
    Captured {
        text: mask_passwords(&text).as_ref().into(),
        bytes,
        truncated,
    }
}
