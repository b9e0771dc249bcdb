//! SFTP version 3 (draft-ietf-secsh-filexfer-02), with OpenSSH's extensions that change files, read from a copy of both
//! directions. Contents are skipped and counted, never kept.

use std::collections::HashMap;

use super::{Direction, FileEvent, Operation};

/// OpenSSH's servers take no longer packets, and the draft asks for 34,000 at least.
const PACKET_BYTES_MAX: usize = 1024 * 1024;
/// So much of a packet is looked at: two paths of the longest kind.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The same of packets with contents: a handle, an offset and a length.
const CONTENT_HEAD_BYTES_MAX: usize = 512;
/// Requests without an answer.
const PENDING_MAX: usize = 4096;
/// Open files.
const HANDLES_MAX: usize = 1024;

mod kind {
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const SETSTAT: u8 = 9;
    pub(super) const OPENDIR: u8 = 11;
    pub(super) const REMOVE: u8 = 13;
    pub(super) const MKDIR: u8 = 14;
    pub(super) const RMDIR: u8 = 15;
    pub(super) const RENAME: u8 = 18;
    pub(super) const SYMLINK: u8 = 20;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const EXTENDED: u8 = 200;
}

/// Reads one SFTP channel.
#[derive(Debug, Default)]
pub struct Reader {
    to_server: Frames,
    to_client: Frames,
    pending: HashMap<u32, Pending>,
    open: HashMap<Vec<u8>, Open>,
    is_lost: bool,
}

/// A request that waits for its answer.
#[derive(Debug)]
enum Pending {
    Open(String),
    List(String),
    Read(Vec<u8>),
    Write(Vec<u8>, u64),
    Close(Vec<u8>),
    Other(FileEvent),
}

#[derive(Debug)]
struct Open {
    path: String,
    is_folder: bool,
    read: u64,
    written: u64,
}

impl Reader {
    /// What the next bytes of one direction tell.
    pub fn push(&mut self, direction: Direction, bytes: &[u8]) -> Vec<FileEvent> {
        let mut events = Vec::new();
        if self.is_lost {
            return events;
        }
        let mut packets = Vec::new();
        let frames = match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        };
        let framed = frames.push(bytes, &mut packets);
        for packet in packets {
            let read = match direction {
                Direction::ToServer => self.request(&packet),
                Direction::ToClient => self.answer(&packet, &mut events),
            };
            if read.is_none() {
                return self.lost(events);
            }
        }
        match framed {
            Some(()) => events,
            None => self.lost(events),
        }
    }

    /// What was open when the channel ended.
    #[must_use]
    pub fn finish(self) -> Vec<FileEvent> {
        let left = self.open.into_values().filter(|open| !open.is_folder);
        let mut events: Vec<_> = left.map(|open| open.event(false)).collect();
        events.sort_by(|one, other| one.path.cmp(&other.path));
        events
    }

    fn lost(&mut self, mut events: Vec<FileEvent>) -> Vec<FileEvent> {
        self.is_lost = true;
        self.pending.clear();
        let open = std::mem::take(&mut self.open);
        events.extend(open.into_values().map(|open| open.event(false)));
        events.push(FileEvent::not_understood("sftp"));
        events
    }

    fn request(&mut self, packet: &Packet) -> Option<()> {
        let mut fields = Fields(&packet.head);
        let (kind, id) = (fields.byte()?, fields.number()?);
        let other = |operation, path, target| {
            Pending::Other(FileEvent {
                operation,
                path,
                target,
                bytes: None,
                ok: true,
            })
        };
        let pending = match kind {
            kind::OPEN => Pending::Open(fields.text()?),
            kind::OPENDIR => Pending::List(fields.text()?),
            kind::CLOSE => Pending::Close(fields.string()?.to_vec()),
            kind::READ => Pending::Read(fields.string()?.to_vec()),
            kind::WRITE => {
                let handle = fields.string()?.to_vec();
                fields.take(8)?;
                Pending::Write(handle, u64::from(fields.number()?))
            }
            kind::SETSTAT => other(Operation::Attributes, fields.text()?, None),
            kind::REMOVE => other(Operation::Remove, fields.text()?, None),
            kind::MKDIR => other(Operation::MakeFolder, fields.text()?, None),
            kind::RMDIR => other(Operation::RemoveFolder, fields.text()?, None),
            kind::RENAME => {
                let path = fields.text()?;
                other(Operation::Rename, path, Some(fields.text()?))
            }
            kind::SYMLINK => {
                // OpenSSH has the two the other way round than the draft: what is pointed at comes first.
                let target = fields.text()?;
                other(Operation::Link, fields.text()?, Some(target))
            }
            kind::EXTENDED => match fields.string()? {
                b"posix-rename@openssh.com" => {
                    let path = fields.text()?;
                    other(Operation::Rename, path, Some(fields.text()?))
                }
                b"hardlink@openssh.com" => {
                    let target = fields.text()?;
                    other(Operation::Link, fields.text()?, Some(target))
                }
                b"lsetstat@openssh.com" => other(Operation::Attributes, fields.text()?, None),
                _ => return Some(()),
            },
            _ => return Some(()),
        };
        if self.pending.len() >= PENDING_MAX {
            return None;
        }
        self.pending.insert(id, pending);
        Some(())
    }

    fn answer(&mut self, packet: &Packet, events: &mut Vec<FileEvent>) -> Option<()> {
        let mut fields = Fields(&packet.head);
        let (kind, id) = (fields.byte()?, fields.number()?);
        let Some(pending) = self.pending.remove(&id) else {
            return Some(());
        };
        let ok = match kind {
            kind::STATUS => fields.number()? == 0,
            _ => true,
        };
        match pending {
            Pending::Open(path) | Pending::List(path) if kind != kind::HANDLE => {
                events.push(Open::new(path, false).refused());
            }
            Pending::Open(path) => self.opened(fields.string()?, Open::new(path, false))?,
            Pending::List(path) => {
                events.push(FileEvent {
                    operation: Operation::List,
                    path: path.clone(),
                    target: None,
                    bytes: None,
                    ok: true,
                });
                self.opened(fields.string()?, Open::new(path, true))?;
            }
            Pending::Read(handle) => {
                if let (kind::DATA, Some(open)) = (kind, self.open.get_mut(&handle)) {
                    open.read = open.read.saturating_add(u64::from(fields.number()?));
                }
            }
            Pending::Write(handle, bytes) => {
                if let (true, Some(open)) = (ok, self.open.get_mut(&handle)) {
                    open.written = open.written.saturating_add(bytes);
                }
            }
            Pending::Close(handle) => {
                let closed = self.open.remove(&handle).filter(|open| !open.is_folder);
                events.extend(closed.map(|open| open.event(ok)));
            }
            Pending::Other(event) => events.push(FileEvent { ok, ..event }),
        }
        Some(())
    }

    fn opened(&mut self, handle: &[u8], open: Open) -> Option<()> {
        if self.open.len() >= HANDLES_MAX {
            return None;
        }
        self.open.insert(handle.to_vec(), open);
        Some(())
    }
}

impl Open {
    fn new(path: String, is_folder: bool) -> Self {
        Self {
            path,
            is_folder,
            read: 0,
            written: 0,
        }
    }

    fn event(self, ok: bool) -> FileEvent {
        FileEvent {
            operation: Operation::Transfer,
            path: self.path,
            target: None,
            bytes: Some((self.read, self.written)),
            ok,
        }
    }

    fn refused(self) -> FileEvent {
        FileEvent {
            bytes: None,
            ..self.event(false)
        }
    }
}

/// The beginning of a packet, behind its length.
#[derive(Debug)]
struct Packet {
    head: Vec<u8>,
}

/// Cuts a stream into packets.
#[derive(Debug, Default)]
struct Frames {
    length: Vec<u8>,
    head: Vec<u8>,
    /// Of the packet that is under way.
    left: usize,
}

impl Frames {
    /// Nothing where the stream is none of packets.
    fn push(&mut self, mut bytes: &[u8], packets: &mut Vec<Packet>) -> Option<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let (taken, rest) = bytes.split_at(bytes.len().min(4 - self.length.len()));
                self.length.extend_from_slice(taken);
                bytes = rest;
                let Ok(length) = <[u8; 4]>::try_from(self.length.as_slice()) else {
                    continue;
                };
                self.length.clear();
                let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
                if !(5..=PACKET_BYTES_MAX).contains(&length) {
                    return None;
                }
                self.left = length;
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(self.left));
            let room = self.head_bytes_max(taken).saturating_sub(self.head.len());
            self.head
                .extend_from_slice(taken.get(..room.min(taken.len())).unwrap_or_default());
            self.left -= taken.len();
            bytes = rest;
            if self.left == 0 {
                packets.push(Packet {
                    head: std::mem::take(&mut self.head),
                });
            }
        }
        Some(())
    }

    fn head_bytes_max(&self, next: &[u8]) -> usize {
        match self.head.first().or(next.first()) {
            Some(&(kind::WRITE | kind::DATA)) => CONTENT_HEAD_BYTES_MAX,
            Some(_) | None => HEAD_BYTES_MAX,
        }
    }
}

/// Fields of a packet, front to back.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.string()?).into_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![kind];
        body.extend(id.to_be_bytes());
        for field in fields {
            body.extend_from_slice(field);
        }
        let mut packet = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        packet.extend(body);
        packet
    }

    fn string(bytes: &[u8]) -> Vec<u8> {
        let mut field = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        field.extend_from_slice(bytes);
        field
    }

    fn init() -> Vec<u8> {
        packet(1, 3, &[])
    }

    /// What a put of `contents` to `/tmp/a` looks like, each way.
    fn put(contents: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let requests = vec![
            init(),
            packet(kind::OPEN, 7, &[&string(b"/tmp/a"), &[0; 8]]),
            packet(kind::WRITE, 8, &[&string(b"h1"), &[0; 8], &string(contents)]),
            packet(kind::CLOSE, 9, &[&string(b"h1")]),
        ];
        let answers = vec![
            packet(2, 3, &[]),
            packet(kind::HANDLE, 7, &[&string(b"h1")]),
            packet(kind::STATUS, 8, &[&[0; 4], &string(b""), &string(b"")]),
            packet(kind::STATUS, 9, &[&[0; 4], &string(b""), &string(b"")]),
        ];
        (requests, answers)
    }

    fn transfer(bytes: (u64, u64), ok: bool) -> FileEvent {
        FileEvent {
            operation: Operation::Transfer,
            path: "/tmp/a".to_owned(),
            target: None,
            bytes: Some(bytes),
            ok,
        }
    }

    #[test]
    fn a_file_that_was_put_is_told_of_once_with_its_size_however_the_stream_is_cut() {
        let (requests, answers) = put(&[7; 40_000]);
        for cut in [1, 3, 1000, 100_000] {
            let mut reader = Reader::default();
            let mut events = Vec::new();
            for (request, answer) in requests.iter().zip(&answers) {
                for piece in request.chunks(cut) {
                    events.extend(reader.push(Direction::ToServer, piece));
                }
                for piece in answer.chunks(cut) {
                    events.extend(reader.push(Direction::ToClient, piece));
                }
            }
            assert_eq!(events, [transfer((0, 40_000), true)], "cut {cut}");
            assert_eq!(reader.finish(), []);
        }
    }

    #[test]
    fn a_file_that_is_open_at_the_end_is_told_of_as_far_as_it_came() {
        let (requests, answers) = put(b"abc");
        let mut reader = Reader::default();
        for (request, answer) in requests.iter().zip(&answers).take(3) {
            reader.push(Direction::ToServer, request);
            reader.push(Direction::ToClient, answer);
        }
        assert_eq!(reader.finish(), [transfer((0, 3), false)]);
    }

    #[test]
    fn what_the_server_refused_is_told_as_refused() {
        let mut reader = Reader::default();
        reader.push(
            Direction::ToServer,
            &packet(kind::REMOVE, 1, &[&string(b"/etc/passwd")]),
        );
        let denied = packet(
            kind::STATUS,
            1,
            &[&3_u32.to_be_bytes(), &string(b"no"), &string(b"")],
        );
        let events = reader.push(Direction::ToClient, &denied);
        assert_eq!((events[0].operation, events[0].ok), (Operation::Remove, false));
    }

    #[test]
    fn a_rename_names_both_ends() {
        let mut reader = Reader::default();
        let renamed = [string(b"posix-rename@openssh.com"), string(b"a"), string(b"b")].concat();
        reader.push(Direction::ToServer, &packet(kind::EXTENDED, 1, &[&renamed]));
        let events = reader.push(Direction::ToClient, &packet(kind::STATUS, 1, &[&[0; 4]]));
        assert_eq!(
            (events[0].path.as_str(), events[0].target.as_deref()),
            ("a", Some("b"))
        );
    }

    #[test]
    fn a_stream_of_something_else_is_given_up_once() {
        let mut reader = Reader::default();
        let events = reader.push(Direction::ToServer, b"\xff\xff\xff\xffrubbish");
        assert_eq!(events, [FileEvent::not_understood("sftp")]);
        assert_eq!(reader.push(Direction::ToServer, b"\xff\xff\xff\xff"), []);
        let mut reader = Reader::default();
        let short = packet(kind::OPEN, 1, &[&u32::MAX.to_be_bytes()]);
        assert_eq!(
            reader.push(Direction::ToServer, &short),
            [FileEvent::not_understood("sftp")]
        );
    }
}
