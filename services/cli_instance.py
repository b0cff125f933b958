"""Which instance a command talks to: named, set, running here, or where one would run.

``--api`` and ``--nats-url`` come first; then what the settings say; then the ``run.json`` that ``eventq up`` leaves in
the data directory; then the addresses that the settings' defaults give.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from eventq.events.errors import LogUnavailable, Unavailable

if TYPE_CHECKING:
    from eventq.events.broker import Broker
    from eventq.services.client import Client
    from eventq.services.run_file import Run
    from eventq.services.settings import Loaded, Settings

NATS_PORT = 4222
REACH_S = 3.0
"""How long a command waits for a broker before it says that there is none."""


class NoInstance(Unavailable):
    """No API answers where this command looked."""

    code = "NO_INSTANCE"


@dataclass(frozen=True)
class Instance:
    """What the command line names of an instance; ``None``: to be found."""

    api: str | None = None
    nats_url: str | None = None
    config: Path | None = None
    data_dir: Path | None = None

    @cached_property
    def loaded(self) -> Loaded:
        """The settings with their origins. Raises ``SettingsError``."""
        from eventq.services.settings import load_settings

        return load_settings(self.config, data_dir=self.data_dir, nats_url=self.nats_url, api_url=self.api)

    @cached_property
    def run(self) -> Run | None:
        """The `eventq up` that runs on the data directory."""
        from eventq.services.run_file import read_run

        return read_run(self.loaded.settings.data_dir)

    @cached_property
    def api_url(self) -> str:
        """The API's base URL, without asking whether it answers."""
        if self.api is not None:
            return self.api
        settings = self.loaded.settings
        if settings.api_url is not None:
            return settings.api_url
        return self.run.api_url if self.run is not None else f"http://{_host(settings.api_host)}:{settings.api_port}"

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the running instance's broker where no other was named."""
        return self.with_options()

    def with_options(self, **options: Any) -> Settings:
        """:attr:`settings`, in which ``options`` (``None``: not given) come first."""
        from eventq.services.settings import load_settings

        found = {"data_dir": self.data_dir, "nats_url": self.nats_url, "api_url": self.api, **options}
        if self.run is not None and "nats_url" not in self.loaded.origins:
            found |= {"nats_url": self.run.nats_url, "nats_monitor_url": self.run.nats_monitor_url}
        return load_settings(self.config, **found).settings

    def refuse_another(self, setting: str) -> None:
        """Raise :class:`NoInstance` where the directory named on the command line has no instance and ``setting`` names none.

        The default address may then be that of somebody else's instance.
        """
        if self.data_dir is None or self.run is not None or setting in self.loaded.origins:
            return
        option = {"api_url": "--api URL", "nats_url": "--nats-url URL"}[setting]
        raise NoInstance(
            f"no `eventq up` runs on the data directory {self.data_dir}",
            data_dir=str(self.data_dir),
            hint=f"start it with `eventq up --data-dir {self.data_dir}`, or name an instance with {option}",
        )

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        """A client of the API. Raises :class:`NoInstance` from within where nothing answers at its address."""
        from eventq.services.client import Client

        self.refuse_another("api_url")
        async with Client(self.api_url) as client:
            try:
                yield client
            except Unavailable as error:
                if error.code != Unavailable.code or "http_status" in error.fields:
                    raise  # it answered; it only cannot do this now
                raise NoInstance(
                    error.detail,
                    url=self.api_url,
                    hint="start one with `eventq up`, or name one with --api URL or EVENTQ_API_URL",
                ) from error

    @asynccontextmanager
    async def broker(self, role: str) -> AsyncGenerator[Broker]:
        """A connection to the broker. Raises ``LogUnavailable`` where none answers, :class:`NoInstance` where none is meant."""
        from eventq.events.broker import Broker
        from eventq.services.logs import configure_logs

        self.refuse_another("nats_url")
        urls = self.settings.nats_url
        if not await _listens(urls):
            raise LogUnavailable(f"no broker listens at {urls}", url=urls, hint="start one with `eventq up`")
        configure_logs("error")  # to stderr: stdout belongs to the answer
        async with await Broker.connect(urls, name=f"eventq {role}", timeout_s=REACH_S) as broker:
            yield broker


async def _listens(urls: str) -> bool:
    """Whether any of the comma-separated addresses accepts connections: a client would go on trying, a person would not."""
    for url in map(urlsplit, urls.split(",")):
        try:
            async with asyncio.timeout(REACH_S):
                _, writer = await asyncio.open_connection(url.hostname, url.port or NATS_PORT)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return True
    return False


def _host(listening: str) -> str:
    """An address to reach what listens on every address, and brackets for IPv6."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listening, listening)
    return f"[{reachable}]" if ":" in reachable else reachable
