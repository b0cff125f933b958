"""`eventq workers`, on an instance with a worker that speaks HTTP and one that is a process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from eventq.services.cli_exit import ExitCode
from tests.services.command import Up, eventq


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up.begin(tmp_path_factory.mktemp("up"))
    yield up
    up.end()


def test_workers_are_listed_shown_and_steered(up: Up) -> None:
    url = f"{up.facts['api_url']}/api/v1/workers?hostname=compute-1&capacity=3"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST", headers={"Sec-Fetch-Site": "none"})) as answer:
        worker_id = json.loads(answer.read())["worker_id"]

    def run(*arguments: str) -> Any:
        done = eventq("workers", *arguments, "--json", "--api", up.facts["api_url"])
        assert done.code == 0, done.stderr
        return done.json

    assert {worker["kind"] for worker in run("list")["workers"]} == {"http", "process"}
    assert run("show", worker_id)["hostname"] == "compute-1"
    assert run("pause", worker_id)["status"] == "paused"
    assert [worker["worker_id"] for worker in run("list", "--status", "paused")["workers"]] == [worker_id]
    assert run("resume", worker_id)["status"] == "resumed"
    assert run("capacity", worker_id, "7")["capacity"] == 7
    assert run("drain", worker_id)["status"] == "draining"
    shown = eventq("workers", "show", worker_id, "--api", up.facts["api_url"])
    assert "DRAINING" in shown.stdout
    assert "0 of 7" in shown.stdout
    refused = eventq("workers", "pause", worker_id, "--json", "--api", up.facts["api_url"])
    assert refused.code == ExitCode.CONFLICT
    assert eventq("workers", "show", "nobody", "--api", up.facts["api_url"]).code == ExitCode.NOT_FOUND
