//! `iapctl sessions play`: a recording in the terminal, or as the file that it is.

use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::digest;
use clap::{Args, ValueEnum};
use iap_audit::asciicast::{Code, Entry, Header, LINE_BYTES_MAX, neutralised};
use iap_proto::v1;
use serde_json::Value;
use tokio::time::Instant;

use super::{records, sessions};
use crate::api;
use crate::context::Context;
use crate::duration;
use crate::exit::ExitStatus;
use crate::failure::Failure;

const SPEED_MAX: f64 = 1_000.0;
/// The longest rest of the longest recording is then still one that a clock can wait for.
const SPEED_MIN: f64 = 0.01;

/// `sessions play`.
#[derive(Debug, Args)]
pub struct PlayArguments {
    /// The session's id
    #[arg(value_name = "SESSION")]
    id: String,
    /// Which of its recordings; without it the first of a terminal, or the first
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    recording: Option<u32>,
    /// How many times as fast
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Rests longer than that are cut to it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse_seconds)]
    idle_limit: u64,
    /// Begin that long after the beginning, at the start of a piece
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_seconds)]
    from: Option<u64>,
    /// terminal plays it; asciicast is the recording itself, for other players; list names what there is
    #[arg(short, long, visible_alias = "output-format", default_value = "terminal")]
    format: PlayFormat,
    /// Where to, instead of the standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What becomes of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlayFormat {
    /// Played.
    Terminal,
    /// As it is.
    Asciicast,
    /// Not at all: what there is, as JSON.
    List,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (SPEED_MIN..=SPEED_MAX).contains(&speed) => Ok(speed),
        Ok(_) | Err(_) => Err(format!("a number from {SPEED_MIN} to {SPEED_MAX}")),
    }
}

pub(super) async fn run(arguments: PlayArguments, context: &Context) -> anyhow::Result<ExitStatus> {
    let session_id = sessions::session_id(&arguments.id)?.as_bytes().to_vec();
    let request = v1::SessionRequest {
        session_id: session_id.clone(),
    };
    let reply = api::ask(context, async |auth| {
        auth.user().recordings(request.clone()).await
    })
    .await?;
    let listed = records::parse(&reply.json)?;
    if arguments.format == PlayFormat::List {
        context.printer.json(&listed)?;
        return Ok(ExitStatus::Done);
    }
    let recordings = listed.as_array().map(Vec::as_slice).unwrap_or_default();
    let chosen = choose(recordings, arguments.recording).ok_or_else(|| nothing(&arguments, recordings))?;
    let request = v1::RecordingRequest {
        session_id,
        recording: number(chosen),
        from_micros: arguments.from.unwrap_or(0).saturating_mul(1_000_000),
    };
    let parts = api::ask(context, async |auth| auth.user().recording(request.clone()).await).await?;
    let mut source = Source::new(parts);
    match arguments.format {
        PlayFormat::Terminal => {
            if play(&mut source, &arguments, context).await?.is_break() {
                context
                    .printer
                    .talk("Left before the end, so that nothing can be said about whether it is whole.");
                return Ok(ExitStatus::Done);
            }
        }
        PlayFormat::Asciicast => save(&mut source, &arguments).await?,
        PlayFormat::List => {}
    }
    say_whether_true(&source, chosen, &arguments, context)
}

/// Of several, the terminal is what one means.
fn choose(recordings: &[Value], wanted: Option<u32>) -> Option<&Value> {
    let here = |recording: &&Value| recording.get("held_bytes").and_then(Value::as_u64) != Some(0);
    if let Some(wanted) = wanted {
        return recordings
            .iter()
            .find(|recording| number(recording) == wanted)
            .filter(here);
    }
    let has_terminal = |recording: &&Value| records::text(recording, "record.terminal") == "true";
    let mut all = recordings.iter().filter(here);
    let first = all.clone().find(has_terminal);
    first.or_else(|| all.next())
}

fn number(recording: &Value) -> u32 {
    let number = recording.get("recording").and_then(Value::as_u64);
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

fn nothing(arguments: &PlayArguments, recordings: &[Value]) -> Failure {
    if let Some(failure) = erased(arguments, recordings) {
        return failure;
    }
    let failure = match (arguments.recording, recordings.is_empty()) {
        (Some(number), false) => Failure::usage(format!("recording {number} of this session is not here")),
        (_, false) => Failure::usage("the recordings of this session have not arrived yet")
            .because("its agent sends them while it can reach the auth server"),
        (_, true) => Failure::usage("nothing of this session is recorded")
            .because("only ssh services with inspect = true are"),
    };
    failure.next(format!("iapctl sessions show {}", arguments.id))
}

/// That the recording which is meant was erased.
fn erased(arguments: &PlayArguments, recordings: &[Value]) -> Option<Failure> {
    let is_meant = |recording: &&Value| {
        arguments
            .recording
            .is_none_or(|wanted| number(recording) == wanted)
    };
    let is_erased = |recording: &&Value| !records::text(recording, "erased.by").is_empty();
    let recording = recordings.iter().filter(is_meant).find(is_erased)?;
    let (time, by) = (
        records::time(recording, "erased.time"),
        records::text(recording, "erased.by"),
    );
    let what = format!("recording {} was erased at {time} by {by}", number(recording));
    let failure = Failure::usage(neutralised(&what));
    Some(failure.because(neutralised(&records::text(recording, "erased.reason"))))
}

/// What is played must be what the agent has put on record when it was over.
fn say_whether_true(
    source: &Source,
    chosen: &Value,
    arguments: &PlayArguments,
    context: &Context,
) -> anyhow::Result<ExitStatus> {
    let told = records::text(chosen, "record.recording_sha256");
    if arguments.from.is_some() {
        return Ok(ExitStatus::Done);
    }
    if told.is_empty() {
        context
            .printer
            .talk("Nothing is on record yet of how long this recording is, so that nothing can be said about whether it is whole.");
        return Ok(ExitStatus::Done);
    }
    let whole = records::number(chosen, "record.recording_bytes").unwrap_or(0);
    if source.bytes < whole {
        let here = format!("{} of {whole} bytes of this recording are here", source.bytes);
        return Err(Failure::failed(here)
            .because("its agent has not sent the rest yet")
            .next(format!("iapctl sessions play {}", arguments.id))
            .into());
    }
    let seen = iap_identity::hex(source.digest.clone().finish().as_ref());
    if seen != told {
        return Err(
            Failure::failed("this is not the recording that the agent has put on record")
                .because(format!("its SHA-256 is {seen}, and the record says {told}"))
                .into(),
        );
    }
    let lacks = records::text(chosen, "record.complete") == "false";
    let reason = records::text(chosen, "record.reason");
    context.printer.talk(&match lacks {
        true => format!(
            "The record says that something is missing: {}",
            neutralised(&reason)
        ),
        false => "The recording is the one on record, and whole.".to_owned(),
    });
    Ok(ExitStatus::Done)
}

/// The lines of a recording as they arrive.
struct Source {
    parts: tonic::Streaming<v1::RecordingPart>,
    arrived: Vec<u8>,
    bytes: u64,
    digest: digest::Context,
}

impl Source {
    fn new(parts: tonic::Streaming<v1::RecordingPart>) -> Self {
        Self {
            parts,
            arrived: Vec::new(),
            bytes: 0,
            digest: digest::Context::new(&digest::SHA256),
        }
    }

    async fn part(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let part = self.parts.message().await.map_err(api::failure)?;
        Ok(part.map(|part| {
            self.digest.update(&part.data);
            self.bytes += part.data.len() as u64;
            part.data
        }))
    }

    /// The next whole line; a torn one at the end of a recording that goes on is not there yet.
    async fn line(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.arrived.iter().position(|byte| *byte == b'\n') {
                let rest = self.arrived.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.arrived, rest)));
            }
            anyhow::ensure!(
                self.arrived.len() <= LINE_BYTES_MAX,
                "a line of the recording has no end"
            );
            match self.part().await? {
                Some(data) => self.arrived.extend(data),
                None => return Ok(None),
            }
        }
    }
}

async fn save(source: &mut Source, arguments: &PlayArguments) -> anyhow::Result<()> {
    let mut target = target(arguments)?;
    while let Some(data) = source.part().await? {
        target.write_all(&data).context("cannot write the recording")?;
    }
    target.flush().context("cannot write the recording")
}

fn target(arguments: &PlayArguments) -> Result<Box<dyn std::io::Write>, Failure> {
    let Some(path) = &arguments.output else {
        return Ok(Box::new(std::io::stdout()));
    };
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path);
    let file = file.map_err(|error| {
        Failure::usage(format!("cannot write {}", path.display())).because(error.to_string())
    })?;
    Ok(Box::new(file))
}

/// On a terminal with its rests, elsewhere at once. Breaks off where whoever watches has left.
async fn play(
    source: &mut Source,
    arguments: &PlayArguments,
    context: &Context,
) -> anyhow::Result<ControlFlow<()>> {
    let paced = arguments.output.is_none() && std::io::stdout().is_terminal();
    let mut target = target(arguments)?;
    let _quiet = paced.then(Quiet::new);
    let mut pace = Pace::new(arguments);
    let mut is_first = arguments.from.is_none();
    while let Some(line) = source.line().await? {
        if std::mem::take(&mut is_first) {
            announce(&Header::parse(&line)?, paced, context);
            continue;
        }
        let entry = Entry::parse(&line)?;
        if paced {
            tokio::select! {
                () = tokio::time::sleep_until(pace.due(entry.at)) => {}
                _ = tokio::signal::ctrl_c() => return Ok(ControlFlow::Break(())),
            }
        }
        match entry.code {
            Code::Output => target.write_all(entry.text.as_bytes())?,
            Code::Marker => context.printer.talk(&format!("[{}]", neutralised(&entry.text))),
            Code::Input | Code::Resize => {}
        }
        if paced {
            target.flush()?;
        }
    }
    target.flush().context("cannot write the recording")?;
    Ok(ControlFlow::Continue(()))
}

pub(super) fn announce(header: &Header, paced: bool, context: &Context) {
    if paced && !fits((header.width, header.height)) {
        context.printer.talk(&format!(
            "This terminal is smaller than the recorded one ({}x{}).",
            header.width, header.height
        ));
    }
}

/// Whether this terminal has room for one of that size.
pub(super) fn fits((columns, rows): (u32, u32)) -> bool {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(true, |size| {
        u32::from(size.ws_col) >= columns && u32::from(size.ws_row) >= rows
    })
}

/// When each event is due.
struct Pace {
    speed: f64,
    idle_max: Duration,
    shown: Instant,
    last: Option<Duration>,
}

impl Pace {
    fn new(arguments: &PlayArguments) -> Self {
        Self {
            speed: arguments.speed,
            idle_max: Duration::from_secs(arguments.idle_limit),
            shown: Instant::now(),
            last: None,
        }
    }

    fn due(&mut self, at: Duration) -> Instant {
        let rest = at.saturating_sub(self.last.unwrap_or(at));
        self.last = Some(at);
        self.shown += rest.min(self.idle_max).div_f64(self.speed);
        self.shown
    }
}

/// What the recorded program asked its terminal, this one answers; nobody is to take that for typing.
pub(super) struct Quiet(Option<rustix::termios::Termios>);

impl Quiet {
    pub(super) fn new() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let Ok(before) = tcgetattr(std::io::stdin()) else {
            return Self(None);
        };
        let mut during = before.clone();
        during.local_modes &= !(LocalModes::ECHO | LocalModes::ICANON);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &during);
        Self(Some(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        if let Some(before) = &self.0 {
            // Whatever has arrived meanwhile is thrown away.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
            // Colours, the other screen and a hidden cursor end with the recording.
            let _ = std::io::stdout().write_all(b"\x1b[0m\x1b[?1049l\x1b[?25h\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn rests_are_cut_and_the_speed_counts_for_all_of_them() {
        let began = Instant::now();
        let mut pace = Pace {
            speed: 2.0,
            idle_max: Duration::from_secs(4),
            shown: began,
            last: None,
        };
        let due: Vec<_> = [10, 12, 100]
            .into_iter()
            .map(|at| pace.due(Duration::from_secs(at)) - began)
            .collect();
        assert_eq!(due, [0, 1, 3].map(Duration::from_secs));
    }

    #[test]
    fn a_speed_at_which_a_rest_would_never_end_is_none() {
        for (text, is_one) in [
            ("1", true),
            ("0.01", true),
            ("1000", true),
            ("1e-18", false),
            ("0", false),
            ("-1", false),
            ("inf", false),
            ("NaN", false),
        ] {
            assert_eq!(speed(text).is_ok(), is_one, "{text}");
        }
        let mut pace = Pace {
            speed: SPEED_MIN,
            idle_max: Duration::MAX,
            shown: Instant::now(),
            last: Some(Duration::ZERO),
        };
        // A year, the longest time that a recording has.
        pace.due(Duration::from_secs(366 * 86_400));
    }

    #[test]
    fn of_an_erased_recording_one_is_told_who_erased_it_and_why() {
        let arguments = |recording: Option<u32>| PlayArguments {
            id: "0198".to_owned(),
            recording,
            speed: 1.0,
            idle_limit: 2,
            from: None,
            format: PlayFormat::Terminal,
            output: None,
        };
        let recordings = [
            json!({"recording": 1, "held_bytes": 5, "record": null, "erased": null}),
            json!({"recording": 2, "held_bytes": 0, "record": null, "erased":
                {"time": "2026-11-22T14:03:07.123Z", "by": "admin@example.com", "reason": "asked for"}}),
        ];
        let said = nothing(&arguments(Some(2)), &recordings).to_string();
        assert_eq!(
            said,
            "recording 2 was erased at 2026-11-22 14:03:07 by admin@example.com: asked for"
        );
        assert!(erased(&arguments(Some(1)), &recordings).is_none());
    }

    #[test]
    fn a_terminal_is_chosen_before_others_and_nothing_that_is_not_here() {
        let recordings = [
            json!({"recording": 1, "held_bytes": 5, "record": {"terminal": false}}),
            json!({"recording": 2, "held_bytes": 0, "record": {"terminal": true}}),
            json!({"recording": 3, "held_bytes": 5, "record": {"terminal": true}}),
        ];
        assert_eq!(choose(&recordings, None).map(number), Some(3));
        assert_eq!(choose(&recordings, Some(1)).map(number), Some(1));
        assert_eq!(choose(&recordings, Some(2)), None);
        assert_eq!(choose(recordings.get(..1).unwrap(), None).map(number), Some(1));
    }
}
