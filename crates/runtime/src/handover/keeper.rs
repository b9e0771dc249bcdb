//! A descriptor store for programs that no service manager has started: what `iapctl dev` keeps for its agent.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, recvmsg};

use super::PARCEL_DESCRIPTORS_MAX;
use super::parcel::{close_on_exec, descriptors_of};

/// Descriptors kept at one time.
const KEPT_MAX: usize = 256;
/// The longest message of a service.
const MESSAGE_BYTES_MAX: usize = 4096;
/// How soon the thread that listens notices that nobody needs it.
const LISTENS_FOR: Duration = Duration::from_millis(200);
/// Descriptors are lent from this number on, above those that a program is likely to have.
const LENT_FROM: i32 = 400;
/// How often it is tried to find numbers in a row.
const TRIES_MAX: usize = 16;

/// Takes and gives descriptors as systemd does: `FDSTORE`, `FDSTOREREMOVE` and `BARRIER` of sd_notify(3). Everything else
/// that a service says is ignored. It listens for as long as it exists.
#[derive(Debug)]
pub struct Keeper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    socket: UnixDatagram,
    kept: Mutex<VecDeque<(String, OwnedFd)>>,
}

/// What a program that is started now inherits; to be dropped once it runs.
#[derive(Debug)]
pub struct Lent {
    descriptors: Vec<OwnedFd>,
    names: Vec<String>,
    address: OsString,
}

impl Keeper {
    /// Listens at `path`, where nothing may be that is needed. Whoever can write there can give and take.
    ///
    /// # Errors
    /// When it cannot.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(LISTENS_FOR))?;
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            socket,
            kept: Mutex::default(),
        });
        let listening = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("descriptor-store".to_owned())
            .spawn(move || listen(&listening))?;
        Ok(Self(inner))
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Duplicates of what is kept, oldest first.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn kept(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let kept = self.0.kept();
        let duplicate = |(name, kept): &(String, OwnedFd)| Ok((name.clone(), kept.try_clone()?));
        kept.iter().map(duplicate).collect()
    }

    /// What a program that is started now is to have. Any that is started before this is dropped has it as well.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn lend(&self) -> io::Result<Lent> {
        let kept = self.kept()?;
        let mut from = LENT_FROM;
        for _ in 0..TRIES_MAX {
            let mut descriptors = Vec::new();
            for (_, descriptor) in &kept {
                descriptors.push(fcntl_dupfd_cloexec(descriptor, from + descriptors.len() as i32)?);
            }
            let numbers = descriptors.iter().map(|one: &OwnedFd| one.as_raw_fd());
            let in_a_row = numbers
                .clone()
                .zip(from..)
                .all(|(number, wanted)| number == wanted);
            if !in_a_row {
                from = numbers.max().unwrap_or(from) + 1;
                continue;
            }
            for descriptor in &descriptors {
                fcntl_setfd(descriptor, FdFlags::empty())?;
            }
            return Ok(Lent {
                descriptors,
                names: kept.into_iter().map(|(name, _)| name).collect(),
                address: self.0.path.clone().into_os_string(),
            });
        }
        Err(io::Error::other("no numbers in a row are free"))
    }
}

impl Lent {
    /// The environment that tells the program of it: sd_listen_fds(3), with `LISTEN_FDS_FIRST_FD` of the crate `listenfd`.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        let first = self.descriptors.first().map_or(0, |first| first.as_raw_fd());
        let mut all = vec![
            ("NOTIFY_SOCKET", self.address.clone()),
            ("FDSTORE", KEPT_MAX.to_string().into()),
        ];
        if !self.descriptors.is_empty() {
            all.extend([
                ("LISTEN_FDS", self.descriptors.len().to_string().into()),
                ("LISTEN_FDS_FIRST_FD", first.to_string().into()),
                ("LISTEN_FDNAMES", self.names.join(":").into()),
            ]);
        }
        all
    }
}

fn listen(keeper: &Weak<Inner>) {
    while let Some(inner) = keeper.upgrade() {
        match inner.receive() {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                tracing::error!(%error, "the descriptor store listens no longer");
                return;
            }
        }
    }
}

impl Inner {
    fn receive(&self) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARCEL_DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        let count = recvmsg(self.socket.as_fd(), slices, &mut control, close_on_exec())?.bytes;
        // Those of a barrier are closed at the end of this, when everything before it is done.
        let mut descriptors = descriptors_of(&mut control);
        let message = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
        let says = |line: &str| message.lines().any(|said| said == line);
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let name = name.unwrap_or("stored");
        let mut kept = self.kept();
        if says("FDSTOREREMOVE=1") {
            kept.retain(|(held, _)| held != name);
        } else if says("FDSTORE=1") {
            for descriptor in descriptors.drain(..) {
                if kept.len() < KEPT_MAX {
                    // Whoever it is given to on purpose gets a duplicate.
                    kept.push_back((name.to_owned(), descriptor));
                }
            }
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(String, OwnedFd)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Keeper {
    /// From now on nothing is taken, and whoever gives something is told so.
    fn drop(&mut self) {
        let _ = self.0.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::os::unix::net::UnixStream;

    use super::super::{DescriptorStore, Parcel};
    use super::*;

    #[test]
    fn what_is_stored_is_there_for_a_program_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::listen(&folder.path().join("notify")).unwrap();
        let path = keeper.path().to_owned();
        let store = DescriptorStore::at(path.clone().into(), 10).unwrap().unwrap();
        for name in ["session-1", "session-2", "session-3"] {
            let parcel = Parcel::of("test", &[store_end().as_fd()]).unwrap();
            store.keep(name, parcel.as_fd()).unwrap();
        }
        store.forget("session-2").unwrap();
        store.settled(Duration::from_secs(30)).unwrap();
        let names: Vec<_> = keeper.kept().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["session-1", "session-3"]);

        let lent = keeper.lend().unwrap();
        let mut shell = std::process::Command::new("sh");
        // A descriptor that is there is a socket; the one behind the last is not there.
        let script = "test -S /proc/self/fd/$LISTEN_FDS_FIRST_FD && \
                      test -S /proc/self/fd/$((LISTEN_FDS_FIRST_FD + 1)) && \
                      ! test -e /proc/self/fd/$((LISTEN_FDS_FIRST_FD + 2)) && \
                      test \"$LISTEN_FDS:$LISTEN_FDNAMES\" = 2:session-1:session-3";
        assert!(
            shell
                .args(["-c", script])
                .envs(lent.environment())
                .status()
                .unwrap()
                .success()
        );
        drop((lent, keeper));
        let parcel = Parcel::of("test", &[store_end().as_fd()]).unwrap();
        assert!(store.keep("session-4", parcel.as_fd()).is_err());
        // The thread ends by itself, and what it listened on is gone.
        while path.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn store_end() -> UnixStream {
        UnixStream::pair().unwrap().0
    }
}
