//! The default engine: one SQLite file in WAL mode, one writer whose transactions begin `IMMEDIATE`,
//! and a pool of readers. `synchronous=FULL`: what has been committed survives a power cut. `secure_delete=ON`: what
//! has been deleted is overwritten.

mod columns;
mod erasures;
mod grants;
mod inventory;
mod joining;
mod logins;
mod records;
mod restoring;
mod rules;

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{SqlSafeStr as _, Sqlite, Transaction};

use super::StoreError;

const READERS_MAX: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Every change of the schema, in order: number, what it does, the statements. What has been released is
/// never edited again.
const MIGRATIONS: [(i64, &str, &str); 8] = [
    (1, "initial", include_str!("../../../migrations/0001_initial.sql")),
    (
        2,
        "open sessions",
        include_str!("../../../migrations/0002_open_sessions.sql"),
    ),
    (
        3,
        "restored",
        include_str!("../../../migrations/0003_restored.sql"),
    ),
    (4, "renewal", include_str!("../../../migrations/0004_renewal.sql")),
    (
        5,
        "login proof",
        include_str!("../../../migrations/0005_login_proof.sql"),
    ),
    (
        30,
        "payloads",
        include_str!("../../../migrations/0030_payloads.sql"),
    ),
    (
        32,
        "erasures",
        include_str!("../../../migrations/0032_erasures.sql"),
    ),
    (
        33,
        "erased recordings",
        include_str!("../../../migrations/0033_erased_recordings.sql"),
    ),
];

/// The store in one SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, creating it with mode 0600, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("secure_delete", "ON")
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await?;
        migrator().run(&writer).await?;
        // A process that was killed may have left there what it had erased.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&writer)
            .await?;
        let reading = options.pragma("query_only", "ON");
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(reading)
            .await?;
        Ok(Self { writer, readers })
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// What SQLite's quick check says is wrong with the file at `path`; nothing when it is sound. The file is only read,
/// also while a server works with it.
///
/// # Errors
/// When it cannot be opened or read.
pub async fn quick_check(path: &Path) -> Result<Vec<String>, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(BUSY_TIMEOUT);
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await?;
    let rows = sqlx::query_scalar::<_, String>("PRAGMA quick_check(5)")
        .fetch_all(&pool)
        .await;
    pool.close().await;
    Ok(rows?.into_iter().filter(|line| line != "ok").collect())
}

fn migrator() -> Migrator {
    let migration = |(version, description, sql): (i64, &'static str, &'static str)| {
        Migration::new(
            version,
            description.into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations(MIGRATIONS.into_iter().map(migration).collect())
}

/// SQLite gives its `-wal` and `-shm` files the mode of the file itself.
fn create_private(path: &Path) -> Result<(), StoreError> {
    make_private(std::fs::OpenOptions::new().create(true).truncate(false), path)
}

/// The same for a file that nobody else made, and no link to one.
fn create_new_private(path: &Path) -> Result<(), StoreError> {
    make_private(std::fs::OpenOptions::new().create_new(true), path)
}

fn make_private(options: &mut std::fs::OpenOptions, path: &Path) -> Result<(), StoreError> {
    options
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|error| StoreError::File(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests;
