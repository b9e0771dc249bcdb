//! Certificates for the backends of services: to whom, for what, and on whose record.

use iap_identity::backend::{
    ClientCa, ClientLeaf, SshAuthority, SshCertificate, SshCertificateKind, SshHostKey,
};
use iap_identity::certificate_request;
use iap_proto::v1;
use iap_runtime::keys::{self, KeyKind};
use time::{Duration, OffsetDateTime};

use crate::harness::{ADMIN, Identity, Plane, code, key_and_csr, refused};

const SERVICES: &str = r#"
    [[service]]
    name = "db-prod"
    protocol = "postgres"
    inspect = true
    default_login = "app"
    [[service]]
    name = "web-1"
    protocol = "ssh"
    inspect = true
    [[service]]
    name = "echo"
"#;

const POLICY: &str = r#"
    [[rule]]
    name = "databases"
    effect = "allow"
    users = { groups = ["eng"] }
    services = { names = ["db-prod"] }
    logins = ["readonly", "{{user.local}}"]
    [[rule]]
    name = "hosts"
    effect = "allow"
    users = { groups = ["eng"] }
    services = { names = ["web-1"] }
    logins = ["*"]
    [[admin]]
    users = { names = ["admin@example.com"] }
    verbs = ["policy.write"]
"#;

/// A plane with both services and their policy, and an agent that is granted all.
async fn plane() -> (Plane, Identity, Identity) {
    let plane = Plane::start().await;
    let admin = plane.log_in(ADMIN).await;
    let services_toml = SERVICES.to_owned();
    let apply = v1::ServicesApplyRequest { services_toml };
    plane.admin(&admin).services_apply(apply).await.unwrap();
    let apply = v1::PolicyApplyRequest {
        policy_toml: POLICY.to_owned(),
        ..v1::PolicyApplyRequest::default()
    };
    plane.admin(&admin).policy_apply(apply).await.unwrap();
    for (name, groups) in [
        ("alice@example.com", &["eng"][..]),
        ("bob@example.com", &["support"]),
    ] {
        plane
            .log_in_with(name, groups, Duration::ZERO, Duration::hours(1))
            .await;
    }
    let (_, agent) = plane.join_agent(&admin, &["db-prod", "web-1", "echo"]).await;
    (plane, admin, agent)
}

fn ask(service: &str) -> v1::BackendCredentialsRequest {
    v1::BackendCredentialsRequest {
        service: service.to_owned(),
        csr: key_and_csr().1,
        ..v1::BackendCredentialsRequest::default()
    }
}

fn ssh_csr() -> Vec<u8> {
    certificate_request(&keys::generate(KeyKind::Ed25519).unwrap()).unwrap()
}

fn names(reply: &v1::BackendCredentialsReply) -> Vec<&str> {
    reply.logins.iter().map(|login| login.login.as_str()).collect()
}

#[tokio::test]
async fn an_agent_gets_a_certificate_for_each_login_the_policy_could_give_and_each_is_on_record() {
    let (plane, admin, agent) = plane().await;
    let reply = plane
        .agent(&agent)
        .backend_credentials(ask("db-prod"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        names(&reply),
        ["readonly", "alice"],
        "bob is of no group that may"
    );
    assert!(reply.complete);
    let ca = ClientCa::parse(&reply.authority).unwrap();
    assert_eq!(ca.service().as_str(), "db-prod");
    for login in &reply.logins {
        let leaf = ClientLeaf::verify(&login.certificate, &ca, OffsetDateTime::now_utc()).unwrap();
        assert_eq!(leaf.login().as_str(), login.login);
    }
    let records = plane.records(&admin, "certificate.issued").await;
    let for_backends: Vec<_> = records
        .iter()
        .filter(|record| record["class"] == "backend_login")
        .collect();
    let logins: Vec<_> = for_backends
        .iter()
        .map(|record| record["login"].as_str().unwrap())
        .collect();
    assert_eq!(logins, ["readonly", "alice"]);
    assert!(for_backends.iter().all(|record| record["service"] == "db-prod"));
}

#[tokio::test]
async fn a_login_that_nobody_can_foresee_is_issued_only_where_a_rule_gives_any() {
    let (plane, _, agent) = plane().await;
    let more = |service: &str| v1::BackendCredentialsRequest {
        logins: vec!["postgres".to_owned()],
        only: true,
        ..ask(service)
    };
    let database = plane
        .agent(&agent)
        .backend_credentials(more("db-prod"))
        .await
        .unwrap();
    assert!(names(database.get_ref()).is_empty());
    let host = plane
        .agent(&agent)
        .backend_credentials(more("web-1"))
        .await
        .unwrap();
    assert_eq!(names(host.get_ref()), ["postgres"]);
}

#[tokio::test]
async fn ssh_certificates_name_one_login_and_the_addresses_they_are_good_from() {
    let (plane, _, agent) = plane().await;
    let asked = v1::BackendCredentialsRequest {
        csr: ssh_csr(),
        host_csr: ssh_csr(),
        source_addresses: vec!["10.1.2.3".to_owned()],
        ..ask("web-1")
    };
    let reply = plane
        .agent(&agent)
        .backend_credentials(asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&reply), ["alice"]);
    let now = OffsetDateTime::now_utc();
    let authority = SshAuthority::from_bytes(&reply.authority).unwrap();
    let certificate = &reply.logins[0].certificate;
    let user = SshCertificate::verify(certificate, SshCertificateKind::User, &authority, now).unwrap();
    assert_eq!(user.principals(), ["alice"]);
    assert_eq!(
        user.source_addresses(),
        ["10.1.2.3".parse::<std::net::IpAddr>().unwrap()]
    );
    let authority = SshAuthority::from_bytes(&reply.host_authority).unwrap();
    let host =
        SshCertificate::verify(&reply.host_certificate, SshCertificateKind::Host, &authority, now).unwrap();
    assert_eq!(host.principals(), ["web-1.iap.example.com"]);
}

#[tokio::test]
async fn what_is_not_granted_not_known_or_takes_no_certificates_gets_none() {
    let (plane, admin, agent) = plane().await;
    let (_, stranger) = plane.join_agent(&admin, &["echo"]).await;
    let denied = plane.agent(&stranger).backend_credentials(ask("db-prod")).await;
    assert_eq!(refused(denied), "denied");
    assert_eq!(
        refused(plane.agent(&agent).backend_credentials(ask("echo")).await),
        "invalid"
    );
    let as_user = plane.agent(&admin).backend_credentials(ask("db-prod")).await;
    assert_eq!(refused(as_user), "denied");
    let many = v1::BackendCredentialsRequest {
        logins: vec!["a".to_owned(); 65],
        ..ask("db-prod")
    };
    assert_eq!(
        refused(plane.agent(&agent).backend_credentials(many).await),
        "invalid"
    );
    let no_address = v1::BackendCredentialsRequest {
        source_addresses: vec!["0.0.0.0/0".to_owned()],
        ..ask("web-1")
    };
    assert_eq!(
        refused(plane.agent(&agent).backend_credentials(no_address).await),
        "invalid"
    );
}

#[tokio::test]
async fn a_locked_agent_gets_none() {
    let (plane, admin, _) = plane().await;
    let (id, agent) = plane.join_agent(&admin, &["db-prod"]).await;
    plane
        .agent(&agent)
        .backend_credentials(ask("db-prod"))
        .await
        .unwrap();
    let lock = v1::LockAddRequest {
        kind: "agent".to_owned(),
        target: id.to_string(),
        reason: "lost".to_owned(),
        ttl_seconds: 0,
    };
    plane.admin(&admin).lock_add(lock).await.unwrap();
    let status = plane
        .agent(&agent)
        .backend_credentials(ask("db-prod"))
        .await
        .unwrap_err();
    assert_eq!(code(&status), "denied", "{status:?}");
}

#[tokio::test]
async fn a_services_authorities_outlive_restarts_and_a_restored_backup() {
    let (plane, admin, agent) = plane().await;
    let authority = async |plane: &Plane| {
        let reply = plane.agent(&agent).backend_credentials(ask("db-prod")).await;
        reply.unwrap().into_inner().authority
    };
    let first = authority(&plane).await;
    let plane = plane.restart().await;
    assert_eq!(authority(&plane).await, first);
    let backup = plane.beside("backup.tar");
    iap_auth::backup::make(&plane.config(), &backup, OffsetDateTime::now_utc())
        .await
        .unwrap();
    let plane = plane.restore(&backup).await;
    let service = iap_identity::ServiceName::parse("db-prod").unwrap();
    let keys = plane.context.authority.services.of(&service).await.unwrap();
    assert_eq!(keys.client.der().as_ref(), first);
    let other = iap_identity::ServiceName::parse("web-1").unwrap();
    let others = plane.context.authority.services.of(&other).await.unwrap();
    assert_ne!(others.client.der(), keys.client.der());
    assert_ne!(others.ssh_user, keys.ssh_user);
    assert_ne!(keys.ssh_user, keys.ssh_host);
    drop(admin);
}

/// As `ssh-keygen` makes them; whoever had the private half threw it away.
const HOST_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHtYJuReA/9eWaVMT9hXKIxbLLSgNGGWTN+uBNfdEykS root@host\n";

fn sign(service: &str, public_key: &str, ttl_seconds: u32) -> v1::SshHostSignRequest {
    v1::SshHostSignRequest {
        service: service.to_owned(),
        public_key: public_key.to_owned(),
        ttl_seconds,
    }
}

#[tokio::test]
async fn a_servers_own_key_is_certified_for_its_services_name_and_on_record() {
    let (plane, admin, _) = plane().await;
    let signed = plane
        .admin(&admin)
        .ssh_host_sign(sign("web-1", HOST_KEY, 3600))
        .await;
    let signed = signed.unwrap().into_inner();
    let authority = SshAuthority::from_bytes(&signed.authority).unwrap();
    let (kind, now) = (SshCertificateKind::Host, OffsetDateTime::now_utc());
    let certificate = SshCertificate::verify(&signed.certificate, kind, &authority, now).unwrap();
    assert_eq!(certificate.principals(), ["web-1.iap.example.com"]);
    assert!(certificate.not_after() - now <= Duration::HOUR);
    let key = SshHostKey::parse(HOST_KEY).unwrap();
    assert_eq!(certificate.certificate().public_key(), key.data());
    let trusted = v1::NameRequest {
        name: "web-1".to_owned(),
    };
    let trusted = plane
        .admin(&admin)
        .service_authorities(trusted)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(trusted.ssh_host, signed.authority);
    let records = plane.records(&admin, "certificate.issued").await;
    let record = records
        .iter()
        .find(|record| record["class"] == "ssh_host")
        .unwrap();
    assert_eq!(
        (&record["user"]["name"], &record["service"]),
        (&ADMIN.into(), &"web-1".into())
    );
    assert_eq!(record["serial"], certificate.serial().to_string());
    let unsaid = plane
        .admin(&admin)
        .ssh_host_sign(sign("web-1", HOST_KEY, 0))
        .await;
    let days = unsaid.unwrap().into_inner().not_after_unix_ms / 86_400_000 - now.unix_timestamp() / 86_400;
    assert!((89..=91).contains(&days), "{days}");
}

#[tokio::test]
async fn nothing_else_is_certified_and_not_for_everybody() {
    let (plane, admin, _) = plane().await;
    let bob = plane.log_in("bob@example.com").await;
    let refusal = async |who: &Identity, asked| refused(plane.admin(who).ssh_host_sign(asked).await);
    assert_eq!(refusal(&bob, sign("web-1", HOST_KEY, 3600)).await, "denied");
    let certificate = HOST_KEY.replacen("ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com", 1);
    for asked in [
        sign("db-prod", HOST_KEY, 3600),
        sign("web-1", &certificate, 3600),
        sign("web-1", &"x".repeat(100_000), 3600),
        sign("web-1", "", 3600),
        sign("web-1", HOST_KEY, 1),
        sign("web-1", HOST_KEY, 367 * 86_400),
    ] {
        assert_eq!(refusal(&admin, asked).await, "invalid");
    }
    assert_eq!(refusal(&admin, sign("nobody", HOST_KEY, 3600)).await, "not_found");
    let records = plane.records(&admin, "certificate.issued").await;
    assert!(records.iter().all(|record| record["class"] != "ssh_host"));
}
