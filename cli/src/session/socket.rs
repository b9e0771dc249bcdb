//! A Unix socket beside a local port, where libpq looks for one: `.s.PGSQL.PORT` in a folder.
//!
//! The folder is 0700 and the socket 0600, and whoever connects must be our own user all the same.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::home::{ClusterHome, make_private_folder};

/// In the folder of the cluster.
const FOLDER: &str = "sockets";
/// `sun_path` holds 108 bytes, the last of them zero.
const PATH_BYTES_MAX: usize = 107;

/// A bound Unix socket; its file goes with it.
pub(super) struct LocalSocket {
    listener: UnixListener,
    file: PathBuf,
    /// The folder, which libpq takes for a host.
    pub(super) folder: PathBuf,
}

impl LocalSocket {
    /// Binds the socket for a port that we have just bound: a file of that name is a dead program's.
    ///
    /// # Errors
    /// When the path is too long for a socket, or the folder cannot be ours alone.
    pub(super) fn bind(home: &ClusterHome, port: u16) -> anyhow::Result<Self> {
        let folder = home.file(FOLDER);
        let file = folder.join(format!(".s.PGSQL.{port}"));
        anyhow::ensure!(
            file.as_os_str().len() <= PATH_BYTES_MAX,
            "{} is too long for a Unix socket",
            file.display()
        );
        make_private_folder(&folder)?;
        remove(&file)?;
        let listener = UnixListener::bind(&file)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            file,
            folder,
        })
    }

    /// The next connection of our own user's.
    ///
    /// # Errors
    /// When the system has none to give, or it is another user's.
    pub(super) async fn accept(&self) -> std::io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred()?.uid();
        if user == rustix::process::geteuid().as_raw() {
            Ok(stream)
        } else {
            Err(std::io::Error::other(format!("it is the user {user}'s")))
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Left behind, it is removed by whoever gets the port next.
        let _ = std::fs::remove_file(&self.file);
    }
}

fn remove(file: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use iap_identity::ClusterName;

    fn home(folder: &Path) -> ClusterHome {
        crate::home::Home::new(folder).cluster(&ClusterName::parse("iap.localhost").unwrap())
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_goes_with_its_program() {
        let folder = tempfile::tempdir().unwrap();
        let home = home(folder.path());
        let socket = LocalSocket::bind(&home, 5432).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&socket.folder), 0o700);
        assert_eq!(mode(&socket.file), 0o600);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&socket.file), socket.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        let file = socket.file.clone();
        drop(socket);
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn what_a_dead_program_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let home = home(folder.path());
        let dead = LocalSocket::bind(&home, 5432).unwrap();
        let file = dead.file.clone();
        std::mem::forget(dead);
        assert!(file.exists());
        assert!(LocalSocket::bind(&home, 5432).is_ok());
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a".repeat(100));
        let error = LocalSocket::bind(&home(&deep), 5432).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
