"""The pacer, with values: a clock that only moves when the test says so."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventq.events.errors import InvalidInput
from eventq.events.report import Log, LogLine, Progress, decode_report
from eventq.events.subjects import PROGRESS, progress_subject
from eventq.workers.context import FIELDS_MAX
from eventq.workers.pacer import LINES_WAITING_MAX, MESSAGE_MAX_BYTES, Pacer
from eventq.workers.progress import checked_progress
from eventq.workers.reports import Reports
from tests.chaos.site import Control
from tests.workers.support import RecordingHost, make_context


def at(done: float) -> Progress:
    return Progress(done)


def texts(message: Progress | Log | None) -> list[str]:
    assert isinstance(message, Log)
    return [line.message for line in message.lines]


def test_the_first_report_passes_at_once() -> None:
    assert Pacer().offer(at(1), now=0.0) == at(1)
    assert texts(Pacer().offer(LogLine("a"), now=0.0)) == ["a"]


def test_of_a_burst_of_progress_the_first_and_the_newest_pass() -> None:
    pacer = Pacer(per_second=4)
    assert [pacer.offer(at(n), now=0.1) for n in range(5)] == [at(0), None, None, None, None]
    assert pacer.due_in(0.1) == pytest.approx(0.25)
    assert pacer.poll(0.3) is None
    assert pacer.poll(0.35) == at(4)
    assert pacer.due_in(0.35) is None
    assert pacer.poll(9.0) is None


def test_of_a_burst_of_lines_all_pass_together() -> None:
    pacer = Pacer(per_second=4)
    pacer.offer(LogLine("0"), now=0.0)
    assert [pacer.offer(LogLine(str(n)), now=0.1) for n in range(1, 5)] == [None] * 4
    assert texts(pacer.poll(0.25)) == ["1", "2", "3", "4"]


def test_progress_and_lines_take_turns() -> None:
    pacer = Pacer(per_second=4)
    pacer.offer(at(0), now=0.0)
    pacer.offer(at(1), now=0.1)
    pacer.offer(LogLine("a"), now=0.1)
    assert texts(pacer.poll(0.25)) == ["a"]
    assert pacer.poll(0.3) is None
    assert pacer.poll(0.5) == at(1)


def test_what_is_left_is_sent_however_recent_the_last_message() -> None:
    pacer = Pacer()
    pacer.offer(at(1), now=0.0)
    pacer.offer(at(2), now=0.0)
    pacer.offer(LogLine("end"), now=0.0)
    rest = pacer.flush()
    assert at(2) in rest
    assert [texts(message) for message in rest if isinstance(message, Log)] == [["end"]]
    assert pacer.flush() == []


def test_too_many_lines_lose_the_oldest_and_say_so() -> None:
    pacer = Pacer()
    pacer.offer(LogLine("first"), now=0.0)
    for n in range(LINES_WAITING_MAX + 3):
        pacer.offer(LogLine(str(n)), now=0.0)
    lines = [text for message in pacer.flush() for text in texts(message)]
    assert lines[0] == "3 lines were dropped: too many at once"
    assert lines[1] == "3"
    assert len(lines) == LINES_WAITING_MAX + 1


def test_a_message_of_lines_stays_small() -> None:
    pacer = Pacer()
    pacer.offer(at(1), now=0.0)
    for _ in range(100):
        pacer.offer(LogLine("x" * 4_000), now=0.0)
    sizes = [sum(len(text) for text in texts(message)) for message in pacer.flush()]
    assert sum(sizes) == 400_000
    assert max(sizes) <= MESSAGE_MAX_BYTES


@given(gaps=st.lists(st.floats(0, 1), min_size=1, max_size=200), logs=st.lists(st.booleans(), min_size=200, max_size=200))
def test_no_second_sees_more_than_four_and_nothing_that_matters_is_lost(gaps: list[float], logs: list[bool]) -> None:
    pacer, now, sent = Pacer(per_second=4), 0.0, list[tuple[float, Progress | Log]]()
    for n, gap in enumerate(gaps):
        now += gap
        if (message := pacer.offer(LogLine(str(n)) if logs[n] else at(n), now)) is not None:
            sent.append((now, message))
    messages = [message for _, message in sent] + pacer.flush()

    assert all(later >= earlier + 0.25 for (earlier, _), (later, _) in pairwise(sent))
    written = [str(n) for n in range(len(gaps)) if logs[n]]
    assert [text for message in messages if isinstance(message, Log) for text in texts(message)] == written
    if progress := [n for n in range(len(gaps)) if not logs[n]]:
        assert [message for message in messages if isinstance(message, Progress)][-1] == at(progress[-1])


def test_texts_are_cut_and_an_empty_total_is_unknown() -> None:
    progress = checked_progress(0, 0, "u" * 100, "m" * 10_000)
    assert progress.total is None
    assert len(progress.unit or "") == 32
    assert len(progress.message or "") == 4_000
    with pytest.raises(InvalidInput):
        checked_progress(1, float("inf"), None, None)


def test_texts_that_cannot_be_stored_are_replaced() -> None:
    progress = checked_progress(1, None, "\ud800", "a\0b\udfff")
    assert (progress.unit, progress.message) == ("?", "a\ufffdb?")


class Exiting:
    def __str__(self) -> str:
        raise SystemExit


class Share(float):
    """As NumPy's numbers are: a float that no encoder knows."""


def test_fields_of_a_line_become_values_that_can_be_stored(tmp_path: Path) -> None:
    host = RecordingHost()
    context = make_context(tmp_path, host)
    odd: dict[str, Any] = {
        "big": 2**64,
        "vast": 2**20_000,
        "share": Share(0.5),
        "on": True,
        "what": Exiting(),
        "\ud800": "\ud800",
    }
    context.log("\ud800", "info", **odd)
    context.log("many", "info", **{f"f{n}": n for n in range(FIELDS_MAX + 5)})
    (_, message, fields), (_, _, many) = host.lines
    assert message == "?"
    assert fields["big"] == str(2**64)
    assert (fields["share"], fields["on"], fields["?"]) == (0.5, True, "?")
    assert "cannot be had" in fields["vast"]
    assert "SystemExit" in fields["what"]
    assert len(many) == FIELDS_MAX
    orjson.dumps(fields)


async def test_reports_that_cannot_be_published_are_counted_and_take_no_other_along(control: Control) -> None:
    reports = Reports(control.log.broker, "t-unpublishable", 1, "test")
    for odd in (2**70, object()):
        reports.add(LogLine("good"))
        reports.add(LogLine("bad", fields={"n": odd}))
    reports.add(LogLine("good"))
    await reports.close()
    assert reports.lost == 2
    stored = await control.log.broker.js.get_last_msg(PROGRESS, progress_subject("t-unpublishable"))
    assert [line.message for line in log_of(stored.data)] == ["good"]


async def test_closed_reports_take_nothing_more(control: Control) -> None:
    """A coroutine that swallows its cancellation goes on to speak when its attempt has long ended, and may have been erased."""
    reports = Reports(control.log.broker, "t-closed", 1, "test")
    reports.add(LogLine("in time"))
    closing = asyncio.create_task(reports.close())
    for _ in range(3):
        await asyncio.sleep(0)
        reports.add(LogLine("late"))  # also while what was in time is still being published
    await closing
    reports.add(LogLine("late"))
    reports.add(Progress(1))
    await reports.close()
    stored = await control.log.broker.js.get_last_msg(PROGRESS, progress_subject("t-closed"))
    assert [line.message for line in log_of(stored.data)] == ["in time"]


def log_of(payload: bytes | None) -> list[LogLine]:
    report = decode_report(payload or b"", progress_subject("t"))
    assert isinstance(report.data, Log)
    return report.data.lines
