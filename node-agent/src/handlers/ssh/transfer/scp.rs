//! scp's own protocol, as `scp -O` speaks it: lines with mode, size and name, each before the contents.
//! It was never written down; OpenSSH's `scp.c` is the reference.

use super::{Direction, FileEvent, Operation};

const LINE_BYTES_MAX: usize = 8 * 1024;
/// Folders in folders.
const DEPTH_MAX: usize = 256;
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
        })
    }

    /// What the next bytes of one direction tell.
    pub fn push(&mut self, direction: Direction, mut bytes: &[u8]) -> Vec<FileEvent> {
        let mut events = Vec::new();
        if direction != self.direction {
            return events;
        }
        while !bytes.is_empty() {
            let state = std::mem::replace(&mut self.state, State::Lost);
            let (state, rest) = match state {
                State::Line(line) => self.line(line, bytes, &mut events),
                State::Contents { name, size, left } => contents(name, size, left, bytes),
                State::Status { name, size } => {
                    let (status, rest) = bytes.split_at(1);
                    events.push(self.event(&name, size, status == [0]));
                    (State::Line(Vec::new()), rest)
                }
                State::Lost => return events,
            };
            (self.state, bytes) = (state, rest);
        }
        events
    }

    /// What was under way when the channel ended.
    #[must_use]
    pub fn finish(self) -> Vec<FileEvent> {
        match &self.state {
            State::Contents { name, size, left } => vec![self.event(name, size - left, false)],
            State::Status { name, size } => vec![self.event(name, *size, false)],
            State::Line(_) | State::Lost => Vec::new(),
        }
    }

    fn line<'a>(
        &mut self,
        mut line: Vec<u8>,
        bytes: &'a [u8],
        events: &mut Vec<FileEvent>,
    ) -> (State, &'a [u8]) {
        // The answers of whoever sends nothing but complaints are a lone 0.
        if line.is_empty() && bytes.first() == Some(&0) {
            return (State::Line(line), bytes.get(1..).unwrap_or_default());
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
            return self.lost(events);
        }
        if end.is_none() {
            return (State::Line(line), rest);
        }
        match self.read_line(&line, events) {
            Some(state) => (state, rest),
            None => self.lost(events),
        }
    }

    fn lost<'a>(&self, events: &mut Vec<FileEvent>) -> (State, &'a [u8]) {
        events.push(FileEvent::not_understood("scp"));
        (State::Lost, &[])
    }

    fn read_line(&mut self, line: &[u8], events: &mut Vec<FileEvent>) -> Option<State> {
        let text = String::from_utf8_lossy(line);
        let mut characters = text.chars();
        let kind = characters.next()?;
        let rest = characters.as_str();
        let next = Some(State::Line(Vec::new()));
        match kind {
            'T' => next,
            'E' => self.folders.pop().and(next),
            'D' => {
                let (_, name) = size_and_name(rest)?;
                if self.folders.len() >= DEPTH_MAX {
                    return None;
                }
                self.folders.push(name);
                let mut event = self.event("", 0, true);
                event.operation = Operation::MakeFolder;
                event.bytes = None;
                if self.direction == Direction::ToServer {
                    events.push(event);
                }
                next
            }
            'C' => {
                let (size, name) = size_and_name(rest)?;
                Some(match size {
                    0 => State::Status { name, size },
                    size => State::Contents {
                        name,
                        size,
                        left: size,
                    },
                })
            }
            // A complaint about one file of many; the next comes behind it.
            '\u{1}' | '\u{2}' => {
                events.push(FileEvent {
                    bytes: None,
                    ..self.event(rest, 0, false)
                });
                next
            }
            _ => None,
        }
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
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn only_scp_itself_is_read_as_scp() {
        for good in [
            "scp -t /tmp",
            "scp -r -p -t -- a b",
            "/usr/bin/scp -f x",
            "scp -v -d -t .",
        ] {
            assert!(Reader::of(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            "scp",
            "scp -t /tmp; sh",
            "scp -t $(sh)",
            "scp -t `sh`",
            "scp -S sh -t x",
            "sh -t",
            "scp -t x | sh",
            "scp -t x && sh",
            "scp -t\nsh",
        ] {
            assert!(Reader::of(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn files_and_folders_are_told_of_however_the_stream_is_cut() {
        let stream = b"T1 0 1 0\nD0755 0 dir\nC0644 5 a file\nhello\0C0600 0 empty\n\0E\nC0644 3 b\nabc\0";
        for cut in 1..stream.len() {
            let mut reader = Reader::of(b"scp -r -t /srv").unwrap();
            let mut events = Vec::new();
            for piece in stream.chunks(cut) {
                events.extend(reader.push(Direction::ToServer, piece));
            }
            let seen: Vec<_> = events
                .iter()
                .map(|event| {
                    (
                        event.operation.as_str(),
                        event.path.as_str(),
                        event.bytes,
                        event.ok,
                    )
                })
                .collect();
            assert_eq!(
                seen,
                [
                    ("mkdir", "/srv/dir", None, true),
                    ("transfer", "/srv/dir/a file", Some((0, 5)), true),
                    ("transfer", "/srv/dir/empty", Some((0, 0)), true),
                    ("transfer", "/srv/b", Some((0, 3)), true),
                ],
                "cut {cut}"
            );
            assert_eq!(reader.finish(), []);
        }
    }

    #[test]
    fn of_a_single_file_both_names_are_told() {
        let mut reader = Reader::of(b"scp -t /srv/there").unwrap();
        let events = reader.push(Direction::ToServer, b"C0644 1 here\nx\0");
        let told = (events[0].path.as_str(), events[0].target.as_deref());
        assert_eq!(told, ("/srv/there", Some("here")));
    }

    #[test]
    fn a_file_that_is_under_way_at_the_end_is_told_of_as_far_as_it_came() {
        let mut reader = Reader::of(b"scp -f /srv/a").unwrap();
        assert_eq!(reader.push(Direction::ToServer, b"\0"), []);
        reader.push(Direction::ToClient, b"C0644 10 a\n123");
        let events = reader.finish();
        assert_eq!((events[0].bytes, events[0].ok), (Some((3, 0)), false));
        assert_eq!(events[0].path, "/srv/a");
    }

    #[test]
    fn a_stream_of_something_else_is_given_up() {
        for bad in [
            b"hello\n".as_slice(),
            b"C0644 x a\n",
            b"C0644 1\n",
            b"C9999 1 a\n",
            b"E\n",
        ] {
            let mut reader = Reader::of(b"scp -t x").unwrap();
            let events = reader.push(Direction::ToServer, bad);
            assert_eq!(events, [FileEvent::not_understood("scp")], "{bad:?}");
            assert_eq!(reader.push(Direction::ToServer, b"C0644 1 a\nb\0"), []);
        }
    }
}
