"""Which devices a pool's processes run on: one process for each, so that a device's memory has one owner."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

from eventq.events.errors import EventqError

_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


class NoTorch(EventqError):
    """A ``gpu`` worker was started where PyTorch is not installed."""

    code = "NO_TORCH"


@dataclass(frozen=True, slots=True)
class Device:
    """``label`` is what events and operators see; ``name`` is what task code gives to torch, inside ``environment``."""

    label: str
    name: str
    environment: dict[str, str] = field(default_factory=dict[str, str])


CPU = Device(label="cpu", name="cpu")
STAND_IN = Device(label="cpu-stand-in", name="cpu")
"""What a ``gpu`` worker runs on where no accelerator is: the same code on torch's CPU build, and it says so."""


async def gpu_devices() -> list[Device]:
    """The machine's CUDA devices, or the stand-in. Asks in a child process: the worker itself never loads torch."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _COUNT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await child.communicate()
    if child.returncode != 0:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise NoTorch(f"a gpu worker needs PyTorch: install eventq[torch] ({last})")
    return [
        Device(label=f"cuda:{index}", name="cuda:0", environment={"CUDA_VISIBLE_DEVICES": str(index)})
        for index in range(int(out))
    ] or [STAND_IN]
