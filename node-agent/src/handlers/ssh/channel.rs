//! One channel of a client, joined to one of sshd's: requests are asked of sshd, bytes are seen and passed on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::server;
use russh::{ChannelWriteHalf, Pty, Sig, client};
use tokio::sync::{oneshot, watch};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::mailbox::Parcel;
use super::notice::Notice;
use super::observer::Observer;

/// Standard error (RFC 4254 §5.2).
const STDERR: u32 = 1;

/// How long the end of what a program prints waits for how the program ended.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// The end of what a program prints, held back until it is known how the program ended. Some clients close a channel that
/// has ended both ways, which OpenSSH's sshd tells the exit status all the same; russh takes the channel away at once.
#[derive(Default)]
struct HeldEof {
    due: Option<Pin<Box<Sleep>>>,
    has_exited: bool,
}

impl HeldEof {
    async fn due(&mut self) {
        match &mut self.due {
            Some(due) => due.await,
            None => std::future::pending().await,
        }
    }
}

/// Returns once others watch than before, if that is to be told.
async fn changed(notice: &mut Option<Notice>) {
    match notice {
        Some(notice) => notice.changed().await,
        None => std::future::pending().await,
    }
}

/// What a channel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Program {
    /// The login's shell.
    Shell,
    /// A command line.
    Command(Vec<u8>),
    /// A subsystem such as `sftp`.
    Subsystem(String),
}

/// The channel as its client sees it.
pub(super) struct Leg {
    pub(super) line: Arc<Line>,
    back: Arc<ChannelWriteHalf<client::Msg>>,
    observer: Arc<Observer>,
    over: CancellationToken,
    has_begun: bool,
}

/// What moves the bytes of a channel.
pub(super) struct Ends {
    pub(super) line: Arc<Line>,
    pub(super) back: Arc<ChannelWriteHalf<client::Msg>>,
    pub(super) front: ChannelWriteHalf<server::Msg>,
    pub(super) handle: server::Handle,
    pub(super) observer: Arc<Observer>,
    /// It runs a program, whose end has a status.
    pub(super) has_exit: bool,
    /// The channel is over.
    pub(super) over: CancellationToken,
    /// The session is over.
    pub(super) session_over: CancellationToken,
    /// Last words for whoever sits at a terminal.
    pub(super) farewell: watch::Receiver<Option<Arc<str>>>,
    /// Those who watch, where terminals are told.
    pub(super) names: Option<watch::Receiver<Vec<Arc<str>>>>,
}

impl Leg {
    pub(super) fn new(ends: &Ends) -> Self {
        Self {
            line: Arc::clone(&ends.line),
            back: Arc::clone(&ends.back),
            observer: Arc::clone(&ends.observer),
            over: ends.over.clone(),
            has_begun: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Asks sshd for a terminal.
    pub(super) async fn ask_for_terminal(
        &self,
        term: &str,
        (columns, rows): (u32, u32),
        (width, height): (u32, u32),
        modes: &[(Pty, u32)],
    ) -> Option<oneshot::Receiver<bool>> {
        if self.has_begun {
            return None;
        }
        let answer = self.line.answer();
        let asking = self
            .back
            .request_pty(true, term, columns, rows, width, height, modes);
        asking.await.ok().map(|()| answer)
    }

    /// sshd has given it one.
    pub(super) fn has_terminal(&self, term: &str, (columns, rows): (u32, u32)) {
        self.observer.terminal(term, columns, rows);
    }

    /// Tells sshd of a terminal's new size.
    pub(super) async fn resize(&self, (columns, rows): (u32, u32), (width, height): (u32, u32)) {
        self.observer.resize(columns, rows);
        let _ = self.back.window_change(columns, rows, width, height).await;
    }

    /// Asks sshd to set a variable.
    pub(super) async fn set_variable(&self, name: &str, value: &str) -> Option<oneshot::Receiver<bool>> {
        let answer = self.line.answer();
        let asking = self.back.set_env(true, name, value);
        asking.await.ok().map(|()| answer)
    }

    /// Passes a signal on.
    pub(super) async fn signal(&self, signal: Sig) {
        let _ = self.back.signal(signal).await;
    }

    /// Records what is to be run, and then asks sshd to run it. Once for each channel (RFC 4254 §6.5).
    pub(super) async fn start(&mut self, program: Program) -> Option<oneshot::Receiver<bool>> {
        if std::mem::replace(&mut self.has_begun, true) {
            return None;
        }
        self.observer.begin(&program).await.ok()?;
        let answer = self.line.answer();
        let asked = match program {
            Program::Shell => self.back.request_shell(true).await,
            Program::Command(command) => self.back.exec(true, command).await,
            Program::Subsystem(name) => self.back.request_subsystem(true, name).await,
        };
        asked.ok().map(|()| answer)
    }
}

impl Ends {
    /// Moves bytes both ways until the channel or the session is over.
    pub(super) async fn run(self) {
        let session_over = self.session_over.clone();
        tokio::select! {
            () = session_over.cancelled() => {}
            ((), ()) = async { tokio::join!(self.up(), self.down()) } => {}
        }
        self.line.up.shut();
        self.line.down.shut();
        self.over.cancel();
        self.observer.finish().await;
    }

    async fn up(&self) {
        loop {
            let parcel = tokio::select! {
                parcel = self.line.up.next() => parcel,
                () = self.over.cancelled() => return,
            };
            let passed = match parcel {
                Parcel::Data(bytes) => {
                    if self.observer.input(&bytes).await.is_err() {
                        return self.give_up().await;
                    }
                    tokio::select! {
                        passed = self.back.data_bytes(bytes) => passed,
                        () = self.over.cancelled() => return,
                    }
                }
                Parcel::Eof => self.back.eof().await,
                Parcel::Close => {
                    let _ = self.back.close().await;
                    // Of a channel that this side has closed russh hears nothing more, not even sshd's own close.
                    self.line.down.push(Parcel::Close);
                    return;
                }
                Parcel::Extended(..) | Parcel::ExitStatus(_) | Parcel::ExitSignal(_) => Ok(()),
            };
            if passed.is_err() {
                return;
            }
        }
    }

    async fn down(&self) {
        let mut farewell = self.farewell.clone();
        let mut notice = self.names.clone().map(Notice::new);
        let mut eof = HeldEof {
            has_exited: !self.has_exit,
            ..HeldEof::default()
        };
        loop {
            let mut is_due = false;
            let parcel = tokio::select! {
                biased;
                Ok(words) = farewell.wait_for(Option::is_some) => {
                    if let Some(words) = words.clone() {
                        drop(words);
                    }
                    break;
                }
                parcel = self.line.down.next() => Some(parcel),
                () = changed(&mut notice) => None,
                () = eof.due() => {
                    is_due = true;
                    None
                }
            };
            if is_due {
                self.end_output(&mut eof).await;
            }
            if let (Some(notice), Some(Parcel::Data(bytes))) = (&mut notice, &parcel) {
                notice.shown(bytes);
            }
            if let Some(parcel) = parcel
                && self.deliver(parcel, &mut eof).await
            {
                self.over.cancel();
                return;
            }
            if let Some(line) = notice.as_mut().and_then(|notice| self.due(notice)) {
                self.observer.note(&line).await;
                self.to_client(None, Bytes::from(line)).await;
            }
        }
        self.say_farewell().await;
    }

    /// A line for the terminal, once something runs there: nowhere else is it read by a person.
    fn due(&self, notice: &mut Notice) -> Option<String> {
        match self.observer.is_recorded() && self.observer.has_terminal() {
            true => notice.line(),
            false => None,
        }
    }

    /// Whether that was the last.
    async fn deliver(&self, parcel: Parcel, eof: &mut HeldEof) -> bool {
        match parcel {
            Parcel::Data(bytes) => {
                if self.observer.output(&bytes).await.is_err() {
                    self.give_up().await;
                    return true;
                }
                self.to_client(None, bytes).await;
            }
            Parcel::Extended(code, bytes) => {
                if code == STDERR {
                    self.observer.errors(&bytes).await;
                }
                self.to_client(Some(code), bytes).await;
            }
            Parcel::Eof => {
                eof.due = Some(Box::pin(sleep(EXIT_PATIENCE)));
                if eof.has_exited {
                    self.end_output(eof).await;
                }
            }
            Parcel::ExitStatus(status) => {
                self.observer.exited(Some(status), None);
                let _ = self.front.exit_status(status).await;
                self.has_exited(eof).await;
            }
            Parcel::ExitSignal(signal) => {
                self.observer.exited(None, Some(&signal.name));
                let telling = self.handle.exit_signal_request(
                    self.front.id(),
                    Sig::Custom(signal.name),
                    signal.core_dumped,
                    signal.message,
                    signal.language,
                );
                let _ = telling.await;
                self.has_exited(eof).await;
            }
            Parcel::Close => {
                self.end_output(eof).await;
                let _ = self.front.close().await;
                return true;
            }
        }
        false
    }

    async fn has_exited(&self, eof: &mut HeldEof) {
        eof.has_exited = true;
        self.end_output(eof).await;
    }

    /// The end of what it prints, if that has come.
    async fn end_output(&self, eof: &mut HeldEof) {
        if eof.due.take().is_some() {
            let _ = self.front.eof().await;
        }
    }

    /// Ends a channel that must be recorded and cannot be.
    async fn give_up(&self) {
        let _ = self.back.close().await;
        let _ = self.front.close().await;
        self.line.down.push(Parcel::Close);
    }

    /// A client that has closed the channel gets nothing more, and keeps nobody waiting.
    async fn to_client(&self, code: Option<u32>, bytes: Bytes) {
        let mut farewell = self.farewell.clone();
        let passing = async {
            match code {
                None => self.front.data_bytes(bytes).await,
                Some(code) => self.front.extended_data_bytes(code, bytes).await,
            }
        };
        tokio::select! {
            _ = passing => {}
            () = self.line.client_closed.cancelled() => {}
            _ = farewell.wait_for(Option::is_some) => {}
        }
    }

    async fn say_farewell(&self) {
        let words = self.farewell.borrow().clone();
        if let Some(words) = words.filter(|_| self.observer.has_terminal()) {
            let line = Bytes::from(format!("\r\n{words}\r\n"));
            tokio::select! {
                _ = self.front.extended_data_bytes(STDERR, line) => {}
                () = self.line.client_closed.cancelled() => {}
            }
        }
        self.over.cancel();
    }
}
