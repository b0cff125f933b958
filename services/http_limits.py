"""Every limit of the HTTP side, each named; a refusal names the limit and what was found."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

JSON_DEPTH_MAX = 32
"""Arrays and objects inside one another; the outermost counts as 1."""

JSON_KEYS_MAX = 1000
"""Keys of one object."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
"""JSON integers outside are refused: DuckDB, JavaScript and most clients could not hold them."""

QUERY_VALUE_MAX_CHARS = 2_000
PAGE_DEFAULT, PAGE_MAX = 50, 500
OFFSET_MAX = 10_000_000
REQUEST_ID_MAX_CHARS = 64
PARSE_INLINE_MAX_BYTES = 64 * KIB
"""Larger bodies are parsed in a thread, so that one of them does not hold up every other request."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one client may take of the server's time and memory. Seconds and bytes."""

    body_max_bytes: int = MIB
    body_deadline_s: float = 10.0
    """For the whole JSON body, however it trickles."""

    first_request_deadline_s: float = 10.0
    """From the connection's opening to the end of its first request's headers."""

    keepalive_s: float = 15.0
    """From one answer to the end of the next request's headers."""

    write_stall_s: float = 30.0
    """For which a client may leave an answer unread before its connection is cut."""

    lingering_s: float = 2.0
    """For which the rest of a refused body is read and thrown away, so that the client can read why."""

    connections_max: int = 10_000
    blob_max_bytes: int = 5 * 1024 * MIB
    blob_stall_s: float = 30.0
    """For which an upload may send nothing."""

    cancel_wait_s: float = 5.0
    """How long a cancel of a running task waits for its worker to stop it before it answers 202."""

    wait_max_s: float = 60.0
    """The longest that a submission may wait for its outcome."""

    batch_tasks_max: int = 10_000
    batch_array_max_bytes: int = 16 * MIB
    batch_lines_max_bytes: int = 256 * MIB
    """Of a batch in one JSON array, which is read whole, and of one in lines, which is read as it comes."""

    batch_line_max_bytes: int = MIB
    batch_deadline_s: float = 60.0
    """For the whole array, however it trickles; lines may take longer, as long as they come."""

    bulk_tasks_max: int = 10_000
    read_wait_s: float = 5.0
    """How long a read waits for the projection to reach what the caller has already seen."""
