//! One login's files as one generation: `cert.pem`, `key.pem` and the rest always belong together.
//!
//! A generation is a folder written in full before `current` is turned to it. The names that clients are
//! configured with are links through `current`, so that one rename replaces them all.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use zeroize::Zeroizing;

use super::files;

/// The files of a generation, by the names clients use.
const FILES: [&str; 4] = ["cert.pem", "key.pem", "key.pk8", "identity.p12"];
/// The request that asked for the next generation; belongs to this one and goes with it.
const REQUEST: &str = "renewal.csr";
/// What belongs to it for SSH.
pub const SSH_FOLDER: &str = "ssh";
const CURRENT: &str = "current";
const FOLDER: &str = "generations";

/// What to store of a login.
pub struct Credentials {
    /// The leaf, then the user CA, as PEM.
    pub certificates_pem: String,
    /// The private key, PKCS#8 as PEM.
    pub key_pem: Zeroizing<String>,
    /// The private key, PKCS#8 as DER, for Java.
    pub key_der: Zeroizing<Vec<u8>>,
    /// Certificates and key as PKCS#12, for programs that import one file.
    pub pkcs12: Zeroizing<Vec<u8>>,
    /// Files of the folder for SSH.
    pub ssh: Vec<(String, Zeroizing<Vec<u8>>)>,
}

/// What was stored of a login.
pub struct Generation {
    /// The leaf, then the user CA, as PEM.
    pub certificates_pem: Vec<u8>,
    /// The private key, PKCS#8 as PEM.
    pub key_pem: Zeroizing<Vec<u8>>,
}

pub(super) fn read(cluster: &Path) -> anyhow::Result<Option<Generation>> {
    // Resolved once: both files come from the same generation whatever is replaced meanwhile.
    let folder = current(cluster);
    let Some(certificates_pem) = files::read_if_there(&folder.join("cert.pem"))? else {
        return Ok(None);
    };
    let key = files::read_if_there(&folder.join("key.pem"))?;
    Ok(key.map(|key| Generation {
        certificates_pem,
        key_pem: Zeroizing::new(key),
    }))
}

/// Numbers begin anew after a logout: the time tells two of the same number apart.
pub(super) fn mark(cluster: &Path) -> Option<(PathBuf, SystemTime)> {
    let link = cluster.join(CURRENT);
    let changed = std::fs::symlink_metadata(&link).ok()?.modified().ok()?;
    Some((std::fs::read_link(link).ok()?, changed))
}

pub(super) fn renewal_request(cluster: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    files::read_if_there(&current(cluster).join(REQUEST))
}

pub(super) fn keep_renewal_request(cluster: &Path, request: &[u8]) -> anyhow::Result<()> {
    files::write_private(&current(cluster).join(REQUEST), request)
}

pub(super) fn write(cluster: &Path, credentials: &Credentials) -> anyhow::Result<()> {
    let folder = next_folder(cluster)?;
    let contents: [&[u8]; 4] = [
        credentials.certificates_pem.as_bytes(),
        credentials.key_pem.as_bytes(),
        &credentials.key_der,
        &credentials.pkcs12,
    ];
    for (name, content) in FILES.into_iter().zip(contents) {
        let path = folder.join(name);
        files::write_new(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let ssh = folder.join(SSH_FOLDER);
    files::make_private_folder(&ssh)?;
    for (name, content) in &credentials.ssh {
        let path = ssh.join(name);
        files::write_new(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    files::sync_folder_of(&ssh.join(CURRENT))
        .and_then(|()| files::sync_folder_of(&folder.join(CURRENT)))
        .and_then(|()| files::sync_folder_of(&folder))
        .with_context(|| format!("cannot write {}", folder.display()))?;
    publish(cluster, &folder)
}

pub(super) fn remove(cluster: &Path) -> anyhow::Result<bool> {
    let mut removed = files::remove_if_there(&cluster.join(CURRENT))?;
    files::remove_if_there(&cluster.join(REQUEST))?;
    for name in FILES {
        removed |= files::remove_if_there(&cluster.join(name))?;
    }
    remove_ssh(cluster)?;
    match std::fs::remove_dir_all(cluster.join(FOLDER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove the login's files")
        }
        Ok(()) | Err(_) => Ok(removed),
    }
}

/// A link where there are links.
fn remove_ssh(cluster: &Path) -> anyhow::Result<()> {
    let path = cluster.join(SSH_FOLDER);
    let removed = match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
        Ok(_) => std::fs::remove_file(&path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Makes the folder of a generation that has not been there.
fn next_folder(cluster: &Path) -> anyhow::Result<PathBuf> {
    let parent = cluster.join(FOLDER);
    files::make_private_folder(&parent)?;
    let mut number = numbers(&parent).into_iter().max().unwrap_or(0) + 1;
    loop {
        let folder = parent.join(number.to_string());
        if folder.exists() {
            number += 1;
            continue;
        }
        files::make_private_folder(&folder)?;
        return Ok(folder);
    }
}

fn numbers(parent: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(parent).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(unix)]
fn current(cluster: &Path) -> PathBuf {
    match std::fs::read_link(cluster.join(CURRENT)) {
        Ok(target) => cluster.join(target),
        Err(_) => cluster.to_owned(),
    }
}

#[cfg(unix)]
fn publish(cluster: &Path, folder: &Path) -> anyhow::Result<()> {
    let number = folder.file_name().unwrap_or_default();
    point(&cluster.join(CURRENT), &Path::new(FOLDER).join(number))?;
    for name in FILES.into_iter().chain([SSH_FOLDER]) {
        let link = cluster.join(name);
        let target = Path::new(CURRENT).join(name);
        if std::fs::read_link(&link).ok().as_deref() != Some(&target) {
            point(&link, &target)?;
        }
    }
    drop_older(&cluster.join(FOLDER), folder);
    Ok(())
}

/// Makes `link` lead to `target`, in one step.
#[cfg(unix)]
fn point(link: &Path, target: &Path) -> anyhow::Result<()> {
    let temporary = files::temporary_beside(link);
    std::os::unix::fs::symlink(target, &temporary)
        .and_then(|()| std::fs::rename(&temporary, link))
        .and_then(|()| files::sync_folder_of(link))
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        .with_context(|| format!("cannot replace {}", link.display()))
}

/// Keeps the generation before this one for readers that are between two files.
#[cfg(unix)]
fn drop_older(parent: &Path, published: &Path) {
    let mut older = numbers(parent);
    older.sort_unstable();
    older.retain(|number| parent.join(number.to_string()) != published);
    older.pop();
    for number in older {
        let _ = std::fs::remove_dir_all(parent.join(number.to_string()));
    }
}

#[cfg(not(unix))]
fn current(cluster: &Path) -> PathBuf {
    cluster.to_owned()
}

/// Without links the files are replaced one by one; renewals keep the key, so that readers rarely see a mix.
#[cfg(not(unix))]
fn publish(cluster: &Path, folder: &Path) -> anyhow::Result<()> {
    for name in FILES {
        std::fs::rename(folder.join(name), cluster.join(name))
            .with_context(|| format!("cannot replace {name}"))?;
    }
    remove_ssh(cluster)?;
    std::fs::rename(folder.join(SSH_FOLDER), cluster.join(SSH_FOLDER))
        .context("cannot replace the folder for SSH")?;
    let _ = std::fs::remove_file(cluster.join(REQUEST));
    let _ = std::fs::remove_dir_all(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    fn credentials(mark: &str) -> Credentials {
        Credentials {
            certificates_pem: format!("certificate {mark}"),
            key_pem: Zeroizing::new(format!("key {mark}")),
            key_der: Zeroizing::new(mark.as_bytes().to_vec()),
            pkcs12: Zeroizing::new(Vec::new()),
            ssh: vec![(
                "config".to_owned(),
                Zeroizing::new(format!("ssh {mark}").into_bytes()),
            )],
        }
    }

    #[test]
    fn a_stored_generation_is_read_back_whole_under_the_names_clients_use() {
        let folder = tempfile::tempdir().unwrap();
        for mark in ["one", "two", "three"] {
            write(folder.path(), &credentials(mark)).unwrap();
            let stored = read(folder.path()).unwrap().unwrap();
            assert_eq!(
                stored.certificates_pem,
                format!("certificate {mark}").into_bytes()
            );
            assert_eq!(*stored.key_pem, format!("key {mark}").into_bytes());
            assert_eq!(
                std::fs::read(folder.path().join("key.pk8")).unwrap(),
                mark.as_bytes()
            );
            let ssh = std::fs::read_to_string(folder.path().join("ssh/config")).unwrap();
            assert_eq!(ssh, format!("ssh {mark}"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn files_are_private_and_at_most_two_generations_are_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        for number in 0..5 {
            write(folder.path(), &credentials(&number.to_string())).unwrap();
        }
        let mode = std::fs::metadata(folder.path().join("key.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(numbers(&folder.path().join(FOLDER)).len(), 2);
    }

    #[test]
    fn a_renewals_request_is_kept_until_the_next_generation() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &credentials("one")).unwrap();
        assert_eq!(renewal_request(folder.path()).unwrap(), None);
        keep_renewal_request(folder.path(), b"request").unwrap();
        assert_eq!(renewal_request(folder.path()).unwrap().unwrap(), b"request");
        write(folder.path(), &credentials("two")).unwrap();
        assert_eq!(renewal_request(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_half_written_generation_is_never_seen() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &credentials("old")).unwrap();
        let abandoned = next_folder(folder.path()).unwrap();
        files::write_new(&abandoned.join("cert.pem"), b"certificate new").unwrap();
        assert_eq!(
            read(folder.path()).unwrap().unwrap().certificates_pem,
            b"certificate old"
        );
    }

    #[test]
    fn a_removed_generation_is_gone_and_removing_twice_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &credentials("old")).unwrap();
        assert!(remove(folder.path()).unwrap());
        assert!(!remove(folder.path()).unwrap());
        assert!(read(folder.path()).unwrap().is_none());
        assert!(!folder.path().join("key.pem").exists());
        assert!(std::fs::symlink_metadata(folder.path().join("ssh")).is_err());
    }
}
