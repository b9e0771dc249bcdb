//! Locks and the feed that carries them.

use iap_identity::{AgentId, TrustBundle};
use iap_proto::v1::{self, feed_event::Event};
use iap_proto::{open_beat, open_locks, open_snapshot};
use tonic::Streaming;

use crate::harness::{ADMIN, Identity, Plane, code, refused};

async fn watch(plane: &Plane, agent: &Identity) -> Streaming<v1::FeedEvent> {
    let request = v1::WatchRequest {
        version: "0.1.0".to_owned(),
        services: vec!["echo".to_owned()],
    };
    plane.agent(agent).watch(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<v1::FeedEvent>) -> Result<Event, tonic::Status> {
    Ok(stream
        .message()
        .await?
        .expect("the stream goes on")
        .event
        .unwrap())
}

/// Reads on until an event satisfies `wanted`.
async fn until<T>(
    stream: &mut Streaming<v1::FeedEvent>,
    mut wanted: impl FnMut(&Event) -> Option<T>,
) -> Result<T, tonic::Status> {
    loop {
        if let Some(found) = wanted(&next(stream).await?) {
            return Ok(found);
        }
    }
}

fn lock(kind: &str, target: &str) -> v1::LockAddRequest {
    v1::LockAddRequest {
        kind: kind.to_owned(),
        target: target.to_owned(),
        reason: "laptop stolen".to_owned(),
        ttl_seconds: 0,
    }
}

fn targets(event: &Event, bundle: &TrustBundle) -> Option<Vec<String>> {
    match event {
        Event::Locks(signed) => {
            let list = open_locks(signed, bundle).unwrap();
            Some(list.locks.iter().map(|lock| lock.target.clone()).collect())
        }
        Event::Snapshot(_) | Event::Beat(_) | Event::Bundle(_) => None,
    }
}

#[tokio::test]
async fn a_stream_begins_with_the_full_state_and_then_beats() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (_, agent) = plane.join_agent(&admin, &[]).await;
    let mut stream = watch(&plane, &agent).await;
    let bundle = &plane.context.authority.bundle;
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(next(&mut stream).await.unwrap());
    }
    assert!(matches!(&first[0], Event::Bundle(_)));
    assert!(matches!(&first[1], Event::Locks(signed) if open_locks(signed, bundle).is_ok()));
    assert!(matches!(&first[2], Event::Snapshot(signed) if open_snapshot(signed, bundle).is_ok()));
    let Event::Beat(first_beat) = &first[3] else {
        panic!("{:?}", first[3])
    };
    let first_beat = open_beat(first_beat, bundle).unwrap();
    let later = until(&mut stream, |event| match event {
        Event::Beat(signed) => Some(open_beat(signed, bundle).unwrap()),
        Event::Snapshot(_) | Event::Locks(_) | Event::Bundle(_) => None,
    });
    assert!(later.await.unwrap().time > first_beat.time);
}

#[tokio::test]
async fn a_lock_reaches_a_watching_agent() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (_, agent) = plane.join_agent(&admin, &[]).await;
    let mut stream = watch(&plane, &agent).await;
    let bundle = &plane.context.authority.bundle;
    until(&mut stream, |event| targets(event, bundle)).await.unwrap();
    plane
        .admin(&admin)
        .lock_add(lock("user", "alice@example.com"))
        .await
        .unwrap();
    let locked = until(&mut stream, |event| targets(event, bundle)).await.unwrap();
    assert_eq!(locked, ["alice@example.com"]);
}

#[tokio::test]
async fn a_locked_agent_learns_of_it_and_is_cut_off() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (id, agent) = plane.join_agent(&admin, &[]).await;
    let mut stream = watch(&plane, &agent).await;
    let bundle = &plane.context.authority.bundle;
    until(&mut stream, |event| targets(event, bundle)).await.unwrap();
    plane
        .admin(&admin)
        .lock_add(lock("agent", &id.to_string()))
        .await
        .unwrap();
    assert_eq!(
        until(&mut stream, |event| targets(event, bundle)).await.unwrap(),
        [id.to_string()]
    );
    let end = until(&mut stream, |_| None::<()>).await.unwrap_err();
    assert_eq!(code(&end), "denied");
    assert_eq!(
        refused(plane.agent(&agent).status(v1::AgentStatus::default()).await),
        "denied"
    );
}

#[tokio::test]
async fn a_lock_on_user_login_or_serial_holds_at_once() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    for kind in ["user", "login", "serial"] {
        let alice = plane.log_in(&format!("alice-{kind}@example.com")).await;
        let mut client = plane.user(&alice);
        let me = client.whoami(v1::Empty {}).await.unwrap().into_inner().json;
        let me: serde_json::Value = serde_json::from_str(&me).unwrap();
        let records = plane.records(&admin, "certificate.issued").await;
        let serial = records.last().unwrap()["serial"].as_str().unwrap().to_owned();
        let target = match kind {
            "user" => me["id"].as_str().unwrap().to_owned(),
            "login" => me["login_id"].as_str().unwrap().to_owned(),
            _ => serial,
        };
        let added = plane
            .admin(&admin)
            .lock_add(lock(kind, &target))
            .await
            .unwrap()
            .into_inner();
        let status = client.whoami(v1::Empty {}).await.unwrap_err();
        assert_eq!(
            (code(&status), status.message()),
            ("denied", "locked: laptop stolen"),
            "{kind}"
        );
        plane
            .admin(&admin)
            .lock_remove(v1::NameRequest { name: added.lock_id })
            .await
            .unwrap();
        client.whoami(v1::Empty {}).await.unwrap();
    }
    assert_eq!(plane.records(&admin, "lock.added").await.len(), 3);
    assert_eq!(plane.records(&admin, "lock.removed").await.len(), 3);
}

#[tokio::test]
async fn a_lock_that_expires_leaves_the_list() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (_, agent) = plane.join_agent(&admin, &[]).await;
    let short = v1::LockAddRequest {
        ttl_seconds: 60,
        ..lock("user", "alice@example.com")
    };
    plane.admin(&admin).lock_add(short).await.unwrap();
    let mut stream = watch(&plane, &agent).await;
    let bundle = &plane.context.authority.bundle;
    assert_eq!(
        until(&mut stream, |event| targets(event, bundle))
            .await
            .unwrap()
            .len(),
        1
    );
    plane.offset.set(time::Duration::seconds(61));
    assert!(
        until(&mut stream, |event| targets(event, bundle))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn locks_that_could_never_match_are_refused() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let wrong = [
        ("agent", "host-1"),
        ("serial", "XYZ"),
        ("user", ""),
        ("planet", "mars"),
        ("login", "ABC"),
    ];
    for (kind, target) in wrong {
        assert_eq!(
            refused(plane.admin(&admin).lock_add(lock(kind, target)).await),
            "invalid",
            "{kind}"
        );
    }
    let silent = v1::LockAddRequest {
        reason: " ".to_owned(),
        ..lock("user", "alice")
    };
    assert_eq!(refused(plane.admin(&admin).lock_add(silent).await), "invalid");
}

#[tokio::test]
async fn a_hundred_watching_agents_all_get_a_new_snapshot() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (_, agent) = plane.join_agent(&admin, &[]).await;
    let client = plane.agent(&agent);
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(
            client
                .clone()
                .watch(v1::WatchRequest::default())
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let client = plane.agent(&agent);
    for _ in 0..50 {
        streams.push(
            client
                .clone()
                .watch(v1::WatchRequest::default())
                .await
                .unwrap()
                .into_inner(),
        );
    }
    plane.create_services(&admin, &["echo"]).await;
    let bundle = &plane.context.authority.bundle;
    for stream in &mut streams {
        let named = until(stream, |event| match event {
            Event::Snapshot(signed) => {
                let snapshot = open_snapshot(signed, bundle).unwrap();
                snapshot
                    .services
                    .first()
                    .map(|service| service.facts.name.to_string())
            }
            Event::Beat(_) | Event::Locks(_) | Event::Bundle(_) => None,
        });
        assert_eq!(named.await.unwrap(), "echo");
    }
}

#[tokio::test]
async fn agents_are_listed_with_what_they_report() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    plane.create_services(&admin, &["echo"]).await;
    let (id, agent) = plane.join_agent(&admin, &["echo"]).await;
    let listed = async || -> serde_json::Value {
        let json = plane
            .admin(&admin)
            .agents_list(v1::Empty {})
            .await
            .unwrap()
            .into_inner()
            .json;
        serde_json::from_str::<serde_json::Value>(&json).unwrap()[0].take()
    };
    let before = listed().await;
    assert_eq!(AgentId::parse(before["agent_id"].as_str().unwrap()).unwrap(), id);
    assert_eq!(
        (&before["host"], &before["connected"]),
        (&"host-1".into(), &false.into())
    );
    assert_eq!(before["services"], serde_json::json!(["echo"]));
    let stream = watch(&plane, &agent).await;
    let status = v1::AgentStatus {
        connected_proxies: vec!["proxy:443".to_owned()],
        live_sessions: 3,
        services: vec!["echo".to_owned()],
        ..v1::AgentStatus::default()
    };
    plane.agent(&agent).status(status.clone()).await.unwrap();
    let during = listed().await;
    assert_eq!(during["connected"], true);
    let proxies = |control| serde_json::json!([{"address": "proxy:443", "control": control, "data": "tcp"}]);
    assert_eq!(
        (&during["proxies"], &during["live_sessions"]),
        (&proxies("tls"), &3.into()),
        "an agent that reports addresses alone"
    );
    let by_quic = v1::ProxyConnection {
        address: "proxy:443".to_owned(),
        control: "quic".to_owned(),
        data: "tcp".to_owned(),
    };
    let status = v1::AgentStatus {
        proxies: vec![by_quic],
        ..status
    };
    plane.agent(&agent).status(status).await.unwrap();
    assert_eq!(listed().await["proxies"], proxies("quic"));
    drop(stream);
    while listed().await["connected"] == true {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_proxys_address_is_in_the_snapshot_once_it_watches() {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let (id, proxy) = plane.join_proxy(&admin).await;
    assert!(plane.context.feed.snapshot().content.proxies.is_empty());
    let request = v1::ProxyWatchRequest {
        version: "0.1.0".to_owned(),
        public_address: "iap.example.com:443".to_owned(),
    };
    let mut stream = plane.proxy(&proxy).watch(request).await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
    let snapshot = plane.context.feed.snapshot();
    assert_eq!(snapshot.content.proxies[0].proxy_id, id);
    assert_eq!(snapshot.content.proxies[0].address, "iap.example.com:443");
    let nonsense = v1::ProxyWatchRequest {
        public_address: "nowhere".to_owned(),
        ..Default::default()
    };
    assert_eq!(refused(plane.proxy(&proxy).watch(nonsense).await), "invalid");
}
