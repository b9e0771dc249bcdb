//! A session whose client and sshd are joined: opening channels at sshd, and what each of them shares.

use std::sync::Arc;

use iap_policy::Feature;
use russh::server::{self, Handle};
use russh::{Channel, client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ANSWER_PATIENCE;
use super::back::{Lines, Receiver};
use super::channel::{Ends, Leg};
use super::observer::Observer;
use super::settings::Environment;
use crate::recording::Recorder;
use crate::session::{Live, Scribe};

/// What the channels of a session share.
pub(super) struct Stay {
    pub(super) back: client::Handle<Receiver>,
    pub(super) lines: Lines,
    pub(super) environment: Environment,
    pub(super) live: Arc<Live>,
    pub(super) scribe: Scribe,
    /// Whether terminals are told who watches.
    pub(super) notices: bool,
    pub(super) recorder: Recorder,
    pub(super) activity: Arc<super::activity::Activity>,
    /// What moves its bytes.
    pub(super) channels: TaskTracker,
    pub(super) over: CancellationToken,
    pub(super) farewell: watch::Sender<Option<Arc<str>>>,
}

/// Where a forwarded connection goes and comes from.
type Target<'a> = (&'a str, u32, &'a str, u32);

impl Stay {
    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Opens a session channel at sshd and joins it to the client's.
    pub(super) async fn open_session(
        self: &Arc<Self>,
        channel: Channel<server::Msg>,
        handle: Handle,
    ) -> Option<Leg> {
        let opening = tokio::time::timeout(ANSWER_PATIENCE, self.back.channel_open_session());
        let opened = opening.await.ok()?.ok()?;
        Some(self.join(channel, opened, handle, true))
    }

    /// Whether connections to other ports may be opened, which is written down either way.
    pub(super) async fn forwards(&self, target: &str) -> bool {
        // As of now: a changed policy counts in a session that goes on.
        let allowed = self.live.permit().has(Feature::SshPortForwarding);
        self.put_on_record("local", Some(target), allowed).await;
        allowed
    }

    /// Writes down that something was asked for which nobody gets.
    pub(super) async fn refuses(&self, kind: &'static str, target: Option<&str>) {
        self.put_on_record(kind, target, false).await;
    }

    async fn put_on_record(&self, kind: &'static str, target: Option<&str>, allowed: bool) {
        let event = self
            .scribe
            .event(iap_audit::EventKind::SessionForward)
            .field("kind", kind)
            .field("allowed", allowed);
        let event = match target {
            Some(target) => event.field("forward", super::observer::shortened(target)),
            None => event,
        };
        self.scribe.record(event).await;
    }

    /// Opens a forwarded connection at sshd, which has its own say (`PermitOpen`).
    pub(super) async fn open_forward(
        self: &Arc<Self>,
        channel: Channel<server::Msg>,
        handle: Handle,
        (host, port, originator, originator_port): Target<'_>,
    ) -> Option<Leg> {
        let asking = self
            .back
            .channel_open_direct_tcpip(host, port, originator, originator_port);
        let opened = tokio::time::timeout(ANSWER_PATIENCE, asking).await.ok()?.ok()?;
        Some(self.join(channel, opened, handle, false))
    }

    fn join(
        self: &Arc<Self>,
        channel: Channel<server::Msg>,
        opened: Channel<client::Msg>,
        handle: Handle,
        has_exit: bool,
    ) -> Leg {
        // What arrives is heard by the handlers; a reading half would have to be emptied too.
        let (_, front) = channel.split();
        let (_, back) = opened.split();
        let observer = Observer::new(
            self.scribe.clone(),
            self.recorder.clone(),
            Arc::clone(&self.activity),
        );
        let ends = Ends {
            line: self.lines.line(back.id()),
            back: Arc::new(back),
            front,
            handle,
            observer: Arc::new(observer),
            has_exit,
            over: CancellationToken::new(),
            session_over: self.over.clone(),
            farewell: self.farewell.subscribe(),
            names: self.notices.then(|| self.recorder.audience().names()),
        };
        let leg = Leg::new(&ends);
        let (lines, id) = (self.lines.clone(), ends.back.id());
        self.channels.spawn(async move {
            ends.run().await;
            lines.forget(id);
        });
        leg
    }
}
