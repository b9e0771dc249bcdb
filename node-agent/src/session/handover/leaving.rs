//! A session is left to the agent's successor.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use iap_runtime::handover::{Parcel, monotonic, sealed};
use iap_runtime::pump::UnderWay;
use iap_tunnel::Boundaries;
use tokio::time::Instant;

use super::keeping::{Keeping, ToKeep};
use super::peer::Who;
use super::state::{Facts, encode_head};
use super::{Handover, label_of, milliseconds};
use crate::backend::BackendStream;
use crate::session::resumption::ResumableStream;
use crate::session::{Live, Started};

/// A session that stands still.
pub(crate) struct Standstill<'a> {
    pub(crate) started: &'a Started,
    pub(crate) live: &'a Live,
    pub(crate) client: &'a ResumableStream,
    pub(crate) boundaries: Option<Boundaries>,
    pub(crate) backend: &'a BackendStream,
    pub(crate) under_way: &'a UnderWay,
}

impl Handover {
    /// Leaves the session to the successor.
    ///
    /// # Errors
    /// Why it cannot be; then it is as it was.
    pub(crate) async fn give(&self, session: Standstill<'_>) -> io::Result<()> {
        let id = session.started.session_id();
        let parcel = session.parcel()?;
        self.leave(id, parcel).await
    }

    /// Keeps a session that begins for the case that this agent is killed.
    ///
    /// # Errors
    /// Why it cannot be; then it is as it was.
    pub(crate) async fn keep_new(&self, session: Standstill<'_>) -> io::Result<Arc<Keeping>> {
        let over = || io::Error::other("the session is over");
        let (standing, kept) = session.client.standing().ok_or_else(over)?;
        let to_keep = ToKeep {
            facts: session.facts(standing)?,
            kept,
            outward: &session.under_way.outward.bytes,
            inward_bytes: session.under_way.inward.bytes.len(),
        };
        self.keep(to_keep, session.backend).await
    }
}

impl Standstill<'_> {
    fn parcel(&self) -> io::Result<Parcel> {
        let over = || io::Error::other("the session is over");
        if self.live.cut_because().is_some() {
            return Err(over());
        }
        let (standing, [kept, more_kept]) = self.client.standing().ok_or_else(over)?;
        let (inward, outward) = (&self.under_way.inward, &self.under_way.outward);
        let facts = self.facts(standing)?;
        let lengths = [
            kept.len() + more_kept.len(),
            inward.bytes.len(),
            outward.bytes.len(),
        ];
        let head = encode_head(&facts, lengths).map_err(io::Error::other)?;
        let pieces = [&head, kept, more_kept, &inward.bytes, &outward.bytes];
        let state = sealed("iap-session", &pieces)?;
        let label = label_of(self.started.session_id());
        Parcel::of(&label, &[self.backend.as_fd(), state.as_fd()])
    }

    fn facts(&self, standing: iap_tunnel::resume::Standing) -> io::Result<Facts> {
        let facts = self.started.facts();
        let last = self.live.presence();
        let who = |who: Option<Who>| who.ok_or_else(|| io::Error::other("nobody is in the session"));
        let waits = self.client.reconnect().waits();
        let left = waits.deadline.saturating_duration_since(Instant::now());
        let counters = self.started.counters();
        Ok(Facts {
            agent: facts.agent,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            session_id: facts.session_id,
            connection_id: facts.connection_id,
            connect_id: facts.connect_id,
            service: facts.service.clone(),
            protocol: facts.protocol,
            asked_login: facts.asked_login.clone(),
            asked_database: facts.asked_database.clone(),
            started: facts.started,
            began: who(Who::of(&facts.caller, facts.client, &facts.through))?,
            last: who(Who::of(&last.caller, last.client, &last.through))?,
            resumes: facts.resumes.count(),
            ticket: waits.ticket,
            next_ticket: waits.next_ticket,
            patience_seconds: waits.patience.as_secs(),
            deadline_milliseconds: milliseconds(monotonic() + left),
            bytes_in: counters.bytes_in(),
            bytes_out: counters.bytes_out(),
            standing,
            inward_ended: self.under_way.inward.is_ended,
            outward_ended: self.under_way.outward.is_ended,
            first_closed: self.under_way.first_closed,
            rested_milliseconds: milliseconds(self.under_way.rested),
            boundaries: self.boundaries,
            baseline: None,
        })
    }
}
