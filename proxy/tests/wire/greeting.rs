//! From the first byte to the decision where a connection goes.

use std::net::SocketAddr;
use std::time::Duration;

use iap_proxy::Limits;
use iap_proxy::metrics::Refusal;
use iap_runtime::net::Cidr;
use iap_runtime::proxy_protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn a_client_without_a_server_name_is_told_so() {
    let plane = Plane::start().await;
    assert_eq!(
        answer(plane.address, &hello_without_name()).await,
        UNRECOGNIZED_NAME
    );
    plane.refused_once(Refusal::NoServerName).await;
}

#[tokio::test]
async fn names_of_other_clusters_are_unrecognized() {
    let plane = Plane::start().await;
    for name in [
        "db.other.example.com",
        "example.com",
        "a.b.iap.example.com",
        "xiap.example.com",
    ] {
        assert_eq!(
            answer(plane.address, &hello(&plane.cluster, name)).await,
            UNRECOGNIZED_NAME,
            "{name}"
        );
    }
    assert_eq!(plane.metrics.refusals(Refusal::UnknownName), 4);
}

#[tokio::test]
async fn reserved_names_are_unrecognized() {
    let plane = Plane::start().await;
    for label in ["agent", "www"] {
        let hello = hello(&plane.cluster, &plane.host(label));
        assert_eq!(answer(plane.address, &hello).await, UNRECOGNIZED_NAME, "{label}");
    }
    assert_eq!(plane.metrics.refusals(Refusal::ReservedName), 2);
}

#[tokio::test]
async fn names_that_are_no_names_are_unrecognized() {
    let plane = Plane::start().await;
    let long = format!("{}.iap.example.com", "a".repeat(300));
    let odd: [&[u8]; 6] = [
        long.as_bytes(),
        b"db\0.iap.example.com",
        b"d b.iap.example.com",
        b"-db.iap.example.com",
        b"db..iap.example.com",
        b"\xff\xfe.iap.example.com",
    ];
    for name in odd {
        assert_eq!(
            answer(plane.address, &raw_name_hello(name)).await,
            UNRECOGNIZED_NAME,
            "{name:?}"
        );
    }
    assert_eq!(plane.metrics.refusals(Refusal::MalformedName), 6);
}

#[tokio::test]
async fn a_hello_by_hand_is_as_good_as_any() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let hello = raw_name_hello(b"DB.iap.example.com");
    let _client = dial(plane.address, &hello).await;
    let (_, mut fetched) = agent.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
}

#[tokio::test]
async fn a_hello_in_single_bytes_reaches_the_agent_whole() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    let mut client = dial(plane.address, &[]).await;
    for byte in &hello {
        client.write_all(&[*byte]).await.unwrap();
    }
    let (_, mut fetched) = agent.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
}

#[tokio::test]
async fn a_hello_of_seventeen_kilobytes_is_refused() {
    let plane = Plane::start().await;
    let hello = padded_hello(&plane.host("db"), 17 * 1024);
    assert_eq!(answer(plane.address, &hello).await, DECODE_ERROR);
    plane.refused_once(Refusal::ClientHello).await;
}

#[tokio::test]
async fn a_long_hello_within_the_limit_is_routed() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let hello = padded_hello(&plane.host("db"), 15 * 1024);
    let _client = dial(plane.address, &hello).await;
    let (_, mut fetched) = agent.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
}

#[tokio::test]
async fn garbage_that_starts_like_tls_is_refused() {
    let plane = Plane::start().await;
    let garbage = [&[0x16, 3, 1, 0, 32][..], &[0xaa; 32]].concat();
    assert_eq!(answer(plane.address, &garbage).await, DECODE_ERROR);
    plane.refused_once(Refusal::ClientHello).await;
}

#[tokio::test]
async fn other_protocols_are_closed_without_a_word() {
    let plane = Plane::start().await;
    assert!(answer(plane.address, b"GET / HTTP/1.1\r\n\r\n").await.is_empty());
    assert!(answer(plane.address, b"SSH-2.0-x\r\n").await.is_empty());
    assert_eq!(plane.metrics.refusals(Refusal::UnknownProtocol), 2);
}

#[tokio::test]
async fn a_client_that_stalls_is_closed_at_the_deadline() {
    let plane = Plane::start_with(|config| {
        config.limits.client_hello_seconds_max = Duration::from_millis(100);
    })
    .await;
    let hello = hello(&plane.cluster, &plane.host("db"));
    for prefix in [0, 1, 100, hello.len() - 1] {
        assert!(
            answer(plane.address, &hello[..prefix]).await.is_empty(),
            "{prefix} bytes"
        );
    }
    assert_eq!(plane.metrics.refusals(Refusal::TimedOut), 4);
}

#[tokio::test]
async fn one_source_cannot_hold_more_waiting_connections_than_its_share() {
    let plane = Plane::start_with(|config| config.limits.waiting_connections_per_source_max = 2).await;
    let _first = dial(plane.address, &[0x16]).await;
    let _second = dial(plane.address, &[0x16]).await;
    until(|| plane.metrics.waiting.get() == 2).await;
    // Refused for the first moments; then the one that waited longest gives way.
    let another = async || {
        drop(dial(plane.address, &[0x16]).await);
        plane.metrics.refusals(Refusal::GaveWay) > 0
    };
    iap_testkit::wait_until_async(another, Duration::from_secs(20))
        .await
        .unwrap();
    until(|| plane.metrics.waiting.get() <= 2).await;
}

#[tokio::test]
async fn limits_that_change_while_the_proxy_runs_count_for_who_comes_next() {
    let plane = Plane::start().await;
    let mut first = dial(plane.address, &[0x16]).await;
    let _second = dial(plane.address, &[0x16]).await;
    until(|| plane.metrics.waiting.get() == 2).await;
    plane.limits.take_over(Limits {
        client_hello_seconds_max: Duration::from_millis(100),
        ..Limits::default()
    });
    let _third = dial(plane.address, &[0x16]).await;
    until(|| plane.metrics.refusals(Refusal::TimedOut) == 1).await;
    assert_eq!(
        plane.metrics.waiting.get(),
        2,
        "those from before have their time"
    );

    plane.limits.take_over(Limits {
        waiting_connections_max: 1,
        ..Limits::default()
    });
    let another = async || {
        drop(dial(plane.address, &[0x16]).await);
        plane.metrics.refusals(Refusal::GaveWay) > 0
    };
    iap_testkit::wait_until_async(another, Duration::from_secs(20))
        .await
        .unwrap();
    // The one that has waited longest.
    assert!(matches!(first.read(&mut [0; 64]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_listed_balancer_speaks_for_its_client() {
    let plane = Plane::start_with(|config| {
        config.proxy_protocol_from = vec![Cidr::parse("127.0.0.1").unwrap()];
    })
    .await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let client: SocketAddr = "203.0.113.9:4711".parse().unwrap();
    let hello = hello(&plane.cluster, &plane.host("db"));
    let bytes = [proxy_protocol::encode(client, plane.address), hello.clone()].concat();
    let _client = dial(plane.address, &bytes).await;
    let (opened, mut fetched) = agent.fetch().await;
    assert_eq!(opened.client_address, client);
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
}

#[tokio::test]
async fn a_stranger_cannot_speak_for_others() {
    let plane = Plane::start().await;
    let header = proxy_protocol::encode("203.0.113.9:4711".parse().unwrap(), plane.address);
    let bytes = [header, hello(&plane.cluster, &plane.host("db"))].concat();
    assert!(answer(plane.address, &bytes).await.is_empty());
    plane.refused_once(Refusal::ProxyHeader).await;
}

#[tokio::test]
async fn a_second_header_behind_a_balancers_is_refused() {
    let plane = Plane::start_with(|config| {
        config.proxy_protocol_from = vec![Cidr::parse("127.0.0.1").unwrap()];
    })
    .await;
    let header = proxy_protocol::encode("203.0.113.9:4711".parse().unwrap(), plane.address);
    assert!(
        answer(plane.address, &[header.clone(), header].concat())
            .await
            .is_empty()
    );
    plane.refused_once(Refusal::UnknownProtocol).await;
}
