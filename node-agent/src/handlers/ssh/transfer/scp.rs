//! scp's own protocol, as `scp -O` speaks it: lines with mode, size and name, each before the contents.
//! It was never written down; OpenSSH's `scp.c` is the reference.
//!
//! Whoever sends files is answered by whoever takes them, once for each line and for each file, and a file that is refused
//! is not sent. So both directions are read; answers count in order, because some clients send before they are answered.

use std::collections::VecDeque;

use super::{Direction, FileEvent, Operation};

const LINE_BYTES_MAX: usize = 8 * 1024;
/// Folders in folders.
const DEPTH_MAX: usize = 256;
/// Answers that wait for what they answer, or the other way round.
const AHEAD_MAX: usize = 1024;
/// `scp.c` takes what is behind a complaint of 2047 bytes for the next answer.
const COMPLAINT_BYTES_MAX: usize = 2000;
/// With one of these in it, a command line is more than scp.
const SHELL: [char; 12] = [';', '|', '&', '$', '`', '<', '>', '(', ')', '\n', '{', '}'];

/// Reads one channel of scp.
#[derive(Debug)]
pub struct Reader {
    /// The direction in which contents go.
    direction: Direction,
    target: String,
    /// The target is a folder, into which everything goes under its own name.
    is_folder: bool,
    folders: Vec<String>,
    state: State,
    /// What whoever takes the files has yet to answer, first of all the beginning.
    asked: VecDeque<Asked>,
    answers: Answers,
}

/// What is answered.
#[derive(Debug)]
enum Asked {
    /// A line after which all is the same, whatever the answer.
    Line,
    /// Whether a folder is entered.
    Folder(FileEvent),
    /// Whether a file is taken.
    File,
    /// A file that went over.
    Whole(FileEvent),
}

/// The answers: 0, or a complaint up to the end of its line.
#[derive(Debug, Default)]
struct Answers {
    /// Those that came before what they answer.
    early: VecDeque<bool>,
    /// The length so far of the complaint that is under way.
    complaint: Option<usize>,
}

#[derive(Debug)]
enum State {
    Line(Vec<u8>),
    Contents {
        name: String,
        size: u64,
        left: u64,
    },
    /// The byte behind the contents: 0, or a complaint.
    Status {
        name: String,
        size: u64,
    },
    /// The rest of a complaint's line.
    Complaint,
    Lost,
}

impl Reader {
    /// If a command line is scp at the far side, and nothing besides.
    #[must_use]
    pub fn of(command: &[u8]) -> Option<Self> {
        let command = std::str::from_utf8(command).ok()?;
        if command.contains(SHELL) {
            return None;
        }
        let mut words = command.split_ascii_whitespace();
        if !matches!(words.next()?, "scp" | "/usr/bin/scp") {
            return None;
        }
        let (mut direction, mut is_folder) = (None, false);
        let mut rest = words.peekable();
        while let Some(flags) = rest.next_if(|word| word.starts_with('-')) {
            match flags {
                "-t" => direction = Some(Direction::ToServer),
                "-f" => direction = Some(Direction::ToClient),
                "--" => break,
                "-d" | "-r" => is_folder = true,
                "-v" | "-p" | "-q" => {}
                _ => return None,
            }
        }
        let target = rest.collect::<Vec<_>>().join(" ");
        Some(Self {
            direction: direction?,
            is_folder: is_folder || target.ends_with('/'),
            target,
            folders: Vec::new(),
            state: State::Line(Vec::new()),
            asked: VecDeque::from([Asked::Line]),
            answers: Answers::default(),
        })
    }

    /// Whether what follows is not read.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// What the next bytes of one direction tell.
    pub fn push(&mut self, direction: Direction, bytes: &[u8]) -> Vec<FileEvent> {
        let mut events = Vec::new();
        let is_read = match direction == self.direction {
            true => self.sent(bytes, &mut events),
            false => self.answered(bytes, &mut events),
        };
        if is_read.is_none() && !self.is_lost() {
            self.state = State::Lost;
            events.extend(self.unanswered());
            events.push(FileEvent::not_understood("scp"));
        }
        events
    }

    fn sent(&mut self, mut bytes: &[u8], events: &mut Vec<FileEvent>) -> Option<()> {
        while !bytes.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Line(Vec::new()));
            let (state, rest) = match state {
                State::Line(line) => self.line(line, bytes, events)?,
                State::Contents { name, size, left } => contents(name, size, left, bytes),
                State::Status { name, size } => {
                    let (status, rest) = bytes.split_at(1);
                    let whole = self.event(&name, size, status == [0]);
                    self.ask(Asked::Whole(whole), events)?;
                    let next = match status {
                        [0] => State::Line(Vec::new()),
                        _ => State::Complaint,
                    };
                    (next, rest)
                }
                State::Complaint => match bytes.iter().position(|byte| *byte == b'\n') {
                    Some(end) => (State::Line(Vec::new()), bytes.get(end + 1..).unwrap_or_default()),
                    None => (State::Complaint, [].as_slice()),
                },
                State::Lost => (State::Lost, [].as_slice()),
            };
            (self.state, bytes) = (state, rest);
        }
        Some(())
    }

    /// Remembers what is to be answered, unless it has been.
    fn ask(&mut self, asked: Asked, events: &mut Vec<FileEvent>) -> Option<()> {
        match self.answers.early.pop_front() {
            Some(ok) => self.settle(asked, ok, events),
            None if self.asked.len() >= AHEAD_MAX => None,
            None => {
                self.asked.push_back(asked);
                Some(())
            }
        }
    }

    fn answered(&mut self, bytes: &[u8], events: &mut Vec<FileEvent>) -> Option<()> {
        if self.is_lost() {
            return Some(());
        }
        for byte in bytes {
            let ok = match (&mut self.answers.complaint, byte) {
                (complaint @ Some(_), b'\n') => {
                    *complaint = None;
                    continue;
                }
                (Some(length), _) => {
                    *length += 1;
                    if *length > COMPLAINT_BYTES_MAX {
                        return None;
                    }
                    continue;
                }
                (None, 0) => true,
                (complaint @ None, _) => {
                    *complaint = Some(0);
                    false
                }
            };
            match self.asked.pop_front() {
                Some(asked) => self.settle(asked, ok, events)?,
                None if self.answers.early.len() >= AHEAD_MAX => return None,
                None => self.answers.early.push_back(ok),
            }
        }
        Some(())
    }

    /// Nothing where it was refused and goes on all the same: what it goes on with cannot be told.
    fn settle(&mut self, asked: Asked, ok: bool, events: &mut Vec<FileEvent>) -> Option<()> {
        match asked {
            Asked::Line => {}
            Asked::Folder(folder) => {
                if !ok {
                    let is_next = matches!(&self.state, State::Line(line) if line.is_empty());
                    if !is_next || !self.asked.is_empty() {
                        return None;
                    }
                    self.folders.pop();
                }
                // Whoever fetches folders makes them where nobody here sees it.
                if self.direction == Direction::ToServer {
                    events.push(FileEvent { ok, ..folder });
                }
            }
            Asked::File if ok => {}
            Asked::File => match std::mem::replace(&mut self.state, State::Line(Vec::new())) {
                State::Contents { name, size, left } if left == size => {
                    events.push(self.event(&name, 0, false));
                }
                State::Status { name, size: 0 } => events.push(self.event(&name, 0, false)),
                _ => return None,
            },
            Asked::Whole(event) => events.push(FileEvent {
                ok: event.ok && ok,
                ..event
            }),
        }
        Some(())
    }

    /// Files that went over, and nobody said that they had arrived.
    fn unanswered(&mut self) -> Vec<FileEvent> {
        let asked = self.asked.drain(..);
        let files = asked.filter_map(|asked| match asked {
            Asked::Whole(event) | Asked::Folder(event) => Some(FileEvent { ok: false, ..event }),
            Asked::Line | Asked::File => None,
        });
        files.collect()
    }

    /// What was under way when the channel ended.
    #[must_use]
    pub fn finish(mut self) -> Vec<FileEvent> {
        let mut events = self.unanswered();
        match &self.state {
            State::Contents { name, size, left } => events.push(self.event(name, size - left, false)),
            State::Status { name, size } => events.push(self.event(name, *size, false)),
            State::Line(_) | State::Complaint | State::Lost => {}
        }
        events
    }

    fn line<'a>(
        &mut self,
        mut line: Vec<u8>,
        bytes: &'a [u8],
        events: &mut Vec<FileEvent>,
    ) -> Option<(State, &'a [u8])> {
        // The answers of whoever sends nothing but complaints are a lone 0.
        if line.is_empty() && bytes.first() == Some(&0) {
            return Some((State::Line(line), bytes.get(1..).unwrap_or_default()));
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (piece, rest) = match end {
            Some(end) => (
                bytes.get(..end).unwrap_or_default(),
                bytes.get(end + 1..).unwrap_or_default(),
            ),
            None => (bytes, [].as_slice()),
        };
        line.extend_from_slice(piece.get(..piece.len().min(LINE_BYTES_MAX)).unwrap_or_default());
        if line.len() > LINE_BYTES_MAX {
            return None;
        }
        match end {
            None => Some((State::Line(line), rest)),
            Some(_) => self.read_line(&line, events).map(|state| (state, rest)),
        }
    }

    fn read_line(&mut self, line: &[u8], events: &mut Vec<FileEvent>) -> Option<State> {
        let text = String::from_utf8_lossy(line);
        let mut characters = text.chars();
        let kind = characters.next()?;
        let rest = characters.as_str();
        let next = State::Line(Vec::new());
        match kind {
            'T' => self.ask(Asked::Line, events)?,
            'E' => {
                self.folders.pop()?;
                self.ask(Asked::Line, events)?;
            }
            'D' => {
                let (_, name) = size_and_name(rest)?;
                if self.folders.len() >= DEPTH_MAX {
                    return None;
                }
                self.folders.push(name);
                let folder = FileEvent {
                    operation: Operation::MakeFolder,
                    bytes: None,
                    ..self.event("", 0, true)
                };
                self.ask(Asked::Folder(folder), events)?;
            }
            'C' => {
                let (size, name) = size_and_name(rest)?;
                match self.answers.early.pop_front() {
                    Some(true) => {}
                    Some(false) => {
                        events.push(self.event(&name, 0, false));
                        return Some(next);
                    }
                    None if self.asked.len() >= AHEAD_MAX => return None,
                    None => self.asked.push_back(Asked::File),
                }
                return Some(match size {
                    0 => State::Status { name, size },
                    size => State::Contents {
                        name,
                        size,
                        left: size,
                    },
                });
            }
            // A complaint about one file of many; the next comes behind it.
            '\u{1}' | '\u{2}' => events.push(FileEvent {
                bytes: None,
                ..self.event(rest, 0, false)
            }),
            _ => return None,
        }
        Some(next)
    }

    fn event(&self, name: &str, bytes: u64, ok: bool) -> FileEvent {
        // A sink is told where to; a source, what: its lines name the last part again.
        // A file may be what the target is, or go into it: only the server knows.
        if self.direction == Direction::ToServer && !self.is_folder && self.folders.is_empty() {
            return FileEvent {
                target: Some(name.to_owned()).filter(|name| !name.is_empty()),
                ..self.at(self.target.clone(), bytes, ok)
            };
        }
        let mut path = match (self.direction, self.target.rsplit_once('/')) {
            (Direction::ToServer, _) => self.target.clone(),
            (Direction::ToClient, Some(("", _))) => "/".to_owned(),
            (Direction::ToClient, Some((folder, _))) => folder.to_owned(),
            (Direction::ToClient, None) => ".".to_owned(),
        };
        for part in self.folders.iter().map(String::as_str).chain([name]) {
            if !part.is_empty() {
                path.push_str(if path.ends_with('/') { "" } else { "/" });
                path.push_str(part);
            }
        }
        self.at(path, bytes, ok)
    }

    fn at(&self, path: String, bytes: u64, ok: bool) -> FileEvent {
        FileEvent {
            operation: Operation::Transfer,
            path,
            target: None,
            bytes: Some(match self.direction {
                Direction::ToServer => (0, bytes),
                Direction::ToClient => (bytes, 0),
            }),
            ok,
        }
    }
}

fn contents(name: String, size: u64, left: u64, bytes: &[u8]) -> (State, &[u8]) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    let rest = bytes.get(taken..).unwrap_or_default();
    match left - taken as u64 {
        0 => (State::Status { name, size }, rest),
        left => (State::Contents { name, size, left }, rest),
    }
}

/// `0644 123 name`.
fn size_and_name(rest: &str) -> Option<(u64, String)> {
    let mut parts = rest.splitn(3, ' ');
    let (mode, size, name) = (parts.next()?, parts.next()?, parts.next()?);
    let is_mode = (3..=6).contains(&mode.len()) && mode.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    if !is_mode || name.is_empty() {
        return None;
    }
    Some((size.parse().ok()?, name.to_owned()))
}

#[cfg(test)]
mod tests;
