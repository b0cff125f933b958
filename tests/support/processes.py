"""What the operating system says about a process; a zombie counts as dead."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether `pid` still runs. `kill(pid, 0)` would also say yes for a zombie that nobody has reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def dead(pid: int) -> bool:
    """The opposite of `alive`."""
    return not alive(pid)


def parent(pid: int) -> int:
    """The process above `pid`."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def stands_still(pid: int) -> bool:
    """Whether a signal stopped every thread of `pid` (state T). A signal reaches the threads one by one: until the last has
    it, the process may still answer."""
    try:
        stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
