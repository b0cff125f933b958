"""How results get from node to node: references in arguments, JSON pointers, conditions. Pure.

``{"$from": "node"}`` anywhere in the arguments stands for the node's result, ``"path": "/a/0"`` for a part of it (a JSON
pointer, RFC 6901), ``"children": true`` for the list of the results of the tasks that it spawned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import orjson

from eventq.events.data import JSON
from eventq.events.errors import InvalidInput
from eventq.events.limits import NODE_RESULTS_MAX_BYTES, REFERENCE_DEPTH_MAX
from eventq.events.task_events import Submitted
from eventq.events.workflow_events import Condition, Node

FROM = "$from"
_KEYS = frozenset({FROM, "path", "children"})

TOO_MUCH = f"all the results that it takes are larger than {NODE_RESULTS_MAX_BYTES} bytes together"
"""Why a node fails that takes more than any may."""


class Wanted(NamedTuple):
    """A result: of a node's task, or the list of those of its children."""

    node: str
    children: bool


class Unresolved(Exception):
    """A reference that leads nowhere; the sentence says which."""


def read_reference(value: dict[str, Any], field: str) -> tuple[Wanted, str]:
    """What an object with ``$from`` refers to. Raises ``InvalidInput`` for one that is malformed."""
    unknown = sorted(set(value) - _KEYS)
    node, path, children = value[FROM], value.get("path", ""), value.get("children", False)
    if unknown or not isinstance(node, str) or not isinstance(path, str) or not isinstance(children, bool):
        problem = "must be a reference: {'$from': node, 'path': JSON pointer, 'children': true or false}"
        raise InvalidInput(field, problem, found=", ".join(unknown) or None)
    if path and not path.startswith("/"):
        raise InvalidInput(f"{field}/path", "must be a JSON pointer: empty, or begin with '/'", found=path[:80])
    return Wanted(node, children), path


def references(value: JSON, field: str, depth: int = 0) -> list[tuple[Wanted, str]]:
    """Every reference within ``value``, each with its place. Raises ``InvalidInput``."""
    if depth > REFERENCE_DEPTH_MAX:
        raise InvalidInput(field, "is nested too deeply", limit=REFERENCE_DEPTH_MAX)
    found: list[tuple[Wanted, str]] = []
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if FROM in fields:
            return [(read_reference(fields, field)[0], field)]
        for name, part in fields.items():
            found += references(part, f"{field}/{name}", depth + 1)
    elif isinstance(value, list):
        items = cast("Sequence[Any]", value)
        for number, part in enumerate(items):
            found += references(part, f"{field}/{number}", depth + 1)
    return found


def wanted_by(node: Node) -> frozenset[Wanted]:
    """The results that must be known to decide whether the node runs, and with what."""
    found = {Wanted(condition.node, False) for condition in node.when}
    if node.task is not None:
        found |= wanted_by_task(node.task)
    return frozenset(found)


def wanted_by_task(task: Submitted) -> frozenset[Wanted]:
    """The results that a task's arguments refer to."""
    return frozenset(wanted for wanted, _ in references([task.args, task.kwargs], ""))


def resolve(value: JSON, results: Mapping[Wanted, JSON]) -> JSON:
    """``value`` with its references replaced. Raises :class:`Unresolved` where a pointer leads nowhere, or where what they
    stand for is too much: a result may be taken any number of times, and is small in memory, but not in what is stored."""
    taken: Counter[tuple[Wanted, str]] = Counter()
    resolved = _resolve(value, results, taken)
    if taken.total() > len({wanted for wanted, _ in taken}):  # else nothing is taken twice, and the results are within bounds
        sizes = {each: len(orjson.dumps(_part(results, *each))) for each in taken}
        if sum(sizes[each] * times for each, times in taken.items()) > NODE_RESULTS_MAX_BYTES:
            raise Unresolved(TOO_MUCH)
    return resolved


def _resolve(value: JSON, results: Mapping[Wanted, JSON], taken: Counter[tuple[Wanted, str]]) -> JSON:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if FROM in fields:
            reference = read_reference(fields, "")
            taken[reference] += 1
            return _part(results, *reference)
        return {name: _resolve(part, results, taken) for name, part in fields.items()}
    if isinstance(value, list):
        items = cast("Sequence[Any]", value)
        return [_resolve(part, results, taken) for part in items]
    return value


def _part(results: Mapping[Wanted, JSON], wanted: Wanted, path: str) -> JSON:
    known = results[wanted]
    return None if known is None else point(known, path, wanted.node)


def point(value: JSON, path: str, node: str) -> JSON:
    """What stands at a JSON pointer. Raises :class:`Unresolved`."""
    for token in path.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        kind = cast("object", type(value))
        if kind is dict and name in value:
            value = value[name]
        elif kind is list and _is_index(name, len(value)):
            value = value[int(name)]
        else:
            raise Unresolved(f"the result of {node} has nothing at {path[:80]!r}")
    return value


def _is_index(token: str, length: int) -> bool:
    return len(token) < 10 and token.isascii() and token.isdigit() and int(token) < length


def all_hold(conditions: Iterable[Condition], results: Mapping[Wanted, JSON]) -> bool:
    """Whether all conditions hold. What compares with nothing, or with another type, does not hold."""
    return all(_holds(condition, results[Wanted(condition.node, False)]) for condition in conditions)


def _holds(condition: Condition, result: JSON) -> bool:
    try:
        found, exists = point(result, condition.path, condition.node), True
    except Unresolved:
        found, exists = None, False
    match condition.op:
        case "exists":
            return exists and found is not None
        case "not_exists":
            return found is None
        case "equals":
            return exists and _same(found, condition.value)
        case "not_equals":
            return not exists or not _same(found, condition.value)
        case _:
            return exists and _compares(condition.op, found, condition.value)


def _same(found: JSON, value: JSON) -> bool:
    return isinstance(found, bool) == isinstance(value, bool) and bool(found == value)  # true is not 1


def _compares(op: str, found: JSON, value: JSON) -> bool:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (found, value))
    if not numbers and not (isinstance(found, str) and isinstance(value, str)):
        return False
    match op:
        case "less":
            return bool(found < value)
        case "less_or_equal":
            return bool(found <= value)
        case "greater":
            return bool(found > value)
        case _:
            return bool(found >= value)
