"""One process of eventq in a test's hands: started, awaited until ready, killed, stopped for a while, asked to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import orjson

from eventq.services.child import NOTIFY_SOCKET, dying_with_parent
from tests.support.poll import eventually_sync
from tests.support.processes import alive, stands_still

COMMAND = ("-m", "eventq.services.cli")
LAUNCHER = (str(Path(__file__).with_name("run_process.py")),)
"""For what the command line cannot say."""

READY_S = 60.0
END_S = 40.0


class Process:
    """Starts at once; :meth:`wait_ready` before it is relied upon. Its log is JSON lines in ``log_file``."""

    def __init__(self, role: str, log_file: Path, environment: Mapping[str, str]) -> None:
        launcher = LAUNCHER if any(name.startswith("CHAOS_") for name in environment) else COMMAND
        self.role = role
        self.log_file = log_file
        self._folder = tempfile.TemporaryDirectory(prefix="eventq-")  # short: socket names end at 108 characters
        address = f"{self._folder.name}/ready"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(address)
        with log_file.open("ab") as output:
            self._process = subprocess.Popen(
                dying_with_parent([sys.executable, "-P", *launcher, role, "--json"]),
                env={**os.environ, **environment, NOTIFY_SOCKET: address},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended; a stopped process runs."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Return once the process said that it serves."""
        self._ready.settimeout(0.1)
        for _ in range(int(READY_S / 0.1)):
            try:
                assert self._ready.recv(64) == b"READY=1"
            except TimeoutError:
                assert self.running, f"{self.role} ended before it was ready:\n{self.last_words()}"
            else:
                return
        raise AssertionError(f"{self.role} was not ready within {READY_S:g} s:\n{self.last_words()}")

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Nothing of what it would have cleaned up is cleaned up."""
        self.signal(signal.SIGKILL)
        self._process.wait(END_S)

    def signal_stop(self) -> None:
        """SIGTERM: it shall stop in good order."""
        self.signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and wait for the end; its exit code."""
        self.signal_stop()
        return self.wait()

    def pause(self) -> None:
        """SIGSTOP, and wait until the process stands still."""
        self.signal(signal.SIGSTOP)
        eventually_sync(lambda: self.paused, what=f"{self.role} stands still")

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait for the end; its exit code, negative for a signal."""
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.role} does not end:\n{self.last_words()}") from None

    def close(self) -> None:
        """End it, however it is, and let go of what belongs to it."""
        self.kill()
        self._ready.close()
        self._folder.cleanup()

    @property
    def paused(self) -> bool:
        """Whether a signal stopped it."""
        return stands_still(self.pid)

    def children(self) -> list[int]:
        """Its living child processes."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in listed if alive(int(pid))]

    def logged(self, event: str) -> list[dict[str, object]]:
        """The lines of its log that tell of ``event``."""
        lines = self.log_file.read_bytes().splitlines() if self.log_file.exists() else []
        found = [orjson.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return [line for line in found if line.get("event") == event]

    def last_words(self) -> str:
        return self.log_file.read_text(errors="replace")[-3_000:] if self.log_file.exists() else ""
