"""Arguments against declarations, and how long declarations are believed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from eventq.events.errors import InvalidInput, UnknownTask
from eventq.events.retry import RetryPolicy
from eventq.events.worker_events import TaskDeclaration
from eventq.services.arguments import Declarations

RESIZE = TaskDeclaration(
    name="resize",
    pool="cpu",
    queue="default",
    priority=5,
    max_retries=0,
    timeout_s=None,
    retry=RetryPolicy(),
    parameters=["width", "options"],
    arguments={
        "type": "object",
        "properties": {
            "width": {"type": "integer", "maximum": 100},
            "options": {"anyOf": [{"$ref": "#/$defs/Options"}, {"type": "null"}]},
        },
        "required": ["width"],
        "additionalProperties": False,
        "$defs": {"Options": {"type": "object", "properties": {"a/b": {"type": "string"}}}},
    },
)


class Source:
    """Counts how often it is asked."""

    def __init__(self, *declarations: TaskDeclaration) -> None:
        self.known = {declaration.name: declaration for declaration in declarations}
        self.asked = 0

    async def fetch(self) -> dict[str, TaskDeclaration]:
        self.asked += 1
        return dict(self.known)


async def test_a_known_declaration_is_not_asked_for_again() -> None:
    source = Source(RESIZE)
    declarations = Declarations(source.fetch)
    for _ in range(3):
        assert await declarations.get("resize") is RESIZE
    assert source.asked == 1


async def test_an_unknown_name_is_asked_for_at_once_and_hinted() -> None:
    source = Source(RESIZE)
    declarations = Declarations(source.fetch)
    with pytest.raises(UnknownTask) as refused:
        await declarations.get("resise")
    assert refused.value.fields["hint"] == "did you mean 'resize'?"
    source.known["new"] = RESIZE.model_copy(update={"name": "new"})
    assert (await declarations.get("new")).name == "new"


async def test_without_any_worker_the_hint_says_how_to_start_one() -> None:
    with pytest.raises(UnknownTask) as refused:
        await Declarations(Source().fetch).get("resize")
    assert "eventq worker" in str(refused.value.fields["hint"])


@pytest.mark.parametrize(
    ("args", "kwargs"), [([5], {}), ([], {"width": 5}), ([5, None], {}), ([5], {"options": {"a/b": "x", "c": 1}})]
)
def test_arguments_that_fit_pass(args: list[Any], kwargs: dict[str, Any]) -> None:
    Declarations(Source().fetch).check(RESIZE, args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "field"),
    [
        ([], {}, "/task_kwargs/width"),
        ([1, None, 3], {}, "/task_args"),
        ([1], {"width": 1}, "/task_kwargs/width"),
        (["1"], {}, "/task_args/0"),
        ([101], {}, "/task_args/0"),
        ([1, 2], {}, "/task_args/1"),
        ([], {"width": 1, "options": 2}, "/task_kwargs/options"),
        ([1], {"else/where": 1}, "/task_kwargs/else~1where"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_place(args: list[Any], kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Declarations(Source().fetch).check(RESIZE, args, kwargs)
    assert refused.value.field == field


def test_a_changed_declaration_is_checked_anew() -> None:
    declarations = Declarations(Source().fetch)
    declarations.check(RESIZE, [5], {})
    changed = RESIZE.model_copy(update={"arguments": {**RESIZE.arguments, "properties": {"width": {"maximum": 3}}}})
    with pytest.raises(InvalidInput):
        declarations.check(changed, [5], {})


SCAN = RESIZE.model_copy(
    update={
        "name": "scan",
        "parameters": ["words", "ids"],
        "arguments": {
            "type": "object",
            "properties": {
                "words": {"type": "string", "pattern": r"^(\p{L}+ ?)+$"},
                "ids": {"type": "array", "uniqueItems": True},
            },
        },
    }
)


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"words": "a" * 50_000 + "!"}, "/task_kwargs/words"),
        ({"ids": [{"a": [number]} for number in range(6_000)] + [{"a": [5.0]}]}, "/task_kwargs/ids"),
    ],
)
def test_a_check_takes_no_longer_than_in_proportion_to_the_arguments(kwargs: dict[str, Any], field: str) -> None:
    """Given a pattern and a set that invite to try everything, when what does not fit is sent, then it is refused at once."""
    began = time.monotonic()
    with pytest.raises(InvalidInput) as refused:
        Declarations(Source().fetch).check(SCAN, [], kwargs)
    assert refused.value.field == field
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("ids", [[], [1, True, "1", None], [{"a": 1}, {"a": True}, {}], [[1], [[1]], [1, 1]]])
def test_items_that_differ_are_unique(ids: list[Any]) -> None:
    Declarations(Source().fetch).check(SCAN, [], {"words": "tř é", "ids": ids})


def test_a_pattern_with_look_around_is_checked_as_well() -> None:
    properties = {"words": {"type": "string", "pattern": "^(?!no)"}}
    scan = SCAN.model_copy(update={"arguments": {"type": "object", "properties": properties}})
    declarations = Declarations(Source().fetch)
    declarations.check(scan, ["yes"], {})
    with pytest.raises(InvalidInput):
        declarations.check(scan, ["no"], {})


def test_a_tree_of_either_kind_is_checked_once_and_refused_by_place() -> None:
    """Given two kinds of nodes that hold nodes of either kind, when a deep tree is sent, then it is checked at once; and what
    is wrong in a part of it is told by its place, also where the same is wrong in another."""
    either = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}, {"type": "integer"}]}
    kinds = {name: {"type": "object", "properties": {"below": either}, "required": [name.lower()]} for name in "AB"}
    properties = {"tree": {"$ref": "#/$defs/B"}, "more": {"type": "array", "items": {"$ref": "#/$defs/A"}}}
    arguments = {"type": "object", "properties": properties, "$defs": kinds}
    grow = RESIZE.model_copy(update={"name": "grow", "parameters": ["tree"], "arguments": arguments})
    good: Any = 1
    bad: Any = "no number"
    for _ in range(30):
        good, bad = {"b": 1, "below": good}, {"b": 1, "below": bad}
    declarations = Declarations(Source().fetch)
    began = time.monotonic()
    declarations.check(grow, [good], {})
    with pytest.raises(InvalidInput) as refused:
        declarations.check(grow, [bad], {})
    assert refused.value.field == "/task_args/0/below"
    assert time.monotonic() - began < 2.0
    shared = {"b": 1}
    with pytest.raises(InvalidInput) as refused:
        declarations.check(grow, [1], {"more": [{"a": 1}, shared, shared]})
    assert refused.value.field == "/task_args/0"
    with pytest.raises(InvalidInput) as refused:
        declarations.check(grow, [good], {"more": [{"a": 1}, shared, shared]})
    assert refused.value.field == "/task_kwargs/more/1/a"
