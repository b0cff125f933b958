-- The tables of the projection. All of them are derived from the streams EVENTS and PROGRESS and nothing else: drop the
-- file, replay, and the same rows stand here again. Times are UTC. Bump SCHEMA_VERSION in store.py with every change:
-- a file of another version is set aside and rebuilt, never migrated.
--
-- Keys: only tables that are looked up or replaced row by row have one. `events`, `attempts` and `task_logs` grow in the
-- order of their positions, and task ids are made in the order of time, so the min/max that DuckDB keeps of each
-- row group find a task's rows in one or two groups; an index would cost every insert to save nothing.
--
-- JSON in tables of many rows is VARCHAR, marked so: DuckDB checks each value of a JSON column as it is appended, which costs
-- more than the append itself. Its JSON functions and operators (`data ->> 'reason'`) take text as well; a cast to a list
-- reads text as a list of DuckDB's, so cast to JSON first.

CREATE TABLE meta (
    schema_version INTEGER NOT NULL
);

-- How far each stream is applied. Written in the same transaction as the rows.
CREATE TABLE checkpoint (
    stream VARCHAR PRIMARY KEY,             -- EVENTS or PROGRESS
    position BIGINT NOT NULL,               -- last applied stream sequence, 0: none
    event_id VARCHAR,                       -- the id of the message at that position
    stream_created TIMESTAMP NOT NULL       -- creation time of the stream: another time is another stream
);

-- The newest state of each task. One row per task; from EVENTS alone.
CREATE TABLE tasks (
    task_id VARCHAR PRIMARY KEY,
    task_name VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    reason VARCHAR,
    pool VARCHAR NOT NULL,
    queue VARCHAR NOT NULL,
    priority INTEGER NOT NULL,
    key VARCHAR,                            -- whose it is or what it uses: for limits and fair sharing
    version INTEGER NOT NULL,               -- how many events the task has; the number in its ETag
    attempt INTEGER NOT NULL,               -- attempts started so far
    failures INTEGER NOT NULL,              -- of these, failed or timed out
    losses INTEGER NOT NULL,                -- of these, ended by the loss of their worker
    lost VARCHAR NOT NULL,                  -- JSON, which: ["attempt:worker", ...]
    ready INTEGER NOT NULL,                 -- version of the event that last made the task ready, 0: it is not
    spec INTEGER NOT NULL,                  -- version of the event with the submission that holds
    gated BOOLEAN NOT NULL,                 -- it needs its queue's admission
    max_retries INTEGER NOT NULL,
    timeout_s DOUBLE,
    queue_timeout_s DOUBLE,
    heartbeat_timeout_s DOUBLE,
    result_ttl_s DOUBLE,
    worker_id VARCHAR,                      -- who runs it, or ran its last attempt
    cancel_requested_by VARCHAR,
    cancel_reason VARCHAR,
    pause_requested_by VARCHAR,
    pause_reason VARCHAR,
    created_at TIMESTAMP NOT NULL,
    scheduled_at TIMESTAMP,                 -- as asked for
    due_at TIMESTAMP,                       -- when a scheduled or retrying task will be made ready
    start_by TIMESTAMP,                     -- when a ready task that nobody started times out
    started_at TIMESTAMP,                   -- of the newest attempt
    completed_at TIMESTAMP,                 -- when it reached a final status, whichever
    updated_at TIMESTAMP NOT NULL,          -- time of its newest event
    duration_s DOUBLE,                      -- of the attempt that completed it
    created_position BIGINT NOT NULL,
    position BIGINT NOT NULL,               -- of its newest event
    event_id VARCHAR NOT NULL,              -- of its newest event
    tags VARCHAR NOT NULL,                  -- JSON: ["...", ...]
    metadata VARCHAR NOT NULL,              -- JSON: {"...": "...", ...}
    args VARCHAR NOT NULL,                  -- JSON: [...]
    kwargs VARCHAR NOT NULL,                -- JSON: {"...": ...}
    input VARCHAR,                          -- JSON: blob reference that stands for args and kwargs
    result VARCHAR,                         -- JSON
    output VARCHAR,                         -- JSON: blob reference that stands for result
    error VARCHAR,                          -- JSON, of the newest attempt that failed; none once completed
    original_task_id VARCHAR,               -- the task that this one repeats
    origin VARCHAR,                         -- how: retry or replay
    parent_task_id VARCHAR,                 -- the running task that spawned it
    workflow_id VARCHAR,
    node VARCHAR,                           -- which step of the workflow
    schedule_id VARCHAR,                    -- the schedule whose tick it is
    unique_key VARCHAR,
    requested_by VARCHAR,
    cleaned BOOLEAN NOT NULL,               -- its result was given up
    erased BOOLEAN NOT NULL                 -- all that it carried was destroyed
);

-- Every execution of every task.
CREATE TABLE attempts (
    task_id VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,               -- 1, 2, 3, ...
    worker_id VARCHAR NOT NULL,
    hostname VARCHAR NOT NULL,
    device VARCHAR NOT NULL,
    started_at TIMESTAMP NOT NULL,
    position BIGINT NOT NULL,               -- of its `started` event
    ended_at TIMESTAMP,
    outcome VARCHAR,                        -- completed failed timed_out cancelled paused interrupted worker_lost; none: running
    error VARCHAR                           -- JSON
);

-- The log itself, for timelines, time travel and SQL.
CREATE TABLE events (
    position BIGINT NOT NULL,
    aggregate VARCHAR NOT NULL,             -- tasks, workers, queues, ...
    aggregate_id VARCHAR NOT NULL,
    version INTEGER NOT NULL,
    type VARCHAR NOT NULL,
    time TIMESTAMP NOT NULL,                -- the writer's clock
    attempt INTEGER NOT NULL,
    source VARCHAR NOT NULL,
    event_id VARCHAR NOT NULL,
    previous VARCHAR,                       -- id of the aggregate's event before this one
    causation_id VARCHAR,
    correlation_id VARCHAR,
    traceparent VARCHAR,
    schema INTEGER NOT NULL,                -- of `data` as it stands here, that is after upcasting
    data VARCHAR NOT NULL                   -- JSON
);

-- Tables of states: one row for each worker, queue, ...; `state` is the whole of it as JSON, from which folding goes on.

CREATE TABLE workers (
    worker_id VARCHAR PRIMARY KEY,
    version INTEGER NOT NULL,
    event_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    state JSON NOT NULL,
    status VARCHAR NOT NULL,                -- ACTIVE PAUSED DRAINING STOPPED LOST; whether it lives is a question to presence
    kind VARCHAR NOT NULL,                  -- process or http
    hostname VARCHAR NOT NULL,
    pid INTEGER NOT NULL,
    pool VARCHAR NOT NULL,
    queues JSON NOT NULL,                   -- those that it serves; empty: all of its pool
    capacity INTEGER NOT NULL,
    devices JSON NOT NULL,
    registered_at TIMESTAMP,
    ended_at TIMESTAMP,
    end_reason VARCHAR
);

-- Queues that were ever configured, paused or gated; others need no row.
CREATE TABLE queues (
    queue VARCHAR PRIMARY KEY,
    version INTEGER NOT NULL,
    event_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    state JSON NOT NULL,
    paused_by VARCHAR,
    paused_reason VARCHAR,
    limits JSON NOT NULL
);

-- Schedules, deleted ones too.
CREATE TABLE schedules (
    schedule_id VARCHAR PRIMARY KEY,
    version INTEGER NOT NULL,
    event_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    state JSON NOT NULL,
    status VARCHAR NOT NULL,                -- ACTIVE PAUSED ENDED DELETED
    task_name VARCHAR NOT NULL,
    next_at TIMESTAMP,                      -- the due time that is waited for
    last_at TIMESTAMP,                      -- the newest due time that was dealt with
    created_at TIMESTAMP NOT NULL
);

-- Which task holds a unique key, until it has finished.
CREATE TABLE claims (
    claim_id VARCHAR PRIMARY KEY,           -- digest of the key
    version INTEGER NOT NULL,
    event_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    state JSON NOT NULL,
    task_id VARCHAR NOT NULL
);

-- Workflows as wholes.
CREATE TABLE workflows (
    workflow_id VARCHAR PRIMARY KEY,
    version INTEGER NOT NULL,
    event_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    state JSON NOT NULL,
    status VARCHAR NOT NULL,                -- RUNNING STOPPING COMPLETED FAILED CANCELLED TIMED_OUT
    name VARCHAR NOT NULL,
    created_at TIMESTAMP NOT NULL,
    ended_at TIMESTAMP
);

-- Nodes that were started, skipped or ended; others have no row. One that did not complete in an earlier run of its workflow
-- counts as blocked again.
CREATE TABLE workflow_nodes (
    workflow_id VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    run INTEGER NOT NULL,                   -- in which it was started or skipped last
    position BIGINT NOT NULL,
    status VARCHAR NOT NULL,                -- RUNNING WAITING COMPLETED FAILED TIMED_OUT CANCELLED SKIPPED COMPENSATED
    reason VARCHAR,
    started_at TIMESTAMP,
    ended_at TIMESTAMP,
    compensation VARCHAR,                   -- of the task that undoes its work: RUNNING or how it ended
    PRIMARY KEY (workflow_id, node)
);

-- What workers say they can run: the newest declaration of each task name.
CREATE TABLE task_declarations (
    name VARCHAR PRIMARY KEY,
    declaration JSON NOT NULL,
    worker_id VARCHAR NOT NULL,
    declared_at TIMESTAMP NOT NULL,
    position BIGINT NOT NULL
);

-- From PROGRESS: the newest line of the highest attempt that reported. The stream keeps only the newest thousand lines
-- of each task, and has no order with EVENTS, so this table and the next are left out of `verify`.
CREATE TABLE task_progress (
    task_id VARCHAR PRIMARY KEY,
    attempt INTEGER NOT NULL,
    done DOUBLE NOT NULL,
    total DOUBLE,
    unit VARCHAR,
    message VARCHAR,
    time TIMESTAMP NOT NULL,
    position BIGINT NOT NULL                -- in PROGRESS
);

CREATE TABLE task_logs (
    position BIGINT NOT NULL,               -- in PROGRESS
    task_id VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    time TIMESTAMP NOT NULL,
    level VARCHAR NOT NULL,
    message VARCHAR NOT NULL,
    fields VARCHAR NOT NULL                 -- JSON
);
