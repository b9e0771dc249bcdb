//! One recording while it is written.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use iap_audit::asciicast::{Encoder, Header};
use iap_audit::{CloseReason, EventKind, carried};
use iap_proto::RecordingMode;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::OfSession;
use super::store::{Finished, Name};
use crate::session::Ending;
use crate::watch::{Keyframe, Listener};

/// What was seen is durable this much later at the latest.
const PIECE_EVERY: Duration = Duration::from_secs(1);
/// A piece of this size is written at once.
const PIECE_BYTES: usize = 128 * 1024;
/// With so much unwritten, the channel waits.
const UNWRITTEN_BYTES_MAX: usize = 1024 * 1024;
/// How often a disk that takes nothing is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long a watcher waits for what was recorded before to be on the disk.
const WRITTEN_PATIENCE: Duration = Duration::from_secs(5);

/// A recording that is being written.
#[derive(Debug)]
pub(crate) struct Recording {
    session: Arc<OfSession>,
    name: Name,
    header: Header,
    began: Instant,
    held: Mutex<Held>,
    /// There is something to write.
    dirty: Notify,
    /// It should be written now.
    urgent: Notify,
    /// There is room again.
    room: Notify,
    writer: Mutex<Option<JoinHandle<Finished>>>,
}

#[derive(Debug, Default)]
struct Held {
    encoder: Encoder,
    lines: Vec<u8>,
    /// When the first of these was seen.
    first: Option<Duration>,
    /// The disk takes nothing now.
    is_failing: bool,
    is_over: bool,
    /// What was shown meanwhile and is in no piece.
    lost_bytes: u64,
    /// The length of the recording with all of `lines`.
    position: u64,
    /// The terminal's size now.
    size: (u32, u32),
    /// It has changed, and there is no line that says so yet.
    is_resized: bool,
    /// Those who watch it.
    listeners: Vec<Weak<Listener>>,
}

impl Held {
    /// Whether there is room for more.
    fn takes_more(&self) -> bool {
        !self.is_failing && self.lines.len() < UNWRITTEN_BYTES_MAX
    }

    /// Adds the line of a new size. However often it changes while nothing is taken, one line tells of it.
    fn say_size(&mut self, at: Duration) {
        if std::mem::take(&mut self.is_resized) {
            let (columns, rows) = self.size;
            self.add(at, |encoder, at, lines| encoder.resize(at, columns, rows, lines));
            self.first.get_or_insert(at);
        }
    }

    /// Adds lines, to be written and for those who watch.
    fn add(&mut self, at: Duration, write: impl FnOnce(&mut Encoder, Duration, &mut Vec<u8>)) {
        let before = self.lines.len();
        write(&mut self.encoder, at, &mut self.lines);
        let new = self.lines.get(before..).unwrap_or_default();
        self.position += new.len() as u64;
        self.listeners.retain(|listener| match listener.upgrade() {
            Some(listener) => {
                listener.push(new);
                true
            }
            None => false,
        });
    }
}

/// Opens the file and begins to write.
pub(super) async fn begin(
    session: Arc<OfSession>,
    name: Name,
    header: &Header,
) -> io::Result<Arc<Recording>> {
    let line = header.line();
    let event = session.scribe.event(EventKind::SessionRecording);
    let envelope = carried(event.into_body().fields());
    let recordings = session.recordings.clone();
    let opening = tokio::task::spawn_blocking(move || recordings.create(name, &line, &envelope));
    let (file, digest, bytes) = opening.await.map_err(io::Error::other)??;
    let recording = Arc::new(Recording {
        session,
        name,
        header: header.clone(),
        began: Instant::now(),
        held: Mutex::new(Held {
            position: bytes,
            size: (header.width, header.height),
            ..Held::default()
        }),
        dirty: Notify::new(),
        urgent: Notify::new(),
        room: Notify::new(),
        writer: Mutex::new(None),
    });
    let file = Pieces {
        file: Some(file),
        digest,
        bytes,
        pieces: 1,
    };
    let writing = tokio::spawn(Arc::clone(&recording).write(file));
    *recording.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writing);
    recording.session.audience.begins(name.number, &recording);
    Ok(recording)
}

impl Recording {
    /// What is shown.
    pub(crate) async fn output(&self, bytes: &[u8]) {
        self.note(bytes.len(), |encoder, at, lines| encoder.output(at, bytes, lines))
            .await;
    }

    /// What is typed.
    pub(crate) async fn input(&self, bytes: &[u8]) {
        self.note(bytes.len(), |encoder, at, lines| encoder.input(at, bytes, lines))
            .await;
    }

    /// The terminal's new size. Never waits.
    pub(crate) fn resize(&self, columns: u32, rows: u32) {
        let mut held = self.held();
        if held.size == (columns, rows) {
            return;
        }
        held.size = (columns, rows);
        held.is_resized = true;
        if held.takes_more() {
            held.say_size(self.began.elapsed());
        }
        drop(held);
        self.dirty.notify_one();
    }

    /// Ends it and puts it on record.
    pub(crate) async fn finish(&self, more: impl FnOnce(iap_audit::Event) -> iap_audit::Event) {
        self.held().is_over = true;
        self.dirty.notify_one();
        self.urgent.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return };
        let finished = writer.await;
        self.say_over();
        let Ok(finished) = finished else { return };
        let event = self.session.scribe.event(EventKind::SessionRecording);
        self.session.scribe.record(more(finished.describe(event))).await;
        let (recordings, name) = (self.session.recordings.clone(), self.name);
        let marking = tokio::task::spawn_blocking(move || recordings.finish(name, &finished)).await;
        if let Ok(Err(error)) = marking {
            tracing::error!(session = %self.name.session, %error, "a finished recording is not marked as such");
        }
    }

    /// Whether it is of a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.header.term.is_some()
    }

    /// Its header, as of a recording that begins now.
    pub(crate) fn header(&self, (width, height): (u32, u32)) -> Header {
        Header {
            width,
            height,
            ..self.header.clone()
        }
    }

    /// From now on its lines go to a listener that keeps `bytes_max` of them, too; with the place in the recording where
    /// that begins, and the terminal's size there. Nothing once it is over.
    pub(crate) fn listen(&self, bytes_max: usize) -> Option<(Arc<Listener>, u64, (u32, u32))> {
        let mut held = self.held();
        if held.is_over {
            return None;
        }
        let listener = Arc::new(Listener::new(bytes_max));
        held.listeners.push(Arc::downgrade(&listener));
        Some((listener, held.position, held.size))
    }

    /// What the terminal shows at that place, as far as the disk has it and it can be worked out in time.
    pub(crate) async fn keyframe(&self, position: u64, size: (u32, u32)) -> Option<Keyframe> {
        tokio::time::timeout(WRITTEN_PATIENCE, self.written(position))
            .await
            .ok()?;
        let (recordings, name, is_terminal) =
            (self.session.recordings.clone(), self.name, self.is_terminal());
        let drawing =
            tokio::task::spawn_blocking(move || recordings.keyframe(name, position, size, is_terminal));
        let session = self.name.session;
        match drawing.await {
            Ok(Ok(keyframe)) => Some(keyframe),
            Ok(Err(error)) => {
                tracing::warn!(%session, %error, "a watcher does not see what was shown before");
                None
            }
            Err(error) => {
                tracing::error!(%session, %error, "a watcher does not see what was shown before");
                None
            }
        }
    }

    /// Returns once everything before `position` is on the disk.
    async fn written(&self, position: u64) {
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            room.as_mut().enable();
            if self.session.recordings.durable(self.name) >= position {
                return;
            }
            self.urgent.notify_one();
            room.await;
        }
    }

    /// Whoever watches goes on to the next, if there is one.
    fn say_over(&self) {
        self.session.audience.ends(self.name.number);
        for listener in std::mem::take(&mut self.held().listeners) {
            if let Some(listener) = listener.upgrade() {
                listener.is_over();
            }
        }
    }

    async fn note(&self, bytes: usize, write: impl FnOnce(&mut Encoder, Duration, &mut Vec<u8>)) {
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            room.as_mut().enable();
            {
                let mut held = self.held();
                if held.is_failing && self.session.mode == RecordingMode::BestEffort {
                    held.lost_bytes = held.lost_bytes.saturating_add(bytes as u64);
                    return;
                }
                if held.takes_more() {
                    let at = self.began.elapsed();
                    held.say_size(at);
                    held.add(at, write);
                    held.first.get_or_insert(at);
                    let is_urgent = held.lines.len() >= PIECE_BYTES;
                    drop(held);
                    self.dirty.notify_one();
                    if is_urgent {
                        self.urgent.notify_one();
                    }
                    return;
                }
            }
            room.await;
        }
    }

    /// Writes pieces until it is over.
    async fn write(self: Arc<Self>, mut file: Pieces) -> Finished {
        let mut lost_bytes = 0;
        loop {
            self.dirty.notified().await;
            if !self.held().is_over {
                let _ = tokio::time::timeout(PIECE_EVERY, self.urgent.notified()).await;
            }
            let (first, mut lines, is_over) = self.take();
            if !lines.is_empty() {
                let at = first.unwrap_or_else(|| self.began.elapsed());
                match self.write_piece(&mut file, at, &mut lines).await {
                    Ok(missed) => lost_bytes += missed,
                    Err(_over) => {
                        lost_bytes += lines.len() as u64 + self.held().lost_bytes;
                        return self.finished(file, lost_bytes);
                    }
                }
                self.room.notify_waiters();
            }
            if is_over {
                return self.finished(file, lost_bytes);
            }
        }
    }

    fn take(&self) -> (Option<Duration>, Vec<u8>, bool) {
        let mut held = self.held();
        held.say_size(self.began.elapsed());
        if held.is_over {
            let at = self.began.elapsed();
            held.add(at, |encoder, at, lines| encoder.finish(at, lines));
        }
        (held.first.take(), std::mem::take(&mut held.lines), held.is_over)
    }

    /// Writes one piece, as soon as the disk takes it; what it costs others meanwhile depends on the mode. Returns how
    /// many bytes were shown meanwhile and are in no piece.
    async fn write_piece(
        &self,
        file: &mut Pieces,
        at: Duration,
        lines: &mut Vec<u8>,
    ) -> Result<u64, io::Error> {
        let mut failing_since = None;
        loop {
            let error = match file.append(&self.session.recordings, self.name, at, lines).await {
                Ok(()) => return Ok(self.go_on()),
                Err(error) => error,
            };
            let since = *failing_since.get_or_insert_with(Instant::now);
            self.held().is_failing = true;
            let (session, patience) = (self.name.session, self.session.limits.now().spool_full_pause());
            tracing::error!(%session, %error, "a piece of a recording cannot be written");
            if self.held().is_over {
                return Err(error);
            }
            if self.session.mode == RecordingMode::Required && since.elapsed() >= patience {
                let why = format!("the session cannot be recorded: {error}");
                self.session
                    .live
                    .cut(Ending::because(CloseReason::AuditUnavailable, why));
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_EVERY) => {}
                () = self.urgent.notified() => {}
            }
        }
    }

    /// The disk takes pieces again.
    fn go_on(&self) -> u64 {
        let mut held = self.held();
        if !std::mem::replace(&mut held.is_failing, false) {
            return 0;
        }
        let missed = std::mem::take(&mut held.lost_bytes);
        if missed > 0 {
            let at = self.began.elapsed();
            let remark = format!("{missed} bytes are not recorded: the disk took none");
            held.add(at, |encoder, at, lines| encoder.marker(at, &remark, lines));
            self.dirty.notify_one();
        }
        missed
    }

    fn finished(&self, file: Pieces, lost_bytes: u64) -> Finished {
        Finished {
            name: self.name,
            bytes: file.bytes,
            pieces: Some(file.pieces),
            milliseconds: u64::try_from(self.began.elapsed().as_millis()).ok(),
            sha256: iap_identity::hex(file.digest.finish().as_ref()),
            lost_bytes,
            is_complete: lost_bytes == 0,
            reason: (lost_bytes > 0)
                .then(|| format!("{lost_bytes} bytes were not written: there was no room for them")),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file and what is in it.
struct Pieces {
    /// Away while a thread writes.
    file: Option<File>,
    digest: Context,
    bytes: u64,
    pieces: u64,
}

impl Pieces {
    async fn append(
        &mut self,
        recordings: &super::Recordings,
        name: Name,
        at: Duration,
        lines: &mut Vec<u8>,
    ) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => return Err(io::Error::other("its file is lost")),
        };
        let (recordings, bytes, piece) = (recordings.clone(), self.bytes, std::mem::take(lines));
        let writing = tokio::task::spawn_blocking(move || {
            let written = recordings.reserve(piece.len()).and_then(|()| {
                let written = file.write_all(&piece).and_then(|()| file.sync_data());
                if written.is_err() {
                    recordings.give_back(piece.len());
                    // So that the next try begins where this one did.
                    let _ = file.set_len(bytes);
                    let _ = io::Seek::seek(&mut file, io::SeekFrom::Start(bytes));
                }
                written
            });
            if written.is_ok() {
                recordings.piece_written(name, bytes, piece.len(), at);
            }
            (file, piece, written)
        });
        let (file, piece, written) = writing.await.map_err(io::Error::other)?;
        self.file = Some(file);
        if let Err(error) = written {
            *lines = piece;
            return Err(error);
        }
        self.digest.update(&piece);
        self.bytes += piece.len() as u64;
        self.pieces += 1;
        Ok(())
    }
}

/// The digest of nothing yet.
pub(super) fn digest() -> Context {
    Context::new(&SHA256)
}
