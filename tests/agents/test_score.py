"""`spop.agents.score`: features of a request, and a model that is made here."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import haproxy
import pytest
from bad_settings import said_of
from pages import Page
from services import Service, request

from spop import AsyncClient, Client, Message
from spop.agents import score
from spop.agents.score import Settings, feature_of
from spop.cli.settings import give_settings

PAGE = Page("agents/score.md")
FILES = PAGE.texts("score", (3, 4))
ATTACK = {"path": "/a/../../etc/shadow", "query": "x=%27%27%3B--", "method": "GET", "headers": 3}
VISIT = {"path": "/shop/list", "query": "page=3", "method": "GET", "headers": 12}


def needs(package: str) -> Any:
    """Packages of models have no wheels for Python 3.15; elsewhere they have to be there."""
    if sys.version_info >= (3, 15):
        return pytest.importorskip(package, reason=f"{package} has no wheel for this Python")
    return __import__(package)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model is that the page's program makes, and the page's settings."""
    needs("sklearn")
    folder = tmp_path_factory.mktemp("score")
    exec(FILES["train.py"].replace("/etc/spop", str(folder)), {})
    (folder / "spop.toml").write_text(FILES["spop.toml"].replace("/etc/spop", str(folder)))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Any]:
    """The agent with the page's settings. Its model runs in a process."""
    give_settings(score.agent, folder / "spop.toml")
    with score.agent.serve_in_background() as server:
        yield server
    score.agent.config = None


@pytest.fixture
def here() -> Iterator[None]:
    """For models in this process."""
    score._prepared.cache_clear()
    yield
    score._prepared.cache_clear()
    score.agent.close_test()
    score.agent.config = None


# --- features ---


@pytest.mark.parametrize(
    "name, arguments, value",
    [
        ("n", {"n": 7}, 7.0),
        ("n", {"n": True}, 1.0),
        ("n", {"n": "7"}, -1.0),
        ("n", {"n": None}, -1.0),
        ("n", {}, -1.0),
        ("path.length", {"path": "/abc"}, 4.0),
        ("path.length", {"path": b"/ab"}, 3.0),
        ("path.length", {"path": None}, -1.0),
        ("path.digits", {"path": "/a12"}, 0.5),
        ("path.digits", {"path": ""}, 0.0),
        ("path.capitals", {"path": "ABcd"}, 0.5),
        ("path.special", {"path": "/a/b"}, 0.5),
        ("path.entropy", {"path": "abcd"}, 2.0),
        ("path.entropy", {"path": ""}, 0.0),
        ("method=POST", {"method": "POST"}, 1.0),
        ("method=POST", {"method": "GET"}, 0.0),
        ("method=POST", {}, 0.0),
        ("a=b.c", {"a": "b.c"}, 1.0),
    ],
)
def test_a_feature_is_made_of_an_argument(name: str, arguments: Any, value: float) -> None:
    assert feature_of(name, -1.0)(Message("score", arguments)) == value


# --- a model in a process ---


def test_requests_get_the_score_of_the_model(server: Any) -> None:
    with Client(str(server.address)) as client:
        assert client.notify("score", **ATTACK).variables["txn.score"] > 90
        assert client.notify("score", **VISIT).variables["txn.score"] < 10


def test_many_requests_are_scored_in_one_call_and_each_gets_its_own(server: Any) -> None:
    async def main() -> list[int]:
        async with AsyncClient(str(server.address)) as client:
            requests = [ATTACK, VISIT] * 100
            acks = await asyncio.gather(*(client.notify("score", **each) for each in requests))
            return [ack.variables["txn.score"] > 50 for ack in acks]

    before = [each.value for each in score.deciles]
    assert asyncio.run(main()) == [True, False] * 100
    added = [each.value - old for each, old in zip(score.deciles, before, strict=True)]
    assert (added[0], added[9]) == (100, 100)


def test_the_score_decides_behind_haproxy(haproxy_binary: str, tmp_path: Path, server: Any) -> None:
    with (
        Service() as web,
        PAGE.run(
            haproxy_binary, tmp_path, "score", agent=str(server.address), web=web.server_port
        ) as proxy,
    ):
        attack = f"{ATTACK['path']}?{ATTACK['query']}"
        assert request(proxy.port, attack).status == 403
        many = {f"X-{number}": "1" for number in range(12)}
        assert request(proxy.port, "/shop/list?page=3", headers=many).status == 200
    assert [seen.path for seen in web.seen] == ["/shop/list?page=3"]


def test_validate_finds_nothing_wrong_with_the_page(haproxy_binary: str, tmp_path: Path) -> None:
    assert PAGE.objections(tmp_path, "score", haproxy.version(haproxy_binary)) == []


# --- other models ---


def given(model: Path, **more: Any) -> None:
    score.agent.config = Settings(model, ["a", "b"], **more)


@pytest.mark.usefixtures("here")
def test_a_model_without_classes_gives_its_value(tmp_path: Path) -> None:
    needs("sklearn")
    import joblib
    from sklearn.linear_model import LinearRegression

    path = tmp_path / "model.joblib"
    joblib.dump(LinearRegression().fit([[0, 0], [1, 0], [0, 1]], [5, 6, 7]), path)
    given(path, scale=10)
    assert score.agent.test("score", a=1, b=1) == {"txn.score": 80}
    assert score.agent.test("score", a=1) == {"txn.score": 60}


def field(number: int, value: bytes | int) -> bytes:
    """A field of protobuf, in which ONNX files are written. All lengths here are below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def onnx_model() -> bytes:
    """sigmoid(X @ [[1], [-1]]), as ONNX has it."""

    def node(kind: bytes, inputs: list[bytes], output: bytes) -> bytes:
        return b"".join(field(1, each) for each in inputs) + field(2, output) + field(4, kind)

    def value(name: bytes, columns: int) -> bytes:
        shape = field(1, field(2, b"N")) + field(1, field(1, columns))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    weights = field(1, 2) + field(1, 1) + field(2, 1) + field(8, b"W")
    weights += field(9, struct.pack("<2f", 1.0, -1.0))
    graph = field(1, node(b"MatMul", [b"X", b"W"], b"Z")) + field(1, node(b"Sigmoid", [b"Z"], b"Y"))
    graph += (
        field(2, b"g") + field(5, weights) + field(11, value(b"X", 2)) + field(12, value(b"Y", 1))
    )
    return (
        field(1, 8)
        + bytes([7 << 3 | 2, len(graph) % 128 | 128, len(graph) // 128])
        + graph
        + field(8, field(2, 17))
    )


@pytest.mark.usefixtures("here")
def test_an_onnx_model_gives_the_score(tmp_path: Path) -> None:
    needs("onnxruntime")
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model())
    given(path)
    assert score.agent.test("score", a=3, b=3) == {"txn.score": 50}
    assert score.agent.test("score", a=9, b=0) == {"txn.score": 100}
    score.agent.config.features.append("c")
    score._prepared.cache_clear()
    with pytest.raises(ValueError, match=r"has 2 inputs, and settings\.features has 3"):
        score.agent.test("score", a=3, b=3)


def test_scores_are_read_of_all_forms_of_output() -> None:
    assert score._scores([[0.9, 0.1], [0.2, 0.8]], -1) == [0.1, 0.8]
    assert score._scores([{0: 0.9, 1: 0.1}], 0) == [0.9]
    assert score._scores([3, 4.5], -1) == [3.0, 4.5]


@pytest.mark.usefixtures("here")
def test_a_score_that_is_no_number_fails_its_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = (lambda rows: [float("nan"), 0.5], [feature_of("a", 0.0)])
    monkeypatch.setattr(score, "_prepared", lambda: prepared)
    monkeypatch.setattr(score.agent, "_config", Settings(Path(__file__), ["a"]))
    first, second = score.score([Message("score", {}), Message("score", {})])
    assert isinstance(first, ValueError)
    assert second == {"txn.score": 50}


# --- settings ---


@pytest.mark.parametrize(
    "table, error",
    [
        ("", ":3: settings.model is missing"),
        ('model = "/nowhere"', ":4: settings.model: '/nowhere' is no file"),
        (f"model = {json.dumps(__file__)}", ":3: settings.features: none is named"),
        (f'model = {json.dumps(__file__)}\nfeatures = ["a.size"]',
         ":5: settings.features: 'a.size': 'size' is not one of length, digits"),
        (f'model = {json.dumps(__file__)}\nscale = "x"', ":5: settings.scale: int is needed"),
        (f'model = {json.dumps(__file__)}\nscale = 0', ":5: settings.scale: 0, 1 at least"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_with_its_line(tmp_path: Path, table: str, error: str) -> None:
    assert said_of("score", tmp_path, table).startswith(error)


def test_a_file_without_a_model_is_an_error_at_start(tmp_path: Path) -> None:
    needs("sklearn")
    path = tmp_path / "model.joblib"
    path.write_text("no model")
    given(path)
    with pytest.raises(
        Exception, match=r"the process of spop\.agents\.score\.score could not begin"
    ):
        score.agent.serve_in_background().start()
    score.agent.config = None
