"""Where the nodes of a workflow are read from and written to: its first event, or the blob store where they are many."""

from __future__ import annotations

import hashlib

import orjson

from eventq.events.blob_keys import definition_key
from eventq.events.blobs import BlobStore
from eventq.events.data import BlobRef, EventData
from eventq.events.envelope import Stored
from eventq.events.erasure import left_at
from eventq.events.errors import LogDamaged
from eventq.events.limits import WORKFLOW_DEFINITION_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.task_events import Erased
from eventq.events.workflow import WORKFLOWS
from eventq.events.workflow_events import Definition, WorkflowCreated


async def read_created(log: EventLog, workflow_id: str) -> WorkflowCreated | None:
    """The data of a workflow's first event, or what is left of it; ``None`` where there is no such workflow."""
    first = await log.at(WORKFLOWS.name, workflow_id, 1)
    if first is None:
        newest = await log.last(WORKFLOWS.name, workflow_id, fresh=True)
        if newest is None:
            return None
        data = await _created_left(log, workflow_id, newest)
    else:
        data = first.event.data
    if not isinstance(data, WorkflowCreated):
        raise LogDamaged(f"workflow {workflow_id} has no first event", workflow_id=workflow_id)
    return data


async def _created_left(log: EventLog, workflow_id: str, newest: Stored) -> EventData | None:
    """What is left of the first event, from the newest that tells of it: nothing but ``erased`` follows one that is."""
    stored: Stored | None = newest
    while stored is not None and isinstance(stored.event.data, Erased):
        if (data := left_at(WORKFLOWS.name, stored.event.data, 1)) is not None:
            return data
        stored = await log.at(WORKFLOWS.name, workflow_id, stored.event.version - 1)
    return None


async def read_definition(blobs: BlobStore, created: WorkflowCreated) -> Definition:
    """The nodes of a workflow, from its event or the blob store."""
    if created.definition is not None:
        return created.definition
    assert created.stored is not None
    return await read_stored(blobs, created.stored)


async def read_stored(blobs: BlobStore, stored: BlobRef) -> Definition:
    """The nodes of a workflow from the blob store. Raises ``BlobNotFound`` and ``BlobDamaged``."""
    return Definition.model_validate_json(await blobs.get_async(stored, max_bytes=WORKFLOW_DEFINITION_MAX_BYTES))


def encode_definition(definition: Definition) -> bytes:
    """The nodes as the blob store holds them."""
    return orjson.dumps(definition.model_dump(mode="json", exclude_defaults=True))


async def store_definition(blobs: BlobStore, workflow_id: str, encoded: bytes) -> BlobRef:
    """Put them there, as this workflow's own."""
    key = definition_key(workflow_id, hashlib.sha256(encoded).hexdigest())
    return await blobs.put_async(encoded, key=key, media_type="application/json")
