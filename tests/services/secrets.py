"""A secret that must be nowhere once it is erased, and a look for it in the bytes of files."""

from __future__ import annotations

from pathlib import Path

SECRET = "Grüße-an-4711-niemand-sonst"


def bytes_hold(folder: Path, secret: str = SECRET) -> list[Path]:
    """Files under `folder` in which the secret can be found."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in _bytes_of(path)]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # deleted since it was listed
        return b""
