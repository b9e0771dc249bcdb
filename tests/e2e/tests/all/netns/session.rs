//! A session to an echo service whose every answer is waited for with a limit.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

const ANSWER_SECONDS_MAX: u64 = 40;

pub(super) struct Session {
    child: Child,
    answers: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
}

impl Session {
    /// Starts the command; the first round trip tells whether it works.
    pub(super) fn start(mut command: std::process::Command) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let answers = follow(child.stdout.take().context("no output")?);
        let errors = follow(child.stderr.take().context("no error output")?);
        Ok(Self {
            child,
            answers,
            errors,
        })
    }

    /// Sends a line and waits until the same has come back.
    pub(super) fn round_trip(&mut self, text: &str) -> anyhow::Result<()> {
        let line = format!("{text}\n").into_bytes();
        let mut input = self.child.stdin.take().context("no input")?;
        // What does not fit into the pipes waits for the answers to be read.
        let sent = line.clone();
        let writing = std::thread::spawn(move || {
            input
                .write_all(&sent)
                .and_then(|()| input.flush())
                .map(|()| input)
        });
        let deadline = Instant::now() + Duration::from_secs(ANSWER_SECONDS_MAX);
        let mut back = Vec::new();
        while back.len() < line.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(piece) => back.extend(piece),
                Err(RecvTimeoutError::Timeout) => bail!("no answer within {ANSWER_SECONDS_MAX} s"),
                Err(RecvTimeoutError::Disconnected) => bail!("the session ended: {}", self.said()),
            }
        }
        ensure!(back == line, "other bytes came back");
        self.child.stdin = Some(
            writing
                .join()
                .map_err(|_| anyhow::anyhow!("the writer panicked"))??,
        );
        Ok(())
    }

    /// Waits for the session's end.
    pub(super) fn ended(&mut self, seconds_max: u64) -> anyhow::Result<String> {
        let deadline = Instant::now() + Duration::from_secs(seconds_max);
        while self.child.try_wait()?.is_none() {
            ensure!(
                Instant::now() < deadline,
                "the session goes on after {seconds_max} s"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(self.said())
    }

    /// Everything it said on standard error so far.
    pub(super) fn said(&self) -> String {
        let mut all = Vec::new();
        while let Ok(piece) = self.errors.recv_timeout(Duration::from_millis(200)) {
            all.extend(piece);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(mut pipe: impl std::io::Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
