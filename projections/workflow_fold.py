"""Folds a workflow's events to the rows of its nodes: a row is begun once in a run, and what changes later is an update."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from eventq.events.data import EventData
from eventq.events.workflow_events import NodeEnd, WorkflowAdvanced

NODE_BEGIN = ("workflow_id", "node", "run", "started_at")
NODE_CHANGE = ("position", "status", "reason", "ended_at", "compensation")
NODE_KEY = ("workflow_id", "node")

Row = tuple[Any, ...]
NodeKey = tuple[str, str]


@dataclass(slots=True)
class FoldedNodes:
    """What a batch comes to. ``begun``: rows that are written anew; ``changed``: what changes of those, or of others."""

    begun: dict[NodeKey, Row] = field(default_factory=dict[NodeKey, Row])
    changed: dict[NodeKey, Row] = field(default_factory=dict[NodeKey, Row])

    def fold(self, workflow_id: str, run: int, position: int, at: datetime, data: EventData) -> None:
        """Fold one event. ``run``: of the workflow after it; ``at``: as the tables hold times."""
        if not isinstance(data, WorkflowAdvanced):
            return
        for end in data.finished:
            self.changed[workflow_id, end.node] = (position, end.outcome, end.reason, at, None)
        for skip in data.skipped:
            status, reason = ("FAILED", skip.detail) if skip.reason == "failed" else ("SKIPPED", skip.reason)
            self._begin((workflow_id, skip.node), (run, None), (position, status, reason, at, None))
        for status, names in (("RUNNING", data.released), ("WAITING", data.waiting)):
            for node in names:
                self._begin((workflow_id, node), (run, at), (position, status, None, None, None))
        for node in data.compensating:
            self.changed[workflow_id, node] = (position, "COMPLETED", None, at, "RUNNING")
        for end in data.compensated:
            self.changed[workflow_id, end.node] = self._compensated(end, position, at)

    def rows_begun(self) -> list[Row]:
        """Whole rows, in the order of the columns of ``NODE_BEGIN`` and ``NODE_CHANGE``."""
        return [key + begun + self.changed[key] for key, begun in self.begun.items()]

    def rows_changed(self) -> list[Row]:
        """Changes to rows of earlier batches, in the order of the columns of ``NODE_KEY`` and ``NODE_CHANGE``."""
        return [key + row for key, row in self.changed.items() if key not in self.begun]

    def _begin(self, key: NodeKey, begun: Row, row: Row) -> None:
        self.begun[key] = begun
        self.changed[key] = row

    def _compensated(self, end: NodeEnd, position: int, at: datetime) -> Row:
        undone = end.outcome == "COMPLETED"
        return (position, "COMPENSATED" if undone else "COMPLETED", end.reason, at, end.outcome)
