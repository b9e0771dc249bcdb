//! What a backup holds, and what a restore refuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use iap_runtime::files::DataDir;

use super::restore::Restoring;
use super::*;
use crate::authority::AUTH_ID_FILE;
use crate::config::Config;
use crate::context::{AppContext, Clock, Random};
use crate::store::{Counter, PolicyRow, RuleStore as _, sqlite::SqliteStore};

fn config(dir: &TempDir, cluster: &str, data: &str) -> Config {
    let data = dir.path().join(data);
    let text = format!(
        "cluster = \"{cluster}\"\ndata_dir = \"{}\"\nlisten = \"127.0.0.1:0\"",
        data.display()
    );
    Config::parse(&text, "test").unwrap()
}

/// A cluster's backup and the configuration of an empty host.
async fn backup(dir: &TempDir) -> (PathBuf, Config) {
    let before = config(dir, "iap.example.com", "before");
    drop(
        AppContext::open(before.clone(), Clock::system(), Random::system())
            .await
            .unwrap(),
    );
    let output = dir.path().join("backup.tar");
    make(&before, &output, Clock::system().now()).await.unwrap();
    (output, config(dir, "iap.example.com", "after"))
}

async fn restored(config: &Config, backup: &Path) -> Result<RestoreReport, BackupError> {
    restore(config, backup, &Clock::system(), &Random::system()).await
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_backup_is_for_its_owner_alone_and_holds_every_file_but_what_each_start_makes() {
    let dir = tempfile::tempdir().unwrap();
    let (output, _) = backup(&dir).await;
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    let mut archive = tar::Archive::new(fs::File::open(&output).unwrap());
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    for needed in [
        "auth.db",
        "auth_id",
        "root.key.pem",
        "ca/user.key.pem",
        "snapshot.key.pem",
    ] {
        assert!(names.iter().any(|name| name == needed), "{needed} in {names:?}");
    }
    assert_eq!(names.last().unwrap(), MANIFEST_FILE);
    assert!(
        !names
            .iter()
            .any(|name| name == LOCK_FILE || name == "auth.db-wal")
    );
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "the data_dir and the backup alone: {left:?}");
}

#[tokio::test]
async fn an_existing_file_is_never_overwritten_and_an_empty_data_dir_has_nothing_to_back_up() {
    let dir = tempfile::tempdir().unwrap();
    let (output, empty) = backup(&dir).await;
    let before = config(&dir, "iap.example.com", "before");
    let again = make(&before, &output, Clock::system().now()).await;
    assert!(matches!(again, Err(BackupError::OutputExists(_))), "{again:?}");
    let nothing = make(&empty, &dir.path().join("other.tar"), Clock::system().now()).await;
    assert!(
        matches!(nothing, Err(BackupError::NothingThere(_))),
        "{nothing:?}"
    );
}

#[tokio::test]
async fn a_backup_into_the_data_dir_is_refused_however_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_, _) = backup(&dir).await;
    let before = config(&dir, "iap.example.com", "before");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(before.data_dir.join("ca"), &link).unwrap();
    for folder in [before.data_dir.clone(), before.data_dir.join("ca"), link] {
        let inside = make(&before, &folder.join("new.tar"), Clock::system().now()).await;
        assert!(matches!(inside, Err(BackupError::OutputInside(_))), "{inside:?}");
    }
}

#[tokio::test]
async fn a_server_does_not_start_from_a_restore_that_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (output, empty) = backup(&dir).await;
    let (clock, random) = (Clock::system(), Random::system());
    let restoring = Restoring {
        config: &empty,
        backup: &output,
        dir: &DataDir::open_or_create(&empty.data_dir).unwrap(),
        backup_made: clock.now(),
        clock: &clock,
        random: &random,
    };
    restoring.unpack(&mut fs::File::open(&output).unwrap()).unwrap();
    for cut_off_before_the_keys in [false, true] {
        if cut_off_before_the_keys {
            fs::remove_dir_all(empty.data_dir.join("ca")).unwrap();
            fs::write(empty.data_dir.join(DATABASE_FILE), b"").unwrap();
        }
        let opened = AppContext::open(empty.clone(), Clock::system(), Random::system()).await;
        assert!(matches!(opened, Err(OpenError::Keys(_))), "{opened:?}");
    }
}

#[tokio::test]
async fn each_restore_begins_an_epoch_of_its_own_and_a_new_chain_of_records() {
    let dir = tempfile::tempdir().unwrap();
    let (output, first) = backup(&dir).await;
    let second = config(&dir, "iap.example.com", "again");
    let clock = Clock::from_fn(|| Clock::system().now() + time::Duration::seconds(5));
    let one = restored(&first, &output).await.unwrap().restored;
    let two = restore(&second, &output, &clock, &Random::system())
        .await
        .unwrap()
        .restored;
    assert!(1 < one.epoch && one.epoch < two.epoch, "{one:?} {two:?}");
    let ids = [config(&dir, "iap.example.com", "before"), first.clone(), second]
        .map(|config| fs::read_to_string(config.data_dir.join(AUTH_ID_FILE)).unwrap());
    assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
    let opened = AppContext::open(first, Clock::system(), Random::system())
        .await
        .unwrap();
    assert!(!opened.is_first_start);
    assert_eq!(opened.context.feed.snapshot().content.epoch, one.epoch);
}

#[tokio::test]
async fn the_policy_goes_on_with_a_version_that_no_certificate_from_before_can_know() {
    let dir = tempfile::tempdir().unwrap();
    let before = config(&dir, "iap.example.com", "before");
    let opened = AppContext::open(before.clone(), Clock::system(), Random::system())
        .await
        .unwrap();
    let policy = PolicyRow {
        version: 1,
        toml: "# nobody may do anything".to_owned(),
        sha256: [7; 32],
        applied_by: "alice".to_owned(),
        applied_at: Clock::system().now(),
    };
    let store = &opened.context.store;
    assert!(store.apply_policy(&policy, &BTreeMap::new()).await.unwrap());
    drop(opened);
    let output = dir.path().join("backup.tar");
    make(&before, &output, Clock::system().now()).await.unwrap();
    let after = config(&dir, "iap.example.com", "after");
    restored(&after, &output).await.unwrap();
    let opened = AppContext::open(after, Clock::system(), Random::system())
        .await
        .unwrap();
    let current = opened.context.policies.current();
    assert_eq!((current.version, &current.toml), (10_001, &policy.toml));
}

#[tokio::test]
async fn a_restore_overwrites_nothing_and_takes_no_other_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let (output, empty) = backup(&dir).await;
    let in_use = restored(&config(&dir, "iap.example.com", "before"), &output).await;
    assert!(matches!(in_use, Err(BackupError::NotEmpty { .. })), "{in_use:?}");
    let other = restored(&config(&dir, "other.example.com", "after"), &output).await;
    assert!(
        matches!(other, Err(BackupError::OtherCluster { .. })),
        "{other:?}"
    );
    set_mode(&output, 0o640);
    let loose = restored(&empty, &output).await;
    assert!(matches!(loose, Err(BackupError::File(_))), "{loose:?}");
}

#[tokio::test]
async fn a_damaged_or_shortened_backup_is_refused_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (output, empty) = backup(&dir).await;
    let good = fs::read(&output).unwrap();
    let database = good
        .windows(15)
        .position(|window| window == b"SQLite format 3")
        .unwrap();
    let mut damaged = good.clone();
    damaged[database + 5000] ^= 1;
    let shortened = good[..good.len() / 2].to_vec();
    for bad in [damaged, shortened, b"no tar at all".to_vec(), Vec::new()] {
        fs::write(&output, &bad).unwrap();
        set_mode(&output, 0o600);
        let refused = restored(&empty, &output).await;
        assert!(matches!(refused, Err(BackupError::Unsound { .. })), "{refused:?}");
        assert!(!empty.data_dir.exists());
    }
}

#[tokio::test]
async fn a_restore_that_fails_half_way_leaves_data_dir_as_empty_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let (output, empty) = backup(&dir).await;
    // Sound as a file, but its keys belong to nobody.
    let mut archive = tar::Builder::new(fs::File::create(&output).unwrap());
    let mut manifest = Manifest {
        format: FORMAT,
        cluster: empty.cluster.clone(),
        pin: Pin::parse(&format!("sha256:{}", "0".repeat(64))).unwrap(),
        made: "2026-01-01T00:00:00.000Z".to_owned(),
        version: "0".to_owned(),
        files: BTreeMap::new(),
    };
    let add = |archive: &mut tar::Builder<fs::File>, name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        let mut hashing = Hashing::new(content);
        archive.append_data(&mut header, name, &mut hashing).unwrap();
        hashing.finish()
    };
    let entry = add(&mut archive, "auth_id", b"018f0000-0000-7000-8000-000000000000\n");
    manifest.files.insert("auth_id".to_owned(), entry);
    let text = serde_json::to_vec(&manifest).unwrap();
    add(&mut archive, MANIFEST_FILE, &text);
    archive.finish().unwrap();
    set_mode(&output, 0o600);
    let refused = restored(&empty, &output).await;
    assert!(matches!(refused, Err(BackupError::Keys(_))), "{refused:?}");
    assert_eq!(fs::read_dir(&empty.data_dir).unwrap().count(), 0);
}

#[test]
fn a_backup_cannot_name_a_file_outside_the_data_dir() {
    for bad in ["/etc/passwd", "../auth.db", "ca/../../x", "./x", ""] {
        assert!(!is_plain(Path::new(bad)), "{bad}");
    }
    assert!(is_plain(Path::new("ca/user.pem")));
}

#[tokio::test]
async fn the_copy_of_a_database_in_use_is_consistent_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let store = SqliteStore::open(&from).await.unwrap();
    store.next(Counter::LockVersion).await.unwrap();
    SqliteStore::copy(&from, &to).await.unwrap();
    store.next(Counter::LockVersion).await.unwrap();
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    let copy = SqliteStore::open(&to).await.unwrap();
    copy.check_integrity().await.unwrap();
    assert_eq!(copy.counter(Counter::LockVersion).await.unwrap(), 1);
    assert!(SqliteStore::copy(&from, &to).await.is_err());
}

#[tokio::test]
async fn the_copy_of_a_database_is_not_written_through_somebody_elses_link() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a.db"), dir.path().join("b.db"));
    SqliteStore::open(&from).await.unwrap();
    let elsewhere = dir.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, &to).unwrap();
    assert!(SqliteStore::copy(&from, &to).await.is_err());
    assert!(!elsewhere.exists());
}
