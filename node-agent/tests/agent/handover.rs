//! Sessions that go on when their agent is replaced, and those that do not. The service manager is a stand-in that keeps
//! descriptors as systemd does; agents are started and stopped within one process, each on a runtime of its own.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use iap_agent::Config;
use iap_agent::session::Inheritance;
use iap_identity::LockKind;
use iap_runtime::handover::{DescriptorStore, Keeper, Left, Parcel, sealed};
use iap_testkit::Credential;
use iap_tunnel::Status;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{echoes, framed};
use crate::plane::{Plane, Running};
use crate::proxy::WAIT;
use crate::resume::{Client, FAREWELL, code};

/// A plane whose agent has a descriptor store.
struct Managed {
    plane: Plane,
    keeper: Keeper,
    config: Config,
}

impl Managed {
    async fn new() -> Self {
        Self::of(Plane::new().await)
    }

    /// With an agent, and a session of alice's that has carried a word.
    async fn with_a_session() -> (Self, Credential, Running, Client) {
        let managed = Self::new().await;
        let alice = managed.alice();
        let first = managed.start().await;
        let mut client = Client::begin(&managed.plane, &alice).await;
        client.round_trip("before").await;
        (managed, alice, first, client)
    }

    fn alice(&self) -> Credential {
        let groups = &["engineering"];
        self.plane.cluster.user("alice@example.com", groups).unwrap()
    }

    fn of(plane: Plane) -> Self {
        let keeper = Keeper::listen(&plane.folder.path().join("notify")).unwrap();
        let config = plane.config();
        Self {
            plane,
            keeper,
            config,
        }
    }

    /// What the next agent is started with.
    fn inheritance(&self) -> Inheritance {
        let left = self.keeper.kept().unwrap().into_iter();
        let left = left.map(|(name, descriptor)| Left {
            name,
            parcel: descriptor.into(),
        });
        let address = self.keeper.path().to_owned().into();
        Inheritance {
            left: left.collect(),
            store: DescriptorStore::at(address, 100).unwrap(),
        }
    }

    async fn start(&self) -> Running {
        let running = self
            .plane
            .start_after(self.config.clone(), self.inheritance())
            .await;
        self.plane.proxy.announced(&["echo", "db-prod"]).await;
        running
    }

    fn names(&self) -> Vec<String> {
        let kept = self.keeper.kept().unwrap().into_iter();
        kept.map(|(name, _)| name).collect()
    }

    fn put(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        let address = self.keeper.path().to_owned().into();
        let store = DescriptorStore::at(address, 1).unwrap().unwrap();
        let descriptor = descriptor.into();
        store.keep(name, descriptor.as_fd()).unwrap();
        store.settled(Duration::from_secs(20)).unwrap();
    }

    fn events(&self, session: &str) -> Vec<String> {
        let records = self.plane.auth.records().into_iter();
        let of_session = records.filter(|record| {
            record.fields.get("session_id").and_then(Value::as_str) == Some(session)
                && record.event != "session.denied"
        });
        of_session.map(|record| record.event).collect()
    }

    async fn end_of(&self, client: &Client) -> Map<String, Value> {
        let id = client.session_id.to_string();
        self.plane
            .record(|record| record.event == "session.end" && record.fields["session_id"] == id)
            .await
    }
}

/// Once the successor has made up its mind.
async fn comes_back(client: &mut Client, managed: &Managed, credential: &Credential) -> Status {
    loop {
        match client.come_back(&managed.plane, credential).await {
            Status::Unavailable { retry: true, .. } => tokio::time::sleep(Duration::from_millis(20)).await,
            answer => return answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_through_two_agents_that_are_replaced_and_its_records_tell() {
    let (managed, alice, first, mut client) = Managed::with_a_session().await;
    // It has sent what it does not know the fate of, and reads no answer on this connection.
    client.endpoint.write(b"on the way");
    client.send().await;
    first.stop().await;
    assert_eq!(managed.names().len(), 1);
    let id = client.session_id.to_string();
    assert_eq!(managed.events(&id), ["session.start"]);

    let second = managed.start().await;
    assert!(matches!(
        comes_back(&mut client, &managed, &alice).await,
        Status::Resumed { .. }
    ));
    client.send().await;
    client.reads("on the way").await;
    client.round_trip("between").await;
    assert_eq!(managed.names(), [""; 0], "it is the second agent's");
    second.stop().await;

    let third = managed.start().await;
    assert!(matches!(
        comes_back(&mut client, &managed, &alice).await,
        Status::Resumed { .. }
    ));
    client.round_trip("after").await;
    client.finish().await;
    let end = managed.end_of(&client).await;
    assert_eq!(
        managed.events(&id),
        [
            "session.start",
            "session.handover",
            "session.resume",
            "session.handover",
            "session.resume",
            "session.end"
        ]
    );
    let said = "beforeon the waybetweenafter".len();
    let heard = said + FAREWELL.len();
    assert_eq!(
        (
            &end["resumes"],
            &end["bytes_in"],
            &end["bytes_out"],
            &end["close_reason"]
        ),
        (&2.into(), &said.into(), &heard.into(), &"client_closed".into())
    );
    let start = managed.plane.event("session.start").await;
    assert_eq!(end["start"], start["time"]);
    let handover = managed.plane.event("session.handover").await;
    assert!(handover["bytes_in"].as_u64() >= Some(6), "{handover:?}");
    assert_eq!(
        (&handover["serial"], &handover["decision"]),
        (&start["serial"], &start["decision"])
    );
    for pair in managed.plane.auth.records().windows(2) {
        iap_audit::verify_link(Some(&pair[0]), &pair[1]).unwrap();
    }
    third.stop().await;
    assert_eq!(managed.names(), [""; 0]);
}

/// Half of the session is over already, and its end is on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_half_closed_stays_half_closed() {
    let (managed, alice, first, mut client) = Managed::with_a_session().await;
    client.endpoint.finish();
    client.send().await;
    // The backend has said its last word, and it was read; nobody has acknowledged it.
    client.reads(FAREWELL).await;
    first.stop().await;
    let second = managed.start().await;
    assert!(matches!(
        comes_back(&mut client, &managed, &alice).await,
        Status::Resumed { .. }
    ));
    client.send().await;
    while !(client.endpoint.is_at_end() && client.endpoint.is_drained()) {
        let mut piece = [0; 1024];
        let read = client.stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the connection ended");
        client.endpoint.push(&piece[..read]).unwrap();
    }
    // Unless where the client stands has said so already, the agent has yet to hear that it knows the end; then it may have
    // gone.
    client.endpoint.acknowledge();
    let last = client.endpoint.transmit().pieces.concat();
    let _ = client.stream.write_all(&last).await;
    let _ = client.stream.flush().await;
    let end = managed.end_of(&client).await;
    assert_eq!(end["close_reason"], "client_closed");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_locked_while_there_was_no_agent_does_not_go_on() {
    let (managed, alice, first, mut client) = Managed::with_a_session().await;
    first.stop().await;
    managed.plane.lock(LockKind::User, "alice@example.com", "a drill");
    let second = managed.start().await;
    let refused = comes_back(&mut client, &managed, &alice).await;
    assert!(
        ["session_over", "locked"].contains(&code(&refused)),
        "{refused:?}"
    );
    let end = managed.end_of(&client).await;
    assert_eq!(end["close_reason"], "lock");
    assert_eq!(end["bytes_in"], 6);
    assert!(
        end["close_detail"].as_str().unwrap().contains("a drill"),
        "{end:?}"
    );
    let id = client.session_id.to_string();
    assert_eq!(managed.events(&id), ["session.start", "session.end"]);
    assert_eq!(managed.names(), [""; 0]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_was_taken_away_meanwhile_is_the_reason_of_the_end() {
    let (managed, _, first, client) = Managed::with_a_session().await;
    first.stop().await;
    managed
        .plane
        .auth
        .publish(|snapshot| snapshot.policy_toml = String::new());
    let second = managed.start().await;
    let end = managed.end_of(&client).await;
    assert_eq!(end["close_reason"], "policy");
    let detail = end["close_detail"].as_str().unwrap();
    assert!(
        detail.contains("engineers reach everything") && detail.contains("policy version 2"),
        "{detail}"
    );
    second.stop().await;
}

/// The window runs on while there is no agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_comes_back_is_waited_for_no_longer_than_before() {
    let mut plane = Plane::new().await;
    plane.limits = "resume_seconds_max = 3".to_owned();
    let managed = Managed::of(plane);
    let alice = managed.alice();
    let first = managed.start().await;
    let mut client = Client::begin(&managed.plane, &alice).await;
    client.round_trip("before").await;
    first.stop().await;
    let left = std::time::Instant::now();
    let second = managed.start().await;
    let end = managed.end_of(&client).await;
    assert!(left.elapsed() < Duration::from_secs(10), "{:?}", left.elapsed());
    assert_eq!(end["close_reason"], "client_lost");
    let id = client.session_id.to_string();
    assert_eq!(
        managed.events(&id),
        ["session.start", "session.handover", "session.end"]
    );
    assert_eq!(
        code(&client.come_back(&managed.plane, &alice).await),
        "session_over"
    );
    second.stop().await;
}

/// Told to stop again before it has heard from the auth server, an agent leaves what was left where it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_replaced_at_once_leaves_the_session_to_the_next() {
    let (managed, alice, first, mut client) = Managed::with_a_session().await;
    first.stop().await;
    for _ in 0..2 {
        let hurried = managed
            .plane
            .start_after(managed.config.clone(), managed.inheritance())
            .await;
        hurried.stop().await;
    }
    let last = managed.start().await;
    assert!(matches!(
        comes_back(&mut client, &managed, &alice).await,
        Status::Resumed { .. }
    ));
    client.round_trip("after").await;
    client.finish().await;
    let end = managed.end_of(&client).await;
    assert_eq!(end["close_reason"], "client_closed");
    last.stop().await;
}

/// Whatever lies in the store, the agent starts, and each session it left has an end that says why.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_foreign_stops_no_start_and_the_record_says_what_was_wrong() {
    let managed = Managed::new().await;
    let alice = managed.alice();
    let first = managed.start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::begin(&managed.plane, &alice).await;
        client.round_trip("before").await;
        clients.push(client);
    }
    first.stop().await;
    // Taken out of the store behind the agent's back; other things are put in.
    let address = managed.keeper.path().to_owned().into();
    let store = DescriptorStore::at(address, 1).unwrap().unwrap();
    for name in managed.names() {
        store.forget(&name).unwrap();
    }
    let label = |client: &Client| format!("session-{}", client.session_id);
    let (backend, _peer) = UnixStream::pair().unwrap();
    let state = sealed("test", &[b"IAPS", &9u16.to_be_bytes(), &[0; 16]]).unwrap();
    let both = [backend.as_fd(), state.as_fd()];
    let newer = Parcel::of(&label(&clients[0]), &both).unwrap();
    let alone = Parcel::of(&label(&clients[1]), &both[1..]).unwrap();
    let nobodys = Parcel::of("session-00000000-0000-7000-8000-000000000000", &both).unwrap();
    // The third is just gone, and other things lie beside them.
    let lie_together = [newer.as_fd(), alone.as_fd(), nobodys.as_fd(), both[0], both[1]];
    let bundle = Parcel::of("sessions-1", &lie_together).unwrap();
    managed.put("sessions-1", bundle.as_fd().try_clone_to_owned().unwrap());
    managed.put("sessions-2", backend.try_clone().unwrap());
    managed.put("something", std::fs::File::open("/proc/self/exe").unwrap());

    let second = managed.start().await;
    let says = ["version 9", "1 descriptors", "ended without warning"];
    for (client, says) in clients.iter_mut().zip(says) {
        let end = managed.end_of(client).await;
        assert_eq!(end["close_reason"], "agent_lost");
        let detail = end["close_detail"].as_str().unwrap();
        assert!(detail.contains(says), "{detail}");
        assert_eq!(
            code(&client.come_back(&managed.plane, &alice).await),
            "session_over"
        );
    }
    let mut client = Client::begin(&managed.plane, &alice).await;
    client.round_trip("a new one").await;
    client.finish().await;
    managed.end_of(&client).await;
    second.stop().await;
    assert_eq!(
        managed.names(),
        ["sessions-2", "something"],
        "what is not ours is left alone"
    );
}

/// What was left of a session that has its end already is of no use to anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_over_by_the_record_does_not_rise_again() {
    let (managed, alice, first, mut client) = Managed::with_a_session().await;
    first.stop().await;
    // An agent that knows nothing of the store.
    let without = managed.plane.start_with(managed.config.clone()).await;
    let end = managed.end_of(&client).await;
    assert_eq!(end["close_reason"], "agent_lost");
    without.stop().await;
    let third = managed.start().await;
    assert_eq!(
        code(&client.come_back(&managed.plane, &alice).await),
        "session_over"
    );
    let id = client.session_id.to_string();
    third.stop().await;
    assert_eq!(managed.events(&id), ["session.start", "session.end"]);
    assert_eq!(managed.names(), [""; 0]);
}

/// Sessions that cannot go on elsewhere end as ever, in the time that they have.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_come_back_is_told_that_the_agent_stops() {
    let managed = Managed::new().await;
    let alice = managed.alice();
    let running = managed.start().await;
    let (mut stream, status) = framed(&managed.plane, "echo", &alice).await;
    assert!(matches!(status, Status::Granted { .. }));
    echoes(&mut stream, "hello").await;
    running.stop().await;
    let end = managed.plane.event("session.end").await;
    assert_eq!(end["close_reason"], "shutdown");
    assert_eq!(managed.names(), [""; 0]);
}

/// A store that is full takes no more, and whoever finds no room there ends as without a store.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_store_has_no_room_for_ends_and_its_client_is_told() {
    let managed = Managed::new().await;
    let alice = managed.alice();
    let address = managed.keeper.path().to_owned().into();
    let store = DescriptorStore::at(address, 1).unwrap().unwrap();
    let (other, _peer) = UnixStream::pair().unwrap();
    store.keep("other", other.as_fd()).unwrap();
    let inheritance = Inheritance {
        left: Vec::new(),
        store: Some(store),
    };
    let running = managed
        .plane
        .start_after(managed.config.clone(), inheritance)
        .await;
    managed.plane.proxy.announced(&["echo", "db-prod"]).await;
    let mut told = Client::begin(&managed.plane, &alice).await;
    told.round_trip("before").await;
    running.stop().await;
    let end = managed.plane.event("session.end").await;
    assert_eq!(end["close_reason"], "shutdown");
    assert!(
        end["close_detail"].as_str().unwrap().contains("store is full"),
        "{end:?}"
    );
    assert_eq!(managed.names(), ["other"]);
    let mut rest = Vec::new();
    let _ = told.stream.read_to_end(&mut rest).await;
    for byte in rest {
        // Nothing behind it counts.
        if told.endpoint.peer_closed().is_none() {
            told.endpoint.push(&[byte]).unwrap();
        }
    }
    assert_eq!(told.endpoint.peer_closed().unwrap().code, "shutdown");
}

/// Where there is no store, an agent that is started beside another takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_started_beside_another_takes_its_sessions_over() {
    let (plane, first) = Plane::started().await;
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Client::begin(&plane, &alice).await;
        client.round_trip("before").await;
        clients.push(client);
    }
    let (mut direct, _) = framed(&plane, "echo", &alice).await;
    echoes(&mut direct, "cannot go on").await;
    let (second, ()) = tokio::join!(plane.start(), first.ended());
    plane.proxy.announced(&["echo", "db-prod"]).await;
    for client in &mut clients {
        loop {
            match client.come_back(&plane, &alice).await {
                Status::Resumed { .. } => break,
                Status::Unavailable { retry: true, .. } => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                other => panic!("{other:?}"),
            }
        }
        client.round_trip("after").await;
        client.finish().await;
    }
    let ends = || {
        let records = plane.auth.records().into_iter();
        let ends = records.filter(|record| record.event == "session.end");
        let mut reasons: Vec<_> = ends
            .map(|end| end.fields["close_reason"].as_str().unwrap().to_owned())
            .collect();
        reasons.sort();
        reasons
    };
    let expected = [&["client_closed"; 5][..], &["shutdown"]].concat();
    iap_testkit::wait_until(|| ends() == expected, WAIT).unwrap();
    for pair in plane.auth.records().windows(2) {
        iap_audit::verify_link(Some(&pair[0]), &pair[1]).unwrap();
    }
    second.stop().await;
}

/// Told to stop without a successor, it ends its sessions as ever; one that comes later finds nobody.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_and_a_successor_sessions_end_with_their_agent() {
    use std::os::unix::fs::PermissionsExt as _;
    let (plane, first) = Plane::started().await;
    let socket = plane.state_dir().join("successor");
    iap_testkit::wait_until(|| socket.exists(), WAIT).unwrap();
    let mode = || std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    iap_testkit::wait_until(|| mode() == 0o600, WAIT).unwrap();
    let alice = plane.cluster.user("alice@example.com", &["engineering"]).unwrap();
    let mut client = Client::begin(&plane, &alice).await;
    client.round_trip("before").await;
    first.stop().await;
    let second = plane.start().await;
    let end = plane.event("session.end").await;
    assert_eq!(end["close_reason"], "shutdown");
    plane.proxy.announced(&["echo", "db-prod"]).await;
    assert_eq!(code(&client.come_back(&plane, &alice).await), "session_over");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_lie_together_in_the_store_and_all_go_on() {
    const SESSIONS: usize = 12;
    let managed = Managed::new().await;
    let alice = managed.alice();
    let first = managed.start().await;
    let mut clients = Vec::new();
    for number in 0..SESSIONS {
        let mut client = Client::begin(&managed.plane, &alice).await;
        client.round_trip(&number.to_string()).await;
        clients.push(client);
    }
    first.stop().await;
    assert!(managed.names().len() < SESSIONS / 2, "{:?}", managed.names());
    let second = managed.start().await;
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = comes_back(client, &managed, &alice).await;
        assert!(matches!(answer, Status::Resumed { .. }), "{number}: {answer:?}");
        client.round_trip(&number.to_string()).await;
    }
    assert_eq!(managed.names(), [""; 0]);
    let handovers = managed.plane.auth.records().into_iter();
    let handovers = handovers.filter(|record| record.event == "session.handover");
    assert_eq!(handovers.count(), SESSIONS);
    second.stop().await;
}
