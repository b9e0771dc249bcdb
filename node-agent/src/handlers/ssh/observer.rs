//! What is seen on a channel: what was run, what a terminal showed, which files went over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use iap_audit::EventKind;
use iap_audit::asciicast::Header;
use serde_json::Map;

use super::activity::Activity;
use super::channel::Program;
use super::transfer::{Direction, FileEvent, Transfer};
use crate::recording::{NotRecorded, Recorder, Recording};
use crate::session::Scribe;
use crate::session::scribe::beside;

/// The longest command line, path or host that a record repeats.
const TEXT_CHARACTERS_MAX: usize = 1024;
/// How much each way is recorded of a command without a terminal; such channels carry whole repositories.
const WITHOUT_TERMINAL_BYTES_MAX: u64 = 1024 * 1024;
/// What is said of a terminal's size where there is none.
const NO_TERMINAL: (u32, u32) = (80, 24);

/// Watches one channel.
pub(super) struct Observer {
    scribe: Scribe,
    recorder: Recorder,
    activity: Arc<Activity>,
    has_terminal: AtomicBool,
    terminal: Mutex<Terminal>,
    recording: OnceLock<Recorded>,
    transfer: Mutex<Option<Transfer>>,
    /// Whether a transfer that cannot be read has been given up.
    given_up: tokio::sync::Mutex<bool>,
}

#[derive(Debug, Clone)]
struct Terminal {
    term: Option<String>,
    size: (u32, u32),
    exit: Option<String>,
    command: String,
    /// A shell without a terminal is read to its end: somebody may sit at it all the same.
    is_shell: bool,
}

/// A recording, and how much more of each direction belongs in it.
struct Recorded {
    recording: Arc<Recording>,
    bounds: Option<Bounds>,
}

#[derive(Default)]
struct Bounds {
    input: AtomicU64,
    output: AtomicU64,
}

impl Bounds {
    /// As much of `bytes` as still belongs in.
    fn take<'a>(counter: &AtomicU64, bytes: &'a [u8]) -> &'a [u8] {
        let length = bytes.len() as u64;
        let before = counter.fetch_add(length, Ordering::Relaxed);
        let room = WITHOUT_TERMINAL_BYTES_MAX.saturating_sub(before).min(length);
        let room = usize::try_from(room).unwrap_or(bytes.len());
        bytes.get(..room).unwrap_or_default()
    }

    fn left_out(&self) -> u64 {
        let beyond = |counter: &AtomicU64| {
            counter
                .load(Ordering::Relaxed)
                .saturating_sub(WITHOUT_TERMINAL_BYTES_MAX)
        };
        beyond(&self.input) + beyond(&self.output)
    }
}

impl Observer {
    pub(super) fn new(scribe: Scribe, recorder: Recorder, activity: Arc<Activity>) -> Self {
        Self {
            scribe,
            recorder,
            activity,
            has_terminal: AtomicBool::new(false),
            terminal: Mutex::new(Terminal {
                term: None,
                size: NO_TERMINAL,
                exit: None,
                command: String::new(),
                is_shell: false,
            }),
            recording: OnceLock::new(),
            transfer: Mutex::default(),
            given_up: tokio::sync::Mutex::default(),
        }
    }

    /// sshd has given it a terminal.
    pub(super) fn terminal(&self, term: &str, columns: u32, rows: u32) {
        self.has_terminal.store(true, Ordering::Relaxed);
        let mut terminal = self.terminal_held();
        terminal.term = Some(shortened(term));
        terminal.size = sized(columns, rows).unwrap_or(NO_TERMINAL);
    }

    /// Whether sshd has given it one. Without, what is typed is echoed by nobody.
    pub(super) fn has_terminal(&self) -> bool {
        self.has_terminal.load(Ordering::Relaxed)
    }

    /// Whether what it shows is being recorded.
    pub(super) fn is_recorded(&self) -> bool {
        self.recording.get().is_some()
    }

    /// The terminal has another size.
    pub(super) fn resize(&self, columns: u32, rows: u32) {
        self.activity.note();
        let Some(size) = sized(columns, rows) else { return };
        match self.recording.get() {
            Some(recorded) => recorded.recording.resize(size.0, size.1),
            None => self.terminal_held().size = size,
        }
    }

    /// Puts on record what is about to run, and begins the recording of it.
    ///
    /// # Errors
    /// When it must be recorded and cannot be.
    pub(super) async fn begin(&self, program: &Program) -> Result<(), NotRecorded> {
        self.activity.note();
        let (kind, text) = match program {
            Program::Shell => ("shell", None),
            Program::Command(command) => ("exec", Some(String::from_utf8_lossy(command).into_owned())),
            Program::Subsystem(name) => ("subsystem", Some(name.clone())),
        };
        let event = self
            .scribe
            .event(EventKind::SessionCommand)
            .field("kind", kind)
            .field("terminal", self.has_terminal());
        let mut written = Map::new();
        let event = match &text {
            Some(text) => {
                written.insert("command".to_owned(), shortened(text).into());
                match text.chars().nth(TEXT_CHARACTERS_MAX) {
                    Some(_) => event.field("command_truncated", true),
                    None => event,
                }
            }
            None => event,
        };
        let event = beside(event, &written);
        self.scribe.record(event).await;
        {
            let mut terminal = self.terminal_held();
            terminal.is_shell = text.is_none();
            terminal.command = text.as_deref().map_or_else(|| "shell".to_owned(), shortened);
        }
        let transfer = Transfer::of(program, self.has_terminal());
        let is_read = transfer.is_some() && !self.has_terminal();
        *self.transfer_held() = transfer;
        match is_read {
            true => Ok(()),
            false => self.begin_recording().await,
        }
    }

    async fn begin_recording(&self) -> Result<(), NotRecorded> {
        let terminal = self.terminal_held().clone();
        let header = Header {
            width: terminal.size.0,
            height: terminal.size.1,
            timestamp: self.scribe.now().unix_timestamp(),
            command: (!terminal.is_shell).then_some(terminal.command),
            term: terminal.term,
        };
        let is_bounded = !self.has_terminal() && !terminal.is_shell;
        if let Some(recording) = self.recorder.begin(header).await? {
            let _ = self.recording.set(Recorded {
                recording,
                bounds: is_bounded.then(Bounds::default),
            });
        }
        Ok(())
    }

    /// What the client sends. A terminal echoes what is to be seen, and what it does not echo is nobody's business.
    ///
    /// # Errors
    /// When it must be recorded and cannot be.
    pub(super) async fn input(&self, bytes: &[u8]) -> Result<(), NotRecorded> {
        self.activity.note();
        self.scribe.counters().add(bytes.len() as u64, 0);
        self.transferred(Direction::ToServer, bytes).await?;
        if let Some(recorded) = self.recording.get().filter(|_| !self.has_terminal()) {
            let bytes = match &recorded.bounds {
                Some(bounds) => Bounds::take(&bounds.input, bytes),
                None => bytes,
            };
            recorded.recording.input(bytes).await;
        }
        Ok(())
    }

    /// What sshd sends.
    ///
    /// # Errors
    /// When it must be recorded and cannot be.
    pub(super) async fn output(&self, bytes: &[u8]) -> Result<(), NotRecorded> {
        self.activity.note();
        self.scribe.counters().add(0, bytes.len() as u64);
        self.transferred(Direction::ToClient, bytes).await?;
        self.show(bytes).await;
        Ok(())
    }

    /// What the agent itself shows on the terminal.
    pub(super) async fn note(&self, line: &str) {
        self.show(line.as_bytes()).await;
    }

    /// What it sends as standard error.
    pub(super) async fn errors(&self, bytes: &[u8]) {
        self.activity.note();
        self.scribe.counters().add(0, bytes.len() as u64);
        self.show(bytes).await;
    }

    /// How the program ended.
    pub(super) fn exited(&self, status: Option<u32>, signal: Option<&str>) {
        self.terminal_held().exit = match (status, signal) {
            (_, Some(signal)) => Some(shortened(signal)),
            (Some(status), None) => Some(status.to_string()),
            (None, None) => None,
        };
    }

    /// The channel is over.
    pub(super) async fn finish(&self) {
        let left = self
            .transfer_held()
            .take()
            .map(Transfer::finish)
            .unwrap_or_default();
        self.put_on_record(left).await;
        if let Some(recorded) = self.recording.get() {
            let terminal = self.terminal_held().clone();
            let left_out = recorded.bounds.as_ref().map_or(0, Bounds::left_out);
            let more = |event: iap_audit::Event| {
                let mut written = Map::new();
                written.insert("command".to_owned(), terminal.command.into());
                let event = beside(event.field("terminal", self.has_terminal()), &written);
                let event = match left_out {
                    0 => event,
                    left_out => event.field("left_out_bytes", left_out),
                };
                match &terminal.exit {
                    Some(exit) => event.field("exit", exit.as_str()),
                    None => event,
                }
            };
            recorded.recording.finish(more).await;
        }
    }

    async fn show(&self, bytes: &[u8]) {
        if let Some(recorded) = self.recording.get() {
            let bytes = match &recorded.bounds {
                Some(bounds) => Bounds::take(&bounds.output, bytes),
                None => bytes,
            };
            recorded.recording.output(bytes).await;
        }
    }

    async fn transferred(&self, direction: Direction, bytes: &[u8]) -> Result<(), NotRecorded> {
        let (events, is_lost) = match self.transfer_held().as_mut() {
            Some(transfer) => (transfer.push(direction, bytes), transfer.is_lost()),
            None => return Ok(()),
        };
        self.put_on_record(events).await;
        match is_lost {
            true => self.give_up_reading().await,
            false => Ok(()),
        }
    }

    /// A transfer that is none, or one that is not understood, is recorded from there on like any other program.
    async fn give_up_reading(&self) -> Result<(), NotRecorded> {
        let mut given_up = self.given_up.lock().await;
        if !*given_up && self.recording.get().is_none() {
            self.begin_recording().await?;
        }
        *given_up = true;
        *self.transfer_held() = None;
        Ok(())
    }

    async fn put_on_record(&self, events: Vec<FileEvent>) {
        for file in events {
            let event = self
                .scribe
                .event(EventKind::SessionFile)
                .field("operation", file.operation.as_str())
                .field("ok", file.ok);
            let mut written = Map::new();
            written.insert("path".to_owned(), shortened(&file.path).into());
            if let Some(target) = &file.target {
                written.insert("target".to_owned(), shortened(target).into());
            }
            let event = beside(event, &written);
            let event = match file.bytes {
                Some((read, written)) => event.field("bytes_read", read).field("bytes_written", written),
                None => event,
            };
            self.scribe.record(event).await;
        }
    }

    fn terminal_held(&self) -> MutexGuard<'_, Terminal> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transfer_held(&self) -> MutexGuard<'_, Option<Transfer>> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A size as a kernel keeps it. Clients without a terminal of their own say 0, which no player of recordings takes.
fn sized(columns: u32, rows: u32) -> Option<(u32, u32)> {
    let side = |side: u32| side.min(u32::from(u16::MAX));
    (columns > 0 && rows > 0).then(|| (side(columns), side(rows)))
}

/// What a stranger has written takes no more of a record than a line would.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS_MAX).collect()
}
