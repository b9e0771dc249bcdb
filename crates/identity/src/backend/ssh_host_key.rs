//! The key of an SSH server that is not ours, as its administrator hands it in to be certified.

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, PublicKey};

use super::ssh::is_allowed_key;

/// Longest line: an RSA key of 16,384 bits has less, and is told what it is.
const LINE_BYTES_MAX: usize = 4096;
/// How certificates are told from keys, whatever their type.
const CERTIFICATE_MARK: &str = "-cert-v01@";

/// An SSH server's own public key: Ed25519 or P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshHostKey(KeyData);

/// Why a line is not the key of a server that is certified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshHostKeyError {
    /// It is no line of a file of a public key.
    #[error("the public key cannot be read: {0}")]
    Malformed(String),
    /// Longer than any key.
    #[error("a public key is one line of at most {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Somebody has certified it already.
    #[error("this is a certificate; the key itself is needed, as in ssh_host_ed25519_key.pub")]
    Certificate,
    /// A private key in the place of a public one.
    #[error(
        "this is a private key, which stays where it is; its public half is needed, as in ssh_host_ed25519_key.pub"
    )]
    Private,
    /// Another type.
    #[error("a key of type {0} is not certified; take the server's ssh-ed25519 or ecdsa-sha2-nistp256 key")]
    Kind(String),
}

impl SshHostKey {
    /// Reads one line as `ssh_host_*_key.pub` has it.
    pub fn parse(text: &str) -> Result<Self, SshHostKeyError> {
        let line = text.trim();
        if line.starts_with("-----BEGIN") {
            return Err(SshHostKeyError::Private);
        }
        if line.len() > LINE_BYTES_MAX || line.lines().count() > 1 {
            return Err(SshHostKeyError::TooLong);
        }
        let kind = line.split_ascii_whitespace().next().unwrap_or_default();
        if kind.contains(CERTIFICATE_MARK) {
            return Err(SshHostKeyError::Certificate);
        }
        let key =
            PublicKey::from_openssh(line).map_err(|error| SshHostKeyError::Malformed(error.to_string()))?;
        let key = key.key_data().clone();
        match is_allowed_key(&key) {
            true => Ok(Self(key)),
            false => Err(SshHostKeyError::Kind(named(&key.algorithm()))),
        }
    }

    /// The key as certificates have it.
    pub const fn data(&self) -> &KeyData {
        &self.0
    }

    /// The key in its wire format.
    pub fn to_bytes(&self) -> Vec<u8> {
        PublicKey::from(self.0.clone()).to_bytes().unwrap_or_default()
    }

    /// `SHA256:…` as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

fn named(algorithm: &Algorithm) -> String {
    algorithm.as_str().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHtYJuReA/9eWaVMT9hXKIxbLLSgNGGWTN+uBNfdEykS root@host";

    const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBCFIWkRVEN/WUXVHFWUPePxkuPLBF/gXnpHWSLwL+PSvoeOoT5CR5Uy8A5ggvihrtCB6KNHCVwyPa2SLTat76Y4= root@host";
    const RSA_2048: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC+JSuO2+wHJCDiCDXIz+osxs+b1sIRjfbLvZhLpy/uUePcpOoKDCpTYPmQOLkQx0MVMi+16o2hgPDqkLpMpccZw5UR4ozHqhwxBHenCyBH2IQsCacWjhpLTWDhA0R3o1AOZr7BeKrJVRREYfaU7ykxW5g7k/fzlWd9pyeXyGUGOsynJkihbG6YNmNPW8CwXYVT4yqLjTuCwl4z3U63/1kgk+ob4n9tcb3Ne/cKs7WYhXUJyhwNhhSpANitkcOewPjKSJ6JdlOrbn71DvxFU4/T4WMr3mDHOMCaBCUgd4fUcYvc0DcYFAbxB5jXl17nI71tokBGmWxzG7LmHCKciwF3 root@host";

    #[test]
    fn keys_of_other_types_are_told_what_is_needed() {
        assert!(SshHostKey::parse(P256).is_ok());
        let refused = SshHostKey::parse(RSA_2048).unwrap_err();
        assert_eq!(refused, SshHostKeyError::Kind("ssh-rsa".to_owned()));
        let swapped = P256.replacen("ecdsa-sha2-nistp256", "ssh-ed25519", 1);
        assert!(SshHostKey::parse(&swapped).is_err());
    }

    #[test]
    fn a_servers_key_is_read_with_its_comment_and_line_end() {
        let key = SshHostKey::parse(&format!("{ED25519}\n")).unwrap();
        assert_eq!(
            key.fingerprint(),
            "SHA256:W9QIODPRlPyG5wj6O0ym0ki/rF6F8TA1jddUEpmzl2M"
        );
        assert_eq!(key.to_bytes().len(), 51);
    }

    #[test]
    fn what_is_not_the_key_of_a_server_says_what_it_is() {
        let certificate = ED25519.replacen("ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com", 1);
        assert_eq!(SshHostKey::parse(&certificate), Err(SshHostKeyError::Certificate));
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn";
        assert_eq!(SshHostKey::parse(private), Err(SshHostKeyError::Private));
        let two = format!("{ED25519}\n{ED25519}");
        assert_eq!(SshHostKey::parse(&two), Err(SshHostKeyError::TooLong));
        let long = format!("{ED25519} {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(SshHostKey::parse(&long), Err(SshHostKeyError::TooLong));
        for malformed in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            &ED25519.replacen("IHtY", "", 1),
        ] {
            let refused = SshHostKey::parse(malformed);
            assert!(
                matches!(refused, Err(SshHostKeyError::Malformed(_))),
                "{malformed}: {refused:?}"
            );
        }
    }
}
