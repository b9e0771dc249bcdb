-- Acts of erasing. What they took away leaves its place: nobody takes it for lost, and it does not come back.
CREATE TABLE erasures (
    erasure_id BLOB PRIMARY KEY,
    at         INTEGER NOT NULL,
    by_name    TEXT NOT NULL,
    reason     TEXT NOT NULL
) STRICT;

CREATE TABLE erased_payloads (
    seq        INTEGER PRIMARY KEY REFERENCES records (seq),
    erasure_id BLOB NOT NULL REFERENCES erasures (erasure_id)
) STRICT;
