//! Brings a cluster back from a backup, on a host whose `data_dir` is empty.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iap_audit::EventKind;
use iap_identity::AuthId;
use iap_runtime::files::{self, DataDir, PRIVATE_FILE_MODE};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{BackupError, FORMAT, FileEntry, Hashing, MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest, is_plain};
use crate::audit::AuditLog;
use crate::authority::{AUTH_ID_FILE, AuthorityKeys, DATABASE_FILE, format_time};
use crate::config::Config;
use crate::context::{self, Clock, LOCK_FILE, Random};
use crate::store::sqlite::SqliteStore;
use crate::store::{Restore, RestoreStore as _, Restored, RuleStore as _, SharedStore};

/// A UUID and a line's end, with room to spare.
const AUTH_ID_BYTES_MAX: u64 = 256;

/// What was restored.
#[derive(Debug)]
pub struct RestoreReport {
    /// When the backup was made.
    pub backup_made: OffsetDateTime,
    /// What became of the database.
    pub restored: Restored,
}

/// Restores a backup into the configured `data_dir` and begins a new epoch there, so that agents and proxies
/// accept versions lower than those they hold. The server goes on under a new id: its old records end with the
/// backup, and no number of them is used twice.
///
/// # Errors
/// When the backup or `data_dir` is not as it must be; then `data_dir` is as empty as before.
pub async fn restore(
    config: &Config,
    backup: &Path,
    clock: &Clock,
    random: &Random,
) -> Result<RestoreReport, BackupError> {
    files::check_private_file(backup)?;
    let mut file = File::open(backup).map_err(BackupError::io("open", backup))?;
    let manifest = check(backup, &mut file)?;
    if manifest.cluster != config.cluster {
        return Err(BackupError::OtherCluster {
            found: manifest.cluster,
            configured: config.cluster.clone(),
        });
    }
    let backup_made = OffsetDateTime::parse(&manifest.made, &Rfc3339)
        .map_err(|error| unsound(backup, format!("{MANIFEST_FILE}: made: {error}")))?;
    refuse_unless_empty(&config.data_dir)?;
    let dir = DataDir::open_or_create(&config.data_dir)?;
    let _lock = context::lock(&dir)?;
    let restored = Restoring {
        config,
        backup,
        dir: &dir,
        backup_made,
        clock,
        random,
    };
    match restored.run(&mut file).await {
        Ok(restored) => Ok(RestoreReport {
            backup_made,
            restored,
        }),
        Err(error) => {
            empty(dir.path());
            Err(error)
        }
    }
}

pub(super) struct Restoring<'a> {
    pub(super) config: &'a Config,
    pub(super) backup: &'a Path,
    pub(super) dir: &'a DataDir,
    pub(super) backup_made: OffsetDateTime,
    pub(super) clock: &'a Clock,
    pub(super) random: &'a Random,
}

impl Restoring<'_> {
    async fn run(&self, file: &mut File) -> Result<Restored, BackupError> {
        let previous = self.unpack(file)?;
        let now = self.clock.now();
        AuthorityKeys::load_as(previous, self.dir, &self.config.cluster, now)?;
        let auth_id = AuthId::from_uuid(self.random.uuid_v7(now)?);
        let store = SqliteStore::open(&self.dir.join(DATABASE_FILE)).await?;
        let restored = self.new_epoch(&store, auth_id, now, previous).await;
        store.close().await;
        let restored = restored?;
        self.dir.write(AUTH_ID_FILE, format!("{auth_id}\n").as_bytes())?;
        Ok(restored)
    }

    async fn new_epoch(
        &self,
        store: &SqliteStore,
        auth_id: AuthId,
        restored_at: OffsetDateTime,
        previous: AuthId,
    ) -> Result<Restored, BackupError> {
        store.check_integrity().await?;
        let restore = Restore {
            auth_id,
            backup_at: self.backup_made,
            restored_at,
        };
        let restored = store.begin_epoch(&restore).await?;
        let shared: SharedStore = Arc::new(store.clone());
        let audit = AuditLog::new(auth_id, shared, self.clock.clone(), self.random.clone());
        let event = audit
            .event(EventKind::AuthRestored)?
            .field("backup_made", format_time(self.backup_made))
            .field("epoch", restored.epoch)
            .field("previous_auth_id", previous.to_string())
            .field("tokens", restored.tokens)
            .field("logins", restored.logins);
        audit.record(event).await?;
        Ok(restored)
    }

    /// Writes everything but the server's id, which is written last of all, and returns the backup's. Without
    /// it, and with a database, no server starts: a restore that was cut off stays one.
    pub(super) fn unpack(&self, file: &mut File) -> Result<AuthId, BackupError> {
        let failed = || BackupError::io("read", self.backup);
        let database = self.dir.join(DATABASE_FILE);
        create(&database)?;
        files::sync_directory(self.dir.path())?;
        let mut auth_id = Vec::new();
        file.rewind().map_err(failed())?;
        let mut archive = tar::Archive::new(file);
        for entry in archive.entries().map_err(failed())? {
            let mut entry = entry.map_err(failed())?;
            let name = entry.path().map_err(failed())?.into_owned();
            if name == Path::new(MANIFEST_FILE) {
                break;
            }
            if name == Path::new(AUTH_ID_FILE) {
                let mut entry = entry.take(AUTH_ID_BYTES_MAX);
                entry.read_to_end(&mut auth_id).map_err(failed())?;
                continue;
            }
            let mut folder = self.dir.clone();
            for parent in name.parent().into_iter().flat_map(Path::components) {
                folder = folder.subdirectory(&parent.as_os_str().to_string_lossy())?;
            }
            let to = self.dir.path().join(&name);
            let mut written = match to == database {
                true => OpenOptions::new()
                    .write(true)
                    .open(&to)
                    .map_err(BackupError::io("open", &to))?,
                false => create(&to)?,
            };
            io::copy(&mut entry, &mut written).map_err(BackupError::io("write", &to))?;
            written.sync_all().map_err(BackupError::io("write", &to))?;
            files::sync_directory(folder.path())?;
        }
        let text = String::from_utf8_lossy(&auth_id);
        AuthId::parse(text.trim()).map_err(|error| unsound(self.backup, format!("{AUTH_ID_FILE}: {error}")))
    }
}

fn create(path: &Path) -> Result<File, BackupError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(PRIVATE_FILE_MODE);
    options.open(path).map_err(BackupError::io("create", path))
}

/// Reads the backup to its end once: nothing is written before all of it is known to be sound.
fn check(path: &Path, file: &mut File) -> Result<Manifest, BackupError> {
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries().map_err(|error| unsound(path, error))?;
    let mut found = BTreeMap::new();
    for entry in entries {
        let mut entry = entry.map_err(|error| unsound(path, error))?;
        let name = entry.path().map_err(|error| unsound(path, error))?.into_owned();
        if entry.header().entry_type() != tar::EntryType::Regular || !is_plain(&name) {
            let why = format!("{} is not a file that a backup holds", name.display());
            return Err(unsound(path, why));
        }
        if name == Path::new(MANIFEST_FILE) {
            return compare(path, entry.take(MANIFEST_BYTES_MAX), found);
        }
        let mut content = Hashing::new(&mut entry);
        io::copy(&mut content, &mut io::sink()).map_err(|error| unsound(path, error))?;
        let entry = content.finish();
        if found.insert(name.display().to_string(), entry).is_some() {
            return Err(unsound(path, format!("{} is in it twice", name.display())));
        }
    }
    Err(unsound(
        path,
        format!("it has no {MANIFEST_FILE} at its end: it was cut short, or is no backup of iap-auth"),
    ))
}

fn compare(
    path: &Path,
    manifest: impl io::Read,
    found: BTreeMap<String, FileEntry>,
) -> Result<Manifest, BackupError> {
    let manifest: Manifest = serde_json::from_reader(manifest)
        .map_err(|error| unsound(path, format!("{MANIFEST_FILE}: {error}")))?;
    if manifest.format != FORMAT {
        let why = format!(
            "it is of format {}, made by iap-auth {}, and this program reads format {FORMAT}",
            manifest.format, manifest.version
        );
        return Err(unsound(path, why));
    }
    for (name, wanted) in &manifest.files {
        match found.get(name) {
            None => return Err(unsound(path, format!("{name} is missing"))),
            Some(entry) if entry != wanted => return Err(unsound(path, format!("{name} is damaged"))),
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !manifest.files.contains_key(*name)) {
        Some(name) => Err(unsound(path, format!("{name} does not belong to it"))),
        None => Ok(manifest),
    }
}

fn refuse_unless_empty(data_dir: &Path) -> Result<(), BackupError> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BackupError::io("list", data_dir)(error)),
    };
    for entry in entries {
        let name = entry.map_err(BackupError::io("list", data_dir))?.file_name();
        if name != LOCK_FILE {
            return Err(BackupError::NotEmpty {
                path: data_dir.to_owned(),
                found: name.display().to_string(),
            });
        }
    }
    Ok(())
}

/// What is in it came from us: it was empty, and nobody else had it.
fn empty(data_dir: &Path) {
    let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    for path in paths {
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "a half-restored file is left");
        }
    }
}

fn unsound(path: &Path, why: impl std::fmt::Display) -> BackupError {
    BackupError::Unsound {
        path: path.to_owned(),
        why: why.to_string(),
    }
}
