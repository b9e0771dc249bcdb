//! `iapctl sessions watch`: what a session's terminal shows, while it does.

use std::io::{IsTerminal as _, Read as _, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use iap_audit::asciicast::{Code, Encoder, Entry, Header, LINE_BYTES_MAX, neutralised};
use iap_identity::{AgentId, SessionId};
use iap_proto::v1;
use iap_tunnel::watch::{Begin, End, WATCH_VERSION};
use iap_tunnel::{WatchFrame, WatchRequest};
use time::OffsetDateTime;
use tokio::sync::Notify;

use super::play::Quiet;
use super::{play, sessions};
use crate::api;
use crate::context::Context;
use crate::exit::ExitStatus;
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::session::{WatchAnswer, Watched, watch};

/// Brings a terminal to what a fresh one is: the usual screen, empty, with nothing set.
const FRESH: &str = "\x1b[?1049l\x1b[!p\x1b[0m\x1b[r\x1b[?25h\x1b[H\x1b[2J";
/// Said instead of an unclosed connection.
const LOST: &str = "the connection to the session's agent is lost";

/// `sessions watch`.
#[derive(Debug, Args)]
pub struct WatchArguments {
    /// The session's id
    #[arg(value_name = "SESSION")]
    id: String,
    /// Only this of its recordings; without it those of terminals, one after the other
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    recording: Option<u32>,
    /// At which agent it runs; without it the auth server is asked
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// terminal shows it, and q or Ctrl-C leaves; asciicast is one recording from now on, for other programs
    #[arg(short, long, visible_alias = "output-format", default_value = "terminal")]
    format: WatchFormat,
}

/// What becomes of what is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WatchFormat {
    /// Shown.
    Terminal,
    /// Written as it comes.
    Asciicast,
}

pub(super) async fn run(arguments: WatchArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let session = sessions::session_id(&arguments.id)?;
    let agent = match &arguments.agent {
        Some(agent) => AgentId::parse(agent).map_err(|error| {
            Failure::usage(format!("'{agent}' is not an agent's id")).because(error.to_string())
        })?,
        None => find(session, context).await?,
    };
    let identity = identity::require(context).await?;
    let request = WatchRequest {
        version: WATCH_VERSION,
        session_id: session,
        recording: arguments.recording,
    };
    let watched = begin(identity, agent, &request, context).await?;
    let is_shown = arguments.format == WatchFormat::Terminal && std::io::stdout().is_terminal();
    let view = View::new(&arguments, is_shown, session);
    view.follow(watched, context).await
}

/// The agent of a session that runs.
async fn find(session: SessionId, context: &Context) -> anyhow::Result<AgentId> {
    let request = v1::SessionRequest {
        session_id: session.as_bytes().to_vec(),
    };
    let asked = api::ask(context, async |auth| {
        auth.user().session_place(request.clone()).await
    });
    let place = asked.await?;
    if place.over {
        return Err(Failure::usage(format!("session {session} is over"))
            .next(format!("iapctl sessions play {session}"))
            .into());
    }
    Ok(AgentId::from_bytes(&place.agent_id)?)
}

async fn begin(
    identity: Identity,
    agent: AgentId,
    request: &WatchRequest,
    context: &Context,
) -> anyhow::Result<Watched> {
    if let WatchAnswer::Watching(watched) = watch(&identity, agent, request).await? {
        return Ok(*watched);
    }
    context
        .printer
        .verbose("the agent asks for a renewed certificate");
    let stored = identity::load(&identity.home, OffsetDateTime::now_utc())?;
    let stored = match stored {
        identity::Standing::Valid(stored) => *stored,
        identity::Standing::NoLogin(_) => identity,
    };
    let renewed = identity::renew_within_limit(&stored).await?;
    match watch(&renewed, agent, request).await? {
        WatchAnswer::Watching(watched) => Ok(*watched),
        WatchAnswer::Renew => Err(
            Failure::login_needed("the policy has changed since you logged in")
                .next("iapctl login")
                .into(),
        ),
    }
}

/// What a watcher has seen, and where it goes.
struct View<'a> {
    arguments: &'a WatchArguments,
    session: SessionId,
    /// What this is, for the terminal's title: the first lines are gone with the first screen.
    title: String,
    /// Drives a terminal, instead of going into a pipe.
    is_shown: bool,
    showing: Option<u32>,
    lines: Vec<u8>,
    /// When the newest event was.
    at: Duration,
    missed_bytes: u64,
    /// It was said that there is nothing to see.
    is_waiting: bool,
    /// The largest terminal that was seen, and that this one is not.
    larger: Option<(u32, u32)>,
}

/// Whether more is to be seen.
enum Next {
    More,
    /// This was all, for a reason that the agent gave or none.
    Over(Option<End>),
}

impl<'a> View<'a> {
    fn new(arguments: &'a WatchArguments, is_shown: bool, session: SessionId) -> Self {
        Self {
            arguments,
            session,
            title: String::new(),
            is_shown,
            showing: None,
            lines: Vec::new(),
            at: Duration::ZERO,
            missed_bytes: 0,
            is_waiting: false,
            larger: None,
        }
    }

    /// Until somebody leaves, or nothing more comes.
    async fn follow(mut self, mut watched: Watched, context: &Context) -> anyhow::Result<ExitStatus> {
        self.announce(&watched, context);
        let quiet = self.is_shown.then(Quiet::new);
        let leave = Arc::new(Notify::new());
        if self.is_shown && std::io::stdin().is_terminal() {
            let leave = Arc::clone(&leave);
            std::thread::spawn(move || until_q(&leave));
        }
        let ended = loop {
            let frame = tokio::select! {
                frame = watched.next() => frame,
                _ = tokio::signal::ctrl_c() => break Ok(None),
                () = leave.notified() => break Ok(None),
            };
            let next = match frame {
                Ok(Some(frame)) => self.take(frame, context),
                Ok(None) => Err(Failure::failed(LOST).into()),
                Err(failure) => Err(failure.into()),
            };
            match next {
                Ok(Next::More) => watched.taken().await,
                Ok(Next::Over(end)) => break Ok(end),
                Err(error) => break Err(error),
            }
        };
        drop(quiet);
        self.sum_up(context);
        match ended {
            Ok(end) => self.conclude(end, context),
            Err(error) => Err(match error.downcast::<Failure>() {
                Ok(failure) => failure
                    .next(format!("iapctl sessions watch {}", self.session))
                    .into(),
                Err(error) => error,
            }),
        }
    }

    fn announce(&mut self, watched: &Watched, context: &Context) {
        let login = watched
            .login
            .as_ref()
            .map_or_else(String::new, |login| format!(" as {login}"));
        let text = neutralised(&format!("{} on {}{login}", watched.user, watched.service));
        let how = match self.is_shown {
            true => "; q or Ctrl-C leaves",
            false => "",
        };
        let talk = format!("Watching session {}: {text}{how}.", self.session);
        context.printer.talk(&talk);
        self.title = format!("watching {text}; q leaves");
    }

    fn take(&mut self, frame: WatchFrame, context: &Context) -> anyhow::Result<Next> {
        match frame {
            WatchFrame::Recordings(numbers) => {
                self.say_what_runs(&numbers, context);
                Ok(Next::More)
            }
            WatchFrame::Begin(begin) => self.begin(&begin, context),
            WatchFrame::Lines(lines) => {
                self.lines.extend(lines);
                self.take_lines()?;
                Ok(Next::More)
            }
            WatchFrame::Missed(bytes) => {
                self.missed_bytes = self.missed_bytes.saturating_add(bytes);
                if self.arguments.format == WatchFormat::Asciicast {
                    self.write_events(|encoder, at, lines| {
                        encoder.marker(at, &format!("{bytes} bytes were not shown in time"), lines);
                    })?;
                }
                Ok(Next::More)
            }
            WatchFrame::End(end) => Ok(Next::Over(Some(end))),
        }
    }

    /// Only while it spoils nothing.
    fn say_what_runs(&mut self, numbers: &[u32], context: &Context) {
        if self.showing.is_some() {
            return;
        }
        match numbers {
            [] if !std::mem::replace(&mut self.is_waiting, true) => context
                .printer
                .talk("Nothing is shown now; waiting until something is."),
            [] | [_] => {}
            _ => {
                let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
                context.printer.talk(&format!(
                    "Recordings {} run; --recording NUMBER chooses one.",
                    numbers.join(", ")
                ));
            }
        }
    }

    fn begin(&mut self, begin: &Begin, context: &Context) -> anyhow::Result<Next> {
        let header = Header::parse(begin.header.as_bytes())?;
        let again = self.showing == Some(begin.recording);
        if self.arguments.format == WatchFormat::Asciicast {
            match self.showing {
                None => std::io::stdout().write_all(&header.line())?,
                // A file is one recording.
                Some(_) if !again => return Ok(Next::Over(None)),
                Some(_) => self.write_events(|encoder, at, lines| {
                    encoder.resize(at, header.width, header.height, lines);
                    encoder.output(at, FRESH.as_bytes(), lines);
                })?,
            }
        } else if self.is_shown {
            if self.showing.is_none() {
                play::announce(&header, true, context);
            }
            self.note_size((header.width, header.height));
            write!(std::io::stdout(), "{FRESH}\x1b]2;{}\x07", self.title)?;
        }
        if !begin.whole {
            let text = "What was shown before could not be worked out; what comes is.";
            match self.is_shown {
                true => write!(std::io::stdout(), "[{text}]\r\n")?,
                false => context.printer.talk(text),
            }
        }
        std::io::stdout().flush()?;
        self.showing = Some(begin.recording);
        self.lines.clear();
        Ok(Next::More)
    }

    fn take_lines(&mut self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        while let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
            let rest = self.lines.split_off(end + 1);
            let line = std::mem::replace(&mut self.lines, rest);
            let entry = Entry::parse(&line)?;
            self.at = self.at.max(entry.at);
            if self.arguments.format == WatchFormat::Asciicast {
                out.write_all(&line)?;
                continue;
            }
            match entry.code {
                Code::Output => out.write_all(entry.text.as_bytes())?,
                Code::Marker if self.is_shown => write!(out, "\r\n[{}]\r\n", neutralised(&entry.text))?,
                Code::Resize if self.is_shown => {
                    if let Some((columns, rows)) = entry.text.split_once('x') {
                        let size = (columns.parse().unwrap_or(0), rows.parse().unwrap_or(0));
                        self.note_size(size);
                    }
                }
                Code::Marker | Code::Resize | Code::Input => {}
            }
        }
        out.flush()?;
        anyhow::ensure!(
            self.lines.len() <= LINE_BYTES_MAX,
            "a line of the recording has no end"
        );
        Ok(())
    }

    fn write_events(&self, write: impl FnOnce(&mut Encoder, Duration, &mut Vec<u8>)) -> std::io::Result<()> {
        let (mut encoder, mut lines) = (Encoder::default(), Vec::new());
        write(&mut encoder, self.at, &mut lines);
        std::io::stdout().write_all(&lines)
    }

    fn note_size(&mut self, (columns, rows): (u32, u32)) {
        if !play::fits((columns, rows)) {
            let (most_columns, most_rows) = self.larger.unwrap_or((0, 0));
            self.larger = Some((most_columns.max(columns), most_rows.max(rows)));
        }
    }

    fn sum_up(&self, context: &Context) {
        if let Some((columns, rows)) = self.larger {
            context.printer.talk(&format!(
                "The session's terminal ({columns}x{rows}) was larger than this one, so that it was not shown as it was."
            ));
        }
        if self.missed_bytes > 0 {
            context.printer.talk(&format!(
                "{} bytes of the recording were not shown: they came faster than they were taken.",
                self.missed_bytes
            ));
        }
    }

    fn conclude(&self, end: Option<End>, context: &Context) -> anyhow::Result<ExitStatus> {
        let Some(End { code, text }) = end else {
            return Ok(ExitStatus::Done);
        };
        let text = neutralised(&text);
        let failure = match code.as_str() {
            "session_over" => {
                context.printer.talk(&text);
                let replay = format!("Replay it with: iapctl sessions play {}", self.session);
                context.printer.talk(&replay);
                return Ok(ExitStatus::Done);
            }
            "recording_over" if self.showing.is_some() => {
                context.printer.talk(&text);
                return Ok(ExitStatus::Done);
            }
            "recording_over" => Failure::usage(text).next(format!("iapctl sessions watch {}", self.session)),
            "lock" | "policy" => Failure::denied(text),
            "certificate_ended" => {
                Failure::login_needed(text).next(format!("iapctl sessions watch {}", self.session))
            }
            _ => Failure::failed(text),
        };
        Err(failure.into())
    }
}

/// Returns once `q` is typed. What a program asks its terminal, this one answers: that comes at once, and begins otherwise.
fn until_q(leave: &Notify) {
    let mut typed = [0; 256];
    loop {
        match std::io::stdin().lock().read(&mut typed) {
            Ok(1) if typed.first() == Some(&b'q') => return leave.notify_one(),
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
