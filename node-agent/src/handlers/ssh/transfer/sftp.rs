//! SFTP version 3 (draft-ietf-secsh-filexfer-02), with OpenSSH's extensions that change files, read from a copy of both
//! directions. Contents are skipped and counted, never kept.

use std::collections::{HashMap, VecDeque};

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
/// The longest handle that the draft allows.
const HANDLE_BYTES_MAX: usize = 256;
/// So much of a path is kept; no server takes a longer one.
const PATH_BYTES_MAX: usize = 4096;

mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const SETSTAT: u8 = 9;
    pub(super) const FSETSTAT: u8 = 10;
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
    /// In the order in which they were sent: an id may be used again before its answer has come.
    pending: VecDeque<(u32, Pending)>,
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
    Attributes(Vec<u8>),
    /// From one open file into another.
    Copy(Vec<u8>, Vec<u8>),
    Other(FileEvent),
    /// One that changes nothing. Its answer must not be taken for another's.
    Unwatched,
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

    /// Whether what follows is not read.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost
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
        let mut fields = Fields::of(packet);
        let (kind, id) = (fields.byte()?, fields.number()?);
        if kind == kind::INIT {
            return Some(());
        }
        let pending = match (pending(kind, &mut fields), packet.is_cut) {
            (Some(pending), _) => pending,
            // No server has a handle of that length.
            (None, true) => Pending::Unwatched,
            (None, false) => return None,
        };
        if self.pending.len() >= PENDING_MAX {
            return None;
        }
        self.pending.push_back((id, pending));
        Some(())
    }

    fn answer(&mut self, packet: &Packet, events: &mut Vec<FileEvent>) -> Option<()> {
        let mut fields = Fields::of(packet);
        let (kind, id) = (fields.byte()?, fields.number()?);
        if kind == kind::VERSION {
            return Some(());
        }
        // Servers answer in order, nearly all of them.
        let place = self.pending.iter().position(|(asked, _)| *asked == id);
        let Some((_, pending)) = place.and_then(|place| self.pending.remove(place)) else {
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
            Pending::Open(path) => self.opened(fields.string()?, Open::new(path, false), events)?,
            Pending::List(path) => {
                events.push(event(Operation::List, path.clone(), None, true));
                self.opened(fields.string()?, Open::new(path, true), events)?;
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
            Pending::Attributes(handle) => {
                let path = self.path_of(&handle);
                events.extend(path.map(|path| event(Operation::Attributes, path, None, ok)));
            }
            Pending::Copy(from, to) => {
                if let (Some(from), to @ Some(_)) = (self.path_of(&from), self.path_of(&to)) {
                    events.push(event(Operation::Copy, from, to, ok));
                }
            }
            Pending::Other(event) => events.push(FileEvent { ok, ..event }),
            Pending::Unwatched => {}
        }
        Some(())
    }

    fn path_of(&self, handle: &[u8]) -> Option<String> {
        self.open.get(handle).map(|open| open.path.clone())
    }

    fn opened(&mut self, handle: &[u8], open: Open, events: &mut Vec<FileEvent>) -> Option<()> {
        if self.open.len() >= HANDLES_MAX {
            return None;
        }
        let before = self.open.insert(handle.to_vec(), open);
        events.extend(
            before
                .filter(|open| !open.is_folder)
                .map(|open| open.event(false)),
        );
        Some(())
    }
}

/// What a request is to be remembered as.
fn pending(kind: u8, fields: &mut Fields<'_>) -> Option<Pending> {
    let other = |operation, path, target| Pending::Other(event(operation, path, target, true));
    Some(match kind {
        kind::OPEN => Pending::Open(fields.text()?),
        kind::OPENDIR => Pending::List(fields.text()?),
        kind::CLOSE => Pending::Close(fields.handle()?),
        kind::READ => Pending::Read(fields.handle()?),
        kind::WRITE => {
            let handle = fields.handle()?;
            fields.take(8)?;
            Pending::Write(handle, u64::from(fields.number()?))
        }
        kind::SETSTAT => other(Operation::Attributes, fields.text()?, None),
        kind::FSETSTAT => Pending::Attributes(fields.handle()?),
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
            b"copy-data" => {
                let from = fields.handle()?;
                fields.take(16)?;
                Pending::Copy(from, fields.handle()?)
            }
            _ => Pending::Unwatched,
        },
        _ => Pending::Unwatched,
    })
}

fn event(operation: Operation, path: String, target: Option<String>, ok: bool) -> FileEvent {
    FileEvent {
        operation,
        path,
        target,
        bytes: None,
        ok,
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
    /// There was more.
    is_cut: bool,
}

/// Cuts a stream into packets.
#[derive(Debug, Default)]
struct Frames {
    length: Vec<u8>,
    head: Vec<u8>,
    /// Of the packet that is under way.
    left: usize,
    is_cut: bool,
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
            self.is_cut |= room < taken.len();
            self.head
                .extend_from_slice(taken.get(..room.min(taken.len())).unwrap_or_default());
            self.left -= taken.len();
            bytes = rest;
            if self.left == 0 {
                packets.push(Packet {
                    head: std::mem::take(&mut self.head),
                    is_cut: std::mem::take(&mut self.is_cut),
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
struct Fields<'a> {
    rest: &'a [u8],
    /// Behind the rest there was more.
    is_cut: bool,
}

impl<'a> Fields<'a> {
    fn of(packet: &'a Packet) -> Self {
        Self {
            rest: &packet.head,
            is_cut: packet.is_cut,
        }
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
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

    /// A longer one than the draft allows is none that is open.
    fn handle(&mut self) -> Option<Vec<u8>> {
        let handle = self.string()?;
        Some(handle.get(..=HANDLE_BYTES_MAX).unwrap_or(handle).to_vec())
    }

    /// As far as it was kept.
    fn text(&mut self) -> Option<String> {
        let length = match self.number() {
            Some(length) => usize::try_from(length).ok()?,
            None if self.is_cut => 0,
            None => return None,
        };
        let text = match self.is_cut {
            true => self.take(length.min(self.rest.len()))?,
            false => self.take(length)?,
        };
        let text = text.get(..PATH_BYTES_MAX).unwrap_or(text);
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests;
