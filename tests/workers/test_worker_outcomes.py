"""What task code can do to a worker process, and what is recorded of it. The worker outlives all of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import orjson
import pytest

from eventq.events.blobs import BlobStore
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES
from eventq.events.task import Status
from eventq.events.task_events import Completed, Failed, Retrying
from tests.chaos.process import Process
from tests.chaos.site import Control, Site


def delete_files_that_hold(folder: Path, text: bytes) -> None:
    """What a hand on the disk can do to a blob store."""
    for path in folder.rglob("*"):
        if path.is_file() and text in path.read_bytes():
            path.unlink()


BAD = [
    ("chaos.exit_hard", "ProcessDied", "exited with code 7", "attempts_exhausted"),
    ("chaos.segfault", "ProcessDied", "SIGSEGV", "attempts_exhausted"),
    ("chaos.close_files", "ProcessDied", "exited with code", "attempts_exhausted"),
    ("chaos.system_exit", "SystemExit", "3", "attempts_exhausted"),
    ("chaos.system_exit_plain", "SystemExit", "3", "attempts_exhausted"),
    ("chaos.unspeakable", "Unspeakable", "its text cannot be had", "attempts_exhausted"),
    ("chaos.unspeakable_async", "Unspeakable", "its text cannot be had", "attempts_exhausted"),
    ("chaos.cancels_itself", "TaskCancelled", "nobody had asked", "attempts_exhausted"),
    ("chaos.nan", "InvalidInput", "result: is not JSON", "not_retryable"),
    ("chaos.no_json", "InvalidInput", "result: is not JSON", "not_retryable"),
    ("chaos.exits_when_printed", "Exiting", "its text cannot be had", "attempts_exhausted"),
    ("chaos.exits_when_printed_async", "Exiting", "its text cannot be had", "attempts_exhausted"),
    ("chaos.deep", "InvalidInput", "result: is nested too deeply", "not_retryable"),
    ("chaos.deeper_than_events", "InvalidInput", "result: is nested too deeply", "not_retryable"),
    ("chaos.big_number", "InvalidInput", "result: is not JSON", "not_retryable"),
    ("chaos.huge", "PayloadTooLarge", "result: is too large", "not_retryable"),
]


@pytest.fixture(autouse=True)
async def it_lives_on(shared_worker: Process, control: Control) -> None:
    """Before each test, and so after each but the last: the worker runs tasks."""
    assert (await control.run("chaos.quick")).type == "completed"
    assert (await control.run("chaos.plain")).type == "completed"


@pytest.mark.parametrize(("task_name", "error", "message", "reason"), BAD, ids=[bad[0] for bad in BAD])
async def test_bad_code_fails_its_task_and_nothing_else(
    control: Control, task_name: str, error: str, message: str, reason: str
) -> None:
    end = await control.run(task_name)
    assert isinstance(end.data, Failed)
    assert end.data.error.type == error
    assert message in end.data.error.message
    assert end.data.reason == reason
    assert end.attempt == 1


@pytest.mark.parametrize("task_name", ["chaos.unprintable", "chaos.unprintable_plain"])
async def test_reports_that_no_json_can_carry_do_not_cost_the_outcome(control: Control, task_name: str) -> None:
    end = await control.run(task_name)
    assert isinstance(end.data, Completed)
    assert end.attempt == 1


async def test_ten_megabytes_on_standard_output_do_not_matter(control: Control) -> None:
    assert (await control.run("chaos.chatter", timeout_s=60)).type == "completed"


async def test_a_result_as_large_as_allowed_gets_through_however_it_is_escaped(site: Site, control: Control) -> None:
    end = await control.run("chaos.quotes")
    assert isinstance(end.data, Completed), end.data
    assert end.data.output is not None
    blobs = BlobStore.open((site.folder / "blobs").as_uri())
    assert orjson.loads(await blobs.get_async(end.data.output)) == '"' * (8 * 1024 * 1024 - 8)


@pytest.mark.parametrize("extra", [-100, 0, 100])
async def test_results_above_the_inline_limit_go_to_the_blob_store(site: Site, control: Control, extra: int) -> None:
    text = "x" * 16
    times = INLINE_PAYLOAD_MAX_BYTES // 16 + extra
    end = await control.run("chaos.echo_size", text, times)
    assert isinstance(end.data, Completed)
    expected = {"text": text * times}
    if len(orjson.dumps(expected)) <= INLINE_PAYLOAD_MAX_BYTES:
        assert (end.data.result, end.data.output) == (expected, None)
        return
    assert end.data.result is None
    assert end.data.output is not None
    blobs = BlobStore.open((site.folder / "blobs").as_uri())
    assert orjson.loads(await blobs.get_async(end.data.output)) == expected


async def test_arguments_above_the_inline_limit_come_from_the_blob_store(site: Site, control: Control) -> None:
    blobs = BlobStore.open((site.folder / "blobs").as_uri())
    payload = orjson.dumps({"args": ["y" * 100_000], "kwargs": {"times": 2}})
    stored = await blobs.put_async(payload, media_type="application/json")
    end = await control.run("chaos.echo_size", input=stored)
    assert isinstance(end.data, Completed)
    assert end.data.output is not None
    assert orjson.loads(await blobs.get_async(end.data.output)) == {"text": "y" * 200_000}


async def test_arguments_whose_blob_is_gone_fail_for_good(site: Site, control: Control) -> None:
    blobs = BlobStore.open((site.folder / "blobs").as_uri())
    stored = await blobs.put_async(b'{"args": ["gone"], "kwargs": {}}', media_type="application/json")
    delete_files_that_hold(site.folder / "blobs", b'["gone"]')
    end = await control.run("chaos.echo_size", input=stored, max_retries=3)
    assert isinstance(end.data, Failed)
    assert end.data.error.type == "BlobNotFound"
    assert end.data.reason == "not_retryable"


@pytest.mark.parametrize(
    ("args", "field"), [([], "text"), ([1], "text"), (["a", "b"], "times"), (["a", 1, 2], "args"), (["a", "zwei"], "times")]
)
async def test_arguments_of_the_wrong_form_fail_for_good(control: Control, args: list[object], field: str) -> None:
    """The API refuses them; what comes past the API is refused by the worker."""
    end = await control.run("chaos.echo_size", *args, max_retries=3)
    assert isinstance(end.data, Failed)
    assert end.data.error.type == "InvalidInput"
    assert end.data.error.message.startswith(field)
    assert end.data.reason == "not_retryable"
    assert end.attempt == 1


async def test_failures_are_retried_after_their_back_off_until_none_is_left(control: Control) -> None:
    end = await control.run("chaos.fail", max_retries=2)
    assert isinstance(end.data, Failed)
    assert end.data.reason == "attempts_exhausted"
    assert end.data.error.message == "attempt 3 fails"
    trace = end.data.error.traceback or ""
    assert "in fail" in trace
    assert "eventq/workers" not in trace, "of no interest to whoever reads it"
    task_id = end.aggregate_id
    assert control.types(task_id) == ["submitted", *["started", "retrying", "queued"] * 2, "started", "failed"]
    for event, after in zip(control.events(task_id), control.events(task_id)[1:], strict=False):
        if isinstance(event.data, Retrying):
            assert event.data.due_at - event.time <= timedelta(seconds=0.06)
            assert after.time >= event.data.due_at


async def test_a_retry_that_succeeds_completes_the_task(control: Control) -> None:
    end = await control.run("chaos.fail", 3, max_retries=5)
    assert isinstance(end.data, Completed)
    assert end.data.result == {"attempt": 3}


async def test_what_no_retry_can_help_is_not_retried(control: Control) -> None:
    end = await control.run("chaos.refuse", max_retries=5)
    assert isinstance(end.data, Failed)
    assert end.data.reason == "not_retryable"
    assert control.types(end.aggregate_id) == ["submitted", "started", "failed"]


async def test_a_task_that_nobody_here_knows_goes_back_and_can_still_be_cancelled(
    control: Control, shared_worker: Process
) -> None:
    task_id = await control.submit("nobody.knows.this")

    def named() -> bool:
        return any(line["task_id"] == task_id for line in shared_worker.logged("attempt.unknown_task"))

    await control.until(lambda: len(shared_worker.logged("attempt.unknown_task")) >= 2 and named(), "it comes again and again")
    assert control.types(task_id) == ["submitted"]
    assert (await control.cancel(task_id)).status is Status.CANCELLED
    assert (await control.ended(task_id)).type == "cancelled"
