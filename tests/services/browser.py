"""A headless Chromium for the tests of pages. Skips with the reason where there is none, but never on CI."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Page


@dataclass
class Watched:
    """A page and all that must be empty when a test of it ends."""

    page: Page
    errors: list[str] = field(default_factory=list[str])
    foreign_requests: list[str] = field(default_factory=list[str])


@asynccontextmanager
async def watched_page() -> AsyncGenerator[Watched]:
    """A fresh page that records console errors and every request that leaves this machine."""
    chromium = _chromium_or_skip()
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        watched = Watched(await browser.new_page())
        watched.page.on("console", lambda line: watched.errors.append(line.text) if line.type == "error" else None)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on("request", lambda request: _note_foreign(watched, request.url))
        yield watched
        await browser.close()


def _note_foreign(watched: Watched, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
        watched.foreign_requests.append(url)


def _chromium_or_skip() -> str:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    missing = [
        name for name, found in (("chromium", chromium), ("playwright", importlib.util.find_spec("playwright"))) if not found
    ]
    if missing:
        reason = f"not installed: {' and '.join(missing)}"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    assert chromium
    return chromium
