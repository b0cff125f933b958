"""Reading a CSV file that anybody may have made: any delimiter, any encoding, never more than a little in memory.

What would break the bound is refused with the limit's name: a line or a record without end (which is also what an
unbalanced quote looks like), a million columns, a NUL. A record is bounded by counting the characters handed to the
parser since the last one, because a quoted field may run over any number of lines.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from eventq.events.errors import InvalidInput

SAMPLE_BYTES = 256 * 1024
GUESS_BYTES = 32 * 1024
"""What the guess at an 8-bit encoding looks at: it tries some forty of them."""

LINE_MAX_CHARS = 1024 * 1024
RECORD_MAX_CHARS = 2 * 1024 * 1024
COLUMNS_MAX = 10_000
DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_RECORDS = 50
_BOMS = (  # the longer first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SLOW_CODECS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the file is written. ``quote`` is ``None`` where quotes have no meaning."""

    encoding: str
    delimiter: str
    quote: str | None = '"'

    def options(self) -> dict[str, Any]:
        """For :func:`csv.reader`. Strict: what is not well-formed is an error, not a guess."""
        quoting = csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL
        return {"delimiter": self.delimiter, "quotechar": self.quote, "quoting": quoting, "strict": True}


class CountedFile(io.RawIOBase):
    """A file with its first bytes put back, which counts what was read: ``bytes_read``."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head = memoryview(head)
        self._file = file
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._head:
            data: bytes | memoryview = self._head[: len(buffer)]
            self._head = self._head[len(buffer) :]
        else:
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.bytes_read += len(data)
        return len(data)


def read_sample(file: IO[bytes]) -> bytes:
    """Up to ``SAMPLE_BYTES`` from the front of the file."""
    parts: list[bytes] = []
    left = SAMPLE_BYTES
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def find_dialect(sample: bytes, *, encoding: str | None, delimiter: str | None, quote: str | None) -> Dialect:
    """What was given, and for the rest what the sample shows. Raises :class:`InvalidInput` for an unusable choice."""
    for field, mark in (("delimiter", delimiter), ("quote", quote)):
        if mark is not None and mark in "\r\n\0":
            raise InvalidInput(field, "cannot be a line end or NUL", found=repr(mark))
    if delimiter is not None and delimiter == quote:
        raise InvalidInput("delimiter", "is also the quote", found=delimiter)
    encoding = check_encoding(encoding) if encoding is not None else find_encoding(sample)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(sample)
    return Dialect(encoding, delimiter if delimiter is not None else find_delimiter(text, quote), quote)


def check_encoding(name: str) -> str:
    """The codec's name, if it is one for text. Raises :class:`InvalidInput`."""
    try:
        codec = codecs.lookup(name)
        "".encode(name)
    except (LookupError, ValueError):
        raise InvalidInput("encoding", "is no text encoding known here", found=name[:40]) from None
    if codec.name.replace("-", "_") in _SLOW_CODECS:
        raise InvalidInput("encoding", "cannot be used for files", found=name[:40])
    return codec.name


def find_encoding(sample: bytes) -> str:
    """The encoding by byte order mark, else UTF-8 if the sample is, else the likeliest by its letters."""
    for mark, encoding in _BOMS:
        if sample.startswith(mark):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # incremental: the sample may end inside a character
    except UnicodeDecodeError:
        pass
    else:
        if b"\0" not in sample:
            return "utf-8"
    if (wide := _utf16_without_mark(sample)) is not None:
        return wide
    from charset_normalizer import from_bytes

    best = from_bytes(sample[:GUESS_BYTES]).best()
    if best is None:
        raise InvalidInput("encoding", "cannot be told from the file; it may be no text", hint="give encoding=...")
    return best.encoding


def _utf16_without_mark(sample: bytes) -> str | None:
    """Most letters, digits and delimiters have a zero byte before or after them in UTF-16."""
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        half = sample[first::2]
        if half.count(0) > 0.6 * len(half):
            return encoding
    return None


def find_delimiter(text: str, quote: str | None) -> str:
    """The delimiter that cuts the sample's records into the same number of columns most often; a comma if none does."""
    lines = text[: LINE_MAX_CHARS // 4].splitlines(keepends=True)
    if len(lines) > 1 and not text.endswith(("\n", "\r")):
        lines.pop()  # cut off in the middle

    def score(delimiter: str) -> tuple[float, int]:
        widths = _widths(lines, Dialect("", delimiter, quote))
        usual = max(set(widths), key=widths.count, default=1)
        return (widths.count(usual) / len(widths), usual) if usual > 1 else (0.0, 0)

    return max(DELIMITERS, key=score)


def _widths(lines: list[str], dialect: Dialect) -> list[int]:
    widths: list[int] = []
    try:
        for record in csv.reader(lines, **dialect.options()):
            if record:
                widths.append(len(record))
            if len(widths) == _SAMPLE_RECORDS:
                break
    except csv.Error:  # not written with this delimiter, or cut off inside quotes: what was read so far counts
        pass
    return widths


def read_records(file: io.RawIOBase, dialect: Dialect) -> Iterator[list[str]]:
    """The records of the file, blank lines left out. Raises :class:`InvalidInput` with the line where it goes wrong."""
    text = io.TextIOWrapper(io.BufferedReader(file, 64 * 1024), encoding=dialect.encoding, newline="")
    lines = _Lines(text)
    reader = csv.reader(lines, **dialect.options())
    # The parser's own limit is global to the process and far below a line's; a record is bounded by `_Lines`.
    csv.field_size_limit(RECORD_MAX_CHARS)
    try:
        for record in reader:
            lines.record_chars = 0
            if len(record) > COLUMNS_MAX:
                raise _bad_line(lines.number, f"has more than {COLUMNS_MAX} columns", COLUMNS_MAX, len(record))
            if record:
                yield record
    except csv.Error as error:
        raise _bad_line(lines.number, f"is not well-formed: {error}", hint="are the quotes balanced?") from None
    except UnicodeError as error:
        raise InvalidInput(
            "encoding",
            f"the file is not {dialect.encoding} after line {lines.number}: {getattr(error, 'reason', error)}",
            found=dialect.encoding,
            hint="give encoding=...",
        ) from None


class _Lines:
    """The lines of a file as the parser takes them, each and all of one record bounded."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number = 0
        self.record_chars = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(LINE_MAX_CHARS + 1)
        if not line:
            raise StopIteration
        if not self.number:
            line = line.removeprefix("\ufeff")  # a byte order mark under an encoding that was given
        self.number += 1
        self.record_chars += len(line)
        if len(line) > LINE_MAX_CHARS:
            raise _bad_line(self.number, f"is longer than {LINE_MAX_CHARS} characters", LINE_MAX_CHARS)
        if self.record_chars > RECORD_MAX_CHARS:
            raise _bad_line(
                self.number,
                f"belongs to a record of more than {RECORD_MAX_CHARS} characters",
                RECORD_MAX_CHARS,
                hint="is there a quote that is never closed?",
            )
        if "\0" in line:
            raise _bad_line(self.number, "holds a NUL character", hint="is it UTF-16? give encoding=...")
        return line


def _bad_line(number: int, problem: str, limit: int | None = None, found: Any = None, hint: str | None = None) -> InvalidInput:
    return InvalidInput(f"line {number}", problem, limit=limit, found=found, hint=hint)
