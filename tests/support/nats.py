"""A real nats-server for the tests: loopback, free ports, fsync on every write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from eventq.services.embedded import find_nats_server
from tests.support.poll import eventually_sync
from tests.support.processes import stands_still

READY_S = 10.0
STOP_S = 10.0


class NatsServer:
    """One nats-server process with its own store; restarts keep the ports and the store."""

    def __init__(self, folder: Path, sync_interval: str | None = "always") -> None:
        self.folder = folder
        self.store_dir = folder / "js"
        self.log_file = folder / "nats.log"
        self.sync_interval = sync_interval
        self.url: str = ""
        self.monitor_url: str = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or -1

    def start(self) -> None:
        """Start and wait until the server listens (about 50 ms)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob("*.ports"):
            stale.unlink()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command(), "--ports_file_dir", str(self.folder)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
            )
        ports = eventually_sync(self._read_ports, READY_S, f"a ports file in {self.folder}")
        self.url, self.monitor_url = ports["nats"][0], ports["monitoring"][0]

    def command(self) -> list[str]:
        """What to run; it writes its configuration first."""
        return [find_nats_server(), "-c", str(self._write_config())]

    def stop(self) -> None:
        """SIGINT and wait: a clean shutdown."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL and wait: a crash."""
        self._end(signal.SIGKILL)

    def restart(self, crash: bool = False) -> None:
        """Stop (or kill, when `crash`) and start again on the same ports and store."""
        if self._process is not None:
            self._end(signal.SIGKILL if crash else signal.SIGINT)
        self.start()

    def pause(self) -> None:
        """SIGSTOP, and wait until the server stands still: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        eventually_sync(lambda: stands_still(self.pid), what="the server stands still")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def _read_ports(self) -> dict[str, list[str]] | None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"nats-server exited with code {code}:\n{self.log_file.read_text()[-2000:]}")
        for file in self.folder.glob("*.ports"):
            try:
                ports: dict[str, list[str]] = json.loads(file.read_text())
            except ValueError:  # caught half written
                return None
            return ports if ports.get("nats") and ports.get("monitoring") else None
        return None

    def _write_config(self) -> Path:
        port = self.port if self.url else -1
        monitor = urlsplit(self.monitor_url).port if self.monitor_url else -1
        sync = f"  sync_interval: {self.sync_interval}\n" if self.sync_interval else ""
        config = self.folder / "nats.conf"
        config.write_text(
            f"listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\nmax_payload: 1MB\n"
            f'jetstream {{\n  store_dir: "{self.store_dir}"\n{sync}'
            "  max_mem: 256MB\n  max_file: 20GB\n}\n"
        )
        return config
