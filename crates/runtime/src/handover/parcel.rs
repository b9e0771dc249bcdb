//! Descriptors that lie in the queue of a socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// No parcel holds more descriptors; the kernel lets 253 travel together.
pub const PARCEL_DESCRIPTORS_MAX: usize = 200;
/// No label is longer.
const LABEL_BYTES_MAX: usize = 64;
/// Goes before the label.
const MARK: &[u8] = b"iap-parcel/1 ";

/// Descriptors that lie in the queue of a socket: whoever gets that one has all of them. A parcel can hold parcels.
#[derive(Debug)]
pub struct Parcel(UnixDatagram);

/// What lies in a parcel.
#[derive(Debug)]
pub struct Content {
    /// What is written on it.
    pub label: String,
    /// What is in it.
    pub descriptors: Vec<OwnedFd>,
}

impl Parcel {
    /// Puts duplicates of these descriptors, at most [`PARCEL_DESCRIPTORS_MAX`], into a new one, whose label has at most 64
    /// bytes.
    ///
    /// # Errors
    /// When there are too many, or the system lets no more lie in queues.
    pub fn of(label: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        if descriptors.len() > PARCEL_DESCRIPTORS_MAX || label.len() > LABEL_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (sender, receiver) = UnixDatagram::pair()?;
        send(&sender, &[MARK, label.as_bytes()].concat(), descriptors)?;
        Ok(Self(receiver))
    }

    /// What lies in it, which stays there; nothing once it was emptied.
    ///
    /// # Errors
    /// When this is no parcel.
    pub fn look(&self) -> io::Result<Option<Content>> {
        self.receive(RecvFlags::PEEK)
    }

    /// Takes out what lies in it: also for whoever else holds this descriptor, nothing is left.
    ///
    /// # Errors
    /// When this is no parcel.
    pub fn empty(&self) -> io::Result<()> {
        self.receive(RecvFlags::empty()).map(drop)
    }

    fn receive(&self, flags: RecvFlags) -> io::Result<Option<Content>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARCEL_DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; MARK.len() + LABEL_BYTES_MAX + 1];
        let flags = flags | RecvFlags::DONTWAIT | close_on_exec();
        let received = match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Ok(received) => received,
            Err(error) if error == rustix::io::Errno::AGAIN => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        check_whole(received.flags)?;
        let descriptors = descriptors_of(&mut control);
        let refused = || io::Error::new(io::ErrorKind::InvalidData, "what lies in it is nothing of ours");
        let label = bytes
            .get(..received.bytes)
            .and_then(|bytes| bytes.strip_prefix(MARK))
            .filter(|label| label.len() <= LABEL_BYTES_MAX)
            .ok_or_else(refused)?;
        Ok(Some(Content {
            label: String::from_utf8_lossy(label).into_owned(),
            descriptors,
        }))
    }
}

impl From<OwnedFd> for Parcel {
    /// Takes any descriptor for one; [`Parcel::look`] says whether it is.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }
}

impl AsFd for Parcel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The descriptors that came with a message.
pub(super) fn descriptors_of(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    rights.flatten().collect()
}

/// The kernel leaves out what a process may not have any more.
///
/// # Errors
/// When it did.
pub(super) fn check_whole(flags: ReturnFlags) -> io::Result<()> {
    match flags.contains(ReturnFlags::CTRUNC) {
        true => Err(io::Error::other(
            "there are no descriptors left for what lies in it",
        )),
        false => Ok(()),
    }
}

/// Sends one datagram with descriptors, at most [`PARCEL_DESCRIPTORS_MAX`].
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARCEL_DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(rustix::io::Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

#[cfg(target_os = "linux")]
pub(super) fn close_on_exec() -> RecvFlags {
    RecvFlags::CMSG_CLOEXEC
}

#[cfg(not(target_os = "linux"))]
pub(super) fn close_on_exec() -> RecvFlags {
    RecvFlags::empty()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::super::memory::{read_sealed, sealed};
    use super::*;

    #[test]
    fn what_lies_in_a_parcel_can_be_looked_at_again_and_again_and_taken_out_once() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let state = sealed("state", &[b"state"]).unwrap();
        let parcel = Parcel::of("one", &[far.as_fd(), state.as_fd()]).unwrap();
        // Whoever has put it in is gone.
        drop((far, state));
        near.write_all(b"hello").unwrap();
        let outer = Parcel::of("outer", &[parcel.as_fd()]).unwrap();
        let copy = Parcel::from(outer.look().unwrap().unwrap().descriptors.remove(0));
        for _ in 0..2 {
            let Content { label, descriptors } = copy.look().unwrap().unwrap();
            let found = descriptors;
            assert_eq!((label.as_str(), found.len()), ("one", 2));
            let state = found[1].try_clone().unwrap();
            assert_eq!(read_sealed(state, 5).unwrap(), b"state");
        }
        let mut found = copy.look().unwrap().unwrap().descriptors;
        parcel.empty().unwrap();
        assert!(copy.look().unwrap().is_none() && parcel.look().unwrap().is_none());
        // Also for whoever takes it out of the outer one later.
        let again = outer.look().unwrap().unwrap().descriptors.remove(0);
        assert!(Parcel::from(again).look().unwrap().is_none());
        let mut taken = UnixStream::from(found.remove(0));
        let mut hello = [0; 5];
        taken.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
    }

    #[test]
    fn anything_else_is_no_parcel() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let long = [MARK, &[b'x'; LABEL_BYTES_MAX + 1]].concat();
        for bytes in [
            &b""[..],
            b"iap-parcel",
            b"iap-parcel/10 one",
            &[b'x'; 4000],
            &long,
        ] {
            send(&sender, bytes, &[]).unwrap();
            let other = Parcel::from(OwnedFd::from(receiver.try_clone().unwrap()));
            assert!(other.look().is_err() && other.empty().is_err(), "{bytes:?}");
        }
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(Parcel::from(OwnedFd::from(file)).look().is_err());
        let (one, _other) = UnixStream::pair().unwrap();
        let many = [one.as_fd(); PARCEL_DESCRIPTORS_MAX];
        let full = Parcel::of("full", &many).unwrap();
        assert_eq!(
            full.look().unwrap().unwrap().descriptors.len(),
            PARCEL_DESCRIPTORS_MAX
        );
        assert!(Parcel::of("more", &[one.as_fd(); PARCEL_DESCRIPTORS_MAX + 1]).is_err());
        assert!(Parcel::of(&"x".repeat(LABEL_BYTES_MAX + 1), &[]).is_err());
    }
}
