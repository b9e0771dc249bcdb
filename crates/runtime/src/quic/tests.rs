//! Both ends over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use iap_identity::ProxyId;
use iap_testkit::{TestCluster, new_uuid};
use tokio::net::UdpSocket;
use tokio::runtime::Runtime;

use super::*;
use crate::tls::{FixedIdentity, Material, ServerVerifier, certified_key};

const PATIENCE: Duration = Duration::from_secs(20);
const LIMITS: ListenLimits = ListenLimits {
    incoming_max: 8,
    streams_max: 1,
};

/// A server in a runtime of its own, which is its process; it keeps whoever comes.
fn serve(address: SocketAddr, config: &Arc<tls::ServerConfig>) -> (Runtime, SocketAddr) {
    let process = Runtime::new().unwrap();
    let bound = |address| {
        let _inside = process.enter();
        Listener::bind(address, b"the same secret", Arc::clone(config), LIMITS)
    };
    let mut listener = bound(address);
    while listener.is_err() {
        std::thread::yield_now();
        listener = bound(address);
    }
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::clone(config);
    process.spawn(async move {
        let mut held = Vec::new();
        while let Some(attempt) = listener.accept().await {
            held.push(attempt.accept(Arc::clone(&config), PATIENCE).await);
        }
    });
    (process, address)
}

/// A listener, and both ends of a connection to it.
async fn pair(limits: ListenLimits) -> (Listener, Connection, Connection) {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let credential = cluster.proxy(ProxyId::from_uuid(new_uuid())).unwrap();
    let key = certified_key(credential.chain.clone(), credential.private_key().unwrap()).unwrap();
    let server = tls::web_server_config(Arc::new(FixedIdentity(key)), &["test"]).unwrap();
    let material = Material::new(cluster.bundle().clone());
    let client = tls::client_config(Arc::new(ServerVerifier::new(material)), None, &["test"]).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Listener::bind(any, b"secret", Arc::clone(&server), limits).unwrap();
    let address = listener.local_addr().unwrap();
    let host = cluster.name.proxy_host();
    let accepts = async {
        let attempt = listener.accept().await.unwrap();
        attempt.accept(server, PATIENCE).await.unwrap()
    };
    let (accepted, connected) = tokio::join!(accepts, connect(address, &host, client, PATIENCE));
    (listener, accepted, connected.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_window_grows_with_the_streams_in_use() {
    let limits = ListenLimits {
        incoming_max: 8,
        streams_max: 8,
    };
    let (_listener, accepted, connected) = pair(limits).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(connected.open_bi().await.unwrap().0);
    }
    // Nobody reads: what is taken is what the windows hold.
    let mut taken = 0;
    let mut fill = async || {
        for stream in &mut streams {
            let piece = [0; 64 * 1024];
            let some = Duration::from_millis(300);
            while let Ok(written) = tokio::time::timeout(some, stream.write(&piece)).await {
                taken += written.unwrap();
            }
        }
        taken
    };
    let one = usize::try_from(STREAM_WINDOW_BYTES).unwrap();
    assert_eq!(Box::pin(fill()).await, 2 * one);
    let window = Window::of(&accepted, limits.streams_max);
    let (_first, second) = (window.grow(), window.grow());
    assert_eq!(Box::pin(fill()).await, 4 * one);
    drop(second);
    let _third = window.grow();
    assert_eq!(Box::pin(fill()).await, 4 * one, "two are in use, as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_open_more_streams_the_more_it_uses() {
    let permitted = [0, 3, 4, 8, 200].map(|used| permitted_streams(used, 257));
    assert_eq!(permitted, [8, 8, 16, 32, 257]);
    assert_eq!(permitted_streams(0, 2), 2);
    let limits = ListenLimits {
        incoming_max: 8,
        streams_max: 12,
    };
    let (_listener, accepted, connected) = pair(limits).await;
    let (window, mut open, mut used) = (Window::of(&accepted, limits.streams_max), Vec::new(), Vec::new());
    for _ in 0..8 {
        open.push(connected.open_bi().await.unwrap());
    }
    let some = Duration::from_millis(300);
    assert!(tokio::time::timeout(some, connected.open_bi()).await.is_err());
    used.extend((0..4).map(|_| window.grow()));
    for _ in 8..12 {
        let opened = tokio::time::timeout(PATIENCE, connected.open_bi()).await;
        open.push(opened.unwrap().unwrap());
    }
    used.extend((4..12).map(|_| window.grow()));
    assert!(
        tokio::time::timeout(some, connected.open_bi()).await.is_err(),
        "as many as there may be"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_unknown_clients_is_told_so_at_once() {
    let (listener, _accepted, _connected) = pair(LIMITS).await;
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..16).map(|_| UdpSocket::bind("127.0.0.1:0")).collect();
    let clients: Vec<_> = futures_util::future::join_all(clients).await;
    let mut packet = [7; 64];
    // A short header (RFC 9000 §17.3.1) and an id that nobody has.
    packet[0] = 0x40;
    for client in &clients {
        client.as_ref().unwrap().send_to(&packet, address).await.unwrap();
    }
    for client in &clients {
        let told = tokio::time::timeout(PATIENCE, client.as_ref().unwrap().recv(&mut packet)).await;
        assert!(told.expect("a reset").unwrap() < 64);
    }
}

#[test]
fn a_client_learns_at_its_next_packet_that_the_server_was_started_again() {
    let cluster = TestCluster::new("iap.example.com").unwrap();
    let credential = cluster.proxy(ProxyId::from_uuid(new_uuid())).unwrap();
    let key = certified_key(credential.chain.clone(), credential.private_key().unwrap()).unwrap();
    let server = tls::web_server_config(Arc::new(FixedIdentity(key)), &["test"]).unwrap();
    let material = Material::new(cluster.bundle().clone());
    let client = tls::client_config(Arc::new(ServerVerifier::new(material)), None, &["test"]).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (killed, address) = serve(any, &server);
    let host = cluster.name.proxy_host();
    let own = Runtime::new().unwrap();
    let connection = own.block_on(connect(address, &host, client, PATIENCE)).unwrap();
    killed.shutdown_timeout(PATIENCE);
    let (_again, _) = serve(address, &server);
    let reason = own.block_on(async { tokio::time::timeout(PATIENCE, connection.closed()).await });
    assert_eq!(reason.expect("it notices"), ConnectionError::Reset);
}
