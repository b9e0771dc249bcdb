-- Times are milliseconds since the Unix epoch (UTC). Ids are 16 bytes. Secrets are SHA-256 only.

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counters (name, value)
VALUES ('epoch', 1), ('snapshot_version', 0), ('lock_version', 0), ('bundle_version', 1);

-- One row: the keys beside the database and the database belong together.
CREATE TABLE belonging (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    cluster  TEXT NOT NULL,
    auth_id  BLOB NOT NULL,
    pin      TEXT NOT NULL
) STRICT;

CREATE TABLE logins (
    login_id         BLOB PRIMARY KEY,
    state            TEXT NOT NULL,
    method           TEXT NOT NULL,
    connector        TEXT,
    key_thumbprint   BLOB NOT NULL,
    host_name        TEXT NOT NULL,
    user_name        TEXT NOT NULL,
    redirect_port    INTEGER NOT NULL,
    client_version   TEXT NOT NULL,
    client_address   TEXT NOT NULL,
    words            TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    user_code_hash   BLOB UNIQUE,
    poll_secret_hash BLOB,
    state_hash       BLOB UNIQUE,
    cookie_hash      BLOB,
    code_hash        BLOB,
    identity         TEXT,
    denial           TEXT,
    tries            INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX logins_by_expiry ON logins (expires_at);

CREATE TABLE users (
    user_id       TEXT PRIMARY KEY,
    connector     TEXT NOT NULL,
    issuer        TEXT NOT NULL,
    subject       TEXT NOT NULL,
    name          TEXT NOT NULL,
    email         TEXT,
    groups        TEXT NOT NULL,
    groups_as_of  INTEGER NOT NULL,
    last_login    INTEGER NOT NULL,
    refresh_token BLOB -- sealed; for providers that issue them
) STRICT;
CREATE INDEX users_by_name ON users (name);

CREATE TABLE generations (
    login_id       BLOB PRIMARY KEY,
    user_id        TEXT NOT NULL,
    generation     INTEGER NOT NULL,
    previous_until INTEGER,
    ended_at       INTEGER
) STRICT;

CREATE TABLE agents (
    agent_id       BLOB PRIMARY KEY,
    host_name      TEXT NOT NULL,
    version        TEXT NOT NULL,
    joined_at      INTEGER NOT NULL,
    last_seen      INTEGER,
    serial         TEXT,
    not_after      INTEGER,
    proxies        TEXT NOT NULL DEFAULT '[]',
    local_services TEXT NOT NULL DEFAULT '[]',
    live_sessions  INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE proxies (
    proxy_id       BLOB PRIMARY KEY,
    host_name      TEXT NOT NULL,
    version        TEXT NOT NULL,
    joined_at      INTEGER NOT NULL,
    last_seen      INTEGER,
    public_address TEXT
) STRICT;

CREATE TABLE services (
    name       TEXT PRIMARY KEY,
    record     TEXT NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE TABLE service_agents (
    service  TEXT NOT NULL REFERENCES services (name) ON DELETE CASCADE,
    agent_id BLOB NOT NULL REFERENCES agents (agent_id) ON DELETE CASCADE,
    PRIMARY KEY (service, agent_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    token_id    BLOB PRIMARY KEY,
    secret_hash BLOB NOT NULL UNIQUE,
    kind        TEXT NOT NULL,
    services    TEXT NOT NULL,
    uses        INTEGER NOT NULL,
    uses_left   INTEGER NOT NULL CHECK (uses_left >= 0),
    created_by  TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE policies (
    version    INTEGER PRIMARY KEY,
    toml       TEXT NOT NULL,
    sha256     BLOB NOT NULL,
    applied_by TEXT NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT;

CREATE TABLE vocabulary (
    group_name    TEXT PRIMARY KEY,
    first_version INTEGER NOT NULL
) STRICT;

CREATE TABLE locks (
    lock_id    BLOB PRIMARY KEY,
    kind       TEXT NOT NULL,
    target     TEXT NOT NULL,
    reason     TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT;

-- Exact bytes under our own sequence; (source, source_seq) names a record for ever.
CREATE TABLE records (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    source      BLOB NOT NULL,
    source_seq  INTEGER NOT NULL,
    hash        BLOB NOT NULL,
    bytes       BLOB NOT NULL,
    time        INTEGER NOT NULL,
    event       TEXT NOT NULL,
    session_id  BLOB,
    received_at INTEGER NOT NULL,
    UNIQUE (source, source_seq)
) STRICT;
CREATE INDEX records_by_session ON records (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX records_by_time ON records (time);

-- A view of the records, kept as they arrive.
CREATE TABLE sessions (
    session_id   BLOB PRIMARY KEY,
    user_id      TEXT NOT NULL,
    user_name    TEXT NOT NULL,
    service      TEXT NOT NULL,
    agent        TEXT NOT NULL,
    start        INTEGER NOT NULL,
    "end"        INTEGER,
    bytes_in     INTEGER NOT NULL DEFAULT 0,
    bytes_out    INTEGER NOT NULL DEFAULT 0,
    close_reason TEXT,
    decision     TEXT NOT NULL
) STRICT;
CREATE INDEX sessions_by_start ON sessions (start);
CREATE INDEX sessions_by_user ON sessions (user_id, start);
