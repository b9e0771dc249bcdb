//! The service manager's descriptor store.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::parcel::send;
use crate::service_manager::connect;

/// How long the manager may take to make room for a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// No store is taken to be larger: the names of what lies in it go to the next process in one variable of its environment,
/// which the kernel lets be 128 KiB long. A longer one would keep it from starting.
const ROOM_MAX: usize = 2500;
/// No name is longer.
const NAME_BYTES_MAX: usize = 48;

/// Where descriptors outlive the process: whoever is started next in its place has them. Clones share it.
#[derive(Debug, Clone)]
pub struct DescriptorStore {
    socket: Arc<UnixDatagram>,
    /// How many more it takes.
    room: Arc<AtomicUsize>,
}

impl DescriptorStore {
    /// The store that the service manager's environment names: `NOTIFY_SOCKET` and `FDSTORE`, the number of descriptors it
    /// takes, which systemd sets from version 254 on and our unit for those before.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        let room = std::env::var("FDSTORE").ok()?.parse().ok()?;
        Self::at(address, room)
            .inspect_err(
                |error| tracing::warn!(%error, "the service manager's descriptor store cannot be used"),
            )
            .ok()?
    }

    /// A store at that address for so many descriptors; none where it takes none.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn at(address: OsString, room: usize) -> io::Result<Option<Self>> {
        if room == 0 {
            return Ok(None);
        }
        let socket = connect(&address)?;
        // Unlike a word on how the program stands, a descriptor must not be lost because the manager is busy.
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Some(Self {
            socket: Arc::new(socket),
            room: Arc::new(AtomicUsize::new(room.min(ROOM_MAX))),
        }))
    }

    /// So many lie in it already.
    pub fn holds(&self, count: usize) {
        let less = |room: usize| Some(room.saturating_sub(count));
        let _ = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Stores a descriptor under a name: letters, digits and hyphens. Blocks for at most some seconds, and returns before
    /// the manager has it: see [`settled`](Self::settled).
    ///
    /// # Errors
    /// When the store is full or the manager does not take the message.
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.keep_leaving(name, descriptor, 0)
    }

    /// The same where room for `spare` others remains.
    ///
    /// # Errors
    /// As above.
    pub fn keep_leaving(&self, name: &str, descriptor: BorrowedFd<'_>, spare: usize) -> io::Result<()> {
        if name.len() > NAME_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let one_less = |room: usize| room.checked_sub(1).filter(|left| *left >= spare);
        let took = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if took.is_err() {
            return Err(io::Error::other("the service manager's store is full"));
        }
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        let sent = send(&*self.socket, message.as_bytes(), &[descriptor]);
        if sent.is_err() {
            self.room.fetch_add(1, Ordering::Relaxed);
        }
        Ok(sent?)
    }

    /// Takes what has that name out of the store, which is one descriptor. Blocks as above.
    ///
    /// # Errors
    /// When the manager does not take the message.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        send(&*self.socket, message.as_bytes(), &[])?;
        self.room.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the manager has done with everything that was said before: what a process says that has ended by then
    /// counts for nothing (sd_notify_barrier(3)).
    ///
    /// # Errors
    /// When it has not within `patience`.
    pub fn settled(&self, patience: Duration) -> io::Result<()> {
        let (mut here, there) = UnixStream::pair()?;
        send(&*self.socket, b"BARRIER=1", &[there.as_fd()])?;
        drop(there);
        here.set_read_timeout(Some(patience))?;
        // The manager closes it.
        here.read(&mut [0]).map(drop)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::super::Parcel;
    use super::*;

    /// The next message of a service and the descriptors that came with it.
    fn received(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 256];
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        let count = recvmsg(socket, slices, &mut control, RecvFlags::empty())
            .unwrap()
            .bytes;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        (String::from_utf8(bytes[..count].to_vec()).unwrap(), descriptors)
    }

    #[test]
    fn a_parcel_is_stored_and_forgotten_by_name_and_the_barrier_waits_for_the_manager() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        assert!(DescriptorStore::at(path.clone().into(), 0).unwrap().is_none());
        let store = DescriptorStore::at(path.into(), 1).unwrap().unwrap();
        let parcel = Parcel::of("test", &[manager.as_fd()]).unwrap();
        store.keep("session-1", parcel.as_fd()).unwrap();
        assert!(
            store.keep("session-2", parcel.as_fd()).is_err(),
            "it takes one and no more"
        );
        drop(parcel);
        let (message, mut kept) = received(&manager);
        assert_eq!(message, "FDSTORE=1\nFDNAME=session-1\nFDPOLL=0");
        let kept = Parcel::from(kept.remove(0));
        assert_eq!(kept.look().unwrap().unwrap().descriptors.len(), 1);
        store.forget("session-1").unwrap();
        assert_eq!(received(&manager).0, "FDSTOREREMOVE=1\nFDNAME=session-1");
        assert!(store.keep_leaving("session-3", manager.as_fd(), 1).is_err());
        store.keep_leaving("session-3", manager.as_fd(), 0).unwrap();
        assert_eq!(received(&manager).0, "FDSTORE=1\nFDNAME=session-3\nFDPOLL=0");
        store.forget("session-3").unwrap();
        assert_eq!(received(&manager).0, "FDSTOREREMOVE=1\nFDNAME=session-3");
        store.holds(1);
        assert!(store.keep("session-4", manager.as_fd()).is_err());
        assert!(store.settled(Duration::from_millis(20)).is_err());
        assert_eq!(received(&manager).0, "BARRIER=1");
        let waiting = std::thread::spawn(move || store.settled(Duration::from_secs(30)));
        let (message, barrier) = received(&manager);
        assert_eq!((message.as_str(), barrier.len()), ("BARRIER=1", 1));
        assert!(!waiting.is_finished());
        drop(barrier);
        waiting.join().unwrap().unwrap();
    }
}
