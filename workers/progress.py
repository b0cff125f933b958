"""Progress as task code says it: checked and cut to its limits before it goes anywhere."""

from __future__ import annotations

import math

from eventq.events.errors import InvalidInput
from eventq.events.limits import LOG_MESSAGE_MAX_CHARS
from eventq.events.report import Progress
from eventq.workers.text import clean

UNIT_MAX_CHARS = 32


def checked_progress(done: float, total: float | None, unit: str | None, message: str | None) -> Progress:
    """Finite, non-negative numbers and texts cut to their limits and made fit to be stored, else :class:`InvalidInput`.

    A ``total`` of 0 means that there was nothing to do and becomes ``None``: no share of it can be shown.
    """
    return Progress(
        _amount("done", done),
        _amount("total", total) or None if total is not None else None,
        None if unit is None else clean(str(unit), UNIT_MAX_CHARS),
        None if message is None else clean(str(message), LOG_MESSAGE_MAX_CHARS),
    )


def _amount(field: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise InvalidInput(f"progress.{field}", "must be a finite number, 0 or more", found=repr(value)[:80])
    return number
