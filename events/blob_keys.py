"""The names of blobs: three shapes, all made here: no part of one is ever a path that somebody sent."""

from __future__ import annotations

import re

from eventq.events.errors import InvalidInput
from eventq.events.ids import check_id

BLOB_NAME_MAX_CHARS = 128

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ATTEMPT = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def upload_key(sha256: str) -> str:
    """The content address of an upload with this digest (64 lower-case hexadecimal digits)."""
    if not _DIGEST.fullmatch(sha256):
        raise InvalidInput("sha256", "must be 64 lower-case hexadecimal digits", found=sha256[:80])
    return f"sha256/{sha256[:2]}/{sha256}"


def output_key(task_id: str, attempt: int, name: str) -> str:
    """The key of the file ``name`` made by one attempt. Raises :class:`InvalidInput` for a name that is a
    path.
    """
    if len(name) > BLOB_NAME_MAX_CHARS:
        raise InvalidInput("name", "is too long", limit=BLOB_NAME_MAX_CHARS, found=len(name))
    if not _NAME.fullmatch(name):
        raise InvalidInput("name", "must be letters, digits, '.', '-' and '_', a letter or digit first", found=name)
    if not _ATTEMPT.fullmatch(str(attempt)):
        raise InvalidInput("attempt", "must be a number from 1", found=attempt)
    return f"tasks/{check_id(task_id, 'task_id')}/{attempt}/{name}"


def definition_key(workflow_id: str, sha256: str) -> str:
    """The key of a workflow's definition with this digest: no other workflow's, so that it can be deleted with this one's."""
    if not _DIGEST.fullmatch(sha256):
        raise InvalidInput("sha256", "must be 64 lower-case hexadecimal digits", found=sha256[:80])
    return f"workflows/{check_id(workflow_id, 'workflow_id')}/{sha256}"


def check_key(key: str) -> str:
    """Answer ``key`` if it has one of the three shapes above, else raise :class:`InvalidInput`."""
    match key.split("/"):
        case ["sha256", _, digest] if _DIGEST.fullmatch(digest) and key == upload_key(digest):
            return key
        case ["tasks", task_id, attempt, name] if _ATTEMPT.fullmatch(attempt):
            return output_key(task_id, int(attempt), name)
        case ["workflows", workflow_id, digest]:
            return definition_key(workflow_id, digest)
        case _:
            raise InvalidInput("key", "is not the key of a blob", found=key[:200])
