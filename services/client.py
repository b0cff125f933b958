"""The Python client: submit, wait, look, cancel, repeat, and move files, over the native HTTP API.

::

    async with Client("http://127.0.0.1:8000") as client:
        task = await client.submit("echo", {"value": "hello"})
        done = await client.wait(task.task_id)
        print(done.status, done.result)

Answers are the API's own models (:mod:`eventq.services.answers`). What the API refuses is raised from the same tree of
errors that the server uses, told apart by its code; a server that cannot be reached is :class:`Unavailable`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from eventq.events.data import BlobRef
from eventq.events.errors import EventqError, Unavailable
from eventq.services.answers import (
    AgainAnswer,
    CompareAnswer,
    ControlAnswer,
    HealthAnswer,
    RebuildAnswer,
    SubmitAnswer,
    TaskAnswer,
    TaskListAnswer,
    TimelineAnswer,
    VerifyAnswer,
)

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

    from eventq.services.bulk_models import Action, BulkAnswer
    from eventq.services.client_dead_letters import DeadLettersClient
    from eventq.services.client_queues import QueuesClient
    from eventq.services.client_schedules import SchedulesClient
    from eventq.services.client_workers import WorkersClient
    from eventq.services.client_workflows import WorkflowsClient
    from eventq.services.queue_models import ExplainAnswer

Json = dict[str, Any]
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T", SubmitAnswer, TaskAnswer, ControlAnswer, AgainAnswer)

FINISHED = frozenset({"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"})
POLL_FIRST_S, POLL_MAX_S = 0.02, 1.0
REQUEST_TIMEOUT_S = 30.0
STALL_S = 60.0
"""For how long a server may send nothing at all."""

CHUNK_BYTES = 256 * 1024


class ApiError(EventqError):
    """A refusal whose code this client does not know; ``fields["code"]`` has it."""

    code = "API_ERROR"


class Client:
    """One API server, by its base URL (without ``/api/v1``). Use it as an async context manager."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """``timeout_s``: for one request; file transfers may take as long as they move."""
        self._root = base_url.rstrip("/") + "/api/v1"
        self._timeout_s = timeout_s
        self._session: ClientSession | None = None
        self._versions: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @cached_property
    def queues(self) -> QueuesClient:
        """Queues."""
        from eventq.services.client_queues import QueuesClient

        return QueuesClient(self)

    @cached_property
    def schedules(self) -> SchedulesClient:
        """Schedules."""
        from eventq.services.client_schedules import SchedulesClient

        return SchedulesClient(self)

    @cached_property
    def workflows(self) -> WorkflowsClient:
        """Workflows."""
        from eventq.services.client_workflows import WorkflowsClient

        return WorkflowsClient(self)

    @cached_property
    def workers(self) -> WorkersClient:
        """Workers."""
        from eventq.services.client_workers import WorkersClient

        return WorkersClient(self)

    @cached_property
    def dead_letters(self) -> DeadLettersClient:
        """Dead letters."""
        from eventq.services.client_dead_letters import DeadLettersClient

        return DeadLettersClient(self)

    async def submit(
        self,
        task_name: str,
        kwargs: Mapping[str, Any] | None = None,
        *,
        args: Sequence[Any] = (),
        priority: int | None = None,
        queue_name: str | None = None,
        max_retries: int | None = None,
        timeout_seconds: float | None = None,
        scheduled_at: datetime | None = None,
        idempotency_key: str | None = None,
        wait_s: int | None = None,
        **more: Any,
    ) -> SubmitAnswer:
        """Submit a task; what is left out is as the task declares it. ``more``: the other fields of the request, such as
        ``key``, ``tags``, ``unique`` or ``queue_timeout_seconds``. ``wait_s``: let the answer wait so long for the outcome.

        When this raises ``LogUnavailable`` or ``Unavailable``, the task may have been accepted or not: sent again with the
        same ``idempotency_key`` it is accepted once.
        """
        options: Json = {
            "priority": priority,
            "queue_name": queue_name,
            "max_retries": max_retries,
            "timeout_seconds": timeout_seconds,
            "scheduled_at": None if scheduled_at is None else scheduled_at.isoformat(),
            **more,
        }
        body: Json = {"task_name": task_name, "task_args": list(args), "task_kwargs": dict(kwargs or {})}
        body |= {name: value for name, value in options.items() if value is not None}
        headers, timeout_s = _once(idempotency_key, wait_s), self._timeout_s + (wait_s or 0)
        return self._seen(await self.ask(SubmitAnswer, "POST", "/tasks", json=body, headers=headers, timeout_s=timeout_s))

    async def submit_batch(
        self, tasks: Iterable[Json | bytes] | AsyncIterable[Json | bytes], *, idempotency_key: str | None = None
    ) -> AsyncIterator[Json]:
        """Submit up to 10,000 tasks, each with the fields of a request, or such as a line of JSON; yields what became of each,
        in order, as they are stored: ``{"index", "task_id", ...}`` or ``{"index", "error"}``, without an index where no more
        was read; last ``{"accepted", "refused"}``. What ``tasks`` raises is raised; those before it may have been stored."""
        import orjson
        from aiohttp import ClientError

        failed: list[Exception] = []
        headers = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson", **_once(idempotency_key, None)}
        try:
            async with self._opened().post(
                f"{self._root}/tasks/batch", data=_lines(tasks, failed), headers=headers, timeout=_timeout(None)
            ) as response:
                if response.status != 200:
                    raise await _error(response)
                async for line in response.content:
                    yield orjson.loads(line)
        except (ClientError, TimeoutError) as error:
            if failed:
                raise failed[0] from None
            raise _unreachable(self._root, error) from error

    async def get(self, task_id: str, *, min_version: int | None = None, as_of: int | datetime | None = None) -> TaskAnswer:
        """The task, at least as new as what this client has seen of it. ``as_of``: as it was at a position or time."""
        params: dict[str, str] = {}
        if as_of is not None:
            params["as_of"] = as_of.isoformat() if isinstance(as_of, datetime) else str(as_of)
        else:
            params["min_version"] = str(max(min_version or 0, self._versions.get(task_id, 0)))
        answer = await self.ask(TaskAnswer, "GET", _task(task_id), params=params)
        return answer if as_of is not None else self._seen(answer)

    async def wait(self, task_id: str, *, timeout_s: float | None = None) -> TaskAnswer:
        """The task once it has finished, whichever way. Raises ``TimeoutError`` after ``timeout_s`` seconds."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = POLL_FIRST_S
        while True:
            task = await self.get(task_id)
            if task.status in FINISHED:
                return task
            left_s = float("inf") if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"task {task_id} is {task.status} after {timeout_s:g} s")
            await asyncio.sleep(min(pause_s * random.uniform(0.8, 1.2), left_s))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)

    async def list(
        self,
        *,
        status: str | Sequence[str] = (),
        priority: int | None = None,
        queue_name: str | None = None,
        task_name: str | None = None,
        key: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        workflow_id: str | None = None,
        schedule_id: str | None = None,
        parent_task_id: str | None = None,
        limit: int = 50,
        offset: int = 0,
        sort_by: str = "created_at",
        sort_order: str = "desc",
        min_position: int | None = None,
    ) -> TaskListAnswer:
        """A page of tasks, and of how many."""
        options = {
            "priority": priority,
            "queue_name": queue_name,
            "task_name": task_name,
            "key": key,
            "workflow_id": workflow_id,
            "schedule_id": schedule_id,
            "parent_task_id": parent_task_id,
            "limit": limit,
            "offset": offset,
            "sort_by": sort_by,
            "sort_order": sort_order,
            "min_position": min_position,
        }
        params = [(name, str(value)) for name, value in options.items() if value is not None]
        params += [("status", name) for name in ([status] if isinstance(status, str) else status)]
        params += [("tag", tag) for tag in tags]
        params += [("metadata", f"{name}={value}") for name, value in (metadata or {}).items()]
        return await self.ask(TaskListAnswer, "GET", "/tasks", params=params)

    async def explain(self, task_id: str) -> ExplainAnswer:
        """Why it waits, and when it will probably start."""
        from eventq.services.queue_models import ExplainAnswer

        return await self.ask(ExplainAnswer, "GET", f"{_task(task_id)}/explain")

    async def cancel(self, task_id: str, *, reason: str | None = None) -> ControlAnswer:
        """Cancel it. ``status`` is still ``RUNNING`` in the answer where its worker has not stopped it yet."""
        return self._seen(await self.ask(ControlAnswer, "POST", f"{_task(task_id)}/cancel", json={"reason": reason}))

    async def pause(self, task_id: str, *, reason: str | None = None) -> ControlAnswer:
        """Pause it. ``status`` is still ``RUNNING`` in the answer where its worker has not paused it yet."""
        return self._seen(await self.ask(ControlAnswer, "POST", f"{_task(task_id)}/pause", json={"reason": reason}))

    async def resume(self, task_id: str) -> ControlAnswer:
        """Let a paused task go on."""
        return self._seen(await self.ask(ControlAnswer, "POST", f"{_task(task_id)}/resume"))

    async def delete(self, task_id: str) -> ControlAnswer:
        """Give up the result, files and progress of a finished task; its history stays."""
        return self._seen(await self.ask(ControlAnswer, "DELETE", _task(task_id)))

    async def erase(self, task_id: str, *, reason: str | None = None) -> ControlAnswer:
        """Destroy all that a finished task carried, for good."""
        return self._seen(await self.ask(ControlAnswer, "POST", f"{_task(task_id)}/erase", json={"reason": reason}))

    async def update(self, task_id: str, changes: Json, *, version: int | None = None) -> ControlAnswer:
        """Change these fields of a task that has not been started. ``version``: only if that is the present one."""
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        return self._seen(await self.ask(ControlAnswer, "PATCH", _task(task_id), json=changes, headers=headers))

    async def bulk(
        self, action: Action, wanted: Json, *, reason: str | None = None, expected: BulkAnswer | None = None
    ) -> BulkAnswer:
        """Preview ``action`` on all tasks that ``wanted`` selects; with a preview as ``expected`` carry it out, unless the
        selection has changed since (``SelectionChanged``)."""
        from eventq.services.bulk_models import BulkAnswer

        body: Json = {"action": action, "filter": wanted, "reason": reason}
        if expected is not None:
            body["expected"] = expected.model_dump(include={"position", "count", "digest"})
        timeout_s = self._timeout_s if expected is None else None
        return await self.ask(BulkAnswer, "POST", "/tasks/bulk", json=body, timeout_s=timeout_s)

    async def retry(self, task_id: str, *, idempotency_key: str | None = None, wait_s: int | None = None) -> AgainAnswer:
        """Run a failed, cancelled or timed-out task again, as a new task that refers to it. As for :meth:`submit`."""
        return await self._again(task_id, "retry", idempotency_key, wait_s)

    async def replay(self, task_id: str, *, idempotency_key: str | None = None, wait_s: int | None = None) -> AgainAnswer:
        """Run any finished task again, as a new task that refers to it. As for :meth:`submit`."""
        return await self._again(task_id, "replay", idempotency_key, wait_s)

    async def _again(self, task_id: str, how: str, idempotency_key: str | None, wait_s: int | None) -> AgainAnswer:
        headers, timeout_s = _once(idempotency_key, wait_s), self._timeout_s + (wait_s or 0)
        path = f"{_task(task_id)}/{how}"
        return self._seen(await self.ask(AgainAnswer, "POST", path, headers=headers, timeout_s=timeout_s))

    async def timeline(self, task_id: str) -> TimelineAnswer:
        """The task's whole story: events, progress, log lines."""
        params = {"min_version": str(self._versions.get(task_id, 0))}
        return await self.ask(TimelineAnswer, "GET", f"{_task(task_id)}/timeline", params=params)

    async def compare(self, task_id: str, other_id: str) -> CompareAnswer:
        """What two tasks have in common, and how long each took."""
        return await self.ask(CompareAnswer, "GET", f"{_task(task_id)}/compare/{quote(other_id, safe='')}")

    async def health(self) -> HealthAnswer:
        """The server's health; ``status`` may be ``unhealthy``, which is an answer and not an error."""
        return await self.ask(HealthAnswer, "GET", "/health", expected=(200, 503))

    async def verify_projection(self) -> VerifyAnswer:
        """Whether the server's tables are the fold of the log (``equal``); takes as long as folding takes."""
        return await self.ask(VerifyAnswer, "POST", "/projection/verify", timeout_s=None, stall_s=None)

    async def rebuild_projection(self) -> RebuildAnswer:
        """Make the server's tables anew from the log; takes as long as folding takes."""
        return await self.ask(RebuildAnswer, "POST", "/projection/rebuild", timeout_s=None, stall_s=None)

    async def upload(
        self, source: bytes | Path | AsyncIterable[bytes], *, media_type: str = "application/octet-stream"
    ) -> BlobRef:
        """Store a file. The answer is a reference that tasks take as input."""
        data = _chunks(source) if isinstance(source, Path) else BytesIO(source) if isinstance(source, bytes) else source
        headers = {"Content-Type": media_type}
        return await self.ask(BlobRef, "POST", "/blobs", data=data, headers=headers, timeout_s=None)

    async def download(self, blob: BlobRef | str, target: Path) -> int:
        """Store a blob (by reference or key) in ``target``; answers its size in bytes.

        ``target`` appears only once it is complete.
        """
        key = blob if isinstance(blob, str) else blob.key
        part = target.with_name(f".{target.name}.part")
        size = 0
        try:
            with part.open("wb") as file:
                async for chunk in self.stream(key):
                    size += await asyncio.to_thread(file.write, chunk)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return size

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        """A blob's bytes, in chunks."""
        from aiohttp import ClientError

        try:
            async with self._opened().get(f"{self._root}/blobs/{quote(key)}", timeout=_timeout(None)) as response:
                if response.status != 200:
                    raise await _error(response)
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    yield chunk
        except (ClientError, TimeoutError) as error:
            raise _unreachable(self._root, error) from error

    async def ask(
        self,
        answer: type[M],
        method: str,
        path: str,
        *,
        timeout_s: float | None = -1,
        stall_s: float | None = STALL_S,
        expected: tuple[int, ...] = (),
        **options: Any,
    ) -> M:
        """One call of the API, by its path below ``/api/v1``: the way of every method, also of the parts of this client.

        ``expected``: refusals that are answers as well; ``options``: as aiohttp takes them. Raises what the API refuses.
        """
        from aiohttp import ClientError

        timeout = _timeout(self._timeout_s if timeout_s == -1 else timeout_s, stall_s)
        try:
            async with self._opened().request(method, self._root + path, timeout=timeout, **options) as response:
                if response.status >= 400 and response.status not in expected:
                    raise await _error(response)
                return answer.model_validate_json(await response.read() or b"{}")
        except (ClientError, TimeoutError) as error:
            raise _unreachable(self._root, error) from error

    def _opened(self) -> ClientSession:
        if self._session is None:
            from aiohttp import ClientSession, DummyCookieJar

            self._session = ClientSession(cookie_jar=DummyCookieJar())
        return self._session

    def _seen(self, answer: T) -> T:
        """Remember the version, so that a later read from any replica is not older than this answer."""
        self._versions[answer.task_id] = max(self._versions.get(answer.task_id, 0), answer.version)
        return answer


def _once(idempotency_key: str | None, wait_s: int | None) -> dict[str, str]:
    """The headers that make a request count once, and its answer wait."""
    headers = {} if idempotency_key is None else {"Idempotency-Key": f'"{idempotency_key}"'}
    return headers if wait_s is None else {**headers, "Prefer": f"wait={wait_s}"}


async def _lines(tasks: Iterable[Json | bytes] | AsyncIterable[Json | bytes], failed: list[Exception]) -> AsyncIterator[bytes]:
    """Each task as a line of JSON, many to a piece. What ``tasks`` raises is put into ``failed``, too: whoever sends the lines
    takes it for trouble with the connection."""
    try:
        if isinstance(tasks, AsyncIterable):
            async for task in tasks:
                yield _line(task)
            return
        part = bytearray()
        for task in tasks:
            part += _line(task)
            if len(part) >= CHUNK_BYTES:
                yield bytes(part)
                part.clear()
        yield bytes(part)
    except Exception as error:
        failed.append(error)
        raise


def _line(task: Json | bytes) -> bytes:
    import orjson

    return (task if isinstance(task, bytes) else orjson.dumps(task)) + b"\n"


def _task(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def _timeout(total_s: float | None, stall_s: float | None = STALL_S) -> Any:
    from aiohttp import ClientTimeout

    return ClientTimeout(total=total_s, connect=10.0, sock_read=stall_s)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


async def _error(response: ClientResponse) -> EventqError:
    """The server's refusal as the error of its code, with its fields; of an unknown code, as the root of the tree."""
    try:
        body: Json = await response.json()
        code, detail = str(body.pop("code")), str(body.pop("detail"))
    except (ValueError, KeyError, AttributeError):
        return Unavailable(f"{response.url} answered {response.status} without saying why", http_status=response.status)
    kind = _by_code().get(code)
    error = ApiError.__new__(ApiError) if kind is None else kind.__new__(kind)
    EventqError.__init__(error, detail, **{**body, "http_status": response.status, "code": code})
    return error


def _by_code() -> dict[str, type[EventqError]]:
    from eventq.services import bulk_models, http_errors, idempotency  # so that their refusals are known too

    assert all((bulk_models, http_errors, idempotency))
    found: dict[str, type[EventqError]] = {}
    todo = [EventqError]
    while todo:
        kind = todo.pop()
        found.setdefault(kind.code, kind)
        todo += kind.__subclasses__()
    return found


def _unreachable(root: str, error: Exception) -> Unavailable:
    return Unavailable(f"no answer from {root}: {str(error) or type(error).__name__}", url=root)
