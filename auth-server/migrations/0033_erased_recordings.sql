-- Recordings that were erased. What their agents still send of them is not taken.
CREATE TABLE erased_recordings (
    session_id BLOB NOT NULL,
    number     INTEGER NOT NULL,
    erasure_id BLOB NOT NULL REFERENCES erasures (erasure_id),
    PRIMARY KEY (session_id, number)
) STRICT, WITHOUT ROWID;
