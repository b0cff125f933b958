"""Many tasks in one request: each is accepted or refused by itself, and answered, in order, once the log holds it.

Two groups of tasks are in work at a time; a third is read when the answers of the first are on their way. So a client that does
not read its answers is not read from either, and one request holds two groups in memory, however large it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import orjson
import structlog
from aiohttp import web
from pydantic import ValidationError

from eventq.events.envelope import Trace
from eventq.events.errors import EventqError, InvalidInput
from eventq.services.api import Api
from eventq.services.http_body import BODY, check_headers, parse_json, read_bounded, too_large
from eventq.services.http_errors import BadRequest, RequestTimeout
from eventq.services.http_invalid import invalid_input
from eventq.services.http_limits import PARSE_INLINE_MAX_BYTES, HttpLimits
from eventq.services.idempotency import keyed_id, record_of
from eventq.services.preparation import AT_ONCE, Submission, prepare_all
from eventq.services.schemas import SubmitRequest
from eventq.services.submission import Accepted, submit_all

log = structlog.get_logger("eventq.batch")

GROUP_MAX = 512
"""Tasks that are checked, stored and answered together."""

JSON_TYPE, LINES_TYPE = "application/json", "application/x-ndjson"

Item = bytes | dict[str, Any]
"""One task: a line that is not parsed yet, or an element of an array that is."""

Deliver = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Takes the answers of a group on their way."""


class ToSubmission(Protocol):
    """How a checked request becomes a submission."""

    def __call__(self, body: SubmitRequest, **known: Any) -> Submission: ...


async def items_of(request: web.Request, limits: HttpLimits) -> AsyncIterator[Sequence[Item]]:
    """The tasks of the request in groups, as they come. Raises what is wrong with the body as a whole."""
    if request.content_type == JSON_TYPE:
        check_headers(request, limits.batch_array_max_bytes)
        items = await _array(request, limits)
        for start in range(0, len(items), GROUP_MAX):
            yield items[start : start + GROUP_MAX]
        return
    check_headers(request, limits.batch_lines_max_bytes, (LINES_TYPE, JSON_TYPE))
    count = 0
    async for lines in _lines(request, limits):
        for start in range(0, len(lines), GROUP_MAX):
            group = lines[start : start + GROUP_MAX]
            room = limits.batch_tasks_max - count
            count += len(group)
            if room > 0:
                yield group[:room]
            if count > limits.batch_tasks_max:
                raise _too_many(limits.batch_tasks_max, f"more than {limits.batch_tasks_max}")


async def _array(request: web.Request, limits: HttpLimits) -> list[Any]:
    raw = await read_bounded(request, limits.batch_array_max_bytes, limits.batch_deadline_s)
    value = await asyncio.to_thread(parse_json, raw)
    if not isinstance(value, list):
        raise InvalidInput(BODY, "must be a JSON array of tasks", found=type(value).__name__)
    items = [*cast("Sequence[Any]", value)]
    if len(items) > limits.batch_tasks_max:
        raise _too_many(limits.batch_tasks_max, len(items))
    return items


async def _lines(request: web.Request, limits: HttpLimits) -> AsyncIterator[list[bytes]]:
    """Whole lines that are not blank, as many as came together."""
    rest, size = b"", 0
    while True:
        try:
            async with asyncio.timeout(limits.blob_stall_s):
                piece = await request.content.readany()
        except TimeoutError:
            problem = f"the body stood still for {limits.blob_stall_s:g} s"
            raise RequestTimeout(problem, field=BODY, limit=limits.blob_stall_s, found=f"{size} bytes") from None
        except web.RequestPayloadError:
            raise BadRequest("the body's transfer encoding is broken", field=BODY) from None
        size += len(piece)
        if size > limits.batch_lines_max_bytes:
            raise too_large(limits.batch_lines_max_bytes, f"more than {limits.batch_lines_max_bytes}")
        whole = rest + piece
        *lines, rest = whole.split(b"\n") if piece else (rest, b"")
        # Together they are rarely longer than one line may be: then no line needs to be measured.
        if len(whole) > limits.batch_line_max_bytes and max(map(len, (*lines, rest))) > limits.batch_line_max_bytes:
            raise too_large(limits.batch_line_max_bytes, f"a line of more than {limits.batch_line_max_bytes}")
        if lines := [line for line in lines if line.strip()]:
            yield lines
        if not piece:
            return


def _too_many(limit: int, found: object) -> InvalidInput:
    return InvalidInput(BODY, f"holds more than {limit} tasks", limit=limit, found=found)


class _Work(NamedTuple):
    """A group in work. ``stored``: set once no more of it will come to the log; ``done``: ends once it is answered."""

    stored: asyncio.Event
    done: asyncio.Task[None]


class Batch:
    """The tasks of one request. ``accepted`` and ``refused`` count what was answered so far."""

    def __init__(
        self, api: Api, to_submission: ToSubmission, *, requested_by: str, trace: Trace, idempotency_key: str | None
    ) -> None:
        self.accepted = 0
        self.refused = 0
        self.queues: dict[str, int] = {}
        """How many were accepted for each queue."""
        self._api = api
        self._to_submission = to_submission
        self._requested_by = requested_by
        self._trace = trace
        self._key = idempotency_key
        self._taken = 0

    async def run(self, groups: AsyncIterator[Sequence[Item]], deliver: Deliver) -> None:
        """Submit group after group, and deliver what became of each, in order. One is checked while the log stores the one
        before it; no third is read until the answers of the first are delivered."""
        last: _Work | None = None
        try:
            async for group in groups:
                before, stored = last, asyncio.Event()
                last = _Work(stored, asyncio.create_task(self._submit(group, deliver, before, stored)))
                if before is not None:
                    await before.done
        finally:
            if last is not None:
                await last.done

    async def _submit(self, group: Sequence[Item], deliver: Deliver, before: _Work | None, stored: asyncio.Event) -> None:
        first, self._taken = self._taken, self._taken + len(group)
        try:
            wanted, refused = await self._checked(first, group)
            prepared = await prepare_all(self._api, [*wanted.values()])
            if before is not None:
                await before.stored.wait()  # the log keeps the order of the groups
            outcomes = refused | dict(zip(wanted, await submit_all(self._api, prepared, self._trace), strict=True))
        except Exception as error:
            outcomes = dict.fromkeys(range(first, first + len(group)), error)
        finally:
            stored.set()
        _log_unexpected(outcomes)
        answers = [self._answer(index, outcomes[index]) for index in sorted(outcomes)]
        if before is not None:
            await before.done
        await deliver(answers)

    async def _checked(
        self, first: int, group: Sequence[Item]
    ) -> tuple[dict[int, Submission], dict[int, Accepted | BaseException]]:
        """What is wanted, and what is no submission, by its index."""
        wanted: dict[int, Submission] = {}
        refused: dict[int, Accepted | BaseException] = {}
        for index, item in enumerate(group, first):
            if index % AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                wanted[index] = await self._wanted(index, item)
            except Exception as error:
                refused[index] = error
        return wanted, refused

    async def _wanted(self, index: int, item: Item) -> Submission:
        value: Any = item
        if isinstance(item, bytes):
            large = len(item) > PARSE_INLINE_MAX_BYTES
            value = await asyncio.to_thread(parse_json, item) if large else parse_json(item)
        if not isinstance(value, dict):
            raise InvalidInput(BODY, "must be a JSON object", found=type(value).__name__)
        try:
            body = SubmitRequest.model_validate(value)
        except ValidationError as error:
            raise invalid_input(error, SubmitRequest, as_pointers=True) from None
        known: dict[str, Any] = {"requested_by": self._requested_by}
        if self._key is not None:
            known["idempotency"] = record_of(self._key, ["batch", index, value])
            known["task_id"] = keyed_id(self._key, "batch", str(index))
        return self._to_submission(body, **known)

    def _answer(self, index: int, outcome: Accepted | BaseException) -> dict[str, Any]:
        if isinstance(outcome, BaseException):
            self.refused += 1
            return {"index": index, "error": _refusal(outcome)}
        self.accepted += 1
        queue = outcome.submitted.queue
        self.queues[queue] = self.queues.get(queue, 0) + 1
        answer = {
            "index": index,
            "task_id": outcome.task_id,
            "status": outcome.task.status.value,
            "version": outcome.task.version,
        }
        return answer | {"duplicate": True} if outcome.duplicate else answer


def _log_unexpected(outcomes: Mapping[int, Accepted | BaseException]) -> None:
    """Log what is no refusal, once, however many tasks it struck."""
    errors = {id(error): (index, error) for index, error in outcomes.items() if isinstance(error, BaseException)}
    for index, error in errors.values():
        if not isinstance(error, EventqError):
            log.error("batch.failed", index=index, exc_info=error)


def _refusal(error: BaseException) -> dict[str, Any]:
    if isinstance(error, EventqError):
        return error_of(error)
    return {"code": "INTERNAL_ERROR", "detail": "Internal error; the log has the details."}


def error_of(error: EventqError) -> dict[str, Any]:
    """A refusal as it stands in the answer of a batch."""
    return {"code": error.code, "detail": error.detail, **error.fields}


def line(answer: dict[str, Any]) -> bytes:
    """One answer as a line."""
    return orjson.dumps(answer, default=str) + b"\n"
