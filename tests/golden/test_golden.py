"""Today's program reads yesterday's log: every golden event decodes, and every history folds to what it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from eventq.events.catalogue import CATALOGUE
from eventq.events.envelope import Event, decode, encode
from eventq.events.task import Status, Task, from_summary, replay
from eventq.events.worker import NO_WORKER, WORKERS, Worker, WorkerStatus
from tests.events.history import violations
from tests.golden import examples
from tests.golden.examples import lives
from tests.golden.make import write

HERE = Path(__file__).parent


class Golden(NamedTuple):
    """One stored event: the folder says which release wrote it, `life` which history it belongs to."""

    release: str
    life: str
    subject: str
    payload: bytes


def goldens() -> Iterator[Golden]:
    for file in sorted(HERE.glob("v*/*.json")):
        stored = orjson.loads(file.read_bytes())
        life = file.name.rsplit("-", 2)[0]
        yield Golden(file.parent.name, life, stored["subject"], stored["payload"].encode())


GOLDENS = list(goldens())
LIVES = sorted({(golden.release, golden.life) for golden in GOLDENS})


def history(release: str, life: str) -> list[Event]:
    found = [golden for golden in GOLDENS if (golden.release, golden.life) == (release, life)]
    return [decode(golden.payload, golden.subject) for golden in found]


def test_every_schema_of_every_type_has_a_golden_event() -> None:
    kept = {(e.aggregate, e.type, e.schema) for release, life in LIVES for e in history(release, life)}
    known = {(*key, schema) for key, kind in CATALOGUE.items() for schema in range(1, kind.schema + 1)}
    assert known <= kept, (
        f"no golden event for {sorted(known - kept)}: add a life that has them to tests/golden/examples.py (a changed schema: "
        "its number goes up in the catalogue, with an upcaster), run `python -m tests.golden.make v2` (the folder of the "
        "release in the making, or a new one where that life stands in it with another schema), and commit what it writes"
    )


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: f"{golden.release}/{golden.subject}")
def test_a_golden_event_is_read_as_it_was_written(golden: Golden) -> None:
    event = decode(golden.payload, golden.subject)

    raw = orjson.loads(golden.payload)
    assert (event.id, event.type, event.version, event.previous) == (
        raw["id"],
        raw["type"],
        raw["version"],
        raw["previous"],
    )
    assert event.time.isoformat().replace("+00:00", "Z") == raw["time"]
    if event.schema == CATALOGUE[event.aggregate, event.type].schema == raw["schema"]:
        assert encode(event) == golden.payload


@pytest.mark.parametrize(("release", "life"), [each for each in LIVES if each[1].startswith("task-")])
def test_a_golden_history_is_sound_and_folds_as_it_did(release: str, life: str) -> None:
    events = history(release, life)
    if release == "v1":
        events = [event._replace(state=with_its_losses_named(event, events)) for event in events]
    assert violations(events) == []


def with_its_losses_named(event: Event, events: list[Event]) -> dict[str, object]:
    """What the first release would have said, had it named the lost workers beside counting them."""
    folded = replay((each.id, each.time, each.data) for each in events[: event.version])
    assert len(folded.lost) == event.state.get("losses", 0)
    return {**event.state, **({"lost": list(folded.lost)} if folded.lost else {})}


def at(second: int, hour: int = 3) -> datetime:
    return datetime(2026, 11, 21, hour, 0, second, 123456, tzinfo=UTC)


def event_id(number: int) -> str:
    return f"019aa45f-0000-7000-8000-{number:012d}"


SUBMITTED = Task(task_name="csv_processing", pool="cpu", queue="reports", priority=7, max_retries=3, timeout_s=60.0)


def after(status: Status, version: int, **values: object) -> Task:
    common = {name: getattr(SUBMITTED, name) for name in ("task_name", "pool", "queue", "priority", "max_retries", "timeout_s")}
    return Task(**{**common, "status": status, "version": version, "event_id": event_id(version), **values})  # type: ignore[arg-type]


# By hand, once: what release v1 says these histories lead to. Later versions must say the same.
FOLDS: dict[tuple[str, int], Task] = {
    ("task-completed", 1): after(Status.SCHEDULED, 1, due_at=at(0, hour=4)),
    ("task-completed", 2): after(Status.PENDING, 2, ready=2, reason="due"),
    ("task-completed", 3): after(Status.RUNNING, 3, ready=2, attempt=1, worker_id="worker-1"),
    ("task-completed", 4): after(Status.COMPLETED, 4, ready=2, attempt=1, worker_id="worker-1"),
    ("task-failed", 3): after(Status.RETRYING, 3, ready=1, attempt=1, failures=1, due_at=at(9), reason="error"),
    ("task-failed", 6): after(Status.PENDING, 6, ready=6, attempt=2, failures=1, losses=1, reason="worker_lost"),
    ("task-failed", 8): after(
        Status.FAILED, 8, ready=6, attempt=3, failures=2, losses=1, worker_id="worker-1", reason="not_retryable"
    ),
    ("task-timed_out", 3): after(
        Status.TIMED_OUT,
        3,
        ready=1,
        attempt=1,
        failures=1,
        worker_id="worker-1",
        max_retries=0,
        reason="execution_timeout",
    ),
    ("task-cancelled", 4): after(
        Status.CANCELLED,
        4,
        ready=1,
        attempt=1,
        worker_id="worker-1",
        cancel_requested_by="ada",
        cancel_reason="no longer needed",
        reason="no longer needed",
    ),
}


@pytest.mark.parametrize(("life", "version"), FOLDS, ids=lambda part: str(part))
def test_release_1_s_histories_lead_where_they_led(life: str, version: int) -> None:
    events = history("v1", life)[:version]
    folded = replay((event.id, event.time, event.data) for event in events)
    assert folded._replace(lost=()) == FOLDS[life, version]
    assert from_summary(events[-1].state) == FOLDS[life, version]


def test_workers_that_release_1_lost_are_named_as_evidence_once_its_history_is_folded() -> None:
    events = history("v1", "task-failed")
    assert replay((event.id, event.time, event.data) for event in events).lost == ("2:worker-1",)


def test_release_1_s_worker_leads_where_it_led() -> None:
    registered, stopped = history("v1", "worker")
    worker = WORKERS.from_summary(stopped.state)
    assert worker == Worker(status=WorkerStatus.STOPPED, version=2, event_id=event_id(2))

    folded = NO_WORKER
    for event in (registered, stopped):
        folded = WORKERS.evolve(folded, event.id, event.time, event.data)
    assert (folded.status, folded.version, folded.kind, folded.capacity) == (WorkerStatus.STOPPED, 2, "process", 4)
    assert (folded.end_reason, folded.ended_at, folded.registered_at) == ("SIGTERM", at(2), at(1))


def test_the_present_schemas_are_written_as_before() -> None:
    """If this fails the wire format changed: raise the schema number, add an upcaster and a new golden folder."""
    newest = {(golden.life, golden.subject): golden.payload for golden in GOLDENS}  # a newer folder comes later, and wins
    for life, events in lives().items():
        for event in events:
            assert (life, event.subject) in newest, f"{event.subject} of {life}: run `python -m tests.golden.make v2`"
            assert encode(event) == newest[life, event.subject], event.subject


def test_golden_events_are_never_overwritten(tmp_path: Path) -> None:
    first = write(tmp_path / "v9")
    assert len(first) == sum(map(len, lives().values()))
    with pytest.raises(FileExistsError, match="never overwritten"):
        write(tmp_path / "v9")


def test_a_new_life_joins_the_folder_and_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.read_bytes() for file in write(tmp_path / "v9")}
    monkeypatch.setitem(examples.TASK_LIVES, "newer", [examples.submitted(), examples.STARTED])
    monkeypatch.setitem(examples.TASK_LIVES, "completed", [examples.submitted(), examples.STARTED])
    written = write(tmp_path / "v9")
    assert [file.name for file in written] == ["task-newer-01-submitted.json", "task-newer-02-started.json"]
    assert {file: file.read_bytes() for file in before} == before
