//! One watcher being shown what there is.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iap_identity::SessionId;
use iap_tunnel::WatchFrame;
use iap_tunnel::watch::{Begin, WATCH_AHEAD_BYTES_MAX, WATCH_LINES_BYTES_MAX, WATCH_TAKEN};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::audience::Stage;
use super::record::Tally;
use super::{Audience, Heeded, Left, Onlooker, Watchers};
use crate::recording::Recording;

/// A watcher that takes nothing for so long is gone.
const TAKE_PATIENCE: Duration = Duration::from_secs(120);
/// Last words take no longer.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);
/// A watcher that is behind begins anew that often at most.
const BEGIN_EVERY: Duration = Duration::from_secs(1);

/// What one watcher is shown.
pub(crate) struct Showing<'a> {
    pub(crate) session: SessionId,
    pub(crate) audience: &'a Audience,
    /// The one recording that was asked for.
    pub(crate) wanted: Option<u32>,
    pub(crate) watchers: &'a Watchers,
    pub(crate) bytes_max: usize,
    pub(crate) tally: &'a Tally,
}

/// The frames that a watcher has not taken yet, by their lengths.
#[derive(Debug, Default)]
struct Ahead {
    frames: Mutex<VecDeque<usize>>,
    taken: Notify,
}

impl Ahead {
    fn sends(&self, bytes: usize) {
        self.frames().push_back(bytes);
    }

    /// Whether there was one to be taken.
    fn takes(&self) -> bool {
        let took = self.frames().pop_front().is_some();
        self.taken.notify_one();
        took
    }

    async fn room(&self) {
        while self.frames().iter().sum::<usize>() >= WATCH_AHEAD_BYTES_MAX {
            self.taken.notified().await;
        }
    }

    fn frames(&self) -> MutexGuard<'_, VecDeque<usize>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to a watcher. Not cut off within a frame, it can be told more.
struct Way<'a, S> {
    stream: WriteHalf<S>,
    ahead: &'a Ahead,
    is_torn: bool,
}

impl<S: AsyncWrite> Way<'_, S> {
    /// As soon as they have taken enough of what was sent before.
    async fn send(&mut self, frame: &WatchFrame) -> Result<(), Left> {
        match tokio::time::timeout(TAKE_PATIENCE, self.ahead.room()).await {
            Ok(()) => self.send_now(frame).await,
            Err(_elapsed) => Err(Left::TooSlow),
        }
    }

    async fn send_now(&mut self, frame: &WatchFrame) -> Result<(), Left> {
        let bytes = frame
            .encode()
            .map_err(|error| Left::Lost(io::Error::other(error)))?;
        self.ahead.sends(bytes.len());
        self.is_torn = true;
        let writing = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(TAKE_PATIENCE, writing).await {
            Ok(Ok(())) => {
                self.is_torn = false;
                Ok(())
            }
            Ok(Err(error)) => Err(Left::Lost(error)),
            Err(_elapsed) => Err(Left::TooSlow),
        }
    }
}

impl Showing<'_> {
    /// Until they leave, may not any longer, or there is nothing more to see.
    pub(crate) async fn run<S: AsyncRead + AsyncWrite>(&self, stream: S, onlooker: &Onlooker) -> Left {
        let (mut reader, writer) = tokio::io::split(stream);
        let ahead = Ahead::default();
        let mut way = Way {
            stream: writer,
            ahead: &ahead,
            is_torn: false,
        };
        let left = tokio::select! {
            biased;
            left = onlooker.stands() => left,
            left = gone(&mut reader, &ahead) => left,
            left = self.show(&mut way) => left,
        };
        let farewell = async {
            if let Some(end) = left.last_words().filter(|_| !way.is_torn) {
                let _ = way.send_now(&WatchFrame::End(end)).await;
            }
            let _ = way.stream.shutdown().await;
            // What is unread when a connection closes takes what was sent with it.
            gone(&mut reader, &ahead).await
        };
        let _ = tokio::time::timeout(FAREWELL_PATIENCE, farewell).await;
        left
    }

    async fn show<S: AsyncWrite>(&self, way: &mut Way<'_, S>) -> Left {
        match self.show_all(way).await {
            Ok(left) | Err(left) => left,
        }
    }

    /// One recording after the other.
    async fn show_all<S: AsyncWrite>(&self, way: &mut Way<'_, S>) -> Result<Left, Left> {
        let mut stage = self.audience.stage();
        loop {
            let (chosen, numbers, over) = {
                let stage = stage.borrow_and_update();
                (stage.choose(self.wanted), stage.numbers(), stage.over())
            };
            way.send(&WatchFrame::Recordings(numbers)).await?;
            match (chosen, self.wanted, over) {
                (Some((number, recording)), _, _) => {
                    self.follow(way, number, &recording, &mut stage).await?;
                }
                (None, _, Some(ending)) => return Ok(Left::Session(self.session, ending)),
                (None, Some(wanted), None) => return Ok(Left::Recording(self.session, wanted)),
                (None, None, None) => {
                    if stage.changed().await.is_err() {
                        return Ok(Left::Session(self.session, None));
                    }
                }
            }
        }
    }

    /// One recording to its end.
    async fn follow<S: AsyncWrite>(
        &self,
        way: &mut Way<'_, S>,
        number: u32,
        recording: &Recording,
        stage: &mut watch::Receiver<Stage>,
    ) -> Result<(), Left> {
        // How far into the recording they have seen, or been told of.
        let mut seen = None;
        while let Some((listener, position, size)) = recording.listen(self.bytes_max) {
            if let Some(seen) = seen {
                let missed = position.saturating_sub(seen);
                self.tally.missed(missed);
                way.send(&WatchFrame::Missed(missed)).await?;
            }
            let began = Instant::now();
            let keyframe = {
                let _turn = self.watchers.keyframes.acquire().await;
                recording.keyframe(position, size).await
            };
            let size = keyframe.as_ref().map_or(size, |keyframe| keyframe.size);
            let header = recording.header(size).line();
            way.send(&WatchFrame::Begin(Begin {
                recording: number,
                header: String::from_utf8_lossy(&header).trim_end().to_owned(),
                whole: keyframe.is_some(),
            }))
            .await?;
            if let Some(keyframe) = keyframe {
                self.send_lines(way, &keyframe.lines()).await?;
            }
            let mut at = position;
            loop {
                tokio::select! {
                    next = listener.next() => match next {
                        Heeded::Lines(lines) => {
                            self.send_lines(way, &lines).await?;
                            at += lines.len() as u64;
                        }
                        Heeded::Behind => break,
                        Heeded::Over => return Ok(()),
                    },
                    Ok(()) = stage.changed() => {
                        let numbers = stage.borrow_and_update().numbers();
                        way.send(&WatchFrame::Recordings(numbers)).await?;
                    }
                }
            }
            seen = Some(at);
            tokio::time::sleep_until(began + BEGIN_EVERY).await;
        }
        // It is over, and about to leave the stage.
        let _ = stage.changed().await;
        Ok(())
    }

    async fn send_lines<S: AsyncWrite>(&self, way: &mut Way<'_, S>, lines: &[u8]) -> Result<(), Left> {
        for piece in lines.chunks(WATCH_LINES_BYTES_MAX) {
            way.send(&WatchFrame::Lines(piece.to_vec())).await?;
            self.tally.shown(piece.len() as u64);
        }
        Ok(())
    }
}

/// Hears what they have taken. Returns once they have left, or say anything else.
async fn gone(reader: &mut (impl AsyncRead + Unpin), ahead: &Ahead) -> Left {
    let mut said = [0; 64];
    loop {
        let read = match reader.read(&mut said).await {
            Ok(0) => return Left::Watcher,
            Ok(read) => read,
            Err(error) => return Left::Lost(error),
        };
        let mut said = said.iter().take(read);
        if !said.all(|byte| *byte == WATCH_TAKEN && ahead.takes()) {
            return Left::Spoke;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_takes_frames_gets_more_and_whoever_says_anything_else_is_gone() {
        for (said, left) in [
            (&b".."[..], "watcher_left"),
            (b"...", "protocol"),
            (b".x", "protocol"),
            (b"", "watcher_left"),
        ] {
            let ahead = Ahead::default();
            ahead.sends(WATCH_AHEAD_BYTES_MAX);
            ahead.sends(1);
            let mut said = said;
            assert_eq!(gone(&mut said, &ahead).await.code(), left);
        }
    }

    #[tokio::test]
    async fn no_more_is_sent_ahead_than_is_allowed() {
        let ahead = Ahead::default();
        ahead.room().await;
        ahead.sends(WATCH_AHEAD_BYTES_MAX);
        ahead.sends(10);
        let mut room = Box::pin(ahead.room());
        assert!(futures_util::poll!(&mut room).is_pending());
        assert!(ahead.takes());
        room.await;
    }
}
