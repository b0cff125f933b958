"""Child processes: they cannot outlive their parent, and their end is explained.

A supervisor killed with SIGKILL cannot stop its children, and an orphaned broker or worker would hold its
port, its store and its leases. Linux can signal a child when its parent dies (`PR_SET_PDEATHSIG`), but only
the child can ask for it. Asking in a `preexec_fn` would run Python between fork and exec, where another
thread may hold a lock for ever; so each command is started through a tiny Python process that asks and then
*becomes* the command (exec: same pid, no wrapper left behind, about 20 ms). Elsewhere than on Linux the
command is started directly, and a SIGKILL of the parent leaves its children to be ended by hand.

A child gets a session of its own, so that Ctrl-C in a terminal reaches only the supervisor, which then stops
the others in order; and so that killing a child's whole group also ends what the child started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

NOTIFY_SOCKET = "NOTIFY_SOCKET"
"""Name of the variable that holds the datagram socket for `announce_ready` (systemd's protocol)."""

READY = b"READY=1"
FINISHED = b"STOPPING=1\nX_EVENTQ_FINISHED=1"
"""Systemd passes over variables that begin with ``X_``."""

# The parent may be gone before the request is made: then nobody will ever send the signal, so leave at once.
_BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command that runs `command` and is killed when the process (and thread) that started it ends."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command]


async def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    """Start `command` as a child that dies with this process, in a session of its own, without a terminal.

    `output` receives both stdout and stderr; None: they are shared with this process. `env` None: this
    process's.
    """
    return await asyncio.create_subprocess_exec(
        *dying_with_parent(command),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=pass_fds,
    )


async def end(process: asyncio.subprocess.Process, how: signal.Signals, patience_s: float) -> int:
    """Send `how`, wait `patience_s`, then kill the child and everything it started. Returns its exit code."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            await asyncio.wait_for(process.wait(), patience_s)
        except TimeoutError:
            kill_group(process.pid)
    return await process.wait()


def kill_group(pid: int) -> None:
    """SIGKILL to the child `pid` and everything it started; nothing happens when they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def announce_ready() -> None:
    """Tell whoever started this process that it serves now; without such a listener nothing happens.

    The protocol is systemd's (`Type=notify`), so a unit file works as well as `eventq up`.
    """
    _notify(READY)


def announce_finished() -> None:
    """Tell whoever started this process that it ends because its work is done: it is not to be started again."""
    _notify(FINISHED)


def _notify(message: bytes) -> None:
    path = os.environ.get(NOTIFY_SOCKET)
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, suppress(OSError):
        channel.sendto(message, address)


def describe_exit(code: int) -> str:
    """The exit code in words: negative codes (and 128 + n, from shells) are signals."""
    number = -code if code < 0 else code - 128
    if code == 0:
        return "exited normally"
    if code == 2:
        return "exited with code 2 (refused its arguments or settings)"
    if code > 0 and not 0 < number < signal.NSIG:
        return f"exited with code {code}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exited with code {code}"
    return f"exited with code {128 + number} ({_SIGNAL_MEANING.get(name, name)})"


_SIGNAL_MEANING = {
    "SIGKILL": "SIGKILL: killed from outside, or out of memory",
    "SIGTERM": "SIGTERM: asked to stop from outside",
    "SIGINT": "SIGINT: interrupted from outside",
    "SIGSEGV": "SIGSEGV: crashed in native code",
    "SIGBUS": "SIGBUS: a mapped file shrank or the disk is full",
    "SIGABRT": "SIGABRT: aborted itself",
}
