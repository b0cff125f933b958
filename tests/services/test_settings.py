"""Settings: who wins, what is refused, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from eventq.services.settings import Settings, SettingsError, load_settings, masked, variable_of


@pytest.fixture(autouse=True)
def _an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVENTQ_CONFIG", raising=False)
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def origin(name: str, **arguments: object) -> tuple[object, str]:
    loaded = load_settings(**arguments)  # type: ignore[arg-type]
    return getattr(loaded.settings, name), loaded.origins.get(name, "default")


def test_arguments_beat_variables_beat_the_file_beats_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert origin("api_port") == (8000, "default")
    Path("eventq.toml").write_text("api_port = 8001\n")
    assert origin("api_port") == (8001, "eventq.toml")
    monkeypatch.setenv("EVENTQ_API_PORT", "8002")
    assert origin("api_port") == (8002, "EVENTQ_API_PORT")
    assert origin("api_port", api_port=8003) == (8003, "argument")
    assert origin("api_port", api_port=None) == (8002, "EVENTQ_API_PORT")


def test_the_file_is_the_given_one_else_the_named_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("eventq.toml").write_text("pool = 'here'\n")
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("pool = 'named'\n")
    given.write_text("pool = 'given'\n")
    monkeypatch.setenv("EVENTQ_CONFIG", str(named))
    assert load_settings().settings.pool == "named"
    assert load_settings(given).settings.pool == "given"


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent.toml: no such file \(named by --config\)"):
        load_settings(tmp_path / "absent.toml")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    Path("eventq.toml").write_text("api_port = \n")
    with pytest.raises(SettingsError, match=r"eventq.toml: not TOML: .*line 1"):
        load_settings()


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTQ_QUEUES", "default, reports")
    monkeypatch.setenv("EVENTQ_FETCH_ALLOW", "10.0.0.0/8,fd00::/8")
    monkeypatch.setenv("EVENTQ_INPUT_DIRS", "/data,/more")
    settings = load_settings().settings
    assert settings.queues == ("default", "reports")
    assert settings.fetch_allow == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert settings.input_dirs == (Path("/data"), Path("/more"))


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTQ_QUEUES", "")
    assert origin("queues") == ((), "default")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("EVENTQ_QUEUE", "a", "EVENTQ_QUEUE: no such setting; did you mean EVENTQ_QUEUES?"),
        ("EVENTQ_API_PORT", "70000", "EVENTQ_API_PORT: Input should be less than or equal to 65535; found '70000'"),
        ("EVENTQ_API_PORT", "tcp://10.0.0.1:80", "EVENTQ_API_PORT: Input should be a valid integer"),
        ("EVENTQ_POOL", "g.pu", "EVENTQ_POOL: pool: must be one or more of lower-case letters and digits"),
        ("EVENTQ_QUEUES", "a,b c", "EVENTQ_QUEUES: queue: must be"),
        ("EVENTQ_FETCH_ALLOW", "10.0.0.1/8", "EVENTQ_FETCH_ALLOW: "),
        ("EVENTQ_NATS_URL", "http://x", "EVENTQ_NATS_URL: not a URL like nats://host:port"),
        ("EVENTQ_REPLICAS", "2", "EVENTQ_REPLICAS: Input should be 1, 3 or 5"),
        ("EVENTQ_STREAM_MAX_BYTES", "lots", "EVENTQ_STREAM_MAX_BYTES: could not parse"),
        ("EVENTQ_API_HOST", "0.0.0.0", "api_host=0.0.0.0 lets other machines submit tasks without a password"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert words in refused.value.detail


def test_an_unknown_key_in_the_file_is_refused_with_the_likely_one() -> None:
    Path("eventq.toml").write_text("nats_urll = 'nats://x'\n[api]\nport = 1\n")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "nats_urll (eventq.toml): no such setting; did you mean nats_url?" in refused.value.detail
    assert "api (eventq.toml): no such setting" in refused.value.detail


def test_variables_that_kubernetes_adds_are_not_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVENTQ_SERVICE_HOST", "EVENTQ_PORT_8000_TCP_ADDR", "EVENTQ_NATS_SERVICE_PORT_CLIENT"):
        monkeypatch.setenv(name, "10.0.0.1")
    load_settings()


def test_the_default_monitor_vouches_only_for_the_default_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().settings.nats_monitor_url == "http://127.0.0.1:8222"
    monkeypatch.setenv("EVENTQ_NATS_URL", "nats://elsewhere:4222")
    assert load_settings().settings.nats_monitor_url == ""


def test_listening_beyond_loopback_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTQ_API_HOST", "0.0.0.0")
    monkeypatch.setenv("EVENTQ_INSECURE_BIND", "true")
    assert load_settings().settings.api_host == "0.0.0.0"


def test_passwords_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTQ_NATS_URL", "nats://api:hunter2@a:4222,nats://api:hunter2@b:4222")
    loaded = load_settings()
    assert "hunter2" in loaded.settings.nats_url
    assert "hunter2" not in repr(loaded.settings)
    assert "hunter2" not in str(loaded.settings)
    assert "hunter2" not in str(loaded.listing())
    assert masked("nats://api:hunter2@a:4222") == "nats://api:**********@a:4222"

    monkeypatch.setenv("EVENTQ_NATS_URL", "http://api:hunter2@a:4222")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "hunter2" not in refused.value.detail


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().settings.api_port = 1


def test_every_setting_is_described_and_listed_once() -> None:
    rows = load_settings().listing()
    assert [row.name for row in rows] == list(Settings.model_fields)
    assert all(row.description.endswith(".") for row in rows)
    assert all(row.unit for row in rows if row.name.endswith(("_s", "_bytes")))


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("eventq.toml").write_text(
        "api_port = 8123\nqueues = ['a', 'b']\nfetch_allow = ['10.0.0.0/8']\nstream_max_bytes = '2MiB'\n"
    )
    settings = load_settings(grace_s=1.5, input_dirs=("in",)).settings
    Path("eventq.toml").unlink()
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings().settings == settings


def test_reading_settings_pulls_in_no_heavy_library() -> None:
    heavy = "import sys, eventq.services.settings; print(*{'aiohttp', 'duckdb', 'nats', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", heavy], capture_output=True, text=True, check=True).stdout.split() == []
