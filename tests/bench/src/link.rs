//! A slow link: passes TCP and UDP of one port on, each byte and datagram so much later, connection set-up included.
//!
//! It stands between two hops of a path. A kernel accepts at once on loopback, so the link holds back what a client
//! says until the handshake would have been over on a link of that delay.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

const PIECE_BYTES: usize = 64 * 1024;
/// Under way in one direction at once.
const PIECES_MAX: usize = 256;
const PORT_CHOICES_MAX: usize = 64;

/// Ends, and everything on it, when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    /// Where it is entered, TCP and UDP.
    pub(crate) port: u16,
    cuts: watch::Sender<()>,
    runtime: Option<Runtime>,
}

/// What is under way, with the moment it arrives.
type Underway = (Instant, Vec<u8>);

impl Link {
    /// To a port of this machine, `delay` long each way.
    ///
    /// # Errors
    /// When no port is free for both TCP and UDP.
    pub(crate) fn start(to: u16, delay: Duration) -> io::Result<Self> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
        let (tcp, udp) = bind_both()?;
        let port = tcp.local_addr()?.port();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let within = runtime.enter();
        let (tcp, udp) = (TcpListener::from_std(tcp)?, UdpSocket::from_std(udp)?);
        drop(within);
        let (cuts, cut) = watch::channel(());
        runtime.spawn(connections(tcp, to, delay, cut));
        runtime.spawn(datagrams(udp, to, delay));
        Ok(Self {
            port,
            cuts,
            runtime: Some(runtime),
        })
    }

    /// Breaks every TCP connection on it. What is under way is lost.
    pub(crate) fn cut(&self) {
        self.cuts.send_replace(());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn bind_both() -> io::Result<(StdTcpListener, StdUdpSocket)> {
    let mut last = None;
    for _ in 0..PORT_CHOICES_MAX {
        let tcp = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match StdUdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => {
                tcp.set_nonblocking(true)?;
                udp.set_nonblocking(true)?;
                return Ok((tcp, udp));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("no port is free for TCP and UDP")))
}

async fn connections(listener: TcpListener, to: SocketAddr, delay: Duration, cut: watch::Receiver<()>) {
    loop {
        if let Ok((client, _)) = listener.accept().await {
            let mut cut = cut.clone();
            cut.mark_unchanged();
            tokio::spawn(async move {
                tokio::select! {
                    _ = cut.changed() => {}
                    _over = connection(client, to, delay) => {}
                }
            });
        }
    }
}

/// Everything of it ends with the future.
async fn connection(client: TcpStream, to: SocketAddr, delay: Duration) -> io::Result<()> {
    let begun = Instant::now();
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    // SYN, SYN and ACK, ACK: the near end may speak after two ways, the far end accepts after three.
    let mut parts = JoinSet::new();
    let there = one_way(&mut parts, from_client, delay, begun + 2 * delay);
    sleep_until(begun + 3 * delay).await;
    let server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    let (from_server, to_server) = server.into_split();
    let back = one_way(&mut parts, from_server, delay, begun);
    parts.spawn(leave(there, to_server));
    parts.spawn(leave(back, to_client));
    while parts.join_next().await.is_some() {}
    Ok(())
}

/// What is under way from there; what is read before `not_before` counts as said then.
fn one_way(
    parts: &mut JoinSet<io::Result<()>>,
    from: impl AsyncRead + Unpin + Send + 'static,
    delay: Duration,
    not_before: Instant,
) -> mpsc::Receiver<Underway> {
    let (sender, underway) = mpsc::channel(PIECES_MAX);
    parts.spawn(enter(from, sender, delay, not_before));
    underway
}

async fn leave(mut underway: mpsc::Receiver<Underway>, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some((arrives, piece)) = underway.recv().await {
        sleep_until(arrives).await;
        to.write_all(&piece).await?;
    }
    to.shutdown().await
}

async fn enter(
    mut from: impl AsyncRead + Unpin,
    underway: mpsc::Sender<Underway>,
    delay: Duration,
    not_before: Instant,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        let arrives = Instant::now().max(not_before) + delay;
        let piece = buffer.get(..read).unwrap_or_default().to_vec();
        if read == 0 {
            sleep_until(arrives).await;
            return Ok(());
        }
        if underway.send((arrives, piece)).await.is_err() {
            return Ok(());
        }
    }
}

/// Each client has a socket of its own towards the far end, as at an address translator.
async fn datagrams(near: UdpSocket, to: SocketAddr, delay: Duration) -> io::Result<()> {
    let near = Arc::new(near);
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Underway>> = HashMap::new();
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let Ok((length, client)) = near.recv_from(&mut buffer).await else {
            continue;
        };
        let piece = buffer.get(..length).unwrap_or_default().to_vec();
        let way = match clients.get(&client) {
            Some(way) => way.clone(),
            None => {
                let way = translate(Arc::clone(&near), client, to, delay).await?;
                clients.insert(client, way.clone());
                way
            }
        };
        // A queue that is full loses it, as a router would.
        let _lost = way.try_send((Instant::now() + delay, piece));
    }
}

/// The ways to and from a new client.
async fn translate(
    near: Arc<UdpSocket>,
    client: SocketAddr,
    to: SocketAddr,
    delay: Duration,
) -> io::Result<mpsc::Sender<Underway>> {
    let far = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
    far.connect(to).await?;
    let (there, mut underway) = mpsc::channel::<Underway>(PIECES_MAX);
    let (back, mut returning) = mpsc::channel::<Underway>(PIECES_MAX);
    let sending = Arc::clone(&far);
    tokio::spawn(async move {
        while let Some((arrives, piece)) = underway.recv().await {
            sleep_until(arrives).await;
            let _lost = sending.send(&piece).await;
        }
    });
    tokio::spawn(async move {
        while let Some((arrives, piece)) = returning.recv().await {
            sleep_until(arrives).await;
            let _lost = near.send_to(&piece, client).await;
        }
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            // An error is that of an earlier datagram, which nobody received.
            let Ok(length) = far.recv(&mut buffer).await else {
                continue;
            };
            let piece = buffer.get(..length).unwrap_or_default().to_vec();
            let _lost = back.try_send((Instant::now() + delay, piece));
        }
    });
    Ok(there)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::load;

    const DELAY: Duration = Duration::from_millis(20);

    #[test]
    fn a_first_byte_takes_two_round_trips_of_the_link() {
        let link = Link::start(load::serve_backend().unwrap(), DELAY).unwrap();
        let seconds = load::first_byte(link.port).unwrap();
        assert!(seconds >= 4.0 * DELAY.as_secs_f64(), "{seconds}");
        load::bulk(link.port, 2, 1_000_000).unwrap();
    }

    #[test]
    fn what_is_cut_ends_and_others_may_come() {
        let link = Link::start(load::serve_backend().unwrap(), DELAY).unwrap();
        let held = load::Held::default();
        held.open(link.port, 1).unwrap();
        let mut echo = load::Echoes::open(link.port, 1, 8).unwrap();
        link.cut();
        echo.longest_trip().unwrap_err();
        load::first_byte(link.port).unwrap();
    }

    #[test]
    fn a_datagram_and_its_answer_take_the_delay_each() {
        let far = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let link = Link::start(far.local_addr().unwrap().port(), DELAY).unwrap();
        let near = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let begun = Instant::now();
        near.send_to(b"ping", (Ipv4Addr::LOCALHOST, link.port)).unwrap();
        let mut buffer = [0; 8];
        let (length, from) = far.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer.get(..length), Some(&b"ping"[..]));
        far.send_to(b"pong", from).unwrap();
        let length = near.recv(&mut buffer).unwrap();
        assert_eq!(buffer.get(..length), Some(&b"pong"[..]));
        assert!(begun.elapsed() >= 2 * DELAY);
    }
}
