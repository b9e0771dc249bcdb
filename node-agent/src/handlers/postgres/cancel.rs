//! Requests to cancel. A client is given a key of this agent's making; the backend's own never leaves the agent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use iap_identity::AgentId;
use iap_postgres::encode;
use iap_tunnel::CancelRequest;

use crate::session::{Caller, Live};

/// Protocol 3.0 has keys of this length.
const KEY_BYTES: usize = 4;
/// From 3.2 on they may be longer.
const LONG_KEY_BYTES: usize = 32;
const DRAWS_MAX: usize = 64;

/// The keys of all sessions of this agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Cancels(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The upper half of each number that this agent gives.
    handle: u16,
    keys: Mutex<HashMap<u32, Entry>>,
}

struct Entry {
    key: Vec<u8>,
    live: Arc<Live>,
    backend: (u32, Vec<u8>),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Entry").finish_non_exhaustive()
    }
}

/// A key that is good while this lives.
#[derive(Debug)]
pub(crate) struct CancelKey {
    cancels: Cancels,
    process_id: u32,
}

impl Cancels {
    /// None yet.
    #[must_use]
    pub fn new(agent: &AgentId) -> Self {
        Self(Arc::new(Shared {
            handle: iap_tunnel::cancel_handle(agent),
            keys: Mutex::default(),
        }))
    }

    /// A key for the client of a session, and the message that gives it; nothing where randomness or numbers are lacking.
    pub(super) fn give(
        &self,
        live: &Arc<Live>,
        backend: (u32, Vec<u8>),
        minor: u16,
    ) -> Option<(CancelKey, Vec<u8>)> {
        let mut key = vec![0; if minor >= 2 { LONG_KEY_BYTES } else { KEY_BYTES }];
        aws_lc_rs::rand::fill(&mut key).ok()?;
        let mut keys = self.keys();
        let process_id = self.draw(&keys)?;
        let message = encode::cancel_key(process_id, &key);
        let live = Arc::clone(live);
        keys.insert(process_id, Entry { key, live, backend });
        drop(keys);
        let cancels = self.clone();
        Some((CancelKey { cancels, process_id }, message))
    }

    fn draw(&self, taken: &HashMap<u32, Entry>) -> Option<u32> {
        for _ in 0..DRAWS_MAX {
            let mut low = [0; 2];
            aws_lc_rs::rand::fill(&mut low).ok()?;
            let number = (u32::from(self.0.handle) << 16) | u32::from(u16::from_be_bytes(low));
            if number != 0 && !taken.contains_key(&number) {
                return Some(number);
            }
        }
        None
    }

    /// The session that a request is about, and what to tell its backend; nothing for a key that is none. Whoever is known
    /// to be another person than the session's has none.
    pub(crate) fn find(
        &self,
        request: &CancelRequest,
        caller: Option<&Caller>,
    ) -> Option<(Arc<Live>, Vec<u8>)> {
        let keys = self.keys();
        let entry = keys.get(&request.process_id)?;
        verify_slices_are_equal(&entry.key, &request.key).ok()?;
        let is_own = caller.is_none_or(|caller| caller.facts().id == entry.live.caller().facts().id);
        let (process_id, key) = &entry.backend;
        is_own.then(|| (Arc::clone(&entry.live), encode::cancel_request(*process_id, key)))
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.cancels.keys().remove(&self.process_id);
    }
}
