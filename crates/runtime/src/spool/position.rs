//! How far the auth server has acknowledged, kept in a file of its own.

use std::fs;
use std::io;
use std::sync::PoisonError;

use iap_audit::{ChainHead, SourceId};

use super::error::{SpoolError, SpoolOpenError};
use super::{Shared, reader};
use crate::files::{DataDir, io_error, sync_directory};

const FILE: &str = "acknowledged";
const HASH_CHARACTERS: usize = 64;

/// The acknowledged position, from which a chain whose files are all gone goes on.
pub(super) fn load(directory: &DataDir, source: SourceId) -> Result<Option<ChainHead>, SpoolOpenError> {
    let Some(bytes) = directory.read(FILE)? else {
        return Ok(None);
    };
    let malformed = || SpoolOpenError::Position {
        path: directory.join(FILE),
    };
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let (seq, hash) = text.trim_end().split_once(' ').ok_or_else(malformed)?;
    let seq = seq.parse().map_err(|_| malformed())?;
    if hash.len() != HASH_CHARACTERS || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(malformed());
    }
    Ok(Some(ChainHead {
        source,
        seq,
        hash_hex: hash.to_owned(),
    }))
}

/// Remembers `seq`, then removes what it makes superfluous: in this order, so that a crash between the two
/// loses nothing.
pub(super) fn acknowledge(shared: &Shared, seq: u64) -> Result<(), SpoolError> {
    let _one_at_a_time = shared
        .acknowledging
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let seq = seq.min(*shared.committed.borrow());
    if seq <= shared.index().acknowledged {
        return Ok(());
    }
    let line = format!("{seq} {}\n", reader::hash_of(shared, seq)?);
    shared
        .directory
        .write(FILE, line.as_bytes())
        .map_err(SpoolError::file)?;
    shared.index().acknowledged = seq;
    remove_acknowledged(shared)
}

/// Also called by the writer once a new file has taken over from one that was acknowledged.
pub(super) fn remove_acknowledged(shared: &Shared) -> Result<(), SpoolError> {
    let superfluous = shared.index().take_acknowledged();
    for segment in &superfluous {
        let path = segment.path(&shared.directory);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SpoolError::file(io_error("remove", &path, error))),
        }
    }
    if !superfluous.is_empty() {
        sync_directory(shared.directory.path()).map_err(SpoolError::file)?;
    }
    Ok(())
}
