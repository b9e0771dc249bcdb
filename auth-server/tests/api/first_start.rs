//! The first start makes everything; later ones check it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use iap_auth::config::Config;
use iap_auth::context::{AppContext, OpenError, OpenedContext, Random};
use tempfile::TempDir;

use crate::harness::{CLUSTER, Offset, config, config_text};

async fn open(dir: &TempDir) -> Result<OpenedContext, OpenError> {
    AppContext::open(config(dir), Offset::default().clock(), Random::system()).await
}

/// Starts and stops; the files are nobody's afterwards.
async fn open_and_close(dir: &TempDir) -> Result<(), OpenError> {
    let opened = open(dir).await?;
    opened.context.store.close().await;
    Ok(())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn loosen(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn the_first_start_makes_keys_that_only_we_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(&dir).await.unwrap();
    assert!(opened.is_first_start);
    let data = dir.path().join("data");
    assert_eq!((mode(&data), mode(&data.join("ca"))), (0o700, 0o700));
    for file in [
        "root.key.pem",
        "root.pem",
        "snapshot.key.pem",
        "snapshot.pem",
        "auth_id",
        "auth.db",
        "auth.db-wal",
    ] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    for class in ["system", "user", "workload"] {
        assert_eq!(mode(&data.join(format!("ca/{class}.key.pem"))), 0o600);
        assert_eq!(mode(&data.join(format!("ca/{class}.pem"))), 0o600);
    }
}

#[tokio::test]
async fn a_later_start_finds_the_same_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir).await.unwrap().context;
    let (pin, version) = (first.authority.pin(), first.feed.snapshot().content.version);
    drop(first);
    let second = open(&dir).await.unwrap();
    assert!(!second.is_first_start);
    assert_eq!(second.context.authority.pin(), pin);
    assert!(
        second.context.feed.snapshot().content.version > version,
        "versions only grow"
    );
}

#[tokio::test]
async fn the_root_key_may_be_kept_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    open_and_close(&dir).await.unwrap();
    std::fs::remove_file(dir.path().join("data/root.key.pem")).unwrap();
    open(&dir).await.unwrap();
}

#[tokio::test]
async fn looser_permissions_refuse_to_start() {
    let dir = tempfile::tempdir().unwrap();
    open_and_close(&dir).await.unwrap();
    let data = dir.path().join("data");
    for (path, right, loose) in [
        (data.join("ca/user.key.pem"), 0o600, 0o640),
        (data.join("auth.db"), 0o600, 0o644),
        (data.clone(), 0o700, 0o750),
    ] {
        loosen(&path, loose);
        let error = open(&dir).await.expect_err("it must not start").to_string();
        assert!(error.contains("chmod"), "{error}");
        loosen(&path, right);
    }
    open(&dir).await.unwrap();
}

#[tokio::test]
async fn parts_that_do_not_belong_together_refuse_to_start() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open_and_close(&ours).await.unwrap();
    open_and_close(&theirs).await.unwrap();
    let (ours_data, theirs_data) = (ours.path().join("data"), theirs.path().join("data"));
    for file in ["ca/user.pem", "root.pem", "snapshot.pem", "auth.db", "auth_id"] {
        let kept = std::fs::read(ours_data.join(file)).unwrap();
        std::fs::copy(theirs_data.join(file), ours_data.join(file)).unwrap();
        assert!(open_and_close(&ours).await.is_err(), "{file}");
        std::fs::write(ours_data.join(file), kept).unwrap();
        open_and_close(&ours)
            .await
            .unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

#[tokio::test]
async fn a_database_without_its_keys_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    open_and_close(&dir).await.unwrap();
    std::fs::remove_file(dir.path().join("data/auth_id")).unwrap();
    let error = open(&dir).await.expect_err("it must not start").to_string();
    assert!(error.contains("restore the missing files"), "{error}");
}

#[tokio::test]
async fn a_first_start_that_was_interrupted_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    open_and_close(&dir).await.unwrap();
    let data = dir.path().join("data");
    for file in [
        "auth_id",
        "auth.db",
        "auth.db-wal",
        "auth.db-shm",
        "snapshot.pem",
        "ca/workload.key.pem",
    ] {
        let _ = std::fs::remove_file(data.join(file));
    }
    assert!(open(&dir).await.unwrap().is_first_start);
}

#[tokio::test]
async fn another_cluster_name_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    open_and_close(&dir).await.unwrap();
    let other = config_text(dir.path()).replace(CLUSTER, "other.example.com");
    let config = Config::parse(&other, "test").unwrap();
    assert!(
        AppContext::open(config, Offset::default().clock(), Random::system())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn two_servers_do_not_work_in_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(&dir).await.unwrap();
    assert!(matches!(open(&dir).await, Err(OpenError::InUse { .. })));
}

#[test]
fn all_mistakes_of_a_configuration_are_told_at_once() {
    let text = r#"
        cluster = "not a name!"
        data_dir = "relative"
        listen = "nowhere"
        admin_listen = "0.0.0.0:7480"
        colour = "blue"
        [login]
        methods = ["telepathy"]
        [[connector]]
        name = "Okta"
        issuer = "http://okta.example.com"
        client_id = ""
    "#;
    let errors = Config::parse(text, "auth.toml").unwrap_err().to_string();
    for expected in ["cluster", "listen", "colour"] {
        assert!(errors.contains(expected), "{expected} in {errors}");
    }
    let text = text
        .replace("not a name!", CLUSTER)
        .replace("nowhere", "127.0.0.1:0")
        .replace("colour = \"blue\"", "");
    let errors = Config::parse(&text, "auth.toml").unwrap_err().to_string();
    for expected in [
        "data_dir",
        "admin_listen",
        "telepathy",
        "connector.0.name",
        "connector.0.issuer",
        "connector.0.client_id",
    ] {
        assert!(errors.contains(expected), "{expected} in {errors}");
    }
}

#[test]
fn an_administrator_named_by_an_email_nobody_owns_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let text = config_text(dir.path());
    Config::parse(&text, "auth.toml").unwrap();
    let disowned = text.replace("domains = [\"example.com\"]", "domains = [\"example.org\"]");
    let errors = Config::parse(&disowned, "auth.toml").unwrap_err().to_string();
    assert!(
        errors.contains("bootstrap.admins") && errors.contains("example.com"),
        "{errors}"
    );
}

#[test]
fn a_client_secret_that_others_can_read_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("client_secret");
    std::fs::write(&secret, "not a secret\n").unwrap();
    let named = format!(
        "client_id = \"iap\"\n        client_secret_file = \"{}\"",
        secret.display()
    );
    let text = config_text(dir.path()).replace("client_id = \"iap\"", &named);
    loosen(&secret, 0o600);
    Config::parse(&text, "auth.toml").unwrap();
    loosen(&secret, 0o644);
    let errors = Config::parse(&text, "auth.toml").unwrap_err().to_string();
    assert!(
        errors.contains("client_secret_file") && errors.contains("0600"),
        "{errors}"
    );
}
