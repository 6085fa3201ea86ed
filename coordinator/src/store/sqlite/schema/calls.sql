-- The ledger of calls. Rows stay when their tasks go: what a person or a project spent in a month does not
-- become less. So tasks and sessions are named by their ids here. The sums of budgets are read from the
-- indexes alone.
CREATE TABLE calls (
    n        INTEGER PRIMARY KEY,
    attempt  BLOB NOT NULL,
    name     TEXT NOT NULL,
    task     BLOB NOT NULL,
    session  BLOB NOT NULL,
    project  TEXT NOT NULL,
    person   TEXT,
    at       INTEGER NOT NULL,
    pico     INTEGER NOT NULL,
    tokens   INTEGER NOT NULL,
    doc      TEXT NOT NULL,
    UNIQUE (attempt, name)
) STRICT;
CREATE INDEX calls_by_task ON calls (task, session, pico, tokens);
CREATE INDEX calls_by_project ON calls (project, at, pico, tokens);
CREATE INDEX calls_by_person ON calls (person, at, pico, tokens) WHERE person IS NOT NULL;

-- What is held back for calls that were granted and did not end: as many rows as there are such calls.
CREATE TABLE reservations (
    attempt  BLOB NOT NULL,
    call     BLOB NOT NULL,
    task     BLOB NOT NULL,
    session  BLOB NOT NULL,
    project  TEXT NOT NULL,
    person   TEXT,
    doc      TEXT NOT NULL,
    PRIMARY KEY (attempt, call)
) STRICT, WITHOUT ROWID;
CREATE INDEX reservations_by_task ON reservations (task);
CREATE INDEX reservations_by_project ON reservations (project);
