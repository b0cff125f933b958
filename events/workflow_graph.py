"""A workflow's nodes as a graph: checked once when it is submitted, then looked up while it runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventq.events.errors import InvalidInput
from eventq.events.limits import WORKFLOW_EDGES_MAX, WORKFLOW_NODES_MAX, WORKFLOW_WAITS_MAX
from eventq.events.workflow_events import Definition, Node
from eventq.events.workflow_values import Wanted, references, wanted_by

CYCLE_SHOWN_MAX = 20
"""Nodes of a cycle that are named."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A sound definition. ``dependents``: the other direction of ``depends_on``; ``wanted``: results each node needs to
    start; ``shown_children``: nodes the results of whose children somebody wants."""

    nodes: dict[str, Node]
    dependents: dict[str, list[str]]
    wanted: dict[str, frozenset[Wanted]]
    shown_children: frozenset[str]

    @classmethod
    def of(cls, definition: Definition) -> Graph:
        """The graph of a definition that was checked."""
        dependents: dict[str, list[str]] = {node.name: [] for node in definition.nodes}
        for node in definition.nodes:
            for name in node.depends_on:
                dependents[name].append(node.name)
        wanted = {node.name: wanted_by(node) for node in definition.nodes}
        shown = {each.node for found in wanted.values() for each in found if each.children}
        shown |= {each.node for node in definition.nodes for each, _ in _refs(node) if each.children}
        return cls({node.name: node for node in definition.nodes}, dependents, wanted, frozenset(shown))

    @property
    def sinks(self) -> list[str]:
        """Nodes that nothing depends on: their results are the workflow's."""
        return [name for name, after in self.dependents.items() if not after]


def check_graph(nodes: Sequence[Node]) -> None:
    """Raise ``InvalidInput`` naming the first thing that makes these no workflow."""
    _check_size(nodes)
    places: dict[str, int] = {}
    for number, node in enumerate(nodes):
        if node.name in places:
            raise InvalidInput(f"/nodes/{number}/name", "is the name of another node as well", found=node.name)
        places[node.name] = number
    for number, node in enumerate(nodes):
        for at, name in enumerate(node.depends_on):
            if name not in places:
                raise InvalidInput(f"/nodes/{number}/depends_on/{at}", "is not the name of a node", found=name[:80])
        if len(set(node.depends_on)) < len(node.depends_on):
            raise InvalidInput(f"/nodes/{number}/depends_on", "names a node twice")
    if cycle := _find_cycle(nodes):
        shown = cycle if len(cycle) <= CYCLE_SHOWN_MAX else [*cycle[: CYCLE_SHOWN_MAX - 1], "...", cycle[-1]]
        raise InvalidInput("/nodes", f"depend on each other in a cycle: {' -> '.join(shown)}", found=len(cycle) - 1)
    _check_references(nodes, places)


def _check_size(nodes: Sequence[Node]) -> None:
    if not 1 <= len(nodes) <= WORKFLOW_NODES_MAX:
        raise InvalidInput("/nodes", f"must be 1 to {WORKFLOW_NODES_MAX}", limit=WORKFLOW_NODES_MAX, found=len(nodes))
    edges = sum(len(node.depends_on) for node in nodes)
    if edges > WORKFLOW_EDGES_MAX:
        raise InvalidInput("/nodes", "have too many dependencies together", limit=WORKFLOW_EDGES_MAX, found=edges)
    waits = sum(node.kind != "task" for node in nodes)
    if waits > WORKFLOW_WAITS_MAX:
        raise InvalidInput("/nodes", "have too many approvals and signals", limit=WORKFLOW_WAITS_MAX, found=waits)


def _find_cycle(nodes: Sequence[Node]) -> list[str]:
    """A cycle as ``[a, b, c, a]``, each depended on by the next; empty where there is none."""
    depends_on = {node.name: node.depends_on for node in nodes}
    done: set[str] = set()
    for start in depends_on:
        if start in done:
            continue
        path, on_path = [start], {start: 0}
        stack = [iter(depends_on[start])]
        while stack:
            name = next(stack[-1], None)
            if name is None:
                stack.pop()
                done.add(path[-1])
                del on_path[path.pop()]
            elif name in on_path:
                return list(reversed([*path[on_path[name] :], name]))
            elif name not in done:
                on_path[name] = len(path)
                path.append(name)
                stack.append(iter(depends_on[name]))
    return []


def _refs(node: Node) -> list[tuple[Wanted, str]]:
    found: list[tuple[Wanted, str]] = []
    for field, task in (("", node.task), ("/compensate", node.compensate)):
        if task is not None:
            found += references(task.args, f"{field}/task_args") + references(task.kwargs, f"{field}/task_kwargs")
    return found


def _check_references(nodes: Sequence[Node], places: dict[str, int]) -> None:
    """References lead only to what has ended for certain: dependencies, direct or not; in a compensation the node itself."""
    ancestors = _ancestors(nodes, places)
    for number, node in enumerate(nodes):
        known = ancestors[number]
        for at, condition in enumerate(node.when):
            _check_reference(condition.node, known, places, f"/nodes/{number}/when/{at}/node")
        for wanted, field in _refs(node):
            own = 1 << number if field.startswith("/compensate") else 0
            _check_reference(wanted.node, known | own, places, f"/nodes/{number}{field}/$from")


def _check_reference(name: str, known: int, places: dict[str, int], field: str) -> None:
    place = places.get(name)
    if place is None:
        raise InvalidInput(field, "is not the name of a node", found=name[:80])
    if not known >> place & 1:
        hint = f"add {name!r} to depends_on"
        raise InvalidInput(field, "is a node that this one does not depend on", found=name[:80], hint=hint)


def _ancestors(nodes: Sequence[Node], places: dict[str, int]) -> list[int]:
    """Of each node the set of all that it depends on, as bits: a thousand sets of a thousand are 125 KB this way."""
    found: list[int | None] = [None] * len(nodes)
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            number = stack[-1]
            before = [places[name] for name in nodes[number].depends_on]
            missing = [each for each in before if found[each] is None]
            if missing and found[number] is None:
                stack += missing
                continue
            bits = 0
            for each in before:
                bits |= (found[each] or 0) | 1 << each
            found[number] = bits
            stack.pop()
    return [bits or 0 for bits in found]


def has_reference(value: Any) -> bool:
    """Whether ``value`` is, or holds, a reference."""
    return bool(references(value, ""))
