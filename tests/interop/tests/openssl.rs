//! OpenSSL's opinion, with `-x509_strict`: RFC 5280 to the letter.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::path::Path;
use std::process::{Command, Output};

use iap_identity::CaClass;
use iap_interop::{Specimen, authority_file, specimens, write_files};
use iap_testkit::{Forgery, TestCluster, temp};
use tempfile::TempDir;

struct Bench {
    folder: TempDir,
    cluster: TestCluster,
    specimens: Vec<Specimen>,
}

impl Bench {
    fn new() -> Self {
        let cluster = TestCluster::new("iap.example.com").unwrap();
        let specimens = specimens(&cluster).unwrap();
        let folder = temp().unwrap();
        write_files(folder.path(), &cluster, &specimens).unwrap();
        Self {
            folder,
            cluster,
            specimens,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `openssl verify` against the root, with the leaf's authority as an intermediate.
    fn verify(&self, specimen: &str, authority: CaClass, more: &[&str]) -> Output {
        let mut arguments = vec!["verify", "-x509_strict", "-CAfile"];
        let (root, leaf) = (self.path("root.pem"), self.path(&format!("{specimen}.pem")));
        let intermediate = authority_file(self.folder.path(), authority)
            .display()
            .to_string();
        arguments.extend([root.as_str(), "-untrusted", &intermediate]);
        arguments.extend(more);
        arguments.push(&leaf);
        openssl(&arguments)
    }
}

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl")
        .args(arguments)
        .output()
        .expect("openssl is installed")
}

fn assert_accepts(output: &Output, what: &str) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.trim_end().ends_with(": OK"),
        "{what}: {out}{err}"
    );
}

fn assert_refuses(output: &Output, what: &str) {
    assert!(
        !output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn every_leaf_verifies_strictly_from_leaf_to_root() {
    let bench = Bench::new();
    for Specimen {
        name,
        authority,
        hosts,
        client,
        ..
    } in &bench.specimens
    {
        if *client {
            assert_accepts(&bench.verify(name, *authority, &["-purpose", "sslclient"]), name);
        } else {
            assert_refuses(&bench.verify(name, *authority, &["-purpose", "sslclient"]), name);
        }
        if hosts.is_empty() {
            assert_refuses(&bench.verify(name, *authority, &["-purpose", "sslserver"]), name);
        }
        for host in hosts {
            let accepted = bench.verify(
                name,
                *authority,
                &["-purpose", "sslserver", "-verify_hostname", host],
            );
            assert_accepts(&accepted, name);
        }
        let other = bench.verify(name, *authority, &["-verify_hostname", "other.iap.example.com"]);
        assert_refuses(&other, name);
    }
}

#[test]
fn authorities_and_the_signing_key_verify_strictly_under_the_root() {
    let bench = Bench::new();
    let root = bench.path("root.pem");
    for name in ["ca-system", "ca-user", "ca-workload", "key", "root"] {
        let output = openssl(&[
            "verify",
            "-x509_strict",
            "-CAfile",
            &root,
            &bench.path(&format!("{name}.pem")),
        ]);
        assert_accepts(&output, name);
    }
}

#[test]
fn a_class_is_anchored_at_its_own_authority_alone() {
    let bench = Bench::new();
    let verify = |anchor: CaClass| {
        let anchor = authority_file(bench.folder.path(), anchor).display().to_string();
        openssl(&[
            "verify",
            "-x509_strict",
            "-partial_chain",
            "-CAfile",
            &anchor,
            &bench.path("user.pem"),
        ])
    };
    assert_accepts(&verify(CaClass::User), "user under the users' authority");
    assert_refuses(&verify(CaClass::System), "user under the system authority");
}

#[test]
fn openssl_refuses_what_we_would_not_issue() {
    let bench = Bench::new();
    let mut critical = Forgery::user(&bench.cluster).unwrap();
    critical.critical = true;
    let mut expired = Forgery::user(&bench.cluster).unwrap();
    expired.not_after = bench.cluster.now - time::Duration::seconds(30);
    for (name, forgery) in [("critical", critical), ("expired", expired)] {
        let der = forgery.signed_by(&bench.cluster, CaClass::User).unwrap();
        std::fs::write(
            bench.path(&format!("{name}.pem")),
            iap_testkit::certificates::pem(&der),
        )
        .unwrap();
        assert_refuses(
            &bench.verify(name, CaClass::User, &["-purpose", "sslclient"]),
            name,
        );
    }
}

#[test]
fn the_text_form_shows_the_documented_extensions() {
    let bench = Bench::new();
    let text = openssl(&["x509", "-noout", "-text", "-in", &bench.path("service.pem")]);
    let text = String::from_utf8(text.stdout).unwrap();
    for expected in [
        "Version: 3 (0x2)",
        "Subject: \n",
        "X509v3 Subject Alternative Name: critical\n",
        "DNS:db-prod.iap.example.com",
        "URI:spiffe://iap.example.com/agent/",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "Issuer: O = iap.example.com, CN = system CA ",
    ] {
        // OpenSSL 3.0 writes an empty subject with, later versions without a blank, and names with or without blanks around "=".
        let plain = |text: &str| text.replace(" = ", "=").replace(": \n", ":\n");
        assert!(
            plain(&text).contains(&plain(expected)),
            "{expected:?} is missing in\n{text}"
        );
    }
}

#[test]
fn asn1parse_reads_the_identity_extension() {
    let bench = Bench::new();
    let der = Forgery::user(&bench.cluster).unwrap().extensions.remove(0);
    let lines = asn1parse(bench.folder.path(), &der);
    for expected in [
        "SEQUENCE",
        "INTEGER           :01",
        "ENUMERATED        :00",
        "UTF8STRING        :iap.example.com",
        "GENERALIZEDTIME   :20",
        "dev:engineering",
    ] {
        assert!(lines.contains(expected), "{expected:?} is missing in\n{lines}");
    }
}

fn asn1parse(folder: &Path, der: &[u8]) -> String {
    let file = folder.join("extension.der");
    std::fs::write(&file, der).unwrap();
    let output = openssl(&["asn1parse", "-inform", "DER", "-in", &file.display().to_string()]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
