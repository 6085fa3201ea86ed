-- Tasks, sessions, jobs, attempts and checkpoints become documents: JSON as serde writes it, in
-- `doc`, beside the columns that queries need.

ALTER TABLE tasks ADD COLUMN doc TEXT NOT NULL DEFAULT '';
UPDATE tasks SET doc = json_object(
    'id', lower(hex(id)),
    'project', project,
    'policy', json(policy),
    'state', state,
    'created_at', created_at,
    'ended_at', ended_at,
    'created_by', created_by,
    'origin', json(iif(repository IS NULL OR worktree IS NULL, 'null',
        json_object('repository', repository, 'worktree', worktree, 'head', head))),
    'last_event', last_event,
    'base', base,
    'baseline', json(coalesce(baseline, 'null')),
    'first', (SELECT lower(hex(s.id)) FROM sessions s WHERE s.task = tasks.n AND s.position = 0),
    'standing', json((SELECT json_group_object(c.state, c.amount) FROM (
        SELECT s.state, count(*) AS amount FROM sessions s WHERE s.task = tasks.n GROUP BY s.state) c)));

CREATE TABLE attempt_documents (
    n       INTEGER PRIMARY KEY,
    id      BLOB NOT NULL UNIQUE,
    task    INTEGER NOT NULL REFERENCES tasks (n),
    job     BLOB NOT NULL,
    number  INTEGER NOT NULL,
    agent   BLOB NOT NULL,
    live    INTEGER NOT NULL,
    -- What never changes, apart from what does.
    note    TEXT NOT NULL,
    doc     TEXT NOT NULL,
    UNIQUE (task, job, number)
) STRICT;
INSERT INTO attempt_documents SELECT
    a.n, a.id, a.task, a.job, a.number, a.agent, a.ended_at IS NULL,
    json_object(
        'agent_name', a.agent_name,
        'job', a.job_kind,
        'session_name', s.name,
        'started_at', a.started_at),
    json_object(
        'id', lower(hex(a.id)),
        'job', lower(hex(a.job)),
        'session', lower(hex(a.session)),
        'task', lower(hex(t.id)),
        'number', a.number,
        'token_hash', a.token_hash,
        'agent', lower(hex(a.agent)),
        'boot', lower(hex(a.boot)),
        'lease_until', a.lease_until,
        'ends_by', a.ends_by,
        'stop_asked', a.stop_asked,
        'heard_at', a.heard_at,
        'acked_seq', a.acked_seq,
        'state', json(iif(a.ended_at IS NULL, '"live"',
            json_object('ended', json_object('reason', a.end_reason, 'at', a.ended_at)))))
    FROM attempts a JOIN tasks t ON t.n = a.task JOIN sessions s ON s.task = a.task AND s.id = a.session;
DROP TABLE attempts;
ALTER TABLE attempt_documents RENAME TO attempts;
CREATE INDEX attempts_live ON attempts (agent) WHERE live = 1;

CREATE TABLE session_documents (
    task      INTEGER NOT NULL REFERENCES tasks (n),
    id        BLOB NOT NULL,
    position  INTEGER NOT NULL,
    doc       TEXT NOT NULL,
    PRIMARY KEY (task, id)
) STRICT, WITHOUT ROWID;
INSERT INTO session_documents SELECT s.task, s.id, s.position, json_object(
    'id', lower(hex(s.id)),
    'task', lower(hex(t.id)),
    'name', s.name,
    'adapter', s.adapter,
    'model', s.model,
    'requirements', json(coalesce((SELECT j.requirements FROM jobs j
        WHERE j.task = s.task AND j.session = s.id AND j.verifies IS NULL ORDER BY j.id LIMIT 1), '{}')),
    'state', json(s.detail),
    'cancel_requested', json(iif(s.cancel_requested, 'true', 'false')),
    'agent', s.agent,
    'attempts', s.attempts,
    'activity', json(iif(s.activity IS NULL OR s.activity_at IS NULL, 'null',
        json_array(s.activity, s.activity_at))),
    'usage', json(coalesce(s.usage, '[]')),
    'call_retries', s.call_retries,
    'incidents', json(coalesce(s.incidents, '[]')),
    'trail', json(coalesce(s.trail, '{"taken":0,"head":null,"setback":null,"calls":0,"calls_before":0,"resumptions":[],"reworks":0}')),
    'pending_result', json(coalesce(s.pending_result, 'null')),
    'worked', json_object(
        'ended', json_object('secs', s.ran / 1000, 'nanos', s.ran % 1000 * 1000000),
        'since', s.runs_since),
    'started_at', s.started_at,
    'ended_at', s.ended_at)
    FROM sessions s JOIN tasks t ON t.n = s.task;
DROP TABLE sessions;
ALTER TABLE session_documents RENAME TO sessions;

CREATE TABLE job_documents (
    task   INTEGER NOT NULL REFERENCES tasks (n),
    id     BLOB NOT NULL,
    -- 0 = it waits, 1 = it is worked on, 2 = it is over.
    state  INTEGER NOT NULL,
    type   TEXT NOT NULL,
    doc    TEXT NOT NULL,
    PRIMARY KEY (task, id)
) STRICT, WITHOUT ROWID;
INSERT INTO job_documents SELECT
    j.task, j.id, j.state, iif(j.verifies IS NULL, 'session', iif(j.baseline, 'baseline', 'verify')),
    json_object(
        'job', json_object(
            'id', lower(hex(j.id)),
            'task', lower(hex(t.id)),
            'subject', json(iif(j.baseline, '"base"', json_object('session', lower(hex(j.session))))),
            'kind', json(iif(j.verifies IS NULL, '{"kind":"session"}',
                json_object('kind', 'verify', 'commit', j.verifies))),
            'state', json(CASE j.state
                WHEN 0 THEN json_object('state', 'queued', 'not_before', j.not_before)
                WHEN 1 THEN json_object('state', 'leased', 'attempt', lower(hex(j.attempt)))
                ELSE '{"state":"done"}' END),
            'started', j.started,
            'failed', j.failed,
            'lost', j.lost,
            'held', j.held,
            'affinity', json_object(
                'prefer', iif(j.prefer IS NULL, NULL, lower(hex(j.prefer))),
                'avoid', iif(j.avoid IS NULL, NULL, lower(hex(j.avoid))))),
        'adapter', j.adapter,
        'requirements', json(coalesce(j.requirements, '{}')),
        'priority', j.priority,
        'queued_at', j.queued_at)
    FROM jobs j JOIN tasks t ON t.n = j.task;
DROP TABLE jobs;
ALTER TABLE job_documents RENAME TO jobs;
CREATE INDEX jobs_open ON jobs (state) WHERE state < 2;

CREATE TABLE checkpoint_documents (
    task       INTEGER NOT NULL REFERENCES tasks (n),
    session    BLOB NOT NULL,
    number     INTEGER NOT NULL,
    commit_id  TEXT NOT NULL,
    parent     TEXT NOT NULL,
    tree       TEXT NOT NULL,
    pack       TEXT,
    segment    TEXT,
    doc        TEXT NOT NULL,
    PRIMARY KEY (task, session, number)
) STRICT, WITHOUT ROWID;
INSERT INTO checkpoint_documents SELECT
    task, session, number, commit_id, parent, tree, pack, segment,
    json_object(
        'session', lower(hex(session)),
        'number', number,
        'attempt', attempt,
        'adapter', adapter,
        'agent', agent,
        'taken', json_object(
            'commit', commit_id,
            'parent', parent,
            'tree', tree,
            'reason', reason,
            'note', note,
            'files_changed', files,
            'pack', pack,
            'transcript', json(iif(segment IS NULL, 'null',
                json_object('blob', segment, 'from', segment_from, 'to', segment_to))),
            'calls', calls_told),
        'position', position,
        'calls', calls,
        'safety', safety,
        'taken_at', taken_at,
        'stored_at', stored_at)
    FROM checkpoints;
DROP TABLE checkpoints;
ALTER TABLE checkpoint_documents RENAME TO checkpoints;

ALTER TABLE tasks DROP COLUMN state;
ALTER TABLE tasks DROP COLUMN created_at;
ALTER TABLE tasks DROP COLUMN last_event;
ALTER TABLE tasks DROP COLUMN policy;
ALTER TABLE tasks DROP COLUMN base;
ALTER TABLE tasks DROP COLUMN baseline;
ALTER TABLE tasks DROP COLUMN head;
