"""``csv_processing``: statistics of every column of a CSV file, of any size, in bounded memory.

Without a file it makes its own rows, from a seed, and can spread them over a given time: a realistic load for trying
the queue out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Annotated, Any

from pydantic import Field

from eventq.events.data import BlobRef
from eventq.events.errors import InvalidInput
from eventq.workers.builtin.column_statistics import ColumnStatistics
from eventq.workers.builtin.csv_reading import COLUMNS_MAX, CountedFile, find_dialect, read_records, read_sample
from eventq.workers.context import Context
from eventq.workers.inputs import InputFile, Source
from eventq.workers.registry import task

NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL"]
"""Cells that count as no value unless ``nulls`` says otherwise."""

BATCH_ROWS = 2_048
BATCH_CELLS = 100_000
BATCH_BYTES = 1024 * 1024
"""A batch ends at the first of these: it is what is in memory, and after it the task looks whether it was cancelled."""

DISTINCT_EXACT_MAX = 10_000
DISTINCT_TOTAL_MAX = 1_000_000
"""Digests kept for counting different cells: per column, and over all columns."""

GENERATED_COLUMNS = ["id", "value"]
_STEP_S = 0.05


@task
def csv_processing(
    ctx: Context,
    blob: BlobRef | str | None = None,
    path: str | None = None,
    url: str | None = None,
    num_rows: Annotated[int, Field(ge=1, le=100_000_000)] | None = None,
    processing_time: Annotated[float, Field(ge=0, le=3600)] = 0.0,
    seed: int = 0,
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None,
    encoding: Annotated[str, Field(min_length=1, max_length=40)] | None = None,
    quote: Annotated[str, Field(max_length=1)] = '"',
    has_header: bool = True,
    nulls: Annotated[list[str], Field(max_length=100)] = NULLS,
    statistics_column: str | None = None,
) -> dict[str, Any]:
    """Statistics of every column of a CSV file: count, nulls, distinct, type, min, max, sum, mean, standard deviation.

    The file is given as ``blob``, ``path`` or ``url``; or ``num_rows`` rows are generated from ``seed`` and spread over
    ``processing_time`` seconds. ``delimiter`` and ``encoding`` are found out unless given; an empty ``quote`` means that
    quotes have no meaning. ``statistics`` in the result is about ``statistics_column``, by default the last numeric one.
    """
    if num_rows is not None:
        if (blob, path, url) != (None, None, None):
            raise InvalidInput("num_rows", "cannot be given together with a file")
        table = Table(GENERATED_COLUMNS, nulls)
        _fold_generated(ctx, table, num_rows, processing_time, seed)
        return table.result(statistics_column, source="generated")
    if (blob, path, url) == (None, None, None):
        raise InvalidInput("num_rows", "is required where no blob, path or url is given")
    source = _source(blob, path, url)
    with ctx.inputs.open(source, check=ctx.check) as opened:
        sample = read_sample(opened.file)
        dialect = find_dialect(sample, encoding=encoding, delimiter=delimiter, quote=quote or None)
        counted = CountedFile(sample, opened.file)
        table = _fold_file(ctx, opened, counted, read_records(counted, dialect), has_header, nulls)
    return table.result(
        statistics_column,
        source=opened.name,
        encoding=dialect.encoding,
        delimiter=dialect.delimiter,
        size_bytes=counted.bytes_read,
    )


def _source(blob: BlobRef | str | None, path: str | None, url: str | None) -> Source:
    if sum(part is not None for part in (blob, path, url)) != 1:
        raise InvalidInput("blob", "give exactly one of blob, path and url")
    return Source(blob=blob, path=path, url=url)


class Table:
    """All columns of a table, fed a batch of rows at a time. Rows of another width are counted, not guessed at."""

    def __init__(self, names: list[str], nulls: Collection[str]) -> None:
        if len(names) > COLUMNS_MAX:
            raise InvalidInput("columns", "are too many", limit=COLUMNS_MAX, found=len(names))
        distinct_max = max(64, min(DISTINCT_EXACT_MAX, DISTINCT_TOTAL_MAX // max(1, len(names))))
        self._columns = [ColumnStatistics(name, frozenset(nulls), distinct_max) for name in names]
        self.rows = 0
        self._short_rows = 0
        self._long_rows = 0

    def add(self, rows: list[list[str]]) -> None:
        width = len(self._columns)
        if any(len(row) != width for row in rows):
            self._short_rows += sum(len(row) < width for row in rows)
            self._long_rows += sum(len(row) > width for row in rows)
            for index, column in enumerate(self._columns):
                cells = [row[index] for row in rows if len(row) > index]
                column.add(cells, missing=len(rows) - len(cells))
        else:
            for column, values in zip(self._columns, zip(*rows, strict=True), strict=True):
                column.add(values)
        self.rows += len(rows)

    def result(self, statistics_column: str | None, **facts: Any) -> dict[str, Any]:
        columns = [column.result() for column in self._columns]
        return {
            "total_rows": self.rows,
            "processed_rows": self.rows,
            "short_rows": self._short_rows,
            "long_rows": self._long_rows,
            "statistics": _summary(columns, statistics_column),
            "columns": columns,
            **facts,
        }


def _summary(columns: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """``sum``, ``avg``, ``min`` and ``max`` of one numeric column; all ``None`` if the table has none."""
    numeric = [column for column in columns if column["type"] in ("integer", "number")]
    chosen = [column for column in columns if column["name"] == name] if name is not None else numeric[-1:]
    if name is not None and not chosen:
        raise InvalidInput("statistics_column", "is no column of this table", found=name[:80])
    of = chosen[0] if chosen else {}
    return {
        "column": of.get("name"),
        "sum": of.get("sum"),
        "avg": of.get("mean"),
        "min": of.get("min"),
        "max": of.get("max"),
    }


def _fold_file(
    ctx: Context,
    opened: InputFile,
    counted: CountedFile,
    records: Iterator[list[str]],
    has_header: bool,
    nulls: Collection[str],
) -> Table:
    no_columns: list[str] = []
    first = next(records, no_columns)
    names = first if has_header else [f"column_{number}" for number in range(1, len(first) + 1)]
    table = Table(names, nulls)
    if not has_header and first:
        records = chain([first], records)
    for batch in _batches(records, counted, max(1, min(BATCH_ROWS, BATCH_CELLS // max(1, len(names))))):
        table.add(batch)
        ctx.check()
        ctx.progress(counted.bytes_read, opened.size_bytes, "bytes")
    ctx.progress(counted.bytes_read, counted.bytes_read, "bytes")
    return table


def _batches(records: Iterator[list[str]], counted: CountedFile, rows_max: int) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    began = counted.bytes_read
    for record in records:
        batch.append(record)
        if len(batch) == rows_max or counted.bytes_read - began >= BATCH_BYTES:
            yield batch
            batch = []
            began = counted.bytes_read
    if batch:
        yield batch


def _fold_generated(ctx: Context, table: Table, num_rows: int, processing_time: float, seed: int) -> None:
    draw = random.Random(seed)
    batch_rows = max(1, min(BATCH_ROWS, num_rows // 100 or 1)) if processing_time else BATCH_ROWS
    began = time.monotonic()
    for start in range(0, num_rows, batch_rows):
        numbers = range(start + 1, min(start + batch_rows, num_rows) + 1)
        table.add([[str(number), str(draw.randint(1, 1000))] for number in numbers])
        ctx.progress(table.rows, num_rows, "rows")
        _wait_until(ctx, began + processing_time * table.rows / num_rows)


def _wait_until(ctx: Context, deadline: float) -> None:
    ctx.check()
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(_STEP_S, left))
        ctx.check()


__all__ = ["csv_processing"]
