-- The fixed reads, each after a line that names it. `list_tasks` is completed in queries.py from allow-listed parts.

-- name: get_task
SELECT * FROM tasks WHERE task_id = $task_id;

-- name: progress_of
SELECT * FROM task_progress WHERE task_id IN (SELECT unnest($task_ids));

-- name: subtasks
SELECT task_id FROM tasks WHERE parent_task_id = $task_id AND created_position <= $as_of ORDER BY created_position LIMIT 1000;

-- name: retries_of
SELECT original_task_id, arg_max(task_id, created_position)
FROM tasks WHERE origin = 'retry' AND original_task_id IN (SELECT unnest($task_ids)) GROUP BY ALL;

-- name: inputs_in_use
SELECT wanted.key
FROM (SELECT unnest($keys) AS key) AS wanted
WHERE EXISTS (SELECT 1 FROM tasks WHERE json_extract_string(input, '$.key') = wanted.key AND task_id <> $besides)
   OR EXISTS (SELECT 1 FROM schedules WHERE status <> 'DELETED' AND contains(CAST(state AS VARCHAR), wanted.key));

-- name: events_of
-- The range of positions lets DuckDB skip all row groups outside the task's life.
SELECT position, aggregate_id, version, type, time, attempt, source, event_id, previous,
       causation_id, correlation_id, traceparent, schema, data
FROM events
WHERE position BETWEEN $first AND $last AND aggregate = 'tasks' AND aggregate_id = $task_id
ORDER BY version
LIMIT $limit;

-- name: attempts_of
SELECT * FROM attempts
WHERE position BETWEEN $first AND $last AND task_id = $task_id
ORDER BY attempt;

-- name: newest_logs_of
SELECT * FROM task_logs WHERE task_id = $task_id ORDER BY position DESC LIMIT $limit;

-- name: declarations
SELECT name, declaration FROM task_declarations ORDER BY name;

-- name: counts
SELECT pool, queue, status, count(*) FROM tasks GROUP BY ALL;
