//! How servers are verified, and how material is replaced.

use iap_identity::{AuthId, ProxyId, RawBundle, TrustBundle};

use super::*;

#[tokio::test]
async fn a_server_is_accepted_for_its_own_name_only() {
    let world = World::new();
    let proxy = world.cluster.proxy(ProxyId::from_uuid(Uuid::now_v7())).unwrap();
    let auth = world.cluster.auth(AuthId::from_uuid(Uuid::now_v7())).unwrap();
    let user = world.cluster.user("db@example.com", &[]).unwrap();
    let names = [
        (&world.leaf, SERVICE),
        (&proxy, "proxy.iap.example.com"),
        (&auth, "auth.iap.example.com"),
    ];
    for (holder, own) in names {
        for (_, name) in names {
            let result = client_accepts(holder, world.client(None), name).await;
            assert_eq!(result.is_ok(), own == name, "{own} asked for {name}: {result:?}");
        }
        assert!(
            client_accepts(holder, world.client(None), "web.iap.example.com")
                .await
                .is_err()
        );
        assert!(
            client_accepts(holder, world.client(None), "db.example.com")
                .await
                .is_err()
        );
    }
    assert!(client_accepts(&user, world.client(None), SERVICE).await.is_err());
    let impostor = TestCluster::new("iap.example.com")
        .unwrap()
        .service_leaf(world.agent, "db")
        .unwrap();
    assert!(
        client_accepts(&impostor, world.client(None), SERVICE)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn at_first_contact_the_pin_decides() {
    let world = World::new();
    let other = TestCluster::new("iap.example.com").unwrap();
    let auth = |cluster: &TestCluster, with_root: bool| {
        let mut credential = cluster.auth(AuthId::from_uuid(Uuid::now_v7())).unwrap();
        credential
            .chain
            .extend(with_root.then(|| cluster.root().der().clone()));
        credential
    };
    let client = |pin| {
        let verifier = PinVerifier::new(pin, world.cluster.name.clone());
        client_config(Arc::new(verifier), None, &[]).unwrap()
    };
    let pinned = || client(world.cluster.pin());
    let accepts = async |server: &Credential, client, sni| client_accepts(server, client, sni).await.is_ok();
    let name = "auth.iap.example.com";
    assert!(accepts(&auth(&world.cluster, true), pinned(), name).await);
    assert!(
        !accepts(&auth(&world.cluster, false), pinned(), name).await,
        "without the root"
    );
    assert!(
        !accepts(&auth(&other, true), pinned(), name).await,
        "another root"
    );
    assert!(
        !accepts(&auth(&world.cluster, true), client(other.pin()), name).await,
        "another pin"
    );
    assert!(
        !accepts(&auth(&world.cluster, true), pinned(), SERVICE).await,
        "another name"
    );
    let mut forged = auth(&other, false);
    forged.chain.push(world.cluster.root().der().clone());
    assert!(
        !accepts(&forged, pinned(), name).await,
        "our root behind another authority"
    );
    let mut leaf = world.cluster.service_leaf(world.agent, "db").unwrap();
    leaf.chain.push(world.cluster.root().der().clone());
    assert!(
        !accepts(&leaf, pinned(), name).await,
        "an agent in place of the auth server"
    );
}

#[tokio::test]
async fn new_material_is_used_by_the_next_handshake_and_bad_material_by_none() {
    let world = World::new();
    let now = OffsetDateTime::now_utc();
    let [first, second] = [1, 2].map(|_| world.cluster.agent(world.agent).unwrap());
    let material = &world.material;
    let mut changes = material.changes();
    let publish = |chain: &Credential, key: &Credential| {
        material.publish_identity(chain.chain.clone(), key.private_key().unwrap(), now)
    };
    publish(&first, &first).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(matches!(publish(&second, &first), Err(MaterialError::Key(_))));
    let impostor = TestCluster::new("iap.example.com")
        .unwrap()
        .agent(world.agent)
        .unwrap();
    assert!(matches!(
        publish(&impostor, &impostor),
        Err(MaterialError::Certificate(_))
    ));
    assert!(!changes.has_changed().unwrap());

    let server = web_server_config(Arc::clone(material) as _, &[]).unwrap();
    let shown = async || {
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = format!("{}.agent.iap.example.com", world.agent);
        let connecting = connect(far, &name, world.client(None), TIMEOUT);
        let (_server, client) = tokio::join!(handshake(near, Arc::clone(&server), TIMEOUT), connecting);
        let client = client.unwrap();
        client.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(shown().await, *first.leaf());
    publish(&second, &second).unwrap();
    assert_eq!(shown().await, *second.leaf());
}

#[test]
fn a_bundle_is_replaced_by_a_newer_one_of_the_same_root_only() {
    let world = World::new();
    let now = world.cluster.now;
    let with_version = |cluster: &TestCluster, epoch, version| {
        let raw = RawBundle {
            epoch,
            version,
            ..cluster.bundle().to_raw()
        };
        TrustBundle::verify(raw, &cluster.pin(), &cluster.name, now).unwrap()
    };
    let publish = |epoch, version| {
        world
            .material
            .publish_bundle(with_version(&world.cluster, epoch, version))
    };
    publish(1, 5).unwrap();
    publish(1, 5).unwrap();
    assert!(matches!(publish(1, 4), Err(MaterialError::Rollback { .. })));
    publish(2, 1).unwrap();
    assert!(matches!(publish(1, 9), Err(MaterialError::Rollback { .. })));
    let other = TestCluster::new("iap.example.com").unwrap();
    let foreign = world.material.publish_bundle(with_version(&other, 9, 9));
    assert!(matches!(foreign, Err(MaterialError::OtherRoot)));
    assert_eq!(
        (world.material.bundle().epoch(), world.material.bundle().version()),
        (2, 1)
    );
}

#[test]
fn pem_text_is_read_back_as_written() {
    let world = World::new();
    let alice = world.cluster.user("alice@example.com", &[]).unwrap();
    let text = certificates_to_pem(alice.chain.iter().map(|der| der.as_ref()));
    assert_eq!(certificates_from_pem(text.as_bytes()).unwrap(), alice.chain);
    assert_eq!(text, alice.chain_pem());
    let key = private_key_from_pem(alice.key_pem().as_bytes()).unwrap();
    certified_key(alice.chain.clone(), key).unwrap();
    assert!(matches!(
        certificates_from_pem(b"nothing here"),
        Err(PemError::Missing(_))
    ));
    assert!(matches!(
        private_key_from_pem(text.as_bytes()),
        Err(PemError::Missing(_))
    ));
}
