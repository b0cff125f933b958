"""What the kernel tells and does about processes that belong together. Where there is no ``/proc`` (outside Linux) only process
groups are known, and a parent's death is not noticed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send ``number`` to this process when the thread of ``parent`` that started it ends, however it ends.
    Exits at once where that is over already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of what its descendants leave behind, so that it can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def stands_still(pid: int) -> bool:
    """Whether the process is stopped; where there is no ``/proc`` to tell, the signal is trusted."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return not Path("/proc").exists()
    return state in {"T", "t"}


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, also those that left its group; none where there is no ``/proc`` to tell."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            # The name, in parentheses, may hold anything; state and parent follow it.
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(path.parent.name))
    found = list(below.get(pid, ()))
    for child in found:  # grows as it goes
        found += below.get(child, ())
    return found


def signal_below(keeper: int, group: int, number: signal.Signals) -> None:
    """Send a signal once to each process below ``keeper``: to the ``group`` of its child as a whole, then to what left that."""
    below = descendants(keeper)  # looked up first: what a handler starts, to clean up, is not meant any more
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for pid in below:
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) != group:
                os.kill(pid, number)
