"""The blob store: where inputs and outputs too large for an event lie, and how they are checked.

**Keys.** An upload is addressed by its content, ``sha256/<first two digits>/<digest>``: stored twice, it is
one copy. An output belongs to one attempt, ``tasks/<task_id>/<attempt>/<name>``: an attempt that lost its
lease cannot overwrite the file that the result of the next attempt refers to.

**Crash story.** A blob is written, and on a local disk forced to the platter, *before* the event that refers
to it is appended. A crash between the two leaves a blob that nothing refers to: it costs space and harms
nobody. The other order would leave an accepted event whose payload is gone. Storing is atomic (a temporary
name, then a rename; on S3 one object), so no reader sees half a blob. What a reader gets is checked against
the digest it was promised.

**Processes.** The client library starts threads that a ``fork`` does not carry over: a forked child would
wait on them for ever (tried). Start children with ``spawn``. A store may be handed to them: it travels as
its address alone and connects again on first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

from eventq.events.blob_files import Buffer, ChunkReader, Spool, force_to_disk
from eventq.events.blob_keys import check_key, upload_key
from eventq.events.data import BlobRef
from eventq.events.errors import BlobDamaged, BlobNotFound, InvalidInput, PayloadTooLarge, Unavailable
from eventq.events.ids import check_id

if TYPE_CHECKING:  # importing it takes 40 ms, which `eventq --help` must not pay
    from obstore.store import ObjectStore

BLOB_MAX_BYTES = 5 * 1024**3
"""One blob, unless the caller sets a lower limit."""

CHUNK_BYTES = 256 * 1024
"""What a streaming read holds in memory at a time."""


@dataclass(frozen=True, slots=True)
class BlobStat:
    """What the store itself knows of a blob; the digest only a reference or a key can promise."""

    key: str
    size_bytes: int
    modified_at: datetime


class BlobStore:
    """One blob store, local or remote. Methods block; each has an ``_async`` twin for code on an event loop.

    Every method raises :class:`Unavailable` when the store does not do its part, and :class:`InvalidInput`
    for a key that is none.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else None

    @classmethod
    def open(cls, url_or_dir: str | Path) -> Self:
        """A store in a directory (made if absent; also as a ``file://`` URL), or at ``s3://bucket/prefix``, ``gs://...``.

        Remote stores take their credentials, region and endpoint from the environment (``AWS_ACCESS_KEY_ID``,
        ``AWS_REGION``, ``AWS_ENDPOINT``, ...; ``AWS_ALLOW_HTTP=true`` for an endpoint without TLS). Nothing is connected
        yet: a wrong bucket shows on first use.
        """
        text = str(url_or_dir)
        store = cls(text if "://" in text else Path(text).absolute().as_uri())
        if store._root is not None:
            store._root.mkdir(parents=True, exist_ok=True)
        return store

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.url,)

    def put(
        self,
        data: bytes,
        *,
        key: str | None = None,
        media_type: str = "application/octet-stream",
        max_bytes: int = BLOB_MAX_BYTES,
    ) -> BlobRef:
        """``data`` is stored, durably; the answer refers to it. ``key`` is its content address unless given.

        Raises :class:`PayloadTooLarge` above ``max_bytes``. The same key again replaces the blob in one step.
        """
        return self.put_stream([data], key=key, media_type=media_type, max_bytes=max_bytes)

    def put_stream(
        self,
        chunks: Iterable[Buffer],
        *,
        key: str | None = None,
        media_type: str = "application/octet-stream",
        max_bytes: int = BLOB_MAX_BYTES,
    ) -> BlobRef:
        """As :meth:`put`, for data that need not fit in memory. Nothing is stored if ``chunks`` raises."""
        with self._spool(max_bytes) as spool:
            for chunk in chunks:
                spool.add(chunk)
            return self._store_spool(spool, key, media_type)

    async def put_async(
        self,
        data: bytes,
        *,
        key: str | None = None,
        media_type: str = "application/octet-stream",
        max_bytes: int = BLOB_MAX_BYTES,
    ) -> BlobRef:
        """As :meth:`put`."""
        return await asyncio.to_thread(self.put, data, key=key, media_type=media_type, max_bytes=max_bytes)

    async def put_stream_async(
        self,
        chunks: AsyncIterable[Buffer],
        *,
        key: str | None = None,
        media_type: str = "application/octet-stream",
        max_bytes: int = BLOB_MAX_BYTES,
    ) -> BlobRef:
        """As :meth:`put_stream`, for a body that arrives over the network."""
        with self._spool(max_bytes) as spool:
            async for chunk in chunks:
                await asyncio.to_thread(spool.add, chunk)  # hashing and disk must not hold up the loop
            return await asyncio.to_thread(self._store_spool, spool, key, media_type)

    def get(self, blob: BlobRef | str, *, max_bytes: int | None = None) -> bytes:
        """The whole blob, checked.

        Raises :class:`BlobNotFound`, :class:`BlobDamaged`, and :class:`PayloadTooLarge` above ``max_bytes``.
        """
        parts: list[bytes] = []
        left = max_bytes
        for chunk in self.stream(blob):
            if left is not None and (left := left - len(chunk)) < 0:
                raise PayloadTooLarge("blob", f"is over {max_bytes} bytes", limit=max_bytes)
            parts.append(chunk)
        return b"".join(parts)

    def stream(self, blob: BlobRef | str) -> Iterator[bytes]:
        """The blob in chunks of bounded size.

        The digest is known only at the end, where :class:`BlobDamaged` is raised: act on what was read after
        the iterator is exhausted. The bare key of an output, unlike a reference, promises no digest.
        """
        expected = _Expected.of(blob)
        import obstore

        with _translated(expected.key):
            chunks = obstore.get(self._store, expected.key).stream(min_chunk_size=CHUNK_BYTES)
        digest = hashlib.sha256()
        while True:
            with _translated(expected.key):
                chunk = next(chunks, None)
            if chunk is None:
                break
            digest.update(chunk)
            yield bytes(chunk)
        expected.compare(digest.hexdigest())

    def reader(self, blob: BlobRef | str) -> io.BufferedReader:
        """The blob as a file read once from front to back; damage shows as :class:`BlobDamaged` at its end.

        Raises :class:`BlobNotFound` at once, not on the first read.
        """
        self.stat(blob)
        return io.BufferedReader(ChunkReader(self.stream(blob)), CHUNK_BYTES)

    def stat(self, blob: BlobRef | str) -> BlobStat:
        """Size and age of a blob. Raises :class:`BlobNotFound`."""
        import obstore

        key = _Expected.of(blob).key
        with _translated(key):
            meta = obstore.head(self._store, key)
        return BlobStat(key=key, size_bytes=meta["size"], modified_at=meta["last_modified"])

    def delete(self, blob: BlobRef | str) -> None:
        """The blob is gone; no error where it was gone already."""
        import obstore

        key = _Expected.of(blob).key
        with contextlib.suppress(BlobNotFound), _translated(key):
            obstore.delete(self._store, key)

    def delete_outputs(self, task_id: str) -> None:
        """All files that attempts of the task made are gone, whoever deletes them at the same time."""
        import obstore

        prefix = f"tasks/{check_id(task_id, 'task_id')}/"
        with _translated(prefix):
            batches = [[meta["path"] for meta in batch] for batch in obstore.list(self._store, prefix=prefix)]
        for paths in filter(None, batches):
            try:
                with _translated(prefix):
                    obstore.delete(self._store, paths)
            except BlobNotFound:  # one of them is gone already, and what came after it may be left
                for path in paths:
                    self.delete(path)

    async def delete_outputs_async(self, task_id: str) -> None:
        """As :meth:`delete_outputs`."""
        await asyncio.to_thread(self.delete_outputs, task_id)

    async def get_async(self, blob: BlobRef | str, *, max_bytes: int | None = None) -> bytes:
        """As :meth:`get`."""
        return await asyncio.to_thread(self.get, blob, max_bytes=max_bytes)

    async def stream_async(self, blob: BlobRef | str) -> AsyncIterator[bytes]:
        """As :meth:`stream`."""
        chunks = self.stream(blob)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    async def stat_async(self, blob: BlobRef | str) -> BlobStat:
        """As :meth:`stat`."""
        return await asyncio.to_thread(self.stat, blob)

    async def delete_async(self, blob: BlobRef | str) -> None:
        """As :meth:`delete`."""
        await asyncio.to_thread(self.delete, blob)

    @cached_property
    def _store(self) -> ObjectStore:
        from obstore.store import LocalStore, from_url

        if self._root is not None:
            return LocalStore(self._root, mkdir=True)
        return from_url(self.url)

    def _spool(self, max_bytes: int) -> Spool:
        return Spool(max_bytes, self._root)

    def _store_spool(self, spool: Spool, key: str | None, media_type: str) -> BlobRef:
        import obstore

        sha256, size_bytes, file = spool.finish()
        key = upload_key(sha256) if key is None else check_key(key)
        if key.startswith("sha256/") and key != upload_key(sha256):
            raise InvalidInput("key", "is the content address of other data", found=key)
        with _translated(key):
            obstore.put(self._store, key, file)
            if self._root is not None:
                force_to_disk(self._root, key)
        return BlobRef(key=key, sha256=sha256, size_bytes=size_bytes, media_type=media_type)


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a blob must turn out to be. ``sha256`` is ``None`` where nothing was promised."""

    key: str
    sha256: str | None

    @classmethod
    def of(cls, blob: BlobRef | str) -> _Expected:
        if isinstance(blob, BlobRef):
            return cls(check_key(blob.key), blob.sha256)
        key = check_key(blob)
        return cls(key, key.rpartition("/")[2] if key.startswith("sha256/") else None)

    def compare(self, found: str) -> None:
        if self.sha256 is not None and found != self.sha256:
            raise BlobDamaged(self.key, expected=self.sha256, found=found)


@contextlib.contextmanager
def _translated(key: str) -> Generator[None]:
    """The store's own exceptions end here: absent becomes BlobNotFound, everything else Unavailable."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise BlobNotFound(key) from None
    except (BaseError, OSError, ValueError) as error:
        summary = str(error).partition("\n")[0]  # the rest is the library's own debug dump
        raise Unavailable(f"the blob store failed on {key}: {summary}", key=key) from error
