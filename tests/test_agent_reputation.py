"""The agent `reputation`: look-ups, lists that change and fail, and HAProxy in front of it."""

from __future__ import annotations

import http.client
import os
import random
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from asking import asking_agent
from haproxy import version, wait_until
from mmdb import database
from pages import Page
from serving import Served, served, wait_until_serving

from spop import Client
from spop.agents import networks, reputation
from spop.agents.reputation import NetworkList, Settings, agent
from spop.settings import SettingsError, Source, fill

PAGE = Page("agents/reputation.md")


class Web(BaseHTTPRequestHandler):
    """A feed, and the web server behind HAProxy, which tells what it was sent."""

    protocol_version = "HTTP/1.1"
    status, text, tag = 200, "127.0.0.66/32 ; SBL1\n", '"1"'
    wait = threading.Event()

    def do_GET(self) -> None:
        self.wait.wait(10)
        known = self.headers["If-None-Match"] == self.tag
        shown = [self.headers.get(f"x-{name}", "-") for name in ("list", "country", "asn")]
        body = self.text if self.path == "/feed" else " ".join(shown)
        self.send_response(304 if known and self.status == 200 else self.status)
        self.send_header("ETag", self.tag)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", "0" if known else str(len(body)))
        self.end_headers()
        if not known:
            self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[type[Web]]:
    class Own(Web):
        wait = threading.Event()

    Own.wait.set()

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        Own.port = server.server_port  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Own
        server.shutdown()


@contextmanager
def asking(settings: Settings) -> Iterator[Callable[[str], dict[str, Any]]]:
    with asking_agent(agent, "reputation", settings) as ask:
        yield lambda ip: ask(ip=ip_address(ip))


def lists(folder: Path, **texts: str) -> dict[str, str]:
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: str(folder / name) for name in texts}


def index(folder: Path, **texts: str) -> networks.Index:
    networks.build(str(folder / "index"), lists(folder, **texts), 1.0)
    return networks.Index.open(folder / "index")


def test_an_address_has_the_first_list_that_has_it(tmp_path: Path) -> None:
    """As a search of all networks finds it, for addresses at and beside the ends of networks."""
    choose = random.Random(4)
    texts: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    for name in texts:
        for _ in range(150):
            address = ip_address(choose.getrandbits(8) << 24 | choose.getrandbits(12))
            texts[name].append(f"{address}/{choose.choice([4, 8, 20, 24, 30, 32])}")
            packed = 0x2001 << 112 | choose.getrandbits(3) << 64 | choose.getrandbits(4)
            texts[name].append(f"{ip_address(packed)}/{choose.choice([15, 62, 64, 96, 126, 128])}")
    texts["c"] += ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0"]
    found = index(tmp_path, **{name: "\n".join(each) for name, each in texts.items()})
    every = [[ip_network(each, strict=False) for each in text] for text in texts.values()]
    ends = {n[k] for some in every for n in some for k in (0, -1)} | {ip_address(0)}
    for end in ends:
        for near in (-1, 0, 1):
            if not 0 <= int(end) + near < 1 << end.max_prefixlen:
                continue
            ip = type(end)(int(end) + near)
            expected = (number for number, some in enumerate(every) if any(ip in n for n in some))
            assert found.find(ip.packed) == next(expected, networks.NONE), ip


def test_mapped_addresses_and_networks_are_those_of_ipv4(tmp_path: Path) -> None:
    found = index(tmp_path, a="192.0.2.0/24\n::ffff:198.51.100.0/120")
    for text in ("192.0.2.7", "::ffff:192.0.2.7", "198.51.100.1", "::ffff:198.51.100.1"):
        assert found.find(ip_address(text).packed) == 0
    for text in ("::192.0.2.7", "::fffe:192.0.2.7", "192.0.3.0"):
        assert found.find(ip_address(text).packed) == networks.NONE


@pytest.mark.parametrize("text", [
    "", "# nothing\n", "<html>\n<body>not found</body>\n", "10.0.0.0/33\n", "10.0.0.0/-1\n", "10/8\n",
    "10.0.0.1\nno address\n", "::/129\n", "10.0.0.0/ 8\n", "1.2.3.4/²\n",
])  # fmt: skip
def test_what_is_no_list_is_garbage(text: str) -> None:
    with pytest.raises(networks.GarbageError, match="lines that are none"):
        networks.read_networks(text.encode().splitlines())


def test_a_list_that_is_too_long_is_garbage_and_the_kept_one_counts(
    tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("127.0.0.2\n")
    web.text = "127.0.0.3\n"
    sources = {"file": str(tmp_path / "file"), "feed": f"http://127.0.0.1:{web.port}/feed"}
    networks.build(str(tmp_path / "index"), sources, 5.0)
    monkeypatch.setattr(networks, "MOST_BYTES", 20)
    (tmp_path / "file").write_text("127.0.0.4\n" * 3)
    web.text, web.tag = "127.0.0.5\n" * 3, '"2"'
    networks.build(str(tmp_path / "index"), sources, 5.0)
    about = networks.Index.open(tmp_path / "index").about
    assert [each["error"] for each in about.values()] == ["it has more than 20 bytes"] * 2
    assert [each["networks"] for each in about.values()] == [1, 1]


def test_there_are_no_more_lists_than_an_index_has_room_for() -> None:
    source = NetworkList("http://a")
    with pytest.raises(ValueError, match=r"^lists: there are "):
        Settings(lists={str(n): source for n in range(networks.MOST_LISTS + 1)})


def test_comments_further_words_and_a_few_bad_lines_are_passed_over() -> None:
    text = b"; a list\n\n 10.0.0.0/8 ; SBL1\n10.1.2.3/16,US,x\n2001:db8::/32 # doc\n" + b"x\n"
    of_4, of_6 = networks.read_networks([*text.splitlines(), *[b"192.0.2.1"] * 200])
    assert of_4[:2] == [(0x0A000000, 0x0AFFFFFF), (0x0A010000, 0x0A01FFFF)]
    assert len(of_6) == 1


def test_allowlists_count_first_and_then_the_lowest_score(tmp_path: Path) -> None:
    paths = lists(tmp_path, poor="10.0.0.0/8", bad="10.1.0.0/16", good="10.1.1.0/24")
    settings = Settings(
        lists={
            "poor": NetworkList(paths["poor"], score=20),
            "bad": NetworkList(paths["bad"]),
            "good": NetworkList(paths["good"], "allow"),
        },
        state_dir=tmp_path / "state",
    )
    with asking(settings) as ask:
        assert ask("10.0.0.1") == {"list": "poor", "score": 20}
        assert ask("10.1.0.1") == {"list": "bad", "score": 0}
        assert ask("10.1.1.1") == {"list": "good", "score": 100}
        assert ask("11.0.0.0") == ask("2001:db8::1") == {"score": 100}


def test_country_and_system_come_from_databases_which_are_read_again(tmp_path: Path) -> None:
    countries, systems = tmp_path / "country.mmdb", tmp_path / "asn.mmdb"
    nl = {"country": {"iso_code": "NL"}}
    countries.write_bytes(
        database({"192.0.2.0/24": nl, "2001:db8::/32": {"registered_country": {"iso_code": "XX"}}})
    )
    system = {"autonomous_system_number": 64496, "autonomous_system_organization": "Example"}
    systems.write_bytes(database({"192.0.2.128/25": system}))
    settings = Settings(
        databases=[countries, systems],
        country_scores={"XX": 70, "NL": 99},
        asn_scores={"64496": 40},
        state_dir=tmp_path / "state",
    )
    with asking(settings) as ask:
        assert ask("192.0.2.1") == {"score": 99, "country": "NL"}
        known = {"score": 40, "country": "NL", "asn": 64496, "as_name": "Example"}
        assert ask("192.0.2.200") == ask("::ffff:192.0.2.200") == known
        assert ask("2001:db8::1") == {"score": 70, "country": "XX"}
        assert ask("198.51.100.1") == {"score": 100}
        (tmp_path / "new").write_bytes(database({"198.51.100.0/24": nl}))
        (tmp_path / "new").replace(countries)
        wait_until(lambda: ask("198.51.100.1") == {"score": 99, "country": "NL"}, "the new one")
        countries.write_bytes(b"garbage")
        failures = agent.counter(
            "reputation_database_failures", "Failures to open a database.", database="country.mmdb"
        )
        wait_until(lambda: failures.value >= 1, "the failure")
        assert ask("198.51.100.1") == {"score": 99, "country": "NL"}


def test_processes_share_an_index_and_kept_lists_outlive_them(tmp_path: Path) -> None:
    paths = lists(tmp_path, bad="10.0.0.0/8")
    settings = Settings(
        lists={"bad": NetworkList(paths["bad"])}, state_dir=tmp_path / "state", refresh=0.1
    )
    for _ in range(2):
        with asking(settings) as ask:
            assert ask("10.0.0.1") == {"list": "bad", "score": 0}
        Path(paths["bad"]).unlink()
        assert len(list((tmp_path / "state").glob("*.index"))) == 1
        (tmp_path / "bad").write_text("garbage")


def test_an_index_that_can_not_be_read_is_built_again(tmp_path: Path) -> None:
    paths = lists(tmp_path, bad="10.0.0.0/8")
    settings = Settings(lists={"bad": NetworkList(paths["bad"])}, state_dir=tmp_path / "state")
    for _ in range(2):
        with asking(settings) as ask:
            assert ask("10.0.0.1")["list"] == "bad"
        (path,) = (tmp_path / "state").glob("*.index")
        path.write_bytes(b"of another version")


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_index_is_built_again(tmp_path: Path, damage: str, place: float) -> None:
    text = "\n".join(f"10.{n}.0.0/16" for n in range(0, 256, 2))
    paths = lists(tmp_path, bad=f"{text}\n2001:db8::/32")
    settings = Settings(lists={"bad": NetworkList(paths["bad"])}, state_dir=tmp_path / "state")
    for _ in range(2):
        with asking(settings) as ask:
            assert ask("10.254.0.1") == ask("2001:db8::1") == {"list": "bad", "score": 0}
            assert ask("11.0.0.1") == {"score": 100}
        (path,) = (tmp_path / "state").glob("*.index")
        data = bytearray(path.read_bytes())
        at = int(place * len(data))
        data[at:] = b"" if damage == "cut" else bytes([data[at] ^ 0x55]) + data[at + 1 :]
        path.write_bytes(data)


def test_what_was_kept_and_is_damaged_keeps_no_list_from_being_built(
    tmp_path: Path, web: Any
) -> None:
    """Neither where its feed fails, nor where the feed says that nothing has changed."""
    paths = lists(tmp_path, bad="10.0.0.0/8")
    sources = {"feed": f"http://127.0.0.1:{web.port}/feed", "bad": paths["bad"]}
    index = str(tmp_path / "index")

    def build() -> dict[str, Any]:
        networks.build(index, sources, 5.0)
        return networks.Index.open(Path(index)).about

    for status in (200, 500):
        web.status = 200
        assert [each["networks"] for each in build().values()] == [1, 1]
        (kept,) = tmp_path.glob("feed-*.networks")
        kept.write_bytes(b"\0" * 100)
        web.status = status
        about = build()
        assert about["bad"]["networks"] == 1
        assert about["feed"]["networks"] == 0
        assert "what was kept: " in about["feed"]["error"]
    web.status = 200
    assert build()["feed"]["networks"] == 1


def test_as_many_lists_and_databases_as_there_may_be_have_their_metrics(tmp_path: Path) -> None:
    lines = {f"list{n}": f"10.{n}.0.0/16" for n in range(networks.MOST_LISTS)}
    databases = [tmp_path / f"{n}.mmdb" for n in range(reputation.MOST_DATABASES)]
    for path in databases:
        path.write_bytes(database({"192.0.2.0/24": {}}))
    code = f"""
from pathlib import Path
from spop.agents.reputation import NetworkList, Settings, agent
agent.config = Settings(
    lists={{n: NetworkList(p) for n, p in {lists(tmp_path, **lines)!r}.items()}},
    databases=[Path(p) for p in {[*map(str, databases)]!r}],
    state_dir=Path({str(tmp_path / "state")!r}),
)
with agent.serve_in_background():
    pass
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_start_does_not_wait_for_a_feed_for_long(
    tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reputation, "START", 0.1)
    web.wait.clear()
    feed = NetworkList(f"http://127.0.0.1:{web.port}/feed")
    with asking(Settings(lists={"feed": feed}, state_dir=tmp_path)) as ask:
        assert ask("127.0.0.66") == {"score": 100}
        assert "the lists are not built yet" in caplog.text
        web.wait.set()
        wait_until(lambda: ask("127.0.0.66") == {"list": "feed", "score": 0}, "the feed")


@pytest.mark.parametrize("table, error", [
    ({"lists": {"a": {}}}, "settings.lists.a.source is missing"),
    ({"lists": {"a": {"source": "/nowhere"}}}, "settings.lists.a.source: '/nowhere' is no file"),
    ({"lists": {"a": {"source": "ftp://a/b"}}}, "settings.lists.a.source: 'ftp://a/b' is no file"),
    ({"lists": {"a": {"source": "http://a", "score": 101}}}, "settings.lists.a.score: 101 is not"),
    ({"lists": {"../a": {"source": "http://a"}}}, "settings.lists: '../a' is no name"),
    ({"databases": ["/nowhere"]}, "settings.databases: "),
    ({"databases": [__file__] * 9}, "settings.databases: there are 9, 8 at most"),
    ({"databases": [__file__]}, "settings.databases: "),
    ({"country_scores": {"NL": -1}}, "settings.country_scores: -1 is not from 0 to 100"),
    ({"asn_scores": {"AS1": 1}}, "settings.asn_scores: the keys are numbers"),
    ({"refresh": 0}, "settings.refresh: it is 0.0 s"),
    ({"timeout": -1}, "settings.timeout: it is -1.0 s"),
])  # fmt: skip
def test_bad_settings_are_refused_with_key_and_reason(table: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingsError) as caught:
        fill(Settings, Source("file", table, lambda key: f"spop.toml:{key}"))
    assert str(caught.value).startswith("spop.toml:")
    assert error in str(caught.value)


def test_a_bad_setting_is_one_line_and_status_2(tmp_path: Path) -> None:
    config = tmp_path / "spop.toml"
    config.write_text(
        'agent = "spop.agents.reputation:agent"\n[settings.lists.a]\nkind = "allow"\nsource = "/no"\n'
    )
    command = [sys.executable, "-m", "spop", "serve", "--config", str(config)]
    environment = {**os.environ, "SPOP_BIND": "127.0.0.1:0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    reason = "settings.lists.a.source: '/no' is no file, and no http:// or https:// URL"
    assert (done.returncode, done.stderr) == (2, f"Error: {config}:4: {reason}\n")


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    missing = "raise ModuleNotFoundError('No module named maxminddb', name='maxminddb')"
    (tmp_path / "maxminddb.py").write_text(missing)
    command = [sys.executable, "-m", "spop", "serve", "spop.agents.reputation:agent"]
    environment = {**os.environ, "SPOP_BIND": "127.0.0.1:0", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    why = "spop.agents.reputation needs maxminddb: pip install 'haproxy-spop[agents]'"
    assert (done.returncode, done.stderr) == (2, f"Error: {why}\n")


def test_the_page_names_all_metrics() -> None:
    source = Path(reputation.__file__).read_text()
    named = re.findall(r'"(reputation_\w+)"', source)
    page = (Path(__file__).parent.parent / "docs" / "agents" / "reputation.md").read_text()
    assert len(named) == 5
    assert all(f"`{name}" in page for name in named)


# --- behind HAProxy ---


@contextmanager
def service(folder: Path, feed: int) -> Iterator[Served]:
    """The agent, served with the page's file: its paths, ports and the feed are replaced."""
    paths = lists(folder, partners="127.0.0.70\n", suspects="127.0.0.64/27\n")
    for name, record in {
        "Country": {"country": {"iso_code": "NL"}},
        "ASN": {"autonomous_system_number": 64496},
    }.items():
        (folder / f"GeoLite2-{name}.mmdb").write_bytes(database({"127.0.0.0/8": record}))
    text = PAGE.texts("reputation", (3, 4))["spop.toml"]
    for old, new in {
        "127.0.0.1:9000": f"unix:{folder}/agent.sock",
        "127.0.0.1:9001": "127.0.0.1:0",
        "/var/lib/spop": str(folder / "state"),
        "/var/lib/GeoIP": str(folder),
        "https://www.spamhaus.org/drop/drop.txt": f"http://127.0.0.1:{feed}/feed",
        **{f"/etc/spop/{name}.txt": path for name, path in paths.items()},
        "[settings]\n": "[settings]\nrefresh = 0.2\n",
        "bind =": "processes = 2\nbind =",
    }.items():
        text = text.replace(old, new)
    (folder / "spop.toml").write_text(text)
    with served("--config", str(folder / "spop.toml"), target="spop.agents.reputation:agent") as it:
        wait_until_serving(it)
        yield it


def request(port: int, source: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, 10, source_address=(source, 0))
    with closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.haproxy
def test_the_agent_behind_haproxy(haproxy_binary: str, web: Any, tmp_path: Path) -> None:
    if version(haproxy_binary)[:2] not in ((2, 6), (3, 4)):
        return  # The page has files for these.
    with (
        service(tmp_path, web.port),
        PAGE.run(
            haproxy_binary, tmp_path, "reputation",
            web=web.port, agent=f"unix@{tmp_path}/agent.sock",
        ) as proxy,
    ):  # fmt: skip
        assert request(proxy.port, "127.0.0.66")[0] == 403
        assert request(proxy.port, "127.0.0.65") == (200, "suspects NL 64496")
        assert request(proxy.port, "127.0.0.70") == (200, "partners NL 64496")
        assert request(proxy.port, "127.0.0.2") == (200, "- NL 64496")
        web.text, web.tag = "127.0.0.2\n", '"2"'
        wait_until(lambda: request(proxy.port, "127.0.0.2")[0] == 403, "the new feed")


def test_a_list_whose_feed_fails_or_is_garbage_is_kept(tmp_path: Path, web: Any) -> None:
    with service(tmp_path, web.port) as process, Client(f"unix:{tmp_path}/agent.sock") as client:

        def found(ip: str) -> Any:
            return client.notify("reputation", ip=ip_address(ip)).variables.get("txn.list")

        assert found("127.0.0.66") == "drop"
        web.text, web.tag = "<html>sorry</html>\n", '"2"'
        process.wait_for_log("list 'drop': it has 0 networks and 1 lines that are none")
        web.status = 500
        process.wait_for_log("list 'drop': Server error '500")
        process.wait_for_log("its 1 networks of")
        assert found("127.0.0.66") == "drop"
        admin = process.log.split("admin on ")[1].split()[0]
        with urllib.request.urlopen(f"http://{admin}/metrics") as answer:
            metrics = answer.read().decode()
        assert 'reputation_networks{list="drop"} 1.0' in metrics
        assert float(re.findall(r'reputation_failures_total{list="drop"} (\S+)', metrics)[0]) >= 2
        web.status, web.text, web.tag = 200, "127.0.0.3\n", '"4"'
        wait_until(lambda: found("127.0.0.3") == "drop", "the feed that is well again")
        assert found("127.0.0.66") == "suspects"


def test_no_request_waits_while_lists_are_read(tmp_path: Path, web: Any) -> None:
    """50 000 networks are read meanwhile."""
    with service(tmp_path, web.port) as process, Client(f"unix:{tmp_path}/agent.sock") as client:
        bits = random.Random(5)
        text = "\n".join(str(ip_address(bits.getrandbits(32) | 1 << 31)) for _ in range(50_000))
        (tmp_path / "suspects").write_text(text)
        answers = 0
        while "list 'suspects' has 50000 networks" not in process.log:
            answer = client.notify("reputation", ip=ip_address(0x7F000000 | answers))
            assert answer.variables["txn.country"] == "NL"
            answers += 1
        assert answers > 100
        first = ip_address(text.partition("\n")[0])
        wait_until(
            lambda: client.notify("reputation", ip=first).variables["txn.score"] == 50, "the index"
        )


@pytest.mark.haproxy
def test_the_pages_files_have_no_fault(haproxy_binary: str, tmp_path: Path) -> None:
    found = version(haproxy_binary)
    if found[:2] in ((2, 6), (3, 4)):
        assert PAGE.objections(tmp_path, "reputation", found) == []
