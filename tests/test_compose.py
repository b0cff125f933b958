"""`compose.yaml`: valid, and its commands and variables are ones that eventq and nats-server really have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import typer
import yaml

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.services.cli import app
from eventq.services.embedded import find_nats_server, free_port
from eventq.services.settings import Settings, load_settings
from tests.support.nats import NatsServer
from tests.support.poll import eventually

ROOT = Path(__file__).parents[1]
PASSWORDS = {
    f"NATS_{name}_PASSWORD": f"secretof{name.lower()}"
    for name in ("ADMIN", "API", "SCHEDULER", "WORKER", "OBSERVER", "ROUTE", "SYSTEM")
}
BROKERS = ("nats-1", "nats-2", "nats-3")
ALIEN = "127.0.0.2"
"""Loopback, and yet not the address that nats.conf names: `--addr` must move monitoring, too."""


def interpolated(text: str) -> str:
    """`${NAME}` and `${NAME:?hint}` filled in, as docker compose does."""
    return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda match: PASSWORDS[match[1]], text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load(interpolated((ROOT / "compose.yaml").read_text())))


def services(compose: dict[str, Any], program: str) -> dict[str, dict[str, Any]]:
    """Services whose command starts with `program`."""
    return {name: service for name, service in compose["services"].items() if service["command"][0] == program}


def test_it_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    """The schema is the specification's own, as the package `check-jsonschema` ships it."""
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**compose, "servces": {}}, json.loads(schema.read_text()))


def test_it_has_three_brokers_and_a_process_for_each_role(compose: dict[str, Any]) -> None:
    assert tuple(services(compose, "nats-server")) == BROKERS
    assert set(services(compose, "eventq")) == {"api", "scheduler", "worker-cpu", "worker-gpu"}
    assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]


@pytest.mark.parametrize("name", ["api", "scheduler", "worker-cpu", "worker-gpu"])
def test_every_command_is_one_of_eventqs(compose: dict[str, Any], name: str) -> None:
    command, *options = compose["services"][name]["command"][1:]
    typer.main.get_command(app).make_context("eventq", [command, *options]).close()
    group = cast("Any", typer.main.get_command(app))
    group.commands[command].make_context(command, list(options)).close()


@pytest.mark.parametrize("name", ["api", "scheduler", "worker-cpu", "worker-gpu"])
def test_every_variable_is_a_setting_with_a_valid_value(
    compose: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = compose["services"][name]["environment"]
    for variable, value in environment.items():
        assert variable.removeprefix("EVENTQ_").lower() in Settings.model_fields
        monkeypatch.setenv(variable, value)
    settings = load_settings().settings
    assert settings.replicas == len(BROKERS)
    assert [url.rpartition("@")[2] for url in settings.nats_url.split(",")] == [f"{broker}:4222" for broker in BROKERS]
    assert settings.nats_monitor_url.split(",") == [f"http://{broker}:8222" for broker in BROKERS]


def test_every_service_is_hardened_and_every_volume_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(compose["volumes"])
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", {})) <= set(compose["services"])
    assert "\nUSER eventq\n" in (ROOT / "Dockerfile").read_text()


def test_only_this_host_reaches_the_api(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_a_worker_gets_longer_to_stop_than_its_grace_period(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker-cpu"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > float(worker["environment"]["EVENTQ_GRACE_S"])


def test_the_image_copies_every_room(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for room in ("eventq", "events", "projections", "workers", "services"):
        assert f"COPY {room} {room}\n" in dockerfile


class ComposedBroker(NatsServer):
    """A broker run by the command in compose.yaml; only names of hosts and ports are the test's."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        super().__init__(folder)
        self._command = command

    def command(self) -> list[str]:
        return self._command


@pytest.fixture
def brokers(compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ComposedBroker]]:
    """The three brokers of compose.yaml, as one cluster on loopback."""
    for name, value in PASSWORDS.items():
        monkeypatch.setenv(name, value)
    routes = {name: f"{ALIEN}:{free_port()}" for name in BROKERS}
    started: list[ComposedBroker] = []
    for name in BROKERS:
        command = " ".join(compose["services"][name]["command"][1:])
        command = command.replace("0.0.0.0:6222", routes[name]).replace("0.0.0.0", ALIEN)
        command = command.replace("/etc/eventq/nats.conf", str(ROOT / "nats.conf"))
        for other in BROKERS:
            command = command.replace(f"{other}:6222", routes[other])
        arguments = [find_nats_server(), *command.split(), "-p", "-1", "-m", "-1"]
        started.append(ComposedBroker(tmp_path / name, arguments))
        started[-1].start()
    yield started
    for broker in started:
        broker.kill()


async def test_its_brokers_form_a_cluster_that_eventq_accepts(brokers: list[ComposedBroker]) -> None:
    assert all(ALIEN in broker.url and ALIEN in broker.monitor_url for broker in brokers)
    url = ",".join(broker.url.replace("//", f"//api:{PASSWORDS['NATS_API_PASSWORD']}@") for broker in brokers)
    monitors = ",".join(broker.monitor_url for broker in brokers)
    async with await Broker.connect(url, name="test") as broker:

        async def ready() -> bool:
            try:
                await bootstrap(broker, BrokerConfig(monitor_urls=monitors, replicas=len(brokers), events_max_bytes=2**20))
            except Exception as error:  # no leader yet
                raise AssertionError(repr(error)) from error
            return True

        await eventually(ready, 60)
        info = await broker.request("$JS.API.STREAM.INFO.EVENTS", {})
    assert info["config"]["num_replicas"] == 3
    assert len(info["cluster"]["replicas"]) == 2
