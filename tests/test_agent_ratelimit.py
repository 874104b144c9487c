"""The agent `ratelimit`: how exactly it counts, on one machine and on Redis, and HAProxy before it."""

from __future__ import annotations

import asyncio
import errno
import http.client
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import redis
from asking import Ask, asking_agent
from haproxy import version, wait_until
from pages import Page
from serving import Served, served, wait_until_serving

from spop import Client
from spop.agents import limit_stores, ratelimit
from spop.agents.limit_stores import Asked, RedisStore, Rule, SharedStore, StoreError, state_of
from spop.agents.ratelimit import Limit, Settings, agent
from spop.settings import SettingsError, Source, fill

PAGE = Page("agents/ratelimit.md")
DAY = Rule(1000, 86400, 1000, fixed=True)


class RedisServer:
    """A real server, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}?db=0"
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", "0", "--unixsocket", str(self._socket), "--save", ""]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, "redis-server")

    def _answers(self) -> bool:
        with suppress(redis.RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    @contextmanager
    def halted(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGSTOP)
        yield
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server")
    server = RedisServer(tmp_path)
    yield server
    server.kill()


# --- the rules ---


def test_gcra_gives_tokens_back_one_by_one() -> None:
    rule, now = Rule(10, 1, 3, fixed=False), 1000.0
    state = state_of(rule, 0.0, now)
    assert (state.free, state.reset) == (3, 0)
    used = state.value + 3 * state.cost
    assert state_of(rule, used, now).free == 0
    assert state_of(rule, used, now).wait == pytest.approx(0.1)
    assert state_of(rule, used, now).reset == pytest.approx(0.3)
    assert [state_of(rule, used, now + later).free for later in (0.1, 0.25, 0.3, 9)] == [1, 2, 3, 3]


def test_a_clock_that_was_set_back_keeps_no_limit_empty() -> None:
    assert state_of(Rule(10, 1, 3, fixed=False), 5000.0, 1000.0).free == 3


def test_a_fixed_window_ends_at_a_multiple_of_its_time() -> None:
    state = state_of(Rule(10, 60, 10, fixed=True), 4, 130.0)
    assert (state.free, state.reset) == (6, 50)
    assert state_of(Rule(10, 60, 10, fixed=True), 12, 130.0)[:2] == (0, 50)


def test_a_share_is_one_token_at_least() -> None:
    assert Rule(10, 1, 20, fixed=False).share(4) == Rule(2.5, 1, 5, fixed=False)
    assert Rule(10, 1, 2, fixed=True).share(3) == Rule(3, 1, 1, fixed=True)
    assert Rule(2, 1, 2, fixed=True).share(3) == Rule(1, 1, 1, fixed=True)


def test_who_has_the_file_open_shares_each_token(tmp_path: Path) -> None:
    def take_many(_: int) -> int:
        with closing(SharedStore(tmp_path / "table", 1000)) as table:
            return sum(table.take([Asked("x", DAY, 3)])[0].tokens for _ in range(400))

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(take_many, range(3))) == 1000


def test_a_table_without_room_forgets_the_key_whose_tokens_are_back_first(tmp_path: Path) -> None:
    table = SharedStore(tmp_path / "table", 8)
    for number in range(8):
        rule = Rule(10, 60 * (number + 1), 10, fixed=False)
        table.take([Asked(f"k{number}", rule, 10)])
    assert table.forgotten == 0
    table.take([Asked("new", DAY, 1)])
    assert table.forgotten == 1
    assert table.take([Asked("k7", Rule(10, 480, 10, fixed=False), 1)])[0].tokens == 0
    assert table.take([Asked("k0", Rule(10, 60, 10, fixed=False), 1)])[0].tokens == 1
    table.close()


@pytest.mark.parametrize("fixed", [False, True])
def test_a_clock_that_is_set_back_does_not_keep_a_limit_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    rule, now = Rule(10, 60, 10, fixed), 1e9
    monkeypatch.setattr(limit_stores.time, "time", lambda: now)
    with closing(SharedStore(tmp_path / "table", 1000)) as table:
        assert table.take([Asked("x", rule, 10)])[0].tokens == 10
        now -= 86400
        assert table.take([Asked("x", rule, 1)])[0].tokens == 1


def test_a_smaller_limit_does_not_wait_for_the_tokens_of_the_larger_one(
    store: RedisServer, tmp_path: Path
) -> None:
    large, small = Rule(1000, 86400, 1000, fixed=False), Rule(10, 1, 10, fixed=False)

    async def take(rule: Rule, tokens: int) -> list[int]:
        remote, asked = RedisStore(store.url, 5.0), [Asked("x", rule, tokens)]
        grants = table.take(asked) + await remote.take(asked)
        await remote.close()
        return [each.tokens for each in grants]

    with closing(SharedStore(tmp_path / "table", 1000)) as table:
        assert asyncio.run(take(large, 1000)) == [1000, 1000]
        assert asyncio.run(take(small, 1)) == [1, 1]


def test_a_disk_that_is_full_is_an_error_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker would be killed once it writes into the map of a file with holes."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"keys: no room for 1000 of them in .*: No space left"):
        SharedStore(tmp_path / "table", 1000)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_can_not_allocate_serves_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def cannot(*_: int) -> None:
        raise OSError(code, "not here")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    with closing(SharedStore(tmp_path / "table", 1000)) as table:
        assert table.take([Asked("x", DAY, 3)])[0].tokens == 3


def test_both_stores_give_the_same_answers(store: RedisServer, tmp_path: Path) -> None:
    rules = [Rule(100, 3600, 20, False), Rule(7, 86400 * 365, 7, True), Rule(3, 3600, 9, False)]
    table = SharedStore(tmp_path / "table", 1000)

    async def compare() -> None:
        remote = RedisStore(store.url, 5.0)
        for turn in range(25):
            some = [rule for number, rule in enumerate(rules) if turn >> number & 1 or not turn]
            asked = [Asked(str(rule), rule, 1 + turn % 3) for rule in some]
            if not asked:
                continue
            ours, theirs = table.take(asked), await remote.take(asked)
            assert [each[:2] for each in ours] == [each[:2] for each in theirs], turn
            for one, other in zip(ours, theirs, strict=True):
                assert one[2:] == pytest.approx(other[2:], abs=20)
        await remote.close()

    asyncio.run(compare())
    table.close()


def test_limits_of_a_request_are_all_counted_or_none(store: RedisServer) -> None:
    few, many = Asked("few", Rule(1, 86400, 1, True), 1), Asked("many", DAY, 1)

    async def take() -> None:
        remote = RedisStore(store.url, 5.0)
        assert [each.tokens for each in await remote.take([few, many])] == [1, 1]
        assert [each.tokens for each in await remote.take([few, many])] == [0, 0]
        (alone,) = await remote.take([many])
        assert alone.free == 998
        await remote.close()

    asyncio.run(take())


def test_questions_of_a_turn_leave_in_one_write(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take() -> None:
        remote = RedisStore(store.url, 5.0)
        await remote.take([Asked("x", DAY, 1)])
        pipes = []
        pipeline = remote._redis.pipeline
        monkeypatch.setattr(remote._redis, "pipeline", lambda **o: pipes.append(1) or pipeline(**o))
        found = await asyncio.gather(*(remote.take([Asked("x", DAY, 1)]) for _ in range(50)))
        assert sorted(grant.free for (grant,) in found) == list(range(949, 999))
        assert len(pipes) == 1
        await remote.close()

    asyncio.run(take())


def test_a_store_that_forgot_the_script_is_given_it_again(store: RedisServer) -> None:
    async def take() -> None:
        remote = RedisStore(store.url, 5.0)
        for number in range(3):
            with store.client() as client:
                client.script_flush()
            found = await asyncio.gather(*(remote.take([Asked("x", DAY, 1)]) for _ in range(5)))
            assert min(grant.free for (grant,) in found) == 995 - 5 * number
        await remote.close()

    asyncio.run(take())


def test_a_store_that_never_keeps_the_script_fails(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take() -> None:
        remote, loads = RedisStore(store.url, 5.0), []

        async def load(script: str) -> None:
            loads.append(script)

        monkeypatch.setattr(remote._redis, "script_load", load)
        with pytest.raises(StoreError, match="script"):
            await remote.take([Asked("x", DAY, 1)])
        assert len(loads) == 1
        await remote.close()

    asyncio.run(take())


def test_a_store_that_is_too_slow_is_not_asked_for_a_while(store: RedisServer) -> None:
    async def take() -> None:
        remote = RedisStore(store.url, 0.2)
        with store.halted():
            with pytest.raises(StoreError, match=r"no answer in 200 ms"):
                await remote.take([Asked("x", DAY, 1)])
            began = time.monotonic()
            for _ in range(100):
                with pytest.raises(StoreError):
                    await remote.take([Asked("x", DAY, 1)])
            assert time.monotonic() - began < 10  # To ask each time takes 20 s.
        await remote.close()

    asyncio.run(take())


@pytest.mark.parametrize(
    "answer",
    [b":5\r\n", b"$2\r\nhi\r\n", b"*1\r\n:1\r\n", b"*4\r\n$1\r\nx\r\n:1\r\n:1\r\n:1\r\n", b"$-1\r\n",
     b"-ERR no\r\n", b":x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*4\r\n:1\r\n"],
)  # fmt: skip
def test_a_store_that_answers_nonsense_is_a_store_that_fails(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            for command in re.findall(rb"EVALSHA|CLIENT|HELLO|SELECT", data):
                writer.write(answer if command == b"EVALSHA" else b"+OK\r\n")
        writer.close()

    async def take() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, about: failures.append(about))
        async with await asyncio.start_server(speak, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            remote = RedisStore(f"redis://127.0.0.1:{port}", 2.0)
            with pytest.raises(StoreError):
                await remote.take([Asked("x", DAY, 1)])
            assert remote.fails
            await remote.close()
        assert not failures

    asyncio.run(take())


# --- the agent ---


def asking(settings: Settings) -> AbstractContextManager[Ask]:
    return asking_agent(agent, "ratelimit", settings)


def test_a_request_that_is_denied_is_told_when_to_come_again(tmp_path: Path) -> None:
    limits = {"few": Limit("2/h", ["address"]), "many": Limit("1000/d", ["user"])}
    with asking(Settings(limits, state_dir=tmp_path)) as ask:
        ip = ip_address("192.0.2.1")
        first = ask(ip=ip)
        assert first.pop("reset") == 1800
        assert first == {
            "denied": False, "shadow_denied": False, "limit": "few", "policy": "2;w=3600",
            "remaining": 1,
        }  # fmt: skip
        assert ask(ip=ip_address("::ffff:192.0.2.1"))["remaining"] == 0
        last = ask(ip=ip)
        assert 1790 < last["retry_after"] == last["reset"] <= 1800
        assert (last["denied"], last["limit"], last["remaining"]) == (True, "few", 0)
        assert ask(ip=ip, user="u")["denied"]
        assert ask(user="u")["remaining"] == 999  # The denied request was not counted.
        assert ask() == {"denied": False, "shadow_denied": False}


def test_keys_are_networks_and_combinations(tmp_path: Path) -> None:
    limits = {
        "network": Limit("1/d", ["network"], ipv6=48),
        "pair": Limit("1/d", ["user", "path"], "fixed"),
    }
    with asking(Settings(limits, state_dir=tmp_path)) as ask:
        assert not ask(ip=ip_address("192.0.2.1"))["denied"]
        assert ask(ip=ip_address("192.0.2.255"))["denied"]
        assert not ask(ip=ip_address("192.0.3.0"))["denied"]
        assert not ask(ip=ip_address("2001:db8::1"))["denied"]
        assert ask(ip=ip_address("2001:db8:0:ffff::1"))["denied"]
        assert not ask(user="a", path="b,c")["denied"]
        assert not ask(user="a,b", path="c")["denied"]
        assert not ask(user="a" * 5000, path="\udcff")["denied"]
        assert ask(user="a" * 5000, path="\udcff")["denied"]


def test_in_shadow_nothing_is_denied(tmp_path: Path) -> None:
    settings = Settings({"one": Limit("1/d", ["user"])}, shadow=True, state_dir=tmp_path)
    with asking(settings) as ask:
        assert not ask(user="u")["shadow_denied"]
        found = ask(user="u")
        assert (found["denied"], found["shadow_denied"]) == (False, True)
        assert ratelimit.shadowed.value == 1


@pytest.mark.parametrize("table, error", [
    ({}, "settings.limits is missing"),
    ({"limits": {}}, "settings.limits: there is none"),
    ({"limits": {"a:b": {"rate": "1/s", "by": ["user"]}}}, "settings.limits: 'a:b' is no name"),
    ({"limits": {"a": {"rate": "1/x", "by": ["user"]}}}, "settings.limits.a.rate: '1/x' is no rate"),
    ({"limits": {"a": {"rate": "0/s", "by": ["user"]}}}, "settings.limits.a.rate: '0/s' is no rate"),
    ({"limits": {"a": {"rate": "1/s", "by": []}}}, "settings.limits.a.by: it names one or several"),
    ({"limits": {"a": {"rate": "1/s", "by": ["ip"]}}}, "settings.limits.a.by: 'ip' is not one of"),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"], "burst": -1}}}, "settings.limits.a.burst: it"),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"], "ipv4": 33}}}, "settings.limits.a.ipv4: 33 is"),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"], "algorithm": "x"}}}, "a.algorithm: 'x' is not"),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"]}}, "store": "http://x"}, "settings.store: "),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"]}}, "store": "redis://x?foo=1"}, "settings.store: "),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"]}}, "fail": "x"}, "settings.fail: 'x' is not one"),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"]}}, "timeout": 0}, "settings.timeout: it is 0.0 s"),
    ({"limits": {"a": {"rate": "1/s", "by": ["user"]}}, "expected_agents": 0}, "expected_agents: it is"),
])  # fmt: skip
def test_bad_settings_are_refused_with_key_and_reason(table: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingsError) as caught:
        fill(Settings, Source("file", table, lambda key: f"spop.toml:{key}"))
    assert str(caught.value).startswith("spop.toml:")
    assert error in str(caught.value)


def test_the_page_names_all_metrics() -> None:
    named = set(re.findall(r'"(ratelimit_\w+)"', Path(ratelimit.__file__).read_text()))
    page = (Path(__file__).parent.parent / "docs" / "agents" / "ratelimit.md").read_text()
    assert len(named) == 5
    assert all(f"`{name}" in page for name in named)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("keys = 1000000000000000", "keys: no room for 1000000000000000 of them in "),
        ("keys = 1000000000000000000000000000000", "keys: no room for 1000"),
        ('state_dir = "FILE"', "state_dir: FILE is no folder"),
        ('state_dir = "FILE/in"', "state_dir: cannot use FILE/in: Not a directory"),
    ],
)
@pytest.mark.parametrize("name", ["ratelimit", "reputation"])
def test_what_memory_cannot_be_is_one_line_and_status_2(
    tmp_path: Path, settings: str, said: str, name: str
) -> None:
    if name == "reputation" and settings.startswith("keys"):
        pytest.skip("it has no keys")
    file, config = tmp_path / "file", tmp_path / "spop.toml"
    file.touch()
    limit = '[settings.limits.a]\nrate = "1/d"\nby = ["user"]\n' if name == "ratelimit" else ""
    if "state_dir" not in settings:
        settings += f'\nstate_dir = "{tmp_path}"'
    config.write_text(f"[settings]\n{settings}\n{limit}".replace("FILE", str(file)))
    options = ("--config", str(config), "--bind", "127.0.0.1:0")
    with served(*options, target=f"spop.agents.{name}:agent") as process:
        assert process.wait(30) == 2
    said = f"Error: cannot start: ValueError: {said}".replace("FILE", str(file))
    assert process.log.startswith(said), process.log
    assert len(process.lines) == 1


# --- agents that are served ---


@contextmanager
def service(
    folder: Path, name: str, settings: str, *options: str, limit: str = 'rate = "1000/d"'
) -> Iterator[Served]:
    """The agent with one limit, for a user."""
    config = folder / f"{name}.toml"
    config.write_text(
        f'[settings]\nstate_dir = "{folder}"\n{settings}\n[settings.limits.a]\nby = ["user"]\n{limit}\n'
    )
    address = f"unix:{folder}/{name}.sock"
    options = "--config", str(config), "--bind", address, "--admin", "127.0.0.1:0", *options
    with served(*options, target="spop.agents.ratelimit:agent") as process:
        wait_until_serving(process)
        yield process


def metrics(process: Served) -> dict[str, float]:
    admin = process.log.split("admin on ")[1].split()[0]
    with urllib.request.urlopen(f"http://{admin}/metrics") as answer:
        found = re.findall(r"^(ratelimit_\S+) (\S+)$", answer.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def grants(folder: Path, *agents: str, requests: int, by: str = "user") -> int:
    """Number of allowed requests, of as many for each of the agents, at once."""

    def ask(name: str) -> int:
        with Client(f"unix:{folder}/{name}.sock", timeout=30) as client:
            answers = (client.notify("ratelimit", **{by: "u"}).variables for _ in range(requests))
            return sum(not answer["txn.denied"] for answer in answers)

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(ask, agents))


def test_processes_and_threads_of_an_agent_share_a_limit(tmp_path: Path) -> None:
    with service(tmp_path, "a", "", "--processes", "2", "--threads", "2") as process:
        assert 950 <= grants(tmp_path, *"aaaa", requests=400) <= 1000
        assert metrics(process)['ratelimit_requests_total{answer="denied"}'] >= 600
    with service(tmp_path, "a", ""):  # It outlives a restart, but for leases of each loop.
        assert grants(tmp_path, "a", requests=50) <= 1


KINDS = {
    "user": 'rate = "2000/d"\nalgorithm = "fixed"',
    "path": 'rate = "2000/d"',
    "header": 'rate = "200/s"\nburst = 1000',
}


def test_two_agents_on_a_store_grant_at_most_2_percent_above_a_limit(
    store: RedisServer, tmp_path: Path
) -> None:
    settings = f'store = "{store.url}"\ntimeout = 10.0\nexpected_agents = 2\n'
    for by, limit in list(KINDS.items())[1:]:
        settings += f'[settings.limits.{by}]\nby = ["{by}"]\n{limit}\n'
    with (
        service(tmp_path, "a", settings, limit=KINDS["user"]) as one,
        service(tmp_path, "b", settings, limit=KINDS["user"]) as other,
    ):
        for by in KINDS:
            began = time.monotonic()
            allowed = grants(tmp_path, "a", "b", "a", "b", requests=700, by=by)
            refilled = 200 * (time.monotonic() - began) if by == "header" else 1
            most = 1000 if by == "header" else 2000
            assert 0.95 * most <= allowed <= 1.02 * (most + refilled), by
            for each in (metrics(one), metrics(other)):
                assert each["ratelimit_store_failures_total"] == 0
                if by != "header":  # Its tokens come back, and are asked for, each 5 ms.
                    assert each["ratelimit_store_requests_total"] < 0.3 * 2 * 1400


@pytest.mark.parametrize("fail", ["local", "open", "closed"])
def test_a_store_that_is_killed_and_restarted(
    fail: str, store: RedisServer, tmp_path: Path
) -> None:
    settings = f'store = "{store.url}"\nfail = "{fail}"\ntimeout = 2.0\nexpected_agents = 2'
    with service(tmp_path, "a", settings) as one, service(tmp_path, "b", settings) as other:
        both = one, other
        before = grants(tmp_path, "a", "b", requests=200)
        assert before == 400
        store.kill()
        meanwhile = grants(tmp_path, "a", "b", requests=600)
        for each in both:
            each.wait_for_log("the store fails: ")
            assert metrics(each)["ratelimit_store_down"] == 1
        if fail == "local":  # Both agents are on this machine, where they share one half.
            assert 450 <= meanwhile <= 500 + 30
        elif fail == "open":
            assert meanwhile == 1200
        else:
            assert meanwhile <= 20  # Of leases that they had.
        store.start()
        total = rounds = 0
        deadline = time.monotonic() + 30  # The store is asked again within a second.
        while not all("the store answers again" in each.log for each in both):
            assert time.monotonic() < deadline
            total += grants(tmp_path, "a", "b", requests=50)
            rounds += 1
        total += grants(tmp_path, "a", "b", requests=600)
        window = 1000 if fail != "open" else 1000 + rounds * 100
        assert total <= 1.02 * window
        for each in both:
            assert each.log.count("the store fails: ") == 1
            assert metrics(each)["ratelimit_store_down"] == 0


# --- behind HAProxy ---


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def request(port: int, source: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, 10, source_address=(source, 0))
    with closing(connection):
        connection.request("GET", "/", headers=headers)
        response = connection.getresponse()
        response.read()
        return response


@pytest.mark.haproxy
def test_the_agent_behind_haproxy(haproxy_binary: str, store: RedisServer, tmp_path: Path) -> None:
    if version(haproxy_binary)[:2] not in ((2, 6), (3, 4)):
        return  # The page has files for these.
    text = PAGE.texts("ratelimit", (3, 4))["spop.toml"]
    for old, new in {
        "127.0.0.1:9000": f"unix:{tmp_path}/agent.sock",
        "127.0.0.1:9001": "127.0.0.1:0",
        "redis://127.0.0.1:6379/0": store.url,
        "[settings]\n": f'[settings]\ntimeout = 5.0\nstate_dir = "{tmp_path}"\n',
        "bind =": "processes = 2\nbind =",
        '"10/s"': '"10/h"',  # So that the test may take its time.
        '"1000/d"': '"3/d"',
    }.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "spop.toml").write_text(text)
    with ExitStack() as stack:
        web = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Web))
        threading.Thread(target=web.serve_forever, daemon=True).start()
        stack.callback(web.shutdown)
        process = stack.enter_context(
            served("--config", f"{tmp_path}/spop.toml", target="spop.agents.ratelimit:agent")
        )
        wait_until_serving(process)
        proxy = stack.enter_context(
            PAGE.run(
                haproxy_binary, tmp_path, "ratelimit",
                web=web.server_port, agent=f"unix@{tmp_path}/agent.sock",
                replace={"timeout processing 50ms": "timeout processing 5s"},
            )
        )  # fmt: skip
        answers = [request(proxy.port, "127.0.0.2") for _ in range(25)]
        assert [each.status for each in answers] == [200] * 20 + [429] * 5
        assert answers[0].getheader("ratelimit-remaining") == "19"
        assert answers[0].getheader("ratelimit-policy") == "10;w=3600"
        assert 300 < int(answers[-1].getheader("retry-after", "0")) <= 360
        assert answers[-1].getheader("ratelimit-remaining") == "0"
        with_key = [request(proxy.port, "127.0.0.3", **{"x-api-key": "k"}) for _ in range(4)]
        assert [each.status for each in with_key] == [200] * 3 + [429]
        assert with_key[-1].getheader("ratelimit-policy") == "3;w=86400"
        assert request(proxy.port, "127.0.0.3").status == 200
        assert metrics(process)['ratelimit_requests_total{answer="denied"}'] == 6
        with store.client() as client:
            assert b"ratelimit:address:127.0.0.2" in client.keys("*")


@pytest.mark.haproxy
def test_the_pages_files_have_no_fault(haproxy_binary: str, tmp_path: Path) -> None:
    found = version(haproxy_binary)
    if found[:2] in ((2, 6), (3, 4)):
        assert PAGE.objections(tmp_path, "ratelimit", found) == []
