//! The proxy is blind: it holds no key but its own, and no byte of a session's plaintext is ever in its memory.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Stdio;

use iap_e2e::{Background, Plane};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What a session carries in both directions; long enough that it stands nowhere by chance.
const CANARY: &str = "the-canary-sings-only-end-to-end-8c1f0a6d";

/// Every readable page of a process that holds `needle`, as the number of places it was found.
fn found_in_memory(pid: i32, needle: &[u8]) -> usize {
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps")).unwrap());
    let mut found = 0;
    for line in maps.lines().map(Result::unwrap) {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (begin, end) = range.split_once('-').unwrap();
        let begin = u64::from_str_radix(begin, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        memory.seek(SeekFrom::Start(begin)).unwrap();
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        // Some mappings cannot be read; they belong to the kernel.
        if memory.read_exact(&mut bytes).is_ok() {
            found += bytes
                .windows(needle.len())
                .filter(|window| *window == needle)
                .count();
        }
    }
    found
}

fn pem_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pem_files(&path));
        } else if std::fs::read(&path)
            .unwrap()
            .windows(11)
            .any(|window| window == b"PRIVATE KEY")
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_proxy_holds_one_key_and_its_certificate_names_the_proxy_alone() {
    let plane = Plane::demo().unwrap();
    let keys = pem_files(&plane.dir().join("proxy"));
    assert_eq!(keys.len(), 1, "{keys:?}");
    PrivateKeyDer::from_pem_file(&keys[0]).unwrap();

    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(plane.dir().join("proxy/cert.pem"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let dns: Vec<String> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(dns, ["proxy.iap.localhost"]);
    assert!(!leaf.is_ca());
}

#[test]
fn no_plaintext_of_a_session_is_ever_in_the_proxys_memory() {
    let plane = Plane::demo().unwrap();
    plane.log_in("alice").unwrap();
    let mut command = plane.command("alice", &["connect", "echo", "--stdio"]).unwrap();
    let mut session = Background(command.stdin(Stdio::piped()).spawn().unwrap());
    let mut back = vec![0; CANARY.len() + 1];
    for _ in 0..64 {
        writeln!(session.0.stdin.as_mut().unwrap(), "{CANARY}").unwrap();
        session.0.stdout.as_mut().unwrap().read_exact(&mut back).unwrap();
        assert_eq!(&back[..CANARY.len()], CANARY.as_bytes());
    }
    // The search itself works: this process holds what came back.
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(
        found_in_memory(own, CANARY.as_bytes()) > 0,
        "the search finds what is there"
    );
    drop(back);
    let proxy = plane.pid("proxy").unwrap().as_raw_nonzero().get();
    assert_eq!(
        found_in_memory(proxy, CANARY.as_bytes()),
        0,
        "the proxy saw plaintext"
    );
    // It did carry the session.
    assert!(found_in_memory(proxy, b"echo.iap.localhost") + found_in_memory(proxy, b"echo") > 0);
}
