//! Logins, people and generations in SQLite.

use async_trait::async_trait;
use iap_identity::{LoginId, UserId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::SqliteStore;
use super::columns::{Columns, from_milliseconds, integer, json, milliseconds};
use crate::store::{
    AnsweredRequest, GenerationRow, Hash, Identity, LoginChange, LoginMethod, LoginRow, LoginState,
    LoginStore, StoreError, UserRow,
};

/// [`Identity`] as it stands in its column.
#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    user_id: UserId,
    connector: String,
    issuer: String,
    subject: String,
    name: String,
    email: Option<String>,
    groups: Vec<iap_identity::GroupName>,
    auth_time: i64,
    mfa_time: Option<i64>,
    acr: Option<String>,
}

impl StoredIdentity {
    fn from_identity(identity: &Identity) -> Self {
        Self {
            user_id: identity.user_id.clone(),
            connector: identity.connector.clone(),
            issuer: identity.issuer.clone(),
            subject: identity.subject.clone(),
            name: identity.name.clone(),
            email: identity.email.clone(),
            groups: identity.groups.clone(),
            auth_time: milliseconds(identity.auth_time),
            mfa_time: identity.mfa_time.map(milliseconds),
            acr: identity.acr.clone(),
        }
    }

    fn into_identity(self) -> Result<Identity, StoreError> {
        let time = |value| from_milliseconds(value).ok_or_else(|| StoreError::damaged("login", "no time"));
        Ok(Identity {
            user_id: self.user_id,
            connector: self.connector,
            issuer: self.issuer,
            subject: self.subject,
            name: self.name,
            email: self.email,
            groups: self.groups,
            auth_time: time(self.auth_time)?,
            mfa_time: self.mfa_time.map(time).transpose()?,
            acr: self.acr,
        })
    }
}

fn login_from(row: &SqliteRow) -> Result<LoginRow, StoreError> {
    let columns = Columns::new("login", row);
    Ok(LoginRow {
        login_id: LoginId::from_uuid(columns.uuid("login_id")?),
        state: columns.named("state", LoginState::parse)?,
        method: columns.named("method", LoginMethod::parse)?,
        connector: columns.text_or_none("connector")?,
        proof: columns.json_or_none("proof")?.unwrap_or_default(),
        key_thumbprint: columns.hash("key_thumbprint")?,
        host_name: columns.text("host_name")?,
        user_name: columns.text("user_name")?,
        redirect_port: columns.number("redirect_port")?,
        client_version: columns.text("client_version")?,
        client_address: columns.parsed("client_address", str::parse)?,
        words: columns.text("words")?,
        created_at: columns.time("created_at")?,
        expires_at: columns.time("expires_at")?,
        user_code_hash: columns.hash_or_none("user_code_hash")?,
        poll_secret_hash: columns.hash_or_none("poll_secret_hash")?,
        state_hash: columns.hash_or_none("state_hash")?,
        cookie_hash: columns.hash_or_none("cookie_hash")?,
        code_hash: columns.hash_or_none("code_hash")?,
        identity: columns
            .json_or_none::<StoredIdentity>("identity")?
            .map(StoredIdentity::into_identity)
            .transpose()?,
        denial: columns.text_or_none("denial")?,
        tries: columns.number("tries")?,
    })
}

fn user_from(row: &SqliteRow) -> Result<UserRow, StoreError> {
    let columns = Columns::new("user", row);
    Ok(UserRow {
        user_id: columns.parsed("user_id", UserId::parse)?,
        connector: columns.text("connector")?,
        issuer: columns.text("issuer")?,
        subject: columns.text("subject")?,
        name: columns.text("name")?,
        email: columns.text_or_none("email")?,
        groups: columns.json("groups")?,
        groups_as_of: columns.time("groups_as_of")?,
        last_login: columns.time("last_login")?,
    })
}

fn generations_from(row: &SqliteRow) -> Result<GenerationRow, StoreError> {
    let columns = Columns::new("generation", row);
    Ok(GenerationRow {
        login_id: LoginId::from_uuid(columns.uuid("login_id")?),
        user_id: columns.parsed("user_id", UserId::parse)?,
        generation: columns.number("generation")?,
        previous_until: columns.time_or_none("previous_until")?,
        ended_at: columns.time_or_none("ended_at")?,
        answered: answered_from(&columns)?,
    })
}

fn answered_from(columns: &Columns<'_>) -> Result<Option<AnsweredRequest>, StoreError> {
    let (Some(request), Some(until)) = (
        columns.hash_or_none("request_hash")?,
        columns.time_or_none("request_until")?,
    ) else {
        return Ok(None);
    };
    Ok(Some(AnsweredRequest {
        request,
        from: columns.number("request_from")?,
        until,
    }))
}

fn bytes_of(hash: &Option<Hash>) -> Option<&[u8]> {
    hash.as_ref().map(<[u8; 32]>::as_slice)
}

#[async_trait]
impl LoginStore for SqliteStore {
    async fn create_login(&self, row: &LoginRow) -> Result<(), StoreError> {
        let identity = row.identity.as_ref().map(StoredIdentity::from_identity);
        sqlx::query(
            "INSERT INTO logins (login_id, state, method, connector, key_thumbprint, host_name, user_name,
                redirect_port, client_version, client_address, words, created_at, expires_at,
                user_code_hash, poll_secret_hash, state_hash, cookie_hash, code_hash, identity, denial, tries, proof)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(row.login_id.as_bytes().as_slice())
        .bind(row.state.as_str())
        .bind(row.method.as_str())
        .bind(&row.connector)
        .bind(row.key_thumbprint.as_slice())
        .bind(&row.host_name)
        .bind(&row.user_name)
        .bind(i64::from(row.redirect_port))
        .bind(&row.client_version)
        .bind(row.client_address.to_string())
        .bind(&row.words)
        .bind(milliseconds(row.created_at))
        .bind(milliseconds(row.expires_at))
        .bind(bytes_of(&row.user_code_hash))
        .bind(bytes_of(&row.poll_secret_hash))
        .bind(bytes_of(&row.state_hash))
        .bind(bytes_of(&row.cookie_hash))
        .bind(bytes_of(&row.code_hash))
        .bind(identity.as_ref().map(json).transpose()?)
        .bind(&row.denial)
        .bind(i64::from(row.tries))
        .bind(json(&row.proof)?)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn login(&self, id: LoginId) -> Result<Option<LoginRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM logins WHERE login_id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(login_from).transpose()
    }

    async fn login_by_state(&self, state_hash: &Hash) -> Result<Option<LoginRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM logins WHERE state_hash = ?")
            .bind(state_hash.as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(login_from).transpose()
    }

    async fn login_by_user_code(
        &self,
        user_code_hash: &Hash,
        now: OffsetDateTime,
    ) -> Result<Option<LoginRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM logins WHERE user_code_hash = ? AND expires_at > ?")
            .bind(user_code_hash.as_slice())
            .bind(milliseconds(now))
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(login_from).transpose()
    }

    async fn advance_login(
        &self,
        id: LoginId,
        from: LoginState,
        now: OffsetDateTime,
        change: LoginChange,
    ) -> Result<Option<LoginRow>, StoreError> {
        let to = change.to().as_str();
        let id = id.as_bytes().as_slice();
        let (from, now) = (from.as_str(), milliseconds(now));
        let changing = match &change {
            LoginChange::SentToProvider {
                connector,
                state_hash,
                cookie_hash,
            } => sqlx::query(
                "UPDATE logins SET state = ?, connector = ?, state_hash = ?, cookie_hash = ?
                 WHERE login_id = ? AND state = ? AND expires_at > ? RETURNING *",
            )
            .bind(to)
            .bind(connector)
            .bind(state_hash.as_slice())
            .bind(cookie_hash.as_slice()),
            LoginChange::Answered {
                state_hash,
                cookie_hash,
            } => sqlx::query(
                "UPDATE logins SET state = ?1
                 WHERE login_id = ?4 AND state = ?5 AND expires_at > ?6
                   AND state_hash = ?2 AND cookie_hash = ?3 RETURNING *",
            )
            .bind(to)
            .bind(state_hash.as_slice())
            .bind(cookie_hash.as_slice()),
            LoginChange::Identified(identity) => sqlx::query(
                "UPDATE logins SET state = ?, identity = ?, state_hash = NULL
                 WHERE login_id = ? AND state = ? AND expires_at > ? RETURNING *",
            )
            .bind(to)
            .bind(json(&StoredIdentity::from_identity(identity))?),
            LoginChange::Approved { code_hash } => sqlx::query(
                "UPDATE logins SET state = ?, code_hash = ?
                 WHERE login_id = ? AND state = ? AND expires_at > ? RETURNING *",
            )
            .bind(to)
            .bind(code_hash.as_slice()),
            LoginChange::Finished => sqlx::query(
                "UPDATE logins SET state = ?, code_hash = NULL
                 WHERE login_id = ? AND state = ? AND expires_at > ? RETURNING *",
            )
            .bind(to),
            LoginChange::Denied { why } => sqlx::query(
                "UPDATE logins SET state = ?, denial = ?, code_hash = NULL, state_hash = NULL
                 WHERE login_id = ? AND state = ? AND expires_at > ? RETURNING *",
            )
            .bind(to)
            .bind(why),
        };
        let row = changing
            .bind(id)
            .bind(from)
            .bind(now)
            .fetch_optional(&self.writer)
            .await?;
        row.as_ref().map(login_from).transpose()
    }

    async fn count_login_try(&self, id: LoginId) -> Result<u32, StoreError> {
        let row = sqlx::query("UPDATE logins SET tries = tries + 1 WHERE login_id = ? RETURNING tries")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.writer)
            .await?;
        row.as_ref()
            .map_or(Ok(u32::MAX), |row| Columns::new("login", row).number("tries"))
    }

    async fn forget_logins(&self, before: OffsetDateTime) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM logins WHERE expires_at < ?")
            .bind(milliseconds(before))
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected())
    }

    async fn upsert_user(&self, row: &UserRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO users (user_id, connector, issuer, subject, name, email, groups, groups_as_of, last_login)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, email = excluded.email,
                groups = excluded.groups, groups_as_of = excluded.groups_as_of, last_login = excluded.last_login",
        )
        .bind(row.user_id.as_str())
        .bind(&row.connector)
        .bind(&row.issuer)
        .bind(&row.subject)
        .bind(&row.name)
        .bind(&row.email)
        .bind(json(&row.groups)?)
        .bind(milliseconds(row.groups_as_of))
        .bind(milliseconds(row.last_login))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn user(&self, id: &UserId) -> Result<Option<UserRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM users WHERE user_id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(user_from).transpose()
    }

    async fn users(&self, limit: u32) -> Result<Vec<UserRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM users ORDER BY name, user_id LIMIT ?")
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(user_from).collect()
    }

    async fn users_by_name(&self, name: &str) -> Result<Vec<UserRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM users WHERE name = ? ORDER BY last_login DESC LIMIT 16")
            .bind(name)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(user_from).collect()
    }

    async fn start_generations(&self, row: &GenerationRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO generations (login_id, user_id, generation, previous_until, ended_at)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(row.login_id.as_bytes().as_slice())
        .bind(row.user_id.as_str())
        .bind(integer(row.generation))
        .bind(row.previous_until.map(milliseconds))
        .bind(row.ended_at.map(milliseconds))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn generations(&self, id: LoginId) -> Result<Option<GenerationRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM generations WHERE login_id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(generations_from).transpose()
    }

    async fn replace_generations(
        &self,
        expected: &GenerationRow,
        new: &GenerationRow,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE generations SET generation = ?, previous_until = ?, ended_at = ?,
                request_hash = ?, request_from = ?, request_until = ?
             WHERE login_id = ? AND generation = ? AND previous_until IS ? AND ended_at IS ? AND request_hash IS ?
               AND request_until IS ?",
        )
        .bind(integer(new.generation))
        .bind(new.previous_until.map(milliseconds))
        .bind(new.ended_at.map(milliseconds))
        .bind(new.answered.as_ref().map(|answered| answered.request.as_slice()))
        .bind(new.answered.as_ref().map(|answered| integer(answered.from)))
        .bind(new.answered.as_ref().map(|answered| milliseconds(answered.until)))
        .bind(expected.login_id.as_bytes().as_slice())
        .bind(integer(expected.generation))
        .bind(expected.previous_until.map(milliseconds))
        .bind(expected.ended_at.map(milliseconds))
        .bind(expected.answered.as_ref().map(|answered| answered.request.as_slice()))
        .bind(expected.answered.as_ref().map(|answered| milliseconds(answered.until)))
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}
