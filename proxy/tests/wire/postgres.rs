//! PostgreSQL clients on the TLS port.

use iap_proxy::metrics::Refusal;
use tokio::io::AsyncWriteExt;

use crate::support::*;

const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
const CANCEL: [u8; 16] = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 1, 2, 3, 4];
const STARTUP: [u8; 9] = [0, 0, 0, 9, 0, 3, 0, 0, 0];

#[tokio::test]
async fn a_client_that_asks_for_tls_gets_it_and_is_routed() {
    let plane = Plane::start().await;
    let mut agent = TestAgent::serving(&plane, &["db"]).await;
    let mut client = dial(plane.address, &SSL).await;
    assert_eq!(take(&mut client, 1).await, b"S");
    let hello = hello(&plane.cluster, &plane.host("db"));
    client.write_all(&hello).await.unwrap();
    let (_, mut fetched) = agent.fetch().await;
    assert_eq!(take(&mut fetched, hello.len()).await, hello);
}

#[tokio::test]
async fn gssapi_is_refused_once_and_tls_follows() {
    let plane = Plane::start().await;
    let mut client = dial(plane.address, &GSS).await;
    assert_eq!(take(&mut client, 1).await, b"N");
    client.write_all(&SSL).await.unwrap();
    assert_eq!(take(&mut client, 1).await, b"S");
    client.write_all(&hello_without_name()).await.unwrap();
    assert_eq!(rest(&mut client).await, UNRECOGNIZED_NAME);
}

#[tokio::test]
async fn gssapi_asked_for_twice_closes_the_connection() {
    let plane = Plane::start().await;
    let mut client = dial(plane.address, &GSS).await;
    assert_eq!(take(&mut client, 1).await, b"N");
    client.write_all(&GSS).await.unwrap();
    assert!(rest(&mut client).await.is_empty());
    plane.refused_once(Refusal::PostgresPreamble).await;
}

#[tokio::test]
async fn bytes_stuffed_behind_a_request_close_the_connection() {
    let plane = Plane::start().await;
    for request in [SSL, GSS] {
        let stuffed = [&request[..], &hello(&plane.cluster, &plane.host("db"))].concat();
        assert!(answer(plane.address, &stuffed).await.is_empty());
    }
    assert_eq!(plane.metrics.refusals(Refusal::PostgresPreamble), 2);
}

#[tokio::test]
async fn a_start_without_tls_closes_the_connection() {
    let plane = Plane::start().await;
    assert!(answer(plane.address, &STARTUP).await.is_empty());
    plane.refused_once(Refusal::PostgresPreamble).await;
}

#[tokio::test]
async fn a_plaintext_cancel_is_counted_and_closed() {
    let plane = Plane::start().await;
    assert!(answer(plane.address, &CANCEL).await.is_empty());
    plane.refused_once(Refusal::PostgresCancel).await;
}
