//! The part of the stand-in that issues credentials for backends.

use std::collections::BTreeMap;
use std::sync::Mutex;

use iap_identity::backend::{
    ClientCa, SshAuthority, SshCertificateKind, SshExtension, SshProfile, issue_client_leaf,
    issue_ssh_certificate, self_signed_client_ca, ssh_public_key,
};
use iap_identity::{ClusterName, LoginName, Request as CertificateRequest, ServiceName};
use iap_policy::{Accounts, Protocol, ServiceFacts};
use iap_proto::v1;
use iap_runtime::keys::{self, KeyKind};
use iap_testkit::random_serial;
use rcgen::KeyPair;
use time::{Duration, OffsetDateTime};

/// One client authority for each service, one SSH authority for all.
pub struct BackendAuthority {
    cluster: ClusterName,
    clients: Mutex<BTreeMap<ServiceName, (ClientCa, KeyPair)>>,
    ssh: KeyPair,
}

impl BackendAuthority {
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            clients: Mutex::default(),
            ssh: keys::generate(KeyKind::Ed25519).unwrap(),
        }
    }

    pub fn answer(
        &self,
        asked: &v1::BackendCredentialsRequest,
        service: &ServiceFacts,
        told: &Accounts,
        now: OffsetDateTime,
    ) -> v1::BackendCredentialsReply {
        let mut logins = if asked.only {
            Vec::new()
        } else {
            told.named.clone()
        };
        let more = asked.logins.iter().map(|login| LoginName::parse(login).unwrap());
        for login in more.filter(|login| told.could_be(login)) {
            if !logins.contains(&login) {
                logins.push(login);
            }
        }
        match service.protocol {
            Protocol::Postgres => self.client(asked, &service.name, &logins, now),
            Protocol::Ssh => self.ssh(asked, &logins, now),
            Protocol::Tcp | Protocol::Http => panic!("credentials for {}", service.name),
        }
    }

    fn client(
        &self,
        asked: &v1::BackendCredentialsRequest,
        service: &ServiceName,
        logins: &[LoginName],
        now: OffsetDateTime,
    ) -> v1::BackendCredentialsReply {
        let mut clients = self.clients.lock().unwrap();
        let (ca, key) = clients.entry(service.clone()).or_insert_with(|| {
            let key = keys::generate(KeyKind::P256).unwrap();
            let serial = random_serial().unwrap();
            let ca = self_signed_client_ca(&self.cluster, service, &key, now - Duration::HOUR, serial);
            (ca.unwrap(), key)
        });
        let request = CertificateRequest::parse(&asked.csr).unwrap();
        let issue = |login: &LoginName| {
            let leaf = issue_client_leaf(&request, login, ca, key, now, random_serial().unwrap()).unwrap();
            v1::BackendLogin {
                login: login.to_string(),
                certificate: leaf.der().to_vec(),
            }
        };
        v1::BackendCredentialsReply {
            logins: logins.iter().map(issue).collect(),
            complete: true,
            authority: ca.der().to_vec(),
            ..v1::BackendCredentialsReply::default()
        }
    }

    fn ssh(
        &self,
        asked: &v1::BackendCredentialsRequest,
        logins: &[LoginName],
        now: OffsetDateTime,
    ) -> v1::BackendCredentialsReply {
        let sources = asked
            .source_addresses
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let user = SshProfile {
            kind: SshCertificateKind::User,
            key_id: "agent".to_owned(),
            principals: Vec::new(),
            source_addresses: sources,
            extensions: SshExtension::ALL.to_vec(),
            life: Duration::DAY,
        };
        let sign = |csr: &[u8], profile: &SshProfile| {
            let key = ssh_public_key(&CertificateRequest::parse(csr).unwrap()).unwrap();
            let serial = random_serial().unwrap();
            issue_ssh_certificate(&key, profile, &self.ssh, now, serial, [7; 32]).unwrap()
        };
        let issue = |login: &LoginName| {
            let principals = vec![login.to_string()];
            let certificate = sign(
                &asked.csr,
                &SshProfile {
                    principals,
                    ..user.clone()
                },
            );
            v1::BackendLogin {
                login: login.to_string(),
                certificate: certificate.to_bytes(),
            }
        };
        let host = SshProfile {
            kind: SshCertificateKind::Host,
            principals: vec![format!("{}.{}", asked.service, self.cluster)],
            source_addresses: Vec::new(),
            extensions: Vec::new(),
            ..user.clone()
        };
        let host_certificate = match asked.host_csr.as_slice() {
            [] => Vec::new(),
            csr => sign(csr, &host).to_bytes(),
        };
        let authority = SshAuthority::of_signer(&self.ssh).unwrap().to_bytes();
        v1::BackendCredentialsReply {
            logins: logins.iter().map(issue).collect(),
            complete: true,
            authority: authority.clone(),
            host_certificate,
            host_authority: authority,
        }
    }
}
