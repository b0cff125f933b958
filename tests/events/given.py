"""Values that the tests of this room begin with: submissions, histories, events ready to be appended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from eventq.events.data import ErrorInfo, EventData
from eventq.events.envelope import Event, next_event
from eventq.events.ids import new_id
from eventq.events.task import ABSENT, TASKS, Task, replay
from eventq.events.task_events import CancelRequested, Paused, PauseRequested, Queued, Retrying, Started, Submitted
from eventq.events.worker import NO_WORKER, WORKERS
from eventq.events.worker_events import WorkerStopped

NOW = datetime(2026, 11, 21, 3, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
ERROR = ErrorInfo(type="ValueError", message="no such column")
STARTED = Started(worker_id="w1", hostname="host", device="cpu")
RETRYING = Retrying(error=ERROR, reason="error", due_at=LATER)
WORKER_LOST = Queued(reason="worker_lost", worker_id="w1")
INTERRUPTED = Queued(reason="interrupted", worker_id="w1")
DUE = Queued(reason="due")
CANCEL_REQUESTED = CancelRequested(requested_by="ada", reason="no longer needed")
PAUSE_REQUESTED = PauseRequested(requested_by="eve", reason="machine needed")
PAUSED = Paused(requested_by="eve", reason="machine needed")
FROZEN = Paused(requested_by="eve", reason="machine needed", frozen=True, confirmed_by="w1")
HELD = Queued(reason="limited", held=True)
ADMITTED = Queued(reason="admitted")


def submission(**changes: Any) -> Submitted:
    """A submission of `echo` to the default queue of the `cpu` pool with two retries."""
    values: dict[str, Any] = {"task_name": "echo", "pool": "cpu", "queue": "default", "priority": 5, "max_retries": 2}
    return Submitted(**{**values, **changes})


SUBMITTED = submission()
SCHEDULED = submission(scheduled_at=LATER)


def given(*history: EventData) -> Task:
    """The task after these events, all of them written at `NOW`."""
    return replay((f"e{number}", NOW, data) for number, data in enumerate(history, 1))


def ready_event(task_id: str | None = None, **changes: Any) -> Event:
    """The first event of a task that is ready: work, on the route of `submission`."""
    at = datetime.now(UTC)
    return next_event(TASKS, task_id or new_id(), ABSENT, submission(**changes), source="test", at=at)[0]


def small_event() -> Event:
    """An event that is not work and belongs to an aggregate of its own: what load is made of."""
    return next_event(WORKERS, new_id(), NO_WORKER, WorkerStopped(reason="test"), source="test", at=datetime.now(UTC))[0]
