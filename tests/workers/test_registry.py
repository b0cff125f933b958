"""Registration and binding: what may be a task, what it declares, and which arguments it lets through."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import jsonschema
import pytest
from pydantic import BaseModel, Field

from eventq.events.errors import InvalidInput, UnknownTask
from eventq.events.retry import RetryPolicy
from eventq.workers.context import Context, TaskCancelled
from eventq.workers.registry import Registry, TaskDefinitionError, TaskFunction, load_modules, task
from tests.workers.support import RecordingHost, make_context


class Size(BaseModel):
    width: Annotated[int, Field(ge=1, le=100)]
    height: int = 5


@pytest.fixture
def registry() -> Registry:
    return Registry()


def resize(
    ctx: Context, path: str, size: Size, copies: Annotated[int, Field(ge=1)] = 1, *, on: date | None = None, schema: str = "a"
) -> dict[str, Any]:
    """Make it smaller."""
    return {"task": ctx.task_id, "path": path, "size": size, "copies": copies, "on": on, "schema": schema}


@pytest.fixture
def resizing(registry: Registry) -> TaskFunction:
    registry.task(resize)
    return registry.get("resize")


def test_a_task_declares_what_a_submission_must_look_like(registry: Registry) -> None:
    retry = RetryPolicy(initial_s=2, factor=3, max_s=60, jitter=0)
    registry.task(name="img.resize", pool="gpu", queue="big", priority=9, max_retries=0, timeout_s=30, retry=retry)(resize)
    (declared,) = registry.declarations()

    assert (declared.name, declared.pool, declared.queue, declared.priority) == ("img.resize", "gpu", "big", 9)
    assert (declared.max_retries, declared.timeout_s, declared.retry) == (0, 30, retry)
    assert declared.doc == "Make it smaller."
    assert declared.parameters == ["path", "size", "copies"]
    schema = declared.arguments
    jsonschema.Draft202012Validator.check_schema(schema)

    def accepts(arguments: dict[str, Any]) -> bool:
        try:
            jsonschema.validate(arguments, schema, jsonschema.Draft202012Validator)
        except jsonschema.ValidationError:
            return False
        return True

    assert accepts({"path": "x", "size": {"width": 1}})
    assert accepts({"path": "x", "size": {"width": 1}, "on": "2026-01-01", "copies": 2, "schema": "b"})
    for wrong in (
        {"size": {"width": 1}},
        {"path": "x", "size": {"width": 0}},
        {"path": "x", "size": {"width": 1}, "copies": 0},
        {"path": "x", "size": {"width": 1}, "ctx": 1},
        {"path": 3, "size": {"width": 1}},
    ):
        assert not accepts(wrong), wrong


def test_defaults_are_the_documented_ones(resizing: TaskFunction) -> None:
    declared = resizing.declaration
    assert (declared.pool, declared.queue, declared.priority, declared.max_retries) == ("cpu", "default", 5, 3)
    assert declared.timeout_s is None
    assert declared.retry == RetryPolicy()


def test_arguments_are_bound_by_position_and_by_name(resizing: TaskFunction) -> None:
    bound = resizing.bind(["a.png", {"width": 7}], {"on": "2026-11-21", "schema": "b"})
    assert bound == {"path": "a.png", "size": Size(width=7), "copies": 1, "on": date(2026, 11, 21), "schema": "b"}
    assert bound == resizing.bind([], {"path": "a.png", "size": {"width": 7}, "on": "2026-11-21", "schema": "b"})


@pytest.mark.parametrize(
    ("args", "kwargs", "field", "sentence"),
    [
        ([], {}, "path", "path: is required (and 1 more)"),
        (["a"], {"size": {}}, "size.width", "size.width: is required"),
        (["a"], {"size": {"width": 101}}, "size.width", "size.width: input should be less than or equal to 100"),
        (["a", {"width": 1}, "x"], {}, "copies", "copies: input should be a valid integer"),
        (["a", {"width": 1}, 1, 2], {}, "args", "args: holds more values than the task has parameters"),
        (["a", {"width": 1}], {"path": "b"}, "path", "path: is given twice"),
        (["a", {"width": 1}], {"pth": "b"}, "pth", "pth: is no parameter of this task"),
        (["a", {"width": 1}], {"ctx": "b"}, "ctx", "ctx: is no parameter of this task"),
        (["a", {"width": 1}], {"p0": "b"}, "p0", "p0: is no parameter of this task"),
        (["a", {"width": 1}], {"": "b"}, "", "is no parameter of this task"),
        (["a", "b"], {}, "size", "size: input should be a valid dictionary"),
    ],
)
def test_a_bad_argument_is_named(
    resizing: TaskFunction, args: list[Any], kwargs: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        resizing.bind(args, kwargs)
    assert refused.value.field == field or not field
    assert sentence in refused.value.detail


def test_an_unknown_name_is_answered_with_the_known_ones(resizing: TaskFunction) -> None:
    with pytest.raises(InvalidInput) as refused:
        resizing.bind(["a", {"width": 1}], {"pth": "b"})
    assert refused.value.fields["hint"] == "parameters: path, size, copies, on, schema"


def test_what_an_error_repeats_of_a_value_is_bounded(resizing: TaskFunction) -> None:
    with pytest.raises(InvalidInput) as refused:
        resizing.bind(["a", {"width": 1}, "x" * 1_000_000], {})
    assert len(str(refused.value.fields)) < 500


async def test_plain_and_async_functions_are_called_with_the_context(registry: Registry, tmp_path: Path) -> None:
    @registry.task
    async def later(value: int, ctx: Context) -> tuple[int, str]:
        return value, ctx.worker_id

    @registry.task
    def without(value: int) -> int:
        return value + 1

    context = make_context(tmp_path)
    assert registry.get("later").is_async
    assert await registry.get("later").call(context, ["3"], {}) == (3, "worker-1")
    assert not registry.get("without").is_async
    assert registry.get("without").call(context, [], {"value": 1}) == 2


def test_a_mutable_default_is_not_shared_between_calls(registry: Registry, tmp_path: Path) -> None:
    @registry.task
    def collect(item: int, into: list[int] = []) -> list[int]:  # noqa: B006
        into.append(item)
        return into

    context = make_context(tmp_path)
    assert registry.get("collect").call(context, [1], {}) == [1]
    assert registry.get("collect").call(context, [2], {}) == [2]


def test_the_function_stays_itself(registry: Registry) -> None:
    def add(x: int, y: int) -> int:
        return x + y

    assert registry.task(add) is add
    assert registry.task(name="plus")(add) is add
    assert [registered.name for registered in registry] == ["add", "plus"]


def test_two_functions_of_one_name_are_refused_naming_both(registry: Registry) -> None:
    @registry.task(name="same")
    def first() -> None: ...

    with pytest.raises(TaskDefinitionError) as refused:

        @registry.task(name="same")
        def second() -> None: ...

    assert "first" in str(refused.value)
    assert "second" in str(refused.value)
    assert str(refused.value).count("test_registry.py:") == 2
    assert registry.get("same").function is first


def test_a_reloaded_function_replaces_itself(registry: Registry) -> None:
    for _ in range(2):

        @registry.task
        def again() -> None: ...

    assert len(registry) == 1


def test_an_unknown_task_is_an_error_with_its_name(registry: Registry) -> None:
    with pytest.raises(UnknownTask) as unknown:
        registry.get("nope")
    assert unknown.value.fields["found"] == "nope"
    assert "nope" not in registry


def several(*args: int) -> None: ...
def named(**kwargs: int) -> None: ...
def positional(x: int, /) -> None: ...
def two_contexts(a: Context, b: Context) -> None: ...
def unserialisable(x: socket.socket) -> None: ...
def unknown_type(x: int) -> None: ...
def generator(x: int) -> Any:
    yield x


bare: Any = eval("lambda x: None")
unknown_type.__annotations__["x"] = "Nowhere"


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (several, "takes *args"),
        (named, "takes *kwargs"),
        (positional, "positional-only parameter 'x'"),
        (bare, "no type for the parameter 'x'"),
        (two_contexts, "takes two contexts"),
        (unserialisable, "cannot arrive as JSON"),
        (unknown_type, "not under TYPE_CHECKING"),
        (generator, "is a generator"),
        (print, "is no function"),
        (Size, "is no function"),
    ],
)
def test_a_function_that_cannot_be_a_task_is_refused(registry: Registry, function: Any, problem: str) -> None:
    with pytest.raises(TaskDefinitionError, match="(?s).*" + problem.replace("*", r"\*")):
        registry.task(function)
    assert len(registry) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a b"},
        {"name": ""},
        {"pool": "gpu-1"},
        {"queue": "a.b"},
        {"priority": 11},
        {"priority": -1},
        {"max_retries": -1},
        {"max_retries": 101},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
    ],
)
def test_an_option_out_of_range_is_refused(registry: Registry, options: dict[str, Any]) -> None:
    def fine() -> None: ...

    with pytest.raises(TaskDefinitionError):
        registry.task(**options)(fine)
    assert len(registry) == 0


def test_cancellation_passes_through_except_exception(tmp_path: Path) -> None:
    context = make_context(tmp_path, RecordingHost(cancel_after=0))

    def stubborn() -> None:
        try:
            context.check()
        except Exception:
            pytest.fail("swallowed")

    with pytest.raises(TaskCancelled):
        stubborn()
    assert context.cancelled


def test_a_context_passes_on_progress_and_log_lines(tmp_path: Path) -> None:
    host = RecordingHost()
    context = make_context(tmp_path, host)
    context.check()
    context.progress(1, 2, "rows", "half-way")
    context.log("slow", level="warning", row=7)
    ref = context.put_output("a.txt", b"x", "text/plain")

    assert (host.updates[0].done, host.updates[0].total, host.updates[0].unit) == (1, 2, "rows")
    assert host.lines == [("warning", "slow", {"row": 7})]
    assert ref.key == "tasks/task-1/1/a.txt"
    with pytest.raises(InvalidInput):
        context.log("x", level="loud")
    for bad in (float("nan"), float("inf"), -1):
        with pytest.raises(InvalidInput):
            context.progress(bad)


def test_modules_are_loaded_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from eventq import task\n\n@task(name={name!r})\ndef f(x: int) -> int:\n    return x\n"
    by_path, by_name = f"tasks_{uuid4().hex}", f"tasks_{uuid4().hex}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{by_path}.py").write_text(source.format(name=by_path))
    (tmp_path / f"{by_name}.py").write_text(source.format(name=by_name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    registry = load_modules([str(elsewhere / f"{by_path}.py"), by_name])
    assert registry is load_modules([f"elsewhere/{by_path}.py"])
    assert by_path in registry
    assert by_name in registry
    assert registry.get(by_name).module == by_name
    with pytest.raises(ModuleNotFoundError):
        load_modules(["no_such_module_anywhere"])
    with pytest.raises(FileNotFoundError):
        load_modules(["no_such_file.py"])


def test_a_path_whose_name_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ImportError, match="already the name of"):
        load_modules([str(tmp_path / "json.py")])


def test_the_built_in_tasks_cost_little_to_load() -> None:
    script = (
        "import sys; from eventq.workers.registry import load_modules;"
        "print(*sorted(t.name for t in load_modules()));"
        "print(*[m for m in ('torch', 'PIL', 'charset_normalizer', 'aiohttp', 'obstore') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    names, heavy = done.stdout.split("\n")[:2]
    assert names == "csv_processing echo gpu_check image_processing"
    assert heavy == ""


def test_the_facade_offers_the_decorator() -> None:
    import eventq

    assert eventq.task == task
    assert eventq.Context is Context
