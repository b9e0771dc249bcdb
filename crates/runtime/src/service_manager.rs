//! Tells the service manager how the program stands: sd_notify(3), without which `Type=notify` units never start.
//!
//! One datagram for each message, to the socket that `NOTIFY_SOCKET` names: a path, or `@` and an abstract name.
//! Without it nothing is sent. A message that cannot be sent is no failure of the program.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use crate::shutdown::Shutdown;

/// What a program may need to end after its drain.
const END_SECONDS_MAX: Duration = Duration::from_secs(20);

/// The way to the service manager, if there is one.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager {
    socket: Option<Arc<UnixDatagram>>,
    /// How long the manager waits for a sign of life.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the service manager's environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        let read = |name: &str| std::env::var_os(name);
        let number = |name: &str| read(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        // The variables are inherited: the watchdog may be another process's.
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|_| is_ours)
            .map(Duration::from_micros);
        Self::at(read("NOTIFY_SOCKET"), watchdog)
    }

    /// At that address.
    pub fn at(address: Option<OsString>, watchdog: Option<Duration>) -> Self {
        let socket = address.filter(|address| !address.is_empty()).and_then(|address| {
            connect(&address)
                .inspect_err(|error| tracing::warn!(%error, ?address, "the service manager cannot be told"))
                .ok()
        });
        Self {
            socket: socket.map(Arc::new),
            watchdog,
        }
    }

    /// The program serves, for the first time or again after a reload.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The program reads its configuration again; [`ServiceManager::ready`] follows.
    pub fn reloading(&self) {
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}",
            monotonic_microseconds()
        ));
    }

    /// The program drains for `drain` at most and will end; the manager waits for that, whatever its own timeout.
    pub fn stopping(&self, drain: Duration) {
        let microseconds = (drain + END_SECONDS_MAX).as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={microseconds}"));
    }

    /// Says that the program stops once it does, and gives the signs of life the manager asks for.
    /// They come from the runtime that does the work: when it hangs, they stop.
    pub async fn follow(self, shutdown: Shutdown, drain: Duration) {
        let Some(watchdog) = self.watchdog.filter(|_| self.socket.is_some()) else {
            shutdown.cancelled().await;
            return self.stopping(drain);
        };
        let mut ticks = tokio::time::interval(watchdog / 2);
        let mut stopping = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => self.send("WATCHDOG=1"),
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    self.stopping(drain);
                }
            }
        }
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(%error, message, "the service manager did not take a message");
        }
    }
}

pub(crate) fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match abstract_name(address) {
        Some(name) => connect_abstract(&socket, name)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}

fn abstract_name(address: &OsStr) -> Option<&[u8]> {
    address.as_encoded_bytes().strip_prefix(b"@")
}

#[cfg(target_os = "linux")]
fn connect_abstract(socket: &UnixDatagram, name: &[u8]) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_: &UnixDatagram, _: &[u8]) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "abstract sockets are Linux's",
    ))
}

/// `Type=notify-reload` tells a reload from the one before by this.
fn monotonic_microseconds() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(buffer.get(..count).unwrap()).into_owned()
    }

    #[test]
    fn each_state_is_one_datagram_to_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(Some(path.into_os_string()), None);
        manager.ready();
        assert_eq!(received(&socket), "READY=1");
        manager.reloading();
        let reloading = received(&socket);
        let microseconds = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(microseconds.parse::<u64>().unwrap() > 0);
    }

    #[tokio::test]
    async fn an_abstract_socket_is_reached_and_hears_signs_of_life_and_the_end() {
        let name = format!("iap-test-{}", uuid::Uuid::now_v7());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = ServiceManager::at(Some(format!("@{name}").into()), Some(Duration::from_millis(40)));
        let shutdown = Shutdown::new();
        let following = tokio::spawn(manager.follow(shutdown.clone(), Duration::from_secs(40)));
        let socket = tokio::task::spawn_blocking(move || {
            assert_eq!(received(&socket), "WATCHDOG=1");
            assert_eq!(received(&socket), "WATCHDOG=1");
            socket
        })
        .await
        .unwrap();
        shutdown.trigger("test");
        let last = tokio::task::spawn_blocking(move || {
            loop {
                let message = received(&socket);
                if message != "WATCHDOG=1" {
                    return message;
                }
            }
        });
        assert_eq!(last.await.unwrap(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000");
        following.abort();
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        ServiceManager::at(None, None).ready();
        ServiceManager::at(Some("/nowhere/at/all".into()), None).ready();
    }
}
