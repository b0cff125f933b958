"""``echo`` and ``gpu_check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from eventq.events.errors import InvalidInput, Unavailable
from eventq.workers.builtin.echo import echo
from eventq.workers.builtin.gpu_check import gpu_check
from eventq.workers.context import TaskCancelled
from tests.workers.support import RecordingHost, make_context


@pytest.mark.parametrize("value", [None, True, 2**60, "ü\u2028", [1, [2]], {"a": {"b": None}}])
async def test_echo_answers_what_it_was_given(value: Any) -> None:
    assert await echo(value) == value


def test_the_device_is_measured_and_a_stand_in_says_so(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    host = RecordingHost()
    result = gpu_check(make_context(tmp_path, host), size=64, rounds=3)

    assert (result["device"], result["device_name"], result["stand_in"]) == ("cpu", "CPU", True)
    assert result["tflops"] > 0
    assert result["torch_version"] == str(sys.modules["torch"].__version__)
    assert result["checksum"] == gpu_check(make_context(tmp_path), size=64, rounds=1)["checksum"]
    assert [update.done for update in host.updates] == [1, 2, 3]


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidInput):
        gpu_check(make_context(tmp_path, device="warp:9"), size=16)
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable):
            gpu_check(make_context(tmp_path, device="cuda:0"), size=16)


def test_a_cancelled_check_stops(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    host = RecordingHost(cancel_after=1)
    with pytest.raises(TaskCancelled):
        gpu_check(make_context(tmp_path, host), size=16, rounds=1_000)
    assert len(host.updates) == 1
