-- The sessions of agents that were not heard of for long are looked for every minute.
CREATE INDEX sessions_open ON sessions (start) WHERE "end" IS NULL;
