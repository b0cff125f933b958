"""The keeper of one child process: started by :mod:`eventq.workers.processes`, never by hand.

Whatever the child starts stays below its keeper, also in a session of its own and after the child has died. The keeper ends
when nothing is left below it, the way the child ended. On SIGTERM, which the kernel also sends when the worker dies, it
first kills everything. A killed worker can do nothing about what its tasks had started; the keeper outlives it and can.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from eventq.workers.process_tree import adopt_orphans, die_with_parent, signal_below

GIVE_UP_S = 5
"""For how long it waits for what it killed: a process that hangs in the kernel, or became another user's, is left behind."""


class _Keeper:
    """Waits for one child and all that came of it."""

    def __init__(self) -> None:
        self._child: int | None = None
        self._ending = False
        signal.signal(signal.SIGTERM, self._end)

    def start(self, command: list[str]) -> None:
        """Start the child, in a session of its own."""
        self._child = os.fork()
        if self._child == 0:
            os.setsid()
            os.execv(command[0], command)

    def wait(self) -> int:
        """Wait until nothing is left below; how the child ended, as ``waitpid`` says it."""
        ended_how = 0
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                return ended_how
            if pid == self._child:
                ended_how = status
            if self._ending:
                self._kill()  # what was started while the others were being killed

    def _end(self, *_: object) -> None:
        self._ending = True
        signal.alarm(GIVE_UP_S)
        self._kill()

    def _kill(self) -> None:
        signal_below(os.getpid(), self._child, signal.SIGKILL)


def _end_as(status: int) -> None:
    """End the way that ``status`` says: with the same exit code, or by the same signal."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def main() -> None:
    """``python -P -m eventq.workers.keeper FD PARENT``"""
    channel, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keeper = _Keeper()
    die_with_parent(parent, signal.SIGTERM)
    adopt_orphans()
    keeper.start([sys.executable, "-P", "-m", "eventq.workers.process_main", str(channel), str(os.getpid())])
    os.close(channel)  # else the worker would not see that the child closed its end
    _end_as(keeper.wait())


if __name__ == "__main__":
    main()
