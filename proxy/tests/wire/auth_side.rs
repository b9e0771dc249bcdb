//! The proxy and the auth server: forwarding, the feed, renewal, joining.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use iap_identity::{JoinToken, LockKind, Profile, ProxyId, ProxyProfile, SignedKind};
use iap_proto::encode_control;
use iap_proto::v1::feed_event::Event;
use iap_proxy::Config;
use iap_proxy::join::{JoinError, join};
use iap_proxy::metrics::Refusal;
use iap_runtime::files::{self, DataDir};
use iap_runtime::net::HostPort;
use iap_runtime::proxy_protocol;
use iap_runtime::shutdown::Drained;
use iap_testkit::{TestCluster, new_uuid};
use iap_tunnel::{ALPN_CONTROL, ControlMessage};
use prost::Message as _;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::agent::control_stream;
use crate::support::plane::{CLUSTER, Prepared, aged_cluster, lock, signed, signed_bundle, signed_locks};
use crate::support::*;

#[tokio::test]
async fn the_auth_servers_names_go_there_with_the_clients_address_in_front() {
    let auth = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = auth.local_addr().unwrap();
    let plane = Plane::start_with(|config| config.auth = HostPort::from(address)).await;
    for name in [CLUSTER.to_owned(), format!("auth.{CLUSTER}")] {
        let hello = hello(&plane.cluster, &name);
        let client = dial(plane.address, &hello).await;
        // The proxy's own attempts to follow the feed come without a header.
        let mut expected = proxy_protocol::encode(client.local_addr().unwrap(), address);
        expected.extend(&hello);
        loop {
            let (mut stream, _) = soon(auth.accept()).await.unwrap();
            if take(&mut stream, 1).await == [0x0d] {
                assert_eq!(take(&mut stream, expected.len() - 1).await, expected[1..]);
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_call_to_the_auth_server_that_never_ends() {
    let auth = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from(auth.local_addr().unwrap());
    let plane = Plane::start_with(|config| {
        config.auth = address;
        config.limits.drain_seconds_max = Duration::from_secs(3600);
    })
    .await;
    let hello = hello(&plane.cluster, &format!("auth.{CLUSTER}"));
    let mut call = dial(plane.address, &hello).await;
    let mut accepted = soon(auth.accept()).await.unwrap().0;
    while take(&mut accepted, 1).await != [0x0d] {
        accepted = soon(auth.accept()).await.unwrap().0;
    }
    plane.shutdown.trigger("test");
    assert_eq!(soon(plane.run).await.unwrap(), Drained::Complete);
    rest(&mut call).await;
}

#[tokio::test]
async fn a_client_learns_that_the_auth_server_is_unreachable() {
    let plane = Plane::start().await;
    assert_eq!(
        answer(plane.address, &hello(&plane.cluster, CLUSTER)).await,
        INTERNAL_ERROR
    );
    plane.refused_once(Refusal::AuthUnreachable).await;
}

/// A proxy whose feed is open.
async fn fed(change: impl FnOnce(&mut Config)) -> (Plane, FakeAuth) {
    let mut prepared = Prepared::new();
    change(&mut prepared.config);
    let auth = FakeAuth::start(&prepared.cluster).await;
    prepared.config.auth = auth.address.clone();
    let plane = prepared.start().await;
    until(|| !auth.watchers().is_empty()).await;
    (plane, auth)
}

fn stored(plane: &Plane, file: &str) -> Option<Vec<u8>> {
    let directory = DataDir::open_or_create(&plane.state.path().join("proxy")).unwrap();
    directory.read(file).unwrap()
}

#[tokio::test]
async fn the_proxy_tells_the_auth_server_its_public_address() {
    let (_plane, auth) =
        fed(|config| config.public_address = HostPort::parse("p1.example.com:443").unwrap()).await;
    assert_eq!(auth.watchers()[0].public_address, "p1.example.com:443");
}

#[tokio::test]
async fn a_lock_that_arrives_cuts_the_agents_line_and_its_sessions() {
    let (plane, auth) = fed(|_| ()).await;
    let mut locked = TestAgent::serving(&plane, &["db"]).await;
    let mut spared = TestAgent::serving(&plane, &["web"]).await;
    let mut db = dial(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    let (_, mut db_fetched) = locked.fetch().await;
    let mut web = dial(plane.address, &hello(&plane.cluster, &plane.host("web"))).await;
    let (_, mut web_fetched) = spared.fetch().await;
    let locks = vec![lock(LockKind::Agent, locked.id.to_string())];
    auth.publish(Event::Locks(signed_locks(&plane.cluster, 1, locks)));
    locked.closed().await;
    assert!(rest(&mut db).await.is_empty());
    rest(&mut db_fetched).await;
    take(&mut web_fetched, hello(&plane.cluster, &plane.host("web")).len()).await;
    web_fetched.write_all(b"on").await.unwrap();
    assert_eq!(take(&mut web, 2).await, b"on");
    assert_eq!(plane.board.agents(), 1);
    assert!(stored(&plane, "locks.bin").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_agent_that_does_not_read_is_cut_like_any_other() {
    let (plane, auth) = fed(|config| config.limits.control_silence_seconds_max = PATIENCE * 10).await;
    let mut deaf = TestAgent::serving(&plane, &["db"]).await;
    let pings: Vec<u8> = (0..256)
        .flat_map(|nonce| encode_control(ControlMessage::Ping(nonce)).unwrap())
        .collect();
    let id = deaf.id;
    let sent = AtomicUsize::new(0);
    let floods = async {
        loop {
            deaf.send_raw(&pings).await;
            sent.fetch_add(1, Ordering::SeqCst);
        }
    };
    // Until the proxy waits for it to take an answer, and reads no more itself.
    let stalls = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            match sent.load(Ordering::SeqCst) {
                now if now == before && now > 0 => return,
                now => before = now,
            }
        }
    };
    tokio::select! {
        () = floods => {}
        () = stalls => {}
    }
    let locks = vec![lock(LockKind::Agent, id.to_string())];
    auth.publish(Event::Locks(signed_locks(&plane.cluster, 1, locks)));
    until(|| plane.metrics.agents.get() == 0 && plane.board.agents() == 0).await;
}

#[tokio::test]
async fn an_older_list_of_locks_replaces_nothing() {
    let (plane, auth) = fed(|_| ()).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let locks = vec![lock(LockKind::Agent, agent.id.to_string())];
    let newer = signed_locks(&plane.cluster, 5, locks);
    auth.publish(Event::Locks(newer.clone()));
    agent.closed().await;
    auth.publish(Event::Locks(signed_locks(&plane.cluster, 4, Vec::new())));
    auth.publish(Event::Bundle(signed_bundle(&plane.cluster)));
    until(|| plane.metrics.feed_events(true) == 3).await;
    assert_eq!(stored(&plane, "locks.bin"), Some(newer.encode_to_vec()));
}

#[tokio::test]
async fn what_the_clusters_keys_did_not_sign_is_refused() {
    let (plane, auth) = fed(|_| ()).await;
    let agent = TestAgent::serving(&plane, &["db"]).await;
    let locks = vec![lock(LockKind::Agent, agent.id.to_string())];
    let elsewhere = TestCluster::new(CLUSTER).unwrap();
    let mut altered = signed_locks(&plane.cluster, 1, locks.clone());
    altered.payload.push(0);
    let genuine = signed_locks(&plane.cluster, 1, locks.clone());
    let other_kind = signed(&plane.cluster, SignedKind::Beat, genuine.payload);
    for event in [
        Event::Locks(altered),
        Event::Locks(signed_locks(&elsewhere, 1, locks)),
        Event::Locks(other_kind),
        Event::Bundle(signed_bundle(&elsewhere)),
    ] {
        auth.publish(event);
    }
    until(|| plane.metrics.feed_events(false) == 4).await;
    assert_eq!(plane.metrics.feed_events(true), 0);
    assert_eq!(plane.board.agents(), 1);
    assert_eq!(stored(&plane, "locks.bin"), None);
}

#[tokio::test]
async fn a_certificate_past_half_its_life_is_renewed_and_shown() {
    let cluster = aged_cluster();
    let id = ProxyId::from_uuid(new_uuid());
    let profile = Profile::Proxy(ProxyProfile {
        id,
        cluster: cluster.name.clone(),
    });
    let old = cluster
        .issue_at(profile, OffsetDateTime::now_utc() - time::Duration::hours(20))
        .unwrap();
    let mut prepared = Prepared::with(cluster, id, &old);
    let auth = FakeAuth::start(&prepared.cluster).await;
    prepared.config.auth = auth.address.clone();
    let plane = prepared.start().await;
    until(|| auth.renewals() == 1).await;
    until(|| stored(&plane, "cert.pem") != Some(old.chain_pem().into_bytes())).await;
    let stream = control_stream(&plane, None, &[ALPN_CONTROL]).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_ne!(shown, *old.leaf());
}

#[tokio::test]
async fn a_young_certificate_is_left_alone() {
    let (_plane, auth) = fed(|_| ()).await;
    assert_eq!(auth.renewals(), 0);
}

struct Newcomer {
    config: Config,
    auth: FakeAuth,
    cluster: Arc<TestCluster>,
    folder: tempfile::TempDir,
}

impl Newcomer {
    async fn new() -> Self {
        let Prepared {
            cluster, mut config, ..
        } = Prepared::new();
        let auth = FakeAuth::start(&cluster).await;
        let folder = iap_testkit::temp().unwrap();
        config.state_dir = folder.path().join("newcomer");
        Self {
            config,
            auth,
            cluster,
            folder,
        }
    }

    async fn join(&self, token: &JoinToken, mode: u32) -> Result<ProxyId, JoinError> {
        let file = self.folder.path().join("token");
        files::write_atomic(&file, format!("{}\n", token.expose()).as_bytes(), mode).unwrap();
        join(&self.config, self.auth.address.clone(), &file).await
    }

    fn is_joined(&self) -> bool {
        self.config.state_dir.join("proxy_id").exists() || self.config.state_dir.join("cert.pem").exists()
    }
}

#[tokio::test]
async fn a_token_makes_a_proxy_that_starts() {
    let newcomer = Newcomer::new().await;
    let token = JoinToken::new(newcomer.cluster.pin(), newcomer.auth.secret());
    let id = newcomer.join(&token, 0o600).await.unwrap();
    let state = iap_proxy::state::State::open(
        &newcomer.config.state_dir,
        &newcomer.cluster.name,
        OffsetDateTime::now_utc(),
    )
    .unwrap();
    assert_eq!(state.proxy_id, id);
    assert!(state.material.identity().is_some());
}

#[tokio::test]
async fn a_wrong_secret_joins_nothing() {
    let newcomer = Newcomer::new().await;
    let token = JoinToken::new(newcomer.cluster.pin(), [0; 32]);
    let error = newcomer.join(&token, 0o600).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("unknown, used or expired"), "{error}");
    assert!(!newcomer.is_joined());
}

#[tokio::test]
async fn a_server_that_the_tokens_pin_does_not_name_is_told_nothing() {
    let newcomer = Newcomer::new().await;
    let elsewhere = TestCluster::new(CLUSTER).unwrap();
    let token = JoinToken::new(elsewhere.pin(), newcomer.auth.secret());
    assert!(newcomer.join(&token, 0o600).await.is_err());
    assert!(!newcomer.is_joined());
}

#[tokio::test]
async fn a_token_file_that_others_may_read_is_refused() {
    let newcomer = Newcomer::new().await;
    let token = JoinToken::new(newcomer.cluster.pin(), newcomer.auth.secret());
    let error = newcomer.join(&token, 0o644).await.unwrap_err();
    assert!(error.to_string().contains("chmod"), "{error}");
    assert!(!newcomer.is_joined());
}
