//! From one process to the next without a service manager: the successor asks at a socket of the predecessor's, and gets
//! parcels over that connection until it ends.

use std::io::{self, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use super::parcel::{check_whole, close_on_exec, descriptors_of, send};
use super::{Left, Parcel};

/// A name, filled up with zeros, and one descriptor.
const FRAME_BYTES: usize = 64;
/// The last frame, which has no descriptor: whatever was to come has come.
const DONE: &str = "done";
/// How long the successor may take to make room for a parcel.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever sends more is no predecessor.
const PARCELS_MAX: usize = 1 << 20;

/// The connection to a successor, once one has asked. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Successor(Arc<Mutex<Option<UnixStream>>>);

impl Successor {
    /// One has asked, and is connected by `stream`. The first counts.
    ///
    /// # Errors
    /// When another was here before.
    pub fn came(&self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        let mut here = self.here();
        if here.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        *here = Some(stream);
        Ok(())
    }

    /// Whether one is there.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.here().is_some()
    }

    /// Gives it a descriptor under a name of less than 64 bytes. Blocks for some seconds at most.
    ///
    /// # Errors
    /// When there is none, or it does not take it.
    pub fn give(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let frame = frame(name)?;
        let mut here = self.here();
        let stream = here.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let sent = send(stream, &frame, &[descriptor]);
        if sent.is_err() {
            // One that does not take this takes none; the others need not wait to find out.
            *here = None;
        }
        Ok(sent?)
    }

    /// There is no more. The successor goes on once the connection ends: with what this returns, or at the latest with
    /// this process.
    ///
    /// # Errors
    /// When there is none, or it does not hear so.
    pub fn done(&self) -> io::Result<UnixStream> {
        let stream = self.here().take().ok_or(io::ErrorKind::NotConnected)?;
        send(&stream, &frame(DONE)?, &[])?;
        Ok(stream)
    }

    fn here(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the predecessor that listens at `path` to end and to leave what it has; returns once it has ended, or `patience`
/// has passed without a word from it. Nothing where nobody listens.
///
/// # Errors
/// When the predecessor refuses, or stands still; what it has given by then is closed. What one gave that was killed
/// meanwhile counts.
pub fn ask_predecessor(path: &Path, patience: Duration) -> io::Result<Option<Vec<Left>>> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(patience))?;
    let mut left = Vec::new();
    loop {
        let (name, descriptor) = match receive(&stream) {
            Ok(Some(parcel)) => parcel,
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if has_ended(&error) && !left.is_empty() => return Ok(Some(left)),
            Err(error) => return Err(error),
        };
        if left.len() >= PARCELS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        left.push(Left {
            name,
            parcel: Parcel::from(descriptor),
        });
    }
    // Its end is the end of the connection.
    loop {
        return match stream.read(&mut [0]) {
            Ok(_) => Ok(Some(left)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if has_ended(&error) => Ok(Some(left)),
            Err(error) => Err(error),
        };
    }
}

/// Whether the process at the other end is gone.
fn has_ended(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}

/// The next parcel; nothing after the last.
fn receive(stream: &UnixStream) -> io::Result<Option<(String, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; FRAME_BYTES];
    let slices = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, slices, &mut control, RecvFlags::WAITALL | close_on_exec())?;
    check_whole(received.flags)?;
    let descriptor = descriptors_of(&mut control).into_iter().next();
    if received.bytes != FRAME_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let name = String::from_utf8_lossy(&bytes);
    let name = name.trim_end_matches('\0').to_owned();
    match (name, descriptor) {
        (name, None) if name == DONE => Ok(None),
        (name, Some(descriptor)) => Ok(Some((name, descriptor))),
        (_, None) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn frame(name: &str) -> io::Result<[u8; FRAME_BYTES]> {
    let mut frame = [0; FRAME_BYTES];
    // One zero at least says where it ends.
    let target = frame.get_mut(..FRAME_BYTES - 1).unwrap_or_default();
    let target = target.get_mut(..name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    target.copy_from_slice(name.as_bytes());
    Ok(frame)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn parcel() -> Parcel {
        let (stream, _) = UnixStream::pair().unwrap();
        Parcel::of("test", &[stream.as_fd()]).unwrap()
    }

    /// What a successor gets from a predecessor that does this.
    fn handed(predecessor: impl FnOnce(UnixStream) + Send + 'static) -> io::Result<Option<Vec<Left>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("successor");
        let listener = UnixListener::bind(&path).unwrap();
        let predecessor = std::thread::spawn(move || predecessor(listener.accept().unwrap().0));
        let handed = ask_predecessor(&path, PATIENCE);
        predecessor.join().unwrap();
        handed
    }

    #[test]
    fn parcels_go_to_the_successor_until_the_predecessor_has_ended() {
        let handed = handed(|stream| {
            let successor = Successor::default();
            assert!(!successor.is_here() && successor.give("early", parcel().as_fd()).is_err());
            successor.came(stream).unwrap();
            let (second, _) = UnixStream::pair().unwrap();
            assert!(successor.came(second).is_err());
            for number in 0..100 {
                let name = format!("session-{number}");
                successor.give(&name, parcel().as_fd()).unwrap();
            }
            assert!(
                successor
                    .give(&"x".repeat(FRAME_BYTES), parcel().as_fd())
                    .is_err()
            );
            let _until_here = successor.done().unwrap();
            assert!(successor.done().is_err());
        });
        let left = handed.unwrap().unwrap();
        assert_eq!(left.len(), 100);
        for (number, left) in left.iter().enumerate() {
            assert_eq!(left.name, format!("session-{number}"));
            assert_eq!(left.parcel.look().unwrap().unwrap().descriptors.len(), 1);
        }
    }

    #[test]
    fn a_predecessor_that_refuses_is_an_error_one_that_is_killed_has_given_what_it_gave_and_none_is_none() {
        assert!(handed(drop).is_err());
        let broken = handed(|stream| {
            let successor = Successor::default();
            successor.came(stream).unwrap();
            successor.give("session-1", parcel().as_fd()).unwrap();
        });
        assert_eq!(broken.unwrap().unwrap().len(), 1);
        let foreign = handed(|mut stream| stream.write_all(&[b'x'; 200]).unwrap());
        assert!(foreign.is_err());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("successor");
        assert!(ask_predecessor(&path, PATIENCE).unwrap().is_none());
        // One that was killed leaves its socket behind.
        drop(UnixListener::bind(&path).unwrap());
        assert!(ask_predecessor(&path, PATIENCE).unwrap().is_none());
        // One that says nothing is not waited for.
        let _silent = UnixListener::bind(folder.path().join("silent")).unwrap();
        let patience = Duration::from_millis(50);
        assert!(ask_predecessor(&folder.path().join("silent"), patience).is_err());
    }
}
