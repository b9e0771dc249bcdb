-- A refresh token belongs to a login, not to a person; it is in `grants`.
ALTER TABLE users DROP COLUMN refresh_token;

-- The request that led to the newest generation: its repetition is told from a second holder of the key.
ALTER TABLE generations ADD COLUMN request_hash BLOB;
ALTER TABLE generations ADD COLUMN request_from INTEGER;
ALTER TABLE generations ADD COLUMN request_until INTEGER;

-- What lets us ask a provider about a login again. `sealed` holds the refresh token under a key that is not
-- in the database.
CREATE TABLE grants (
    login_id     BLOB PRIMARY KEY,
    user_id      TEXT NOT NULL,
    connector    TEXT NOT NULL,
    sealed       BLOB NOT NULL,
    deadline     INTEGER NOT NULL,
    refreshed_at INTEGER,
    next_check   INTEGER NOT NULL,
    failures     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX grants_by_next_check ON grants (connector, next_check);
CREATE INDEX grants_by_deadline ON grants (deadline);
