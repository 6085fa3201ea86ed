-- Verdicts on bases that later tasks may take: the newest one of each check on each kind of machine.
CREATE TABLE base_verdicts (
    key         TEXT NOT NULL,
    machine     TEXT NOT NULL,
    decided_at  INTEGER NOT NULL,
    doc         TEXT NOT NULL,
    PRIMARY KEY (key, machine)
) STRICT, WITHOUT ROWID;
CREATE INDEX base_verdicts_by_age ON base_verdicts (decided_at);
ALTER TABLE agents ADD COLUMN machine TEXT;
