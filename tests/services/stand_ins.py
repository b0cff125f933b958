"""Small programs that stand in for eventq's processes, and a supervisor of them that can be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from eventq.services.supervisor import Backoff, ManagedProcess, Supervisor

# Writes its pid and its end to a journal, says that it is ready, and ends cleanly at SIGTERM.
SERVER = """
import os, signal, sys
from eventq.services.child import announce_ready
name, journal = sys.argv[1:]
def note(what):
    with open(journal, "a") as file:
        print(name, what, os.getpid(), file=file)
signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), sys.exit(0)))
note("started")
announce_ready()
while True:
    signal.pause()
"""

STUBBORN = """
import os, signal, subprocess, sys
from eventq.services.child import announce_ready
name, journal = sys.argv[1:]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen(["sleep", "600"])
with open(journal, "a") as file:
    print(name, "started", os.getpid(), file=file)
    print(name + "-child", "started", grandchild.pid, file=file)
announce_ready()
while True:
    signal.pause()
"""

FINISHES = """
import os, sys
from eventq.services.child import announce_finished, announce_ready
name, journal = sys.argv[1:]
with open(journal, "a") as file:
    print(name, "started", os.getpid(), file=file)
announce_ready()
announce_finished()
sys.exit(int(name.rpartition("-")[2]))
"""
"""Says that its work is done, and ends with the code that stands in its name."""

MUTE = "import signal; signal.pause()"

BROKEN = "import sys; print('no such table: tasks'); sys.exit(2)"

FAST = Backoff(first_s=0.01, max_s=0.05)


def stand_in(name: str, journal: Path, program: str = SERVER, *, ready_s: float = 20.0, stop_s: float = 20.0) -> ManagedProcess:
    """A supervised process that runs `program`."""
    return ManagedProcess(
        name,
        [sys.executable, "-P", "-c", program, name, str(journal)],
        log_file=journal.with_name(f"{name}.log"),
        ready_s=ready_s,
        stop_s=stop_s,
    )


def entries(journal: Path) -> list[tuple[str, str, int]]:
    """What the stand-ins noted: name, what, pid."""
    if not journal.exists():
        return []
    lines = [line.split() for line in journal.read_text().splitlines()]
    return [(name, what, int(pid)) for name, what, pid in lines]


def running_pid(journal: Path, name: str) -> int:
    """The pid of the latest start of `name`; 0 before there is one."""
    return next((pid for who, what, pid in reversed(entries(journal)) if (who, what) == (name, "started")), 0)


async def _supervise_until_stopped(journal: Path, program: str) -> int:
    supervisor = Supervisor(lambda line: print(line, flush=True), backoff=FAST)

    async def body() -> None:
        for name in ("log", "api"):
            await supervisor.start(stand_in(name, journal, program))
        await supervisor.start(stand_in("worker-1", journal, program), stand_in("worker-2", journal, program))
        print("all ready", flush=True)
        await asyncio.Event().wait()

    return await supervisor.run(body())


if __name__ == "__main__":
    sys.exit(asyncio.run(_supervise_until_stopped(Path(sys.argv[1]), globals()[sys.argv[2]])))
