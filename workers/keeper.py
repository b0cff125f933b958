"""The keeper of one child process: started by :mod:`eventq.workers.processes`, never by hand.

Whatever the child starts stays below its keeper, also in a session of its own and after the child has died. The keeper ends
when nothing is left below it, the way the child ended. On SIGTERM, which the kernel also sends when the worker dies, it
first kills everything. A killed worker can do nothing about what its tasks had started; the keeper outlives it and can.

Its signals are blocked and waited for, never handled: none interrupts a step, and none comes too early or too late to count.

| the keeper | SIGTERM                            | the child ends         | another below ends | SIGALRM         |
|------------|------------------------------------|------------------------|--------------------|-----------------|
| starting   | waits until the child is there     | waits                  | -                  | -               |
| running    | sets the alarm and kills: ending   | notes how              | -                  | -               |
| ending     | nothing, the alarm stays as it was | notes how, kills again | kills again        | gives up: gone  |
| gone       | nothing                            | -                      | -                  | nothing         |

With the last one below it, it is gone from any state. SIGTERM before anything is blocked ends it: nothing is below it yet. When
it is itself killed, the kernel kills the child, but not what the child had started.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from eventq.workers.process_tree import adopt_orphans, die_with_parent, signal_below

GIVE_UP_S = 5
"""For how long it waits for what it killed: a process that hangs in the kernel, or became another user's, is left behind."""

_SIGNALS = {signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM}


class _Keeper:
    """Waits for one child and all that came of it."""

    def __init__(self, command: list[str]) -> None:
        """Start the child, in a session of its own, where signals are what they are by default."""
        self._ended_how: int = signal.SIGKILL  # what it has been sent where it is given up
        self._child = os.posix_spawn(command[0], command, os.environ, setsid=True, setsigmask=())

    def wait(self) -> int:
        """Wait until nothing is left below, or is given up; how the child ended, as ``waitpid`` says it."""
        ending = False
        while True:
            told = signal.sigwait(_SIGNALS)
            if not self._reap() or told == signal.SIGALRM:
                return self._ended_how
            if told == signal.SIGTERM and not ending:
                ending = True
                signal.alarm(GIVE_UP_S)
            if ending:  # also what was started while the others were being killed
                signal_below(os.getpid(), self._child, signal.SIGKILL)

    def _reap(self) -> bool:
        """Take note of all who have ended; whether any are left."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if ended[0] == self._child:
                    self._ended_how = ended[1]
        except ChildProcessError:
            return False
        return True


def _end_as(status: int) -> None:
    """End the way that ``status`` says: with the same exit code, or by the same signal."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def _heed(*_: object) -> None:
    """Never called: a signal with a handler stays pending while it is blocked, one that is ignored, as SIGCHLD is, need not."""


def main() -> None:
    """``python -P -m eventq.workers.keeper FD PARENT``"""
    channel, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    signal.signal(signal.SIGCHLD, _heed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent, signal.SIGTERM)
    adopt_orphans()
    keeper = _Keeper([sys.executable, "-P", "-m", "eventq.workers.process_main", str(channel), str(os.getpid())])
    os.close(channel)  # else the worker would not see that the child closed its end
    _end_as(keeper.wait())


if __name__ == "__main__":
    main()
