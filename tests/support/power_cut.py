"""A disk whose power can be cut: an ext4 image on a loop device, and what of it had reached the device.

A killed process proves nothing about fsync: the kernel still writes what it was given. Copying the *image* while its file
system is mounted takes what the file system had handed to the device and nothing else, as after a power cut; mounting the
copy replays the journal, as after a reboot. Needs root and loop devices, no other tools than `mkfs.ext4` and `mount`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

SIZE_BYTES = 128 * 1024 * 1024


class CannotMountError(Exception):
    """This machine or this user cannot mount images; the sentence says why."""


@contextlib.contextmanager
def disk(folder: Path) -> Generator[Path]:
    """A fresh, empty disk, mounted on `folder / "disk"` until the block ends."""
    if os.geteuid() != 0:
        raise CannotMountError("not root")
    if missing := [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]:
        raise CannotMountError(f"no {', '.join(missing)}")
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with mounted(image, folder / "disk") as mountpoint:
        yield mountpoint


def cut_power(folder: Path) -> Path:
    """The image as the device holds it now. Stop the writers first; they may be killed afterwards."""
    image = folder / "after-the-cut.img"
    subprocess.run(["cp", "--sparse=always", str(folder / "disk.img"), str(image)], check=True)
    return image


@contextlib.contextmanager
def mounted(image: Path, mountpoint: Path) -> Generator[Path]:
    """`image` mounted on `mountpoint`; unmounted even while something still writes to it."""
    mountpoint.mkdir(parents=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(mountpoint)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMountError(done.stderr.strip())
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "--lazy", str(mountpoint)], check=True)
