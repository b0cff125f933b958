"""A task's input file: a blob, a file in a directory that the operator opened, or a URL. Exactly one of the
three.

The three differ in who is trusted. A blob is named by a checked key. A path counts only after symbolic links
are resolved, and only inside the directories given to the worker (none by default). A URL goes through the
fetcher's rules.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self

from pydantic import BaseModel, ConfigDict, model_validator

from eventq.events.blobs import BlobStore
from eventq.events.data import BlobRef
from eventq.events.errors import InvalidInput, PayloadTooLarge
from eventq.workers.fetch_policy import FetchPolicy, Network

INPUT_MAX_BYTES = 5 * 1024**3
"""One input, unless the task sets a lower limit."""

_COPY_BYTES = 256 * 1024
_IN_MEMORY_BYTES = 1024 * 1024


class Source(BaseModel):
    """Where an input lies: exactly one of ``blob`` (a reference or a key), ``path`` and ``url``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blob: BlobRef | str | None = None
    path: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("blob", "path", "url") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of blob, path and url, not {' and '.join(given) or 'none'}")
        return self


@dataclass(slots=True)
class InputFile:
    """An open input, at its beginning. Close it, or use it in a ``with``.

    ``name`` may be shown to users: a key, a file name, a URL without its query. ``file`` can be read once
    from front to back; whether it can seek depends on how it was opened.
    """

    file: IO[bytes]
    name: str
    size_bytes: int
    media_type: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class Inputs:
    """Opens inputs under this worker's rules. Methods block; none changes anything outside temporary files."""

    def __init__(
        self,
        blobs: BlobStore,
        directories: Sequence[Path] = (),
        fetch_allow: Sequence[Network] = (),
        fetch_policy: FetchPolicy | None = None,
    ) -> None:
        """``directories`` are open to paths, ``fetch_allow`` to URLs beside public addresses: nothing unless given."""
        self._blobs = blobs
        self._directories = [Path(directory).resolve() for directory in directories]
        policy = fetch_policy or FetchPolicy()
        self._fetch_policy = replace(policy, admitted=(*policy.admitted, *fetch_allow))

    def open(
        self,
        source: Source,
        *,
        seekable: bool = False,
        max_bytes: int = INPUT_MAX_BYTES,
        check: Callable[[], None] | None = None,
    ) -> InputFile:
        """The input at ``source``. ``check`` is called while a URL is fetched and may raise to give up.

        A blob is streamed from the store, its digest checked at its end (``BlobDamaged``); ``seekable``
        reads it, and checks it, whole beforehand, into a temporary file. Raises :class:`InvalidInput` for a
        path that is not open to tasks, :class:`PayloadTooLarge` above ``max_bytes``, and what the blob store
        and the fetcher raise.
        """
        if source.blob is not None:
            return self._open_blob(source.blob, seekable, max_bytes)
        if source.path is not None:
            return self._open_path(source.path, max_bytes)
        return self._open_url(source.url or "", max_bytes, check)

    def _open_blob(self, blob: BlobRef | str, seekable: bool, max_bytes: int) -> InputFile:
        found = self._blobs.stat(blob)
        _check_size("blob", found.size_bytes, max_bytes)
        media_type = blob.media_type if isinstance(blob, BlobRef) else None
        file = self._copy(blob, max_bytes) if seekable else self._blobs.reader(blob)
        return InputFile(file, found.key, found.size_bytes, media_type)

    def _copy(self, blob: BlobRef | str, max_bytes: int) -> IO[bytes]:
        copy: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        try:
            for chunk in self._blobs.stream(blob):
                copy.write(chunk)
                _check_size("blob", copy.tell(), max_bytes)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return copy

    def _open_path(self, text: str, max_bytes: int) -> InputFile:
        path = self._resolve(text)
        descriptor = _open_regular(path)
        try:
            size_bytes = os.fstat(descriptor).st_size
            _check_size("path", size_bytes, max_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return InputFile(os.fdopen(descriptor, "rb"), path.name, size_bytes)

    def _resolve(self, text: str) -> Path:
        """The real path of ``text`` inside an allowed directory. What lies outside is refused in the same
        words whether it exists or not, so that a task cannot be used to look around.
        """
        if not self._directories:
            raise InvalidInput("path", "no directory of this worker is open to tasks", hint="EVENTQ_INPUT_DIRS")
        if "\0" in text:
            raise InvalidInput("path", "holds a NUL character")
        for directory in self._directories:
            try:
                path = (directory / text).resolve(strict=True)
            except (OSError, RuntimeError):  # absent, or links in a circle
                continue
            if path.is_relative_to(directory):
                return path
        raise InvalidInput("path", "is no file in a directory that is open to tasks", found=text[:200])

    def _open_url(self, url: str, max_bytes: int, check: Callable[[], None] | None) -> InputFile:
        from eventq.workers.fetch import fetch  # brings an HTTP client, which most tasks never need

        policy = self._fetch_policy
        limited = replace(
            policy,
            max_bytes=min(policy.max_bytes, max_bytes),
            max_wire_bytes=min(policy.max_wire_bytes, max_bytes),
        )
        got = fetch(url, limited, check)
        return InputFile(got.file, got.url, got.size_bytes, got.media_type)


def _open_regular(path: Path) -> int:
    """A descriptor of the file that was resolved, and of no other kind of thing.

    A device or a pipe must not be waited on, and a link swapped in since must not be followed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput("path", f"cannot be opened: {os.strerror(error.errno or 0)}", found=path.name) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInput("path", "is not a regular file", found=path.name)
    return descriptor


def _check_size(field: str, size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise PayloadTooLarge(field, f"is over {max_bytes} bytes", limit=max_bytes, found=size_bytes)
