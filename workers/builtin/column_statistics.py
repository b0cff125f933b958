"""Statistics of one column, fed a batch of cells at a time, in memory that does not grow with the rows.

A batch is handled by C-speed builtins over whole lists, which is why cells come as columns and not one by one. A column
is numeric for as long as every cell that is no null reads as a number; the first that does not makes it text for good.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import Any

TEXT_SHOWN_MAX_CHARS = 200
"""How much of the smallest and largest text a result repeats."""

_INT64_MAX = 2**63 - 1
_INTEGER_MAX_CHARS = 4_000  # Python refuses to read longer ones


class ColumnStatistics:
    """``distinct_max``: up to so many different cells are counted exactly; beyond, their number is estimated."""

    def __init__(self, name: str, nulls: Collection[str], distinct_max: int) -> None:
        self.name = name
        self._null_cells = nulls
        self._count = 0
        self._nulls = 0
        self._distinct = DistinctCounter(distinct_max)
        self._numbers: Numbers | None = Numbers()
        self._text = TextExtent()

    def add(self, cells: Sequence[str], missing: int = 0) -> None:
        """Fold a batch. ``missing``: rows that were too short to have this column; they count as nulls."""
        nulls = self._null_cells
        values = [cell for cell in cells if cell not in nulls]
        self._nulls += len(cells) - len(values) + missing
        if not values:
            return
        self._count += len(values)
        self._distinct.add(values)
        self._text.add(values)
        if self._numbers is not None and not self._numbers.add(values):
            self._numbers = None

    def result(self) -> dict[str, Any]:
        """The statistics as JSON values. ``stddev`` is the sample's; what does not apply is ``None``."""
        numbers = self._numbers if self._count else None
        return {
            "name": self.name,
            "type": self._type(),
            "count": self._count,
            "nulls": self._nulls,
            "distinct": min(self._distinct.estimate(), self._count),
            "distinct_exact": self._distinct.exact,
            "min": None,
            "max": None,
            "sum": None,
            "mean": None,
            "stddev": None,
            **(numbers.result() if numbers is not None else self._text.result()),
            "min_length": self._text.min_length,
            "max_length": self._text.max_length,
        }

    def _type(self) -> str:
        if not self._count:
            return "empty"
        if self._numbers is None:
            return "text"
        return "integer" if self._numbers.integers else "number"


class Numbers:
    """Sum, mean and spread, merged batch by batch so that neither large offsets nor many rows cost precision."""

    def __init__(self) -> None:
        self.integers = True
        self._count = 0
        self._sum: int | float = 0
        self._mean = 0.0
        self._squares = 0.0  # of the distances from the mean
        self._min: int | float = math.inf
        self._max: int | float = -math.inf

    def add(self, cells: list[str]) -> bool:
        """Fold the cells if all are numbers; else answer ``False``, after which this object means nothing."""
        values = read_numbers(cells)
        if values is None:
            return False
        self.integers = self.integers and isinstance(values[0], int)  # a batch is all of one kind
        try:
            self._merge(values)
        except OverflowError:  # numbers near the edge of the range: the sums leave it, least and largest stay
            self._sum = self._mean = self._squares = math.nan
        self._min = min(self._min, min(values))
        self._max = max(self._max, max(values))
        return True

    def result(self) -> dict[str, Any]:
        spread = self._squares / (self._count - 1) if self._count > 1 else math.nan
        return {
            "min": _finite(self._min),
            "max": _finite(self._max),
            "sum": _finite(self._sum),
            "mean": _finite(self._mean),
            "stddev": _finite(math.sqrt(spread)) if spread >= 0 else None,
        }

    def _merge(self, values: list[int] | list[float]) -> None:
        count = len(values)
        total = sum(values) if self.integers else math.fsum(values)
        mean = total / count
        squares = math.fsum((value - mean) * (value - mean) for value in values)
        distance = mean - self._mean
        together = self._count + count
        self._squares += squares + distance * distance * self._count * count / together
        self._mean += distance * count / together
        self._sum += total
        self._count = together


def read_numbers(cells: list[str]) -> list[int] | list[float] | None:
    """The cells as numbers, as integers where all are; ``None`` if one is no finite number."""
    joined = "".join(cells)
    if "_" in joined:  # Python reads 1_000 as a number; nobody who writes CSV does
        return None
    try:
        if max(map(len, cells)) <= _INTEGER_MAX_CHARS:
            return list(map(int, cells))
    except ValueError:
        pass
    try:
        values = list(map(float, cells))
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _finite(value: float) -> int | float | None:
    """The number as JSON can carry it everywhere: integers beyond 64 bits as floats, nothing infinite."""
    if isinstance(value, int):
        if abs(value) <= _INT64_MAX:
            return value
        try:
            value = float(value)
        except OverflowError:
            return None
    return value if math.isfinite(value) else None


class TextExtent:
    """Least and largest text, and shortest and longest, in characters."""

    def __init__(self) -> None:
        self.min_length: int | None = None
        self.max_length: int | None = None
        self._min: str | None = None
        self._max: str | None = None

    def add(self, cells: list[str]) -> None:
        lengths = list(map(len, cells))
        low, high = min(lengths), max(lengths)
        self.min_length = low if self.min_length is None else min(self.min_length, low)
        self.max_length = high if self.max_length is None else max(self.max_length, high)
        # Cut before they are kept: a file can be made to hold a huge cell in every column, each in another row.
        least, largest = min(cells)[:TEXT_SHOWN_MAX_CHARS], max(cells)[:TEXT_SHOWN_MAX_CHARS]
        self._min = least if self._min is None else min(self._min, least)
        self._max = largest if self._max is None else max(self._max, largest)

    def result(self) -> dict[str, Any]:
        return {"min": self._min, "max": self._max}


class DistinctCounter:
    """Counts different texts: exactly up to ``most``, then by adaptive sampling with about the same memory.

    It keeps 64-bit digests. When they are too many, it keeps only those with one more leading zero bit, half of them,
    and counts each as two (Wegman). With ``most`` of 10,000 the estimate is within about 2 % of the truth.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._halvings = 0
        self._digests: set[int] = set()

    @property
    def exact(self) -> bool:
        return self._halvings == 0

    def add(self, cells: list[str]) -> None:
        for cell in set(cells):
            # Not hash(): that differs from process to process, and so would the estimate.
            digest = int.from_bytes(hashlib.blake2b(cell.encode("utf-8", "surrogatepass"), digest_size=8).digest())
            if digest >> (64 - self._halvings) == 0:
                self._digests.add(digest)
        while len(self._digests) > self._most:
            self._halvings += 1
            self._digests = {digest for digest in self._digests if digest >> (64 - self._halvings) == 0}

    def estimate(self) -> int:
        return len(self._digests) << self._halvings
