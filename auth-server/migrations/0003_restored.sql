-- What a restore from a backup has left behind: until where each source's records were in the backup. Records
-- that agents had acknowledged later are gone with the lost database, which is no alarm.
CREATE TABLE restored (
    only_row    INTEGER PRIMARY KEY CHECK (only_row = 1),
    backup_at   INTEGER NOT NULL,
    restored_at INTEGER NOT NULL
) STRICT;

CREATE TABLE restored_sources (
    source     BLOB PRIMARY KEY,
    source_seq INTEGER NOT NULL
) STRICT;
