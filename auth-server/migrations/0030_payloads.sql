-- What records are about and do not hold themselves; can be erased one by one.
CREATE TABLE payloads (
    seq   INTEGER PRIMARY KEY REFERENCES records (seq),
    salt  BLOB NOT NULL,
    bytes BLOB NOT NULL
) STRICT;
