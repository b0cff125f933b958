"""Every limit on what may enter the log, in one place, each named and enforced where its value is parsed."""

from __future__ import annotations

ID_MAX_CHARS = 64
"""Task, worker and other ids: one NATS subject token."""

NAME_MAX_CHARS = 64
"""Pools and queues: one NATS subject token."""

TASK_NAME_MAX_CHARS = 128
INLINE_PAYLOAD_MAX_BYTES = 64 * 1024
"""Arguments and results above this go to the blob store; the event holds a reference and a digest."""

EVENT_MAX_BYTES = 256 * 1024
"""One encoded event. The broker's ``max_payload`` (1 MiB) stays well above it, headers included."""

PRIORITY_MIN, PRIORITY_MAX, PRIORITY_DEFAULT = 0, 10, 5
"""Larger is more urgent."""

WEIGHT_PER_PRIORITY = 1.5
"""A priority gets 1.5 times the share of the priority one below: 10 against 0 is 58 to 1, and 0 still moves."""

RETRIES_MAX = 100
TIMEOUT_MAX_S = 7 * 24 * 3600.0
ERROR_MESSAGE_MAX_CHARS = 4_000
TRACEBACK_MAX_CHARS = 16_000
LOG_MESSAGE_MAX_CHARS = 4_000
REASON_MAX_CHARS = 500
LOSSES_MAX = 3
"""A task whose attempts lost their worker this many times is failed as ``poison`` instead of being run again."""

PROGRESS_PER_SECOND_MAX = 4
SCHEDULE_AHEAD_MAX_S = 10 * 366 * 24 * 3600.0

TAGS_MAX = 20
TAG_MAX_CHARS = 64
METADATA_MAX = 20
METADATA_VALUE_MAX_CHARS = 500
QUEUE_RUNNING_MAX = 1_000_000
RATE_MAX = 1_000_000
RATE_PERIOD_MAX_S = 7 * 24 * 3600.0
QUEUE_TIMEOUT_MAX_S = 366 * 24 * 3600.0
RESULT_TTL_MAX_S = 10 * 366 * 24 * 3600.0
CRON_MAX_CHARS = 200
IDEMPOTENCY_KEY_MAX_CHARS = 255

WORKFLOW_NODES_MAX = 1_000
WORKFLOW_EDGES_MAX = 20_000
"""Dependencies of all nodes together."""

WORKFLOW_WAITS_MAX = 100
"""Nodes that wait for an approval or a signal: those that wait travel in the workflow's state."""

WORKFLOW_DEFINITION_MAX_BYTES = 8 * 1024 * 1024
WORKFLOW_TIMEOUT_MAX_S = 366 * 24 * 3600.0
CONDITIONS_MAX = 20
"""Of one node."""

SIGNALS_MAX = 1_000
"""Signals that one workflow takes."""

HANDED_ON_MAX_BYTES = 16 * 1024 * 1024
"""Of a result that a node takes. A larger one is that node's failure, not the scheduler's end."""

NODE_RESULTS_MAX_BYTES = 64 * 1024 * 1024
"""Of all results that a node takes, together; each as often as its arguments refer to it."""

CHILDREN_MAX = 1_000
"""Tasks spawned by a node's task whose results another node can take."""

REFERENCE_DEPTH_MAX = 50
"""How deeply arguments of a workflow's nodes may be nested."""

WORKER_CAPACITY_MAX = 10_000
"""Attempts that one worker may run at once."""

SPAWNED_MAX = 1_000
"""Children of one attempt."""
