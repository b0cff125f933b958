"""Run `eventq` as its users do: a process of its own, told where things are by arguments and variables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN_S = 60.0
START_S = 60.0
COMMAND = [sys.executable, "-P", "-m", "eventq.services.cli"]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self
        return json.loads(lines[0])

    @property
    def lines(self) -> list[Any]:
        """One object for each line of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings of the developer's, and with `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTQ_")}
    return {**kept, **variables}


def eventq(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> Done:
    """Run `eventq ARGUMENTS` to its end."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_S, cwd=cwd, env=environment(**variables), check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def start_eventq(*arguments: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.Popen[str]:
    """Start `eventq ARGUMENTS`; the test talks to it by its pipes and by signals."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**variables),
    )


@dataclass(frozen=True, slots=True)
class Up:
    """A running `eventq up`."""

    process: subprocess.Popen[str]
    folder: Path
    facts: dict[str, Any]

    def __call__(self, *arguments: str | Path) -> Done:
        """A command of another terminal: it finds the instance by its data directory."""
        return eventq(*arguments, cwd=self.folder, EVENTQ_DATA_DIR=str(self.folder / "data"))

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """The same, not waited for."""
        return start_eventq(*arguments, cwd=self.folder, EVENTQ_DATA_DIR=str(self.folder / "data"))

    @classmethod
    def begin(cls, folder: Path) -> Up:
        """Start it and wait until it says where it is."""
        process = start_eventq("up", "--no-gpu", "--port", "0", "--json", "--data-dir", folder / "data", cwd=folder)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"eventq up ended: {process.communicate(timeout=START_S)[1]}")
        return cls(process, folder, json.loads(line))

    def end(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=RUN_S)
        return self.process.returncode
