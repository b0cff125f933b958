"""A worker process, a scheduler and a broker that all tests of a module share, and a connection for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.chaos.checker import violations
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.support.nats import NatsServer

STOP_S = 0.3
"""Between asking, SIGTERM and SIGKILL: short, so that tests of what ignores the first two need not take long."""

CAPACITY = 4


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A broker of the module's own. Its processes end with the module; do not kill those of `shared_worker`."""
    folder = tmp_path_factory.mktemp("site")
    server = NatsServer(folder / "nats")
    server.start()
    site = Site(server, folder)
    yield site
    site.close()
    server.kill()


@pytest.fixture(scope="module")
def shared_worker(site: Site) -> Process:
    """The module's worker, with a scheduler beside it for the retries."""
    scheduler = site.start("scheduler")
    worker = site.start("worker", stop_s=STOP_S, queues="default", concurrency=CAPACITY)
    scheduler.wait_ready()
    worker.wait_ready()
    return worker


@pytest.fixture
async def control(site: Site) -> AsyncIterator[Control]:
    """This test's connection to the site."""
    async with await Control.open(site) as control:
        yield control


@pytest.fixture
async def good_history(control: Control) -> AsyncIterator[None]:
    """Whatever the test does: afterwards the history of all tasks is a good one, finished or not."""
    yield
    assert violations(await control.history(), finished=False) == []
