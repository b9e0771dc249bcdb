//! What the peers show each other: an authority, a server and a client, P-256 as on our path; and which key exchange
//! all of them use.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{line_with, run};

/// The name under which the peers' backend is asked for.
pub(crate) const HOST: &str = "bulk.bench";
/// The only cipher suite the peers use: the first of ours.
pub(crate) const SUITE: &str = "TLS_AES_128_GCM_SHA256";
/// The first OpenSSL that has the hybrid (its CHANGES.md).
const HYBRID_SINCE: (u32, u32) = (3, 5);

/// Files in one folder: `ca.pem`; `server` and `client` with `.pem`, `.key`, and `-all.pem` with both.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) folder: PathBuf,
    /// The key exchange of the peers that have a choice, as OpenSSL calls it: ours, where it knows that.
    pub(crate) group: &'static str,
    /// OpenSSL's version.
    pub(crate) version: String,
}

impl Certificates {
    /// Makes them.
    ///
    /// # Errors
    /// When there is no OpenSSL, or the folder cannot be written.
    pub(crate) fn make(folder: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let authority = ["-subj", "/CN=bench CA", "-keyout", "ca.key", "-out", "ca.pem"];
        request(&folder, &authority)?;
        for (name, host) in [("server", HOST), ("client", "client")] {
            leaf(&folder, name, host)?;
        }
        let version = line_with(Command::new("openssl").arg("version"), "OpenSSL");
        Ok(Self {
            folder,
            group: group_of(&version),
            version,
        })
    }

    /// The path of one of the files.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

fn leaf(folder: &Path, name: &str, host: &str) -> anyhow::Result<()> {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
    let (subject, names) = (format!("/CN={host}"), format!("subjectAltName=DNS:{host}"));
    let arguments = [
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-subj",
        &subject,
        "-addext",
        &names,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    request(folder, &arguments)?;
    let both = [
        std::fs::read(folder.join(&certificate))?,
        std::fs::read(folder.join(&key))?,
    ];
    std::fs::write(folder.join(format!("{name}-all.pem")), both.concat())?;
    Ok(())
}

fn request(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("openssl");
    command
        .current_dir(folder)
        .args(["req", "-x509", "-days", "2", "-nodes"]);
    command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    run(command.args(arguments)).map(drop)
}

/// Of `OpenSSL 3.0.19 27 Jan 2026 (Library: …)`.
fn group_of(version: &str) -> &'static str {
    let numbers = version.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = numbers.split('.').map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= HYBRID_SINCE {
        "X25519MLKEM768"
    } else {
        "X25519"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hybrid_is_used_where_openssl_has_it() {
        assert_eq!(group_of("OpenSSL 3.0.19 27 Jan 2026"), "X25519");
        assert_eq!(group_of("OpenSSL 3.5.0 8 Apr 2025"), "X25519MLKEM768");
        assert_eq!(group_of("OpenSSL 4.0.0"), "X25519MLKEM768");
        assert_eq!(group_of("unknown"), "X25519");
    }
}
