//! Files that go over a channel, as far as its protocol tells: SFTP, and scp's own.
//!
//! Both are read from copies of what passes; what is not understood is passed on all the same and ends the reading.

pub mod scp;
pub mod sftp;

use super::channel::Program;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToServer,
    /// From sshd.
    ToClient,
}

/// What was done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read or written, by the counts.
    Transfer,
    /// Listed.
    List,
    /// Removed.
    Remove,
    /// Renamed.
    Rename,
    /// A folder was made.
    MakeFolder,
    /// A folder was removed.
    RemoveFolder,
    /// A link was made.
    Link,
    /// Mode, owner, size or times were set.
    Attributes,
    /// Contents were copied from one file into another, at the server.
    Copy,
    /// The protocol was left: what follows is not read.
    NotUnderstood,
}

impl Operation {
    /// As records name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::List => "list",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::MakeFolder => "mkdir",
            Self::RemoveFolder => "rmdir",
            Self::Link => "link",
            Self::Attributes => "attributes",
            Self::Copy => "copy",
            Self::NotUnderstood => "not_understood",
        }
    }
}

/// Something that was done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEvent {
    /// What.
    pub operation: Operation,
    /// To which.
    pub path: String,
    /// The new name.
    pub target: Option<String>,
    /// Bytes read from it, and written to it.
    pub bytes: Option<(u64, u64)>,
    /// Whether the server did it.
    pub ok: bool,
}

impl FileEvent {
    fn not_understood(what: &str) -> Self {
        Self {
            operation: Operation::NotUnderstood,
            path: what.to_owned(),
            target: None,
            bytes: None,
            ok: false,
        }
    }
}

/// Reads a channel that carries files.
#[derive(Debug)]
pub(super) enum Transfer {
    Sftp(Box<sftp::Reader>),
    Scp(Box<scp::Reader>),
}

impl Transfer {
    /// If that is what a program does. A command line says what somebody at a terminal wants it to say; a subsystem is
    /// sshd's, and a terminal that changes nothing lets its protocol through.
    pub(super) fn of(program: &Program, has_terminal: bool) -> Option<Self> {
        match program {
            Program::Subsystem(name) if name == "sftp" => Some(Self::Sftp(Box::default())),
            _ if has_terminal => None,
            Program::Command(command) => scp::Reader::of(command).map(Box::new).map(Self::Scp),
            Program::Shell | Program::Subsystem(_) => None,
        }
    }

    pub(super) fn push(&mut self, direction: Direction, bytes: &[u8]) -> Vec<FileEvent> {
        match self {
            Self::Sftp(reader) => reader.push(direction, bytes),
            Self::Scp(reader) => reader.push(direction, bytes),
        }
    }

    /// Whether what follows is not read.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Sftp(reader) => reader.is_lost(),
            Self::Scp(reader) => reader.is_lost(),
        }
    }

    /// What was under way when the channel ended.
    pub(super) fn finish(self) -> Vec<FileEvent> {
        match self {
            Self::Sftp(reader) => reader.finish(),
            Self::Scp(reader) => reader.finish(),
        }
    }
}
