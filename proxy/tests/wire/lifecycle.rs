//! Starting, answering operators, draining.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use iap_identity::{ConnectionId, ProxyId};
use iap_proxy::{App, AppError};
use iap_runtime::files::DataDir;
use iap_runtime::shutdown::Drained;
use iap_testkit::{Credential, new_uuid};
use iap_tunnel::ControlMessage;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::plane::{Prepared, aged_cluster, signed_locks};
use crate::support::*;

/// Longer than a test waits.
const NEVER: Duration = Duration::from_secs(3600);
const LONGER_THAN_ANYBODY_LEAVES: Duration = Duration::from_millis(1500);

/// One page of the admin address: status line and body.
async fn page(plane: &Plane, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    String::from_utf8(answer(plane.admin, request.as_bytes()).await).unwrap()
}

#[tokio::test]
async fn a_proxy_is_ready_from_the_copies_on_its_disk() {
    let prepared = Prepared::new();
    prepared.store("locks.bin", &signed_locks(&prepared.cluster, 1, Vec::new()));
    let plane = prepared.start().await;
    let ready = async || page(&plane, "/readyz").await.starts_with("HTTP/1.1 200");
    iap_testkit::wait_until_async(ready, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_never_saw_a_list_of_locks_is_alive_but_not_ready() {
    let plane = Plane::start().await;
    assert!(page(&plane, "/healthz").await.starts_with("HTTP/1.1 200"));
    let ready = page(&plane, "/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("no list of locks"),
        "{ready}"
    );
}

#[tokio::test]
async fn metrics_tell_what_was_refused() {
    let plane = Plane::start().await;
    answer(plane.address, &hello_without_name()).await;
    let metrics = page(&plane, "/metrics").await;
    let line = "iap_proxy_connections_refused_total{reason=\"no_server_name\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_proxy_that_never_joined_names_the_command() {
    let mut prepared = Prepared::new();
    prepared.config.state_dir = prepared.state.path().join("empty");
    let error = App::build(prepared.config).await.err().unwrap();
    assert!(error.to_string().contains("iap-proxy join"), "{error}");
}

#[tokio::test]
async fn a_key_that_others_may_read_is_refused() {
    let prepared = Prepared::new();
    let key = prepared.config.state_dir.join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        App::build(prepared.config).await,
        Err(AppError::State(_))
    ));
}

#[tokio::test]
async fn state_of_another_cluster_is_refused() {
    let mut prepared = Prepared::new();
    prepared.config.cluster = iap_identity::ClusterName::parse("other.example.com").unwrap();
    assert!(matches!(
        App::build(prepared.config).await,
        Err(AppError::State(_))
    ));
}

#[tokio::test]
async fn a_new_certificate_on_disk_is_shown_after_a_reload_and_a_foreign_one_is_not() {
    let prepared = Prepared::new();
    let app = App::build(prepared.config.clone()).await.unwrap();
    let directory = DataDir::open_or_create(&prepared.config.state_dir).unwrap();
    let reload = |credential: &Credential| {
        directory
            .write("key.pem", credential.key_pem().as_bytes())
            .unwrap();
        directory
            .write("cert.pem", credential.chain_pem().as_bytes())
            .unwrap();
        app.reloader().reload(OffsetDateTime::now_utc())
    };
    let id = ProxyId::from_uuid(new_uuid());
    assert!(reload(&aged_cluster().proxy(id).unwrap()).is_err());
    assert!(reload(&prepared.cluster.proxy(id).unwrap()).is_ok());
}

#[tokio::test]
async fn a_drain_takes_no_new_connections_tells_agents_and_waits_for_live_ones() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let mut client = dial(plane.address, &hello).await;
    let (_, mut fetched) = agent.fetch().await;
    take(&mut fetched, hello.len()).await;
    plane.shutdown.trigger("test");
    loop {
        match agent
            .next()
            .await
            .expect("the line is closed before the sessions are over")
        {
            ControlMessage::Drain { deadline_seconds } => {
                assert_eq!(deadline_seconds, 20);
                break;
            }
            ControlMessage::Ping(_) => {}
            other => panic!("{} instead of drain", other.name()),
        }
    }
    assert!(TcpStream::connect(plane.address).await.is_err());
    client.write_all(b"last").await.unwrap();
    assert_eq!(take(&mut fetched, 4).await, b"last");
    drop((client, fetched));
    assert_eq!(soon(plane.run).await.unwrap(), Drained::Complete);
    agent.closed().await;
}

#[tokio::test]
async fn a_drain_ends_sessions_that_outlast_it() {
    let plane =
        Plane::start_with(|config| config.limits.drain_seconds_max = Duration::from_millis(100)).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut client = dial(plane.address, &hello(&plane.cluster, &plane.host("db"))).await;
    let (_, mut fetched) = agent.fetch().await;
    plane.shutdown.trigger("test");
    assert_eq!(soon(plane.run).await.unwrap(), Drained::Abandoned { tasks: 1 });
    rest(&mut client).await;
    rest(&mut fetched).await;
}

/// A session of `service`, joined with its agent.
async fn joined(plane: &Plane, agent: &mut TestAgent, service: &str) -> (ConnectionId, TcpStream, TcpStream) {
    let hello = hello(&plane.cluster, &plane.host(service));
    let client = dial(plane.address, &hello).await;
    let (opened, mut fetched) = agent.fetch().await;
    take(&mut fetched, hello.len()).await;
    (opened.connection_id, client, fetched)
}

#[tokio::test]
async fn a_drain_does_not_wait_for_sessions_that_go_on_elsewhere_and_does_not_leave() {
    let plane = Plane::start_with(|config| config.limits.drain_seconds_max = NEVER).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let (connection_id, mut client, _fetched) = joined(&plane, &mut agent, "db").await;
    agent.send(ControlMessage::Resumable { connection_id }).await;
    agent.settled().await;
    plane.shutdown.trigger("test");
    assert_eq!(soon(plane.run).await.unwrap(), Drained::Complete);
    rest(&mut client).await;
}

#[tokio::test]
async fn a_drain_cuts_nobody_while_it_waits_for_a_session_that_cannot_go_on_elsewhere() {
    let plane = Plane::start_with(|config| config.limits.drain_seconds_max = NEVER).await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut other = TestAgent::serving(&plane, &["web"]).await;
    let (connection_id, mut resumable, mut fetched) = joined(&plane, &mut agent, "db").await;
    let (stock_id, stock, stock_fetched) = joined(&plane, &mut agent, "db").await;
    agent.send(ControlMessage::Resumable { connection_id }).await;
    agent.settled().await;
    // Not its own to speak of.
    let connection_id = stock_id;
    other.send(ControlMessage::Resumable { connection_id }).await;
    other.settled().await;
    plane.shutdown.trigger("test");
    let cut = tokio::time::timeout(LONGER_THAN_ANYBODY_LEAVES, take(&mut fetched, 1));
    assert!(cut.await.is_err());
    resumable.write_all(b"still").await.unwrap();
    assert_eq!(take(&mut fetched, 5).await, b"still");
    drop((stock, stock_fetched));
    assert_eq!(soon(plane.run).await.unwrap(), Drained::Complete);
}
