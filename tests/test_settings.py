"""``Agent(config=)``: the agent's own settings, from the file and the environment."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal

import pytest
from haproxy import wait_until
from serving import served, wait_until_serving

from spop import Agent, Client
from spop.settings import SettingsError, Source, environment, fill


class Mode(Enum):
    LOCAL = "local"
    OPEN = "open"


@dataclass
class Database:
    url: str
    pool: int = 4


@dataclass
class Settings:
    limit: int = 10
    ratio: float = 0.5
    name: str = "x"
    active: bool = False
    path: Path = Path("/tmp")
    mode: Mode = Mode.OPEN
    color: Literal["red", "green"] = "red"
    address: IPv4Address | None = None
    networks: list[IPv4Network] = field(default_factory=list)
    pair: tuple[int, str] = (1, "a")
    words: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    database: Database | None = None

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit is {self.limit}, 0 at least")


def from_file(**table: Any) -> Settings:
    return fill(Settings, Source("file", table, lambda key: f"app.toml:{key}"))


def from_environment(**variables: str) -> Settings:
    return fill(Settings, environment({f"SPOP_SETTINGS__{k}": v for k, v in variables.items()}))


# --- values ---


def test_without_a_source_all_is_as_the_dataclass_has_it() -> None:
    assert fill(Settings) == Settings()


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("limit", 5, 5),
        ("ratio", 2, 2.0),
        ("name", "a b", "a b"),
        ("active", True, True),
        ("path", "/etc", Path("/etc")),
        ("mode", "local", Mode.LOCAL),
        ("color", "green", "green"),
        ("address", "10.0.0.1", IPv4Address("10.0.0.1")),
        ("networks", ["10.0.0.0/8"], [IPv4Network("10.0.0.0/8")]),
        ("pair", [2, "b"], (2, "b")),
        ("words", ["a", "b"], ("a", "b")),
        ("weights", {"a": 1}, {"a": 1.0}),
        ("database", {"url": "x", "pool": 9}, Database("x", 9)),
    ],
)
def test_values_of_the_file_are_converted(name: str, value: Any, expected: Any) -> None:
    assert from_file(**{name: value}) == dataclasses.replace(Settings(), **{name: expected})


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("LIMIT", "5", {"limit": 5}),
        ("RATIO", "2.5", {"ratio": 2.5}),
        ("NAME", "5", {"name": "5"}),
        ("ACTIVE", "true", {"active": True}),
        ("MODE", "local", {"mode": Mode.LOCAL}),
        ("COLOR", "green", {"color": "green"}),
        ("ADDRESS", "10.0.0.1", {"address": IPv4Address("10.0.0.1")}),
        ("WORDS", '["a", "b"]', {"words": ("a", "b")}),
        ("DATABASE__URL", "x", {"database": Database("x")}),
    ],
)
def test_values_of_the_environment_are_converted(
    name: str, text: str, expected: dict[str, Any]
) -> None:
    assert from_environment(**{name: text}) == dataclasses.replace(Settings(), **expected)


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("limit", "5", "settings.limit: int is needed, not '5'"),
        ("limit", True, "settings.limit: an int is needed, not True"),
        ("limit", -1, "settings: limit is -1, 0 at least"),
        ("active", 1, "settings.active: bool is needed, not 1"),
        ("mode", "shut", "settings.mode: 'shut' is not one of 'local', 'open'"),
        ("color", "blue", "settings.color: 'blue' is not one of 'red', 'green'"),
        ("address", "10.0.0", "settings.address: "),
        ("networks", "10.0.0.0/8", "settings.networks: a list is needed"),
        ("pair", [1], "settings.pair: 2 values are needed, not 1"),
        ("database", {}, "settings.database.url is missing"),
        ("database", {"urk": "x"}, "there is no setting 'database.urk'; is it 'url'?"),
        ("limits", 1, "there is no setting 'limits'; is it 'limit'?"),
    ],
)
def test_what_can_t_be_used_is_refused_with_place_key_and_reason(
    name: str, value: Any, reason: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        from_file(**{name: value})
    assert str(caught.value).startswith("app.toml:")
    assert reason in str(caught.value)


def test_what_is_wrong_in_an_optional_dataclass_has_one_place() -> None:
    with pytest.raises(
        SettingsError, match=r"^app\.toml:database: settings\.database\.url is miss"
    ):
        from_file(database={})


@dataclass
class Limit:
    rate: str
    burst_size: int = 1

    def __post_init__(self) -> None:
        if not self.rate.endswith("/s"):
            raise ValueError(f"rate: {self.rate!r} is no rate")
        if self.burst_size < 1:
            raise ValueError(f"burst_size: {self.burst_size}")
        if self.burst_size > 10:
            raise ValueError("so large a burst: no")


@dataclass
class Limits:
    limits: dict[str, Limit]


@pytest.mark.parametrize("limit, error", [
    ({"rate": "x"}, "app.toml:limits.api.rate: settings.limits.api.rate: 'x' is no rate"),
    ({"rate": "1/s", "burst-size": 0}, "app.toml:limits.api.burst-size: settings.limits.api.burst_size: 0"),
    ({"rate": "1/s", "burst-size": 11}, "app.toml:limits.api: settings.limits.api: so large a burst: no"),
])  # fmt: skip
def test_an_error_of_post_init_that_begins_with_a_field_is_shown_at_its_line(
    limit: dict[str, Any], error: str
) -> None:
    file = Source("file", {"limits": {"api": limit}}, lambda key: f"app.toml:{key}")
    with pytest.raises(SettingsError) as caught:
        fill(Limits, file)
    assert str(caught.value) == error


def test_the_environments_place_is_its_variable() -> None:
    with pytest.raises(SettingsError, match=r"SPOP_SETTINGS__LIMIT: settings\.limit: int is"):
        from_environment(LIMIT="many")


# --- the file and the environment ---


@dataclass
class Nested:
    database: Database | None = None
    limits: dict[str, Limit] = field(default_factory=dict)


def from_both(table: dict[str, Any], **variables: str) -> Nested:
    given = environment({f"SPOP_SETTINGS__{name}": text for name, text in variables.items()})
    return fill(Nested, Source("file", table, lambda key: f"app.toml:{key}"), given)


def test_the_environment_sets_one_key_of_a_table_of_the_file() -> None:
    both = from_both({"database": {"url": "x", "pool": 9}}, DATABASE__POOL="5")
    assert both.database == Database("x", 5)


def test_the_environment_sets_one_key_of_one_member_of_a_table() -> None:
    table = {"a": {"rate": "1/s", "burst-size": 2}, "b-c": {"rate": "2/s"}}
    both = from_both({"limits": table}, LIMITS__B_C__BURST_SIZE="7", LIMITS__D__RATE="9/s")
    assert both.limits == {"a": Limit("1/s", 2), "b-c": Limit("2/s", 7), "d": Limit("9/s")}


def test_a_table_of_the_environment_is_in_place_of_the_files() -> None:
    with pytest.raises(SettingsError, match=r"^SPOP_SETTINGS__DATABASE: .*database\.url is miss"):
        from_both({"database": {"url": "x"}}, DATABASE="{pool = 5}")


@pytest.mark.parametrize("variables, error", [
    ({"DATABASE__POOL": "many"}, "SPOP_SETTINGS__DATABASE__POOL: settings.database.pool: int is"),
    ({"LIMITS__A__BURST_SIZE": "0"}, "SPOP_SETTINGS__LIMITS__A__BURST_SIZE: settings.limits.a.burst_size: 0"),
    ({"LIMITS__B__RATE": "x"}, "SPOP_SETTINGS__LIMITS__B__RATE: settings.limits.b.rate: 'x' is no rate"),
    ({"DATABASE__POOL": "1"}, "app.toml:limits.a.rate: settings.limits.a.rate: 'y' is no rate"),
])  # fmt: skip
def test_an_error_has_the_place_of_the_source_that_counts(
    variables: dict[str, str], error: str
) -> None:
    rate = "y" if error.startswith("app") else "1/s"
    with pytest.raises(SettingsError) as caught:
        from_both({"database": {"url": "x"}, "limits": {"a": {"rate": rate}}}, **variables)
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize("order", [1, -1])
def test_a_table_and_a_key_of_it_in_the_environment_are_refused(order: int) -> None:
    with pytest.raises(SettingsError, match="SPOP_SETTINGS__DATABASE is set, too"):
        from_environment(**dict([("DATABASE", "{}"), ("DATABASE__URL", "x")][::order]))


# --- agents ---


@dataclass
class Needed:
    url: str


def test_an_agents_config_is_its_dataclass_with_defaults() -> None:
    assert Agent(config=Settings).config == Settings()
    assert Agent().config is None


def test_an_instance_is_taken_as_it_is() -> None:
    settings = Settings(limit=3)
    assert Agent(config=settings).config is settings


def test_what_is_no_dataclass_is_refused() -> None:
    with pytest.raises(TypeError, match="config: a dataclass is needed"):
        Agent(config=dict)


def test_a_field_that_nothing_sets_is_a_start_error() -> None:
    agent = Agent(config=Needed)
    missing = r"settings\.url is missing.*SPOP_SETTINGS__URL"
    with pytest.raises(SettingsError, match=missing):
        agent.config  # noqa: B018
    with pytest.raises(SettingsError, match=missing):
        agent.serve_in_background().start()
    agent.config = Needed("x")
    with agent.serve_in_background():
        assert agent.config.url == "x"


# --- the command ---

APP = """
from dataclasses import dataclass, field
from spop import Agent

@dataclass
class Settings:
    word: str
    limit: int = 10
    secret: str = field(default="s3cret", repr=False)

agent = Agent(config=Settings)

@agent.lifespan
def resources():
    yield {"word": agent.config.word.upper()}

@agent.message("m")
def m() -> dict[str, object]:
    return {"txn.word": agent.state["word"], "txn.limit": agent.config.limit}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    path = tmp_path / "spop.toml"
    path.write_text(f'agent = "{tmp_path}/app.py:agent"\n\n[settings]\nword = "hello"\n')
    return path


def check_config(file: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spop", "serve", "--config", str(file), "--check-config"],
        capture_output=True, text=True, timeout=60, env={**os.environ, **variables},
    )  # fmt: skip


def test_check_config_shows_the_settings_and_where_they_come_from(file: Path) -> None:
    shown = check_config(file, SPOP_SETTINGS__LIMIT="7")
    lines = shown.stdout.splitlines()
    assert "settings.word = 'hello'  (file)" in lines
    assert "settings.limit = 7  (environment)" in lines
    assert "settings.secret = (not shown)  (default)" in lines
    assert "s3cret" not in shown.stdout


@pytest.mark.parametrize(
    "table, error",
    [
        ("word = 5", ":4: settings.word: str is needed, not 5"),
        ('word = "x"\nlimit = "y"', ":5: settings.limit: int is needed, not 'y'"),
        ('\nwurd = "x"', ":5: there is no setting 'wurd'; is it 'word'?"),
        ("", ":3: settings.word is missing"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(file: Path, table: str, error: str) -> None:
    text = file.read_text().partition("[settings]")[0]
    file.write_text(f"{text}[settings]\n{table}\n")
    shown = check_config(file)
    assert shown.returncode == 2, shown.stderr
    assert f"{file}{error}" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_settings_of_an_agent_that_has_none(file: Path) -> None:
    (file.parent / "app.py").write_text("from spop import Agent\nagent = Agent()\n")
    shown = check_config(file)
    assert shown.returncode == 2
    assert f"{file}:4: agent 'spop' has no settings for a file" in shown.stderr


def test_sighup_reads_the_settings_again(file: Path) -> None:
    target, address = f"{file.parent}/app.py:agent", f"unix:{file.parent}/agent.sock"
    with served("--config", str(file), "--bind", address, target=target) as service:
        wait_until_serving(service)
        with Client(address) as client:
            assert client.notify("m").variables == {"txn.word": "HELLO", "txn.limit": 10}
        file.write_text(file.read_text().replace("hello", "again"))
        service.send_signal(signal.SIGHUP)

        def answers_again() -> bool:
            with Client(address) as client:
                return client.notify("m").variables["txn.word"] == "AGAIN"

        wait_until(answers_again, "the new settings")
