"""`nats.conf` as it is shipped: started for real, with eventq's own processes under the rights it gives them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import aiohttp
import nats
import nats.errors
import pytest
from nats.aio.msg import Msg

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.services.embedded import find_nats_server, free_port
from eventq.services.supervisor import ManagedProcess, Supervisor
from tests.support.nats import NatsServer
from tests.support.poll import eventually

ROOT = Path(__file__).parents[1]
CONF = ROOT / "nats.conf"
PASSWORDS = {name: f"secret-of-{name}" for name in ("admin", "api", "scheduler", "worker", "observer", "system")}
ENVIRONMENT = {f"NATS_{name.upper()}_PASSWORD": password for name, password in PASSWORDS.items()}


class ShippedBroker(NatsServer):
    """A nats-server on the shipped file; only its ports and its directory are the test's."""

    def command(self) -> list[str]:
        ports = ["-p", str(self.port if self.url else -1), "-m", "-1"]
        return [find_nats_server(), "-c", str(CONF), *ports]

    def as_user(self, name: str) -> str:
        return self.url.replace("nats://", f"nats://{name}:{PASSWORDS[name]}@")


@pytest.fixture
async def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ShippedBroker]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    broker = ShippedBroker(tmp_path / "nats")
    broker.start()
    yield broker
    broker.kill()


def process(role: str, broker: ShippedBroker, folder: Path, **settings: str) -> ManagedProcess:
    """One of eventq's processes, with the rights of its role on the broker."""
    run = (
        "import asyncio; from eventq.services.processes import run_{0} as run; "
        "from eventq.services.settings import load_settings; asyncio.run(run(load_settings().settings))"
    )
    environment = {
        "EVENTQ_NATS_URL": broker.as_user(role),
        "EVENTQ_NATS_MONITOR_URL": broker.monitor_url,
        "EVENTQ_DATA_DIR": str(folder / "data"),
        **settings,
    }
    return ManagedProcess(
        role, [sys.executable, "-P", "-c", run.format(role)], environment=environment, log_file=folder / f"{role}.log"
    )


def test_the_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    subprocess.run([find_nats_server(), "-t", "-c", str(CONF)], check=True, capture_output=True)


def test_it_does_not_start_without_its_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    refused = subprocess.run([find_nats_server(), "-t", "-c", str(CONF)], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "NATS_" in refused.stderr


def test_every_line_is_explained() -> None:
    """Comments come first in their paragraph, or behind what they explain."""
    for paragraph in re.split(r"\n\s*\n", CONF.read_text()):
        lines = [line.strip() for line in paragraph.splitlines()]
        first = next(line for line in lines if line not in ("}", "]", "accounts {", "TASKS {", "jetstream {", "users: ["))
        assert first.startswith("#") or first == "jetstream: enabled", paragraph


async def test_it_is_bound_to_loopback_and_syncs_every_write(broker: ShippedBroker) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{broker.monitor_url}/varz") as answer:
        facts = await answer.json()
    assert (facts["host"], facts["http_host"]) == ("127.0.0.1", "127.0.0.1")
    assert facts["jetstream"]["config"]["sync_always"] is True
    assert facts["max_payload"] == 2**20


async def test_a_task_runs_under_the_rights_of_each_role(broker: ShippedBroker, tmp_path: Path) -> None:
    port = free_port()
    supervisor = Supervisor(print)
    stored: list[str] = []
    observer = await nats.connect(broker.as_user("observer"))

    async def note(message: Msg) -> None:
        stored.append(message.subject.rpartition(".")[2])

    await observer.subscribe("tap.tasks.>", cb=note)

    async def body() -> None:
        await supervisor.start(process("api", broker, tmp_path, EVENTQ_API_PORT=str(port)))
        await supervisor.start(process("scheduler", broker, tmp_path, EVENTQ_NATS_SYSTEM_URL=broker.as_user("system")))
        await supervisor.start(process("worker", broker, tmp_path))
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await eventually(partial(runs_to_the_end, session, None), 30)
            await eventually(partial(runs_to_the_end, session, datetime.now(UTC) + timedelta(seconds=1)), 30)
        await eventually(lambda: stored.count("completed") == 2)

    await supervisor.run(body())
    await observer.close()
    refusals = [line for line in broker.log_file.read_text().splitlines() if "Violation" in line]
    assert refusals == []


async def runs_to_the_end(session: aiohttp.ClientSession, due_at: datetime | None) -> bool:
    """Submit an `echo`; True once it completed."""
    task = {"task_name": "echo", "task_kwargs": {"value": 42}, "scheduled_at": due_at and due_at.isoformat()}
    async with session.post("/api/v1/tasks", json=task) as answer:
        assert answer.status < 300, await answer.text()  # refused until a worker has declared the task
        task_id = (await answer.json())["task_id"]

    async def completed() -> bool:
        async with session.get(f"/api/v1/tasks/{task_id}") as answer:
            return bool((await answer.json())["status"] == "COMPLETED")

    return await eventually(completed, 20)


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("worker", "tasks.t1.2.cancel_requested"),
        ("worker", "workflows.w1.1.submitted"),
        ("worker", "queues.q1.2.paused"),
        ("worker", "$JS.API.STREAM.DELETE.EVENTS"),
        ("worker", "$JS.API.STREAM.CREATE.EVENTS"),
        ("scheduler", "tasks.t1.2.completed"),
        ("scheduler", "tasks.t1.2.started"),
        ("scheduler", "$KV.PRESENCE.w1"),
        ("system", "tasks.t1.2.completed"),
        ("api", "$JS.API.STREAM.PURGE.EVENTS"),
        ("observer", "tap.tasks.t1.1.submitted"),
    ],
)
async def test_a_role_cannot_do_anothers_part(broker: ShippedBroker, user: str, subject: str) -> None:
    refusals: list[str] = []

    async def note(error: Exception) -> None:
        refusals.append(str(error))

    client = await nats.connect(broker.as_user(user), error_cb=note)
    await client.publish(subject, json.dumps({}).encode())
    await client.flush()
    if user == "observer":  # its account has no streams and exports nothing: it may speak, nobody hears
        admin = await nats.connect(broker.as_user("admin"))
        heard = await admin.subscribe(">")
        await client.publish(subject, b"{}")
        await client.flush()
        with pytest.raises(nats.errors.TimeoutError):
            await heard.next_msg(timeout=0.2)
        await admin.close()
    else:
        await eventually(lambda: any("permissions violation" in refusal.lower() for refusal in refusals))
    await client.close()


async def test_a_wrong_password_is_refused(broker: ShippedBroker) -> None:
    with pytest.raises(LogUnavailable, match=r"cannot reach the broker at nats://127.0.0.1:\d+ within"):
        await Broker.connect(broker.url.replace("//", "//worker:guess@"), name="test", timeout_s=0.5)
