"""Settings: each one named, typed, documented, and traceable to where its value came from.

Precedence, highest first: arguments (command-line options), `EVENTQ_*` variables, a TOML file, defaults. The
file is the one given, else the one `EVENTQ_CONFIG` names, else `./eventq.toml` when it exists; its keys are
the names below.

Everything unknown is refused, in the file and in the environment: a misspelt setting that is silently ignored
would be found out when it mattered. Settings never change while a process runs.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from eventq.events.errors import EventqError, InvalidInput
from eventq.events.ids import check_name, check_pool

PREFIX = "EVENTQ_"
CONFIG_VARIABLE = "EVENTQ_CONFIG"
CONFIG_FILE = Path("eventq.toml")

# Variables with our prefix that are not settings: the file's place, and the crash points of the test suite.
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, "EVENTQ_FAILPOINTS"})

# Kubernetes adds these to every pod for a service called `eventq` or `eventq-...`; nobody misspelt them.
_SERVICE_LINK = re.compile(r"EVENTQ_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")

_URL_PASSWORD = re.compile(r"(://[^/@:,]*):[^/@,]+@")
MASK = "**********"


class SettingsError(EventqError):
    """One or more settings are wrong. The sentence has a line for each, with the variable or file it came
    from."""

    code = "INVALID_SETTINGS"


def _split(value: object) -> object:
    """Environment variables hold lists as `a,b,c`; files may, too."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _whole(value: object) -> object:
    """A literal number takes no text, and variables are text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _check_urls(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        for part in filter(None, value.split(",")):
            url = urlsplit(part.strip())
            if url.scheme not in schemes or not url.hostname:
                raise ValueError(f"not a URL like {schemes[0]}://host:port")
        return value

    return AfterValidator(check)


def _checked_by(check: Callable[[str, str], str], field: str) -> Callable[[str], str]:
    def checked(value: str) -> str:
        try:
            return check(value, field)
        except InvalidInput as error:  # pydantic collects only its own kind
            raise ValueError(error.detail) from None

    return checked


CommaSeparated = BeforeValidator(_split)
Texts = Annotated[tuple[str, ...], NoDecode, CommaSeparated]
Paths = Annotated[tuple[Path, ...], NoDecode, CommaSeparated]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, CommaSeparated]
QueueName = Annotated[str, AfterValidator(_checked_by(check_name, "queue"))]
Queues = Annotated[tuple[QueueName, ...], NoDecode, CommaSeparated]
PoolName = Annotated[str, AfterValidator(_checked_by(check_pool, "pool"))]


def _unit(name: str) -> JsonDict:
    return {"unit": name}


class Settings(BaseSettings):
    """Every setting of every process; a process reads those that concern it. Build it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", validate_default=True
    )

    nats_url: Annotated[str, _check_urls("nats", "tls", "ws", "wss")] = Field(
        "nats://127.0.0.1:4222",
        min_length=1,
        description="The broker, or several of one cluster, comma-separated; user and password may stand in it.",
    )
    nats_monitor_url: Annotated[str, _check_urls("http", "https")] = Field(
        "http://127.0.0.1:8222",
        description="Monitoring address of each broker, comma-separated: where `sync_interval` is verified. "
        "Without it a `nats_url` of your own needs `accept_lazy_sync`.",
    )
    nats_system_url: Annotated[str, _check_urls("nats", "tls", "ws", "wss")] | None = Field(
        None,
        description="The broker, with a user of its system account: the scheduler then learns at once of a worker that died. "
        "Without it, from missing heartbeats.",
    )
    accept_lazy_sync: bool = Field(
        False,
        description="Start on a broker that acknowledges before the disk has the event: a power cut then loses "
        "acknowledged tasks.",
    )
    replicas: Annotated[Literal[1, 3, 5], BeforeValidator(_whole)] = Field(
        1, description="Copies of each stream, on as many brokers. Used when a stream is created."
    )
    stream_max_bytes: ByteSize = Field(
        ByteSize(8 * 1024**3),
        ge=1024**2,
        description="Size at which the event log is full and refuses new tasks; it never drops events. "
        "Used when the stream is created.",
        json_schema_extra=_unit("bytes, or with a suffix: 8GiB"),
    )
    data_dir: Path = Field(
        Path(".eventq"),
        description="Where this machine keeps its projection, blobs, logs and embedded broker.",
    )
    blob_url: str | None = Field(
        None,
        description="Where inputs and outputs over 64 KiB live: `file:///path` or `s3://bucket/prefix`; every process "
        "must see the same. Default: `blobs` in the data directory.",
    )
    api_host: str = Field("127.0.0.1", min_length=1, description="Address that the API listens on.")
    api_port: int = Field(8000, ge=0, le=65535, description="Port that the API listens on; 0 takes any free one.")
    api_url: Annotated[str, _check_urls("http", "https")] | None = Field(
        None,
        description="Where commands find the API. Default: the `eventq up` of the data directory, else `api_host` and "
        "`api_port`.",
    )
    allowed_hosts: Texts = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="Values of the Host header that the API answers, without port: a web page elsewhere cannot talk to "
        "it through a name of its own. `*` answers all.",
    )
    insecure_bind: bool = Field(
        False,
        description="Let the API listen beyond loopback although it asks nobody for a password: only behind a proxy "
        "or on a network that you trust.",
    )
    pool: PoolName = Field(
        "cpu",
        description="Which tasks a worker takes: `cpu`, `gpu` or a pool of your own.",
    )
    queues: Queues = Field((), description="Queues of its pool that a worker serves, comma-separated. None: all.")
    task_modules: Texts = Field((), description="Modules with your `@task` functions, comma-separated, imported by workers.")
    concurrency: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Tasks that one worker runs at a time. Default: the number of CPU cores.",
    )
    lease_s: float = Field(
        10.0,
        ge=1,
        le=3600,
        description="How long a silent worker keeps a task before another one may take it.",
        json_schema_extra=_unit("seconds"),
    )
    grace_s: float = Field(
        20.0,
        ge=0,
        le=3600,
        description="How long a stopping worker lets running tasks finish before it hands them back.",
        json_schema_extra=_unit("seconds"),
    )
    input_dirs: Paths = Field((), description="Directories whose files a task may name as input by path, comma-separated.")
    fetch_allow: Networks = Field(
        (),
        description="Private networks that workers may fetch inputs from, as comma-separated CIDRs; without them "
        "private, loopback and link-local addresses are refused.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least log level written.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto` writes JSON unless stderr is a terminal."
    )

    @model_validator(mode="before")
    @classmethod
    def _verify_no_other_broker(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The default monitoring address belongs to the default broker and says nothing about any other."""
        if "nats_url" in values and "nats_monitor_url" not in values:
            return {**values, "nats_monitor_url": ""}
        return values

    @model_validator(mode="after")
    def _refuse_an_open_door(self) -> Self:
        loopback = self.api_host in ("localhost", "::1") or self.api_host.startswith("127.")
        if not loopback and not self.insecure_bind:
            raise ValueError(
                f"api_host={self.api_host} lets other machines submit tasks without a password: "
                "keep it on 127.0.0.1 behind a proxy, or set EVENTQ_INSECURE_BIND=true"
            )
        return self

    @property
    def blobs(self) -> str:
        """`blob_url`, with its default filled in."""
        return self.blob_url or (self.data_dir.resolve() / "blobs").as_uri()

    @property
    def projection_dir(self) -> Path:
        """Where this machine's API keeps its tables."""
        return self.data_dir / "projection"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_sources: Any, **_named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` read and merged: it must know the origin of each value."""
        return (init_settings,)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Passwords inside URLs stay out of logs and tracebacks."""
        for name, value in super().__repr_args__():
            yield name, masked(value) if isinstance(value, str) else value

    def environment(self) -> dict[str, str]:
        """These settings as `EVENTQ_*` variables, for child processes: their directory and file do not
        matter."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {variable_of(name): to_text(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of `eventq settings`. `origin`: `argument`, a variable, a file, or `default`. Secrets are
    masked."""

    name: str
    variable: str
    value: str
    default: str
    origin: str
    unit: str | None
    description: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and the origin of each value that is not a default."""

    settings: Settings
    origins: Mapping[str, str]
    """By name; a setting that is not here has its default."""

    def listing(self) -> list[Setting]:
        """Every setting, in the order of their definition."""
        rows: list[Setting] = []
        for name, field in Settings.model_fields.items():
            extra = cast("dict[str, str]", field.json_schema_extra or {})
            rows.append(
                Setting(
                    name=name,
                    variable=variable_of(name),
                    value=masked(to_text(getattr(self.settings, name))),
                    default=to_text(field.default),
                    origin=self.origins.get(name, "default"),
                    unit=extra.get("unit"),
                    description=field.description or "",
                )
            )
        return rows


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def to_text(value: object) -> str:
    """A value as one writes it in an environment variable; empty for an unset one."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case tuple():
            return ",".join(map(to_text, cast("tuple[object, ...]", value)))
        case _:
            return str(value)


def masked(text: str) -> str:
    """`text` with the password of every URL in it replaced."""
    return _URL_PASSWORD.sub(rf"\1:{MASK}@", text)


def load_settings(config: Path | None = None, **arguments: Any) -> Loaded:
    """Read arguments (None: not given), environment, file and defaults into settings.

    Raises `SettingsError` naming every wrong or unknown value and where it came from.
    """
    _refuse_misspelt_variables(os.environ)
    file = _config_file(config)
    from_file = _read(file) if file else {}
    from_environment = EnvSettingsSource(Settings)()
    from_arguments = {name: value for name, value in arguments.items() if value is not None}
    origins = {
        **dict.fromkeys(from_file, str(file)),
        **{name: variable_of(name) for name in from_environment},
        **dict.fromkeys(from_arguments, "argument"),
    }
    try:
        settings = Settings(**{**from_file, **from_environment, **from_arguments})
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error, origins))) from None
    return Loaded(settings, origins)


def _config_file(given: Path | None) -> Path | None:
    """The file to read. One that was named must exist; `./eventq.toml` may be absent."""
    named = given or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if named is None:
        return CONFIG_FILE if CONFIG_FILE.is_file() else None
    if not named.is_file():
        raise SettingsError(f"{named}: no such file (named by {'--config' if given else CONFIG_VARIABLE})")
    return named


def _read(file: Path) -> dict[str, Any]:
    try:
        return TomlConfigSettingsSource(Settings, file)()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from error


def _refuse_misspelt_variables(environment: Mapping[str, str]) -> None:
    known = _OTHER_VARIABLES | {variable_of(name) for name in Settings.model_fields}
    unknown = [
        name for name in environment if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.fullmatch(name)
    ]
    if unknown:
        raise SettingsError("\n".join(f"{name}: {_not_a_setting(name, known)}" for name in sorted(unknown)))


def _not_a_setting(name: str, known: frozenset[str] | set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no such setting{hint} (`eventq settings` lists them all)"


def _explain(error: ValidationError, origins: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        if not problem["loc"]:  # a rule over several settings: its sentence names them
            yield problem["msg"].removeprefix("Value error, ")
            continue
        name = str(problem["loc"][0])
        place = origins.get(name, name)
        if place != variable_of(name):
            place = f"{name} ({place})"
        if problem["type"] == "extra_forbidden":
            yield f"{place}: {_not_a_setting(name, set(Settings.model_fields))}"
        else:
            found = masked(repr(problem["input"]))[:100]
            yield f"{place}: {problem['msg'].removeprefix('Value error, ')}; found {found}"
