"""``gpu_check``: what this device is and how fast it multiplies, measured rather than claimed."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from eventq.events.errors import InvalidInput, Unavailable
from eventq.workers.context import Context
from eventq.workers.registry import task

if TYPE_CHECKING:
    import torch


@task(pool="gpu", timeout_s=300)
def gpu_check(
    ctx: Context,
    size: Annotated[int, Field(ge=16, le=16_384)] = 512,
    rounds: Annotated[int, Field(ge=1, le=1_000)] = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Multiply two ``size`` by ``size`` float32 matrices ``rounds`` times on this attempt's device.

    ``tflops`` is of the fastest round, in 10^12 operations a second. ``stand_in`` says that the CPU stood in for a GPU.
    ``checksum`` is the same for the same ``seed`` on the same kind of device. Raises :class:`Unavailable` where torch
    is not installed or the device is missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("torch is not installed here", hint="pip install 'eventq[torch]'")
    import torch

    device = _device(torch, ctx.device)
    draw = torch.Generator().manual_seed(seed)
    left, right = (torch.rand(size, size, generator=draw).to(device) for _ in range(2))
    durations: list[float] = []
    product = left @ right  # the first time also loads kernels: not measured
    _wait(torch, device)
    for done in range(rounds):
        ctx.check()
        began = time.perf_counter()
        product = left @ right
        _wait(torch, device)
        durations.append(time.perf_counter() - began)
        ctx.progress(done + 1, rounds, "rounds")
    return {
        "device": ctx.device,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "stand_in": device.type == "cpu",
        "torch_version": str(torch.__version__),
        "cuda_version": torch.version.cuda,
        "size": size,
        "rounds": rounds,
        "seconds": min(durations),
        "tflops": 2 * size**3 / min(durations) / 1e12,
        "checksum": float(product.double().mean()),
        **_memory(torch, device),
    }


def _device(torch_: Any, name: str) -> torch.device:
    try:
        device: torch.device = torch_.device(name)
    except RuntimeError:
        raise InvalidInput("device", "is no device that torch knows", found=name[:40]) from None
    if device.type == "cuda" and not torch_.cuda.is_available():
        raise Unavailable(f"this worker was given {name}, but torch sees no GPU", hint="is a CPU build of torch installed?")
    return device


def _wait(torch_: Any, device: torch.device) -> None:
    if device.type == "cuda":  # kernels run behind the program's back
        torch_.cuda.synchronize(device)


def _memory(torch_: Any, device: torch.device) -> dict[str, int | None]:
    if device.type != "cuda":
        return {"memory_total_bytes": None, "memory_used_bytes": None}
    free, total = torch_.cuda.mem_get_info(device)
    return {"memory_total_bytes": total, "memory_used_bytes": total - free}
