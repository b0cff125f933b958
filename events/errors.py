"""Every error that eventq raises on purpose, one tree, each leaf with a stable code.

::

    EventqError
    ├── InvalidInput            INVALID_INPUT        a value is wrong: which field, which limit, what was found
    │   ├── UnknownTask         UNKNOWN_TASK         no worker ever declared a task of that name
    │   └── PayloadTooLarge     PAYLOAD_TOO_LARGE    a body, payload or file is over its limit
    ├── NotFound                NOT_FOUND
    │   ├── TaskNotFound        TASK_NOT_FOUND
    │   ├── WorkerNotFound      WORKER_NOT_FOUND
    │   ├── QueueNotFound       QUEUE_NOT_FOUND
    │   ├── ScheduleNotFound    SCHEDULE_NOT_FOUND
    │   └── BlobNotFound        BLOB_NOT_FOUND
    ├── Conflict                CONFLICT
    │   ├── IllegalTransition   ILLEGAL_TRANSITION   the task's status does not admit the command
    │   ├── StaleAttempt        STALE_ATTEMPT        the report is about an attempt that is no longer the current one
    │   ├── VersionConflict     VERSION_CONFLICT     somebody else wrote that version of the aggregate
    │   └── PreconditionFailed  PRECONDITION_FAILED  the version that the request insists on is not the present one
    ├── FetchRefused            FETCH_REFUSED        an address or a redirect that this installation does not allow
    ├── Unavailable             UNAVAILABLE          try again later; says whether the outcome is known
    │   ├── LogUnavailable      LOG_UNAVAILABLE      the broker did not answer: the outcome is *unknown*
    │   ├── LogFull             LOG_FULL             the event stream is at its size limit: nothing was stored
    │   └── ProjectionLagging   LAGGING              the projection has not reached the position asked for in time
    ├── Damaged                 DAMAGED              stored bytes are not what was written
    │   ├── LogDamaged          LOG_DAMAGED          events are missing, changed or rewound
    │   ├── UnknownEvent        UNKNOWN_EVENT        an event of a type or schema that this version cannot fold
    │   └── BlobDamaged         BLOB_DAMAGED         a blob's digest is not the one its reference names
    └── BrokerUnfit             BROKER_UNFIT         the broker is too old, or would lose acknowledged events

Codes are part of the API: clients switch on them, so they never change. Data first, sentence derived: the fields of an
error travel beside its message to the HTTP answer, the command line and the log.
"""

from __future__ import annotations

from typing import ClassVar


class EventqError(Exception):
    """Base of the tree. ``detail`` is the sentence for people, ``fields`` the same facts for programs."""

    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, detail: str, **fields: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields: dict[str, object] = {name: value for name, value in fields.items() if value is not None}


class InvalidInput(EventqError):
    """A value from outside is wrong. ``field`` names it (a dotted path or JSON pointer)."""

    code = "INVALID_INPUT"

    def __init__(
        self, field: str, problem: str, *, limit: object = None, found: object = None, hint: str | None = None
    ) -> None:
        super().__init__(f"{field}: {problem}", field=field, limit=limit, found=found, hint=hint)
        self.field = field


class UnknownTask(InvalidInput):
    """No worker has declared a task of this name."""

    code = "UNKNOWN_TASK"


class PayloadTooLarge(InvalidInput):
    """Something is over its size limit; ``limit`` and ``found`` are in bytes unless the sentence says otherwise."""

    code = "PAYLOAD_TOO_LARGE"


class NotFound(EventqError):
    """The thing named does not exist."""

    code = "NOT_FOUND"


class TaskNotFound(NotFound):
    """The log holds no event of this task."""

    code = "TASK_NOT_FOUND"

    def __init__(self, task_id: str) -> None:
        super().__init__("Task not found", task_id=task_id)


class WorkerNotFound(NotFound):
    """The log holds no event of this worker."""

    code = "WORKER_NOT_FOUND"

    def __init__(self, worker_id: str) -> None:
        super().__init__("Worker not found", worker_id=worker_id)


class QueueNotFound(NotFound):
    """No task was ever submitted to this queue, and nobody configured it."""

    code = "QUEUE_NOT_FOUND"

    def __init__(self, queue_name: str) -> None:
        super().__init__("Queue not found", queue_name=queue_name)


class ScheduleNotFound(NotFound):
    """The log holds no event of this schedule."""

    code = "SCHEDULE_NOT_FOUND"

    def __init__(self, schedule_id: str) -> None:
        super().__init__("Schedule not found", schedule_id=schedule_id)


class WorkflowNotFound(NotFound):
    """The log holds no event of this workflow."""

    code = "WORKFLOW_NOT_FOUND"

    def __init__(self, workflow_id: str) -> None:
        super().__init__("Workflow not found", workflow_id=workflow_id)


class BlobNotFound(NotFound):
    """The blob store holds nothing under this key."""

    code = "BLOB_NOT_FOUND"

    def __init__(self, key: str) -> None:
        super().__init__("Blob not found", key=key)


class Conflict(EventqError):
    """The request was understood and refused because of the present state."""

    code = "CONFLICT"


class IllegalTransition(Conflict):
    """The task's status does not admit this command; nothing was changed."""

    code = "ILLEGAL_TRANSITION"


class StaleAttempt(Conflict):
    """A report about an attempt that is not the current one: its lease was taken over. Nothing was changed."""

    code = "STALE_ATTEMPT"

    def __init__(self, *, reported: int, current: int) -> None:
        super().__init__(
            f"attempt {reported} reported while attempt {current} is the current one",
            reported=reported,
            current=current,
        )


class TaskErased(Conflict):
    """All that the task carried was destroyed: it can be neither repeated nor shown."""

    code = "TASK_ERASED"

    def __init__(self, task_id: str) -> None:
        super().__init__("the task's arguments were erased", task_id=task_id)


class VersionConflict(Conflict):
    """Version ``version`` of the aggregate exists already and is not ours."""

    code = "VERSION_CONFLICT"

    def __init__(self, aggregate_id: str, version: int) -> None:
        super().__init__(
            f"version {version} of {aggregate_id} was written by somebody else",
            aggregate_id=aggregate_id,
            version=version,
        )


class PreconditionFailed(Conflict):
    """The request is about version ``wanted`` only, and that is not the present one. Nothing was changed."""

    code = "PRECONDITION_FAILED"

    def __init__(self, wanted: str, found: int) -> None:
        super().__init__(f"it is at version {found}, not {wanted[:80]}", field="If-Match", limit=wanted[:80], found=found)


class FetchRefused(EventqError):
    """An address, scheme or redirect that workers of this installation may not reach."""

    code = "FETCH_REFUSED"


class Unavailable(EventqError):
    """A dependency did not do its part in time; trying again later is right."""

    code = "UNAVAILABLE"


class LogUnavailable(Unavailable):
    """The broker did not answer. The event may or may not be stored: read before concluding."""

    code = "LOG_UNAVAILABLE"


class LogFull(Unavailable):
    """The event stream is at ``max_bytes``, or the broker has no room. Nothing was stored."""

    code = "LOG_FULL"


class ProjectionLagging(Unavailable):
    """The projection did not reach the version or position asked for within the bounded wait."""

    code = "LAGGING"


class Damaged(EventqError):
    """Stored bytes are not what was written. Never folded, never served as good."""

    code = "DAMAGED"


class LogDamaged(Damaged):
    """Events are missing, changed or rewound; the projector stops and serves the last good state."""

    code = "LOG_DAMAGED"


class UnknownEvent(Damaged):
    """An event of a type or schema version this program does not know: a newer program wrote it. Upgrade, then go on."""

    code = "UNKNOWN_EVENT"


class BlobDamaged(Damaged):
    """A blob's size or digest differs from its reference."""

    code = "BLOB_DAMAGED"

    def __init__(self, key: str, *, expected: str, found: str) -> None:
        super().__init__(f"blob {key} has digest {found}, expected {expected}", key=key, expected=expected, found=found)


class BrokerUnfit(EventqError):
    """The broker is too old or configured so that acknowledged events could be lost. The sentence says how to fix it."""

    code = "BROKER_UNFIT"
