"""The local side of the blob store: gather and hash a stream, read one as a file, force a file to disk."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Self

from eventq.events.errors import PayloadTooLarge

Buffer = bytes | bytearray | memoryview

_SPOOL_IN_MEMORY_BYTES = 1024 * 1024


class Spool:
    """Collects a stream in memory, then on disk: size and digest are known before a byte is stored."""

    def __init__(self, max_bytes: int, directory: Path | None) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._hash = hashlib.sha256()
        # Beside a local store: the disk that must hold the blob is then the disk that is filled.
        place = None if directory is None else str(directory)
        self._file = tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY_BYTES, dir=place)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, chunk: Buffer) -> None:
        data = memoryview(chunk)
        self._size += data.nbytes
        if self._size > self._max_bytes:
            raise PayloadTooLarge("blob", f"is over {self._max_bytes} bytes", limit=self._max_bytes)
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> tuple[str, int, Any]:
        self._file.seek(0)
        return self._hash.hexdigest(), self._size, self._file


class ChunkReader(io.RawIOBase):
    """An iterator of chunks as a raw file that is read once, from front to back."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def force_to_disk(root: Path, key: str) -> None:
    """A rename survives a killed process, but a power cut only once file and directories were synced."""
    path = root / key
    for synced in (path, *_parents_within(root, path)):
        descriptor = os.open(synced, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _parents_within(root: Path, path: Path) -> Generator[Path]:
    for parent in path.parents:
        yield parent
        if parent == root:
            return
