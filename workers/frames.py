"""Messages between a worker and its child processes: a four-byte length, then one JSON object. Never pickle."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, cast

import orjson

FRAME_MAX_BYTES = 40 * 1024 * 1024
"""Room for the largest result (16 MiB) even where each of its bytes is escaped once more on the way."""

_LENGTH = struct.Struct("!I")


class FrameError(ConnectionError):
    """The other side closed the channel, or sent what is no frame."""


class BadFrame(FrameError):
    """The other side sent what is no frame, or none that belongs here. Nothing that follows can be trusted."""


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    payload = orjson.dumps(message)
    return _LENGTH.pack(len(payload)) + payload


def _length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > FRAME_MAX_BYTES:
        raise BadFrame(f"a frame of {length} bytes is over the limit of {FRAME_MAX_BYTES}")
    return int(length)


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message. Raises :class:`FrameError` when the channel ends."""
    try:
        payload = await reader.readexactly(_length(await reader.readexactly(_LENGTH.size)))
    except (asyncio.IncompleteReadError, OSError) as error:
        raise FrameError("the channel was closed") from error
    return _unpack(payload)


def receive_frame(channel: socket.socket) -> dict[str, Any]:
    """The next message, blocking. Raises :class:`FrameError` when the channel ends."""
    return _unpack(_receive(channel, _length(_receive(channel, _LENGTH.size))))


def _unpack(payload: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(payload)
    except ValueError as error:
        raise BadFrame(f"a frame is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadFrame("a frame is no JSON object")
    return cast("dict[str, Any]", found)


def _receive(channel: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        chunk = channel.recv(min(count - len(parts), 1 << 20))
        if not chunk:
            raise FrameError("the channel was closed")
        parts += chunk
    return bytes(parts)
