"""`spop.agents.forward_auth`: what the service and tokens say, and what becomes of failures."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import haproxy
import jwt
import pytest
from bad_settings import said_of
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pages import Page
from services import Reply, Seen, Service, answering_with, free_address, request

from spop import Headers
from spop.agents import forward_auth
from spop.agents.forward_auth import Settings
from spop.agents.tokens import TokenSettings
from spop.cli.settings import give_settings
from spop.testing.haproxy import Process

PAGE = Page("agents/forward_auth.md")
DENIED = {"txn.allowed": False, "txn.status": 503, "txn.reason": "failed"}
ISSUER, AUDIENCE = "https://login.example", "shop"

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Ask the agent about a request; settings count for the first call."""
    agent = forward_auth.agent
    monkeypatch.setattr(agent, "failure_level", 0)

    def ask(fields: dict[str, str] | None = None, /, **settings: Any) -> dict[str, Any]:
        if settings:
            agent.close_test()
            agent.config = Settings(**{"timeout": 20.0, **settings})
        raw = Headers({"user-agent": "test", **(fields or {})})
        arguments = {"method": "PUT", "https": True, "host": "shop.example", "uri": "/a?b=1"}
        return agent.test("auth", headers=raw, ip=IPv4Address("192.0.2.7"), **arguments)

    yield ask
    agent.close_test()
    agent.config = None


# --- the service ---


def test_the_service_gets_the_headers_of_send_and_what_the_request_is(ask: Ask) -> None:
    with Service() as service:
        ask({"cookie": "a=1", "x-forwarded-for": "10.0.0.1", "x-secret": "s"},
            url=f"http://{service.address}/check", send=["cookie"])  # fmt: skip
    seen = service.seen[0]
    assert (seen.method, seen.path) == ("GET", "/check")
    assert {name: value for name, value in seen.headers.items() if name.startswith("x-")} == {
        "x-forwarded-method": "PUT", "x-forwarded-proto": "https",
        "x-forwarded-host": "shop.example", "x-forwarded-uri": "/a?b=1",
        "x-forwarded-for": "192.0.2.7",
    }  # fmt: skip
    assert seen.headers["cookie"] == "a=1"


@pytest.mark.parametrize(
    "status, allowed", [(200, True), (204, True), (401, False), (403, False), (404, False)]
)
def test_2xx_allows_and_4xx_denies(ask: Ask, status: int, allowed: bool) -> None:
    with Service(lambda _: Reply(status)) as service:
        answer = ask(url=f"http://{service.address}")
    assert (answer["txn.allowed"], answer["txn.status"]) == (allowed, status)


def test_headers_of_the_answer_go_to_the_application_and_to_the_client(ask: Ask) -> None:
    fields = [("X-User", "ann"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Other", "o")]
    with Service(lambda _: Reply(200, fields)) as service:
        answer = ask(url=f"http://{service.address}", to_application=["X-User", "X-Mail"])
    assert Headers(answer["txn.application"]).items() == [("x-user", "ann")]
    assert Headers(answer["txn.client"]).items() == [("set-cookie", "a=1"), ("set-cookie", "b=2")]
    assert answer["txn.application.x_user"] == "ann"
    assert (answer["txn.client.set_cookie"], answer["txn.client.set_cookie.2"]) == ("a=1", "b=2")
    assert answer["txn.remove"] == Headers({"x-user": "", "x-mail": ""}).names()


def test_headers_for_the_application_are_those_of_an_answer_that_allows(ask: Ask) -> None:
    with Service(lambda _: Reply(403, [("X-User", "ann")])) as service:
        answer = ask(url=f"http://{service.address}", to_application=["X-User"])
    assert "txn.application.x_user" not in answer


def test_a_redirect_has_its_location(ask: Ask) -> None:
    with Service(lambda _: Reply(302, [("Location", "https://login.example/?a=1")])) as service:
        answer = ask(url=f"http://{service.address}")
    assert (answer["txn.allowed"], answer["txn.status"]) == (False, 302)
    assert answer["txn.location"] == "https://login.example/?a=1"


def test_the_cookies_of_one_client_are_not_sent_for_another(ask: Ask) -> None:
    with Service(lambda _: Reply(200, [("Set-Cookie", "session=1; Path=/")])) as service:
        ask(url=f"http://{service.address}")
        ask()
    assert ["cookie" in seen.headers for seen in service.seen] == [False, False]


def test_the_connection_to_the_service_is_used_again(ask: Ask) -> None:
    with Service(lambda _: Reply(200, [], b"x" * 10_000)) as service:
        ask(url=f"http://{service.address}")
        ask()
    assert (len(service.seen), service.connections) == (2, 1)


# --- failures ---


def failed(ask: Ask, **settings: Any) -> bool:
    """Whether a handler that fails is answered with `on_error`, as it is for all its failures."""
    with pytest.raises(forward_auth.ServiceError):
        ask(**settings)
    return forward_auth.agent.default_on_error == DENIED


@pytest.mark.parametrize("reply", [Reply(500), Reply(503), Reply(302), Reply(304)])
def test_an_answer_that_is_neither_yes_nor_no_is_a_failure(ask: Ask, reply: Reply) -> None:
    with Service(lambda _: reply) as service:
        assert failed(ask, url=f"http://{service.address}")


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: 1\r\n", b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000],
    ids=["nothing", "garbage", "half", "NUL", "short", "long header"],
)  # fmt: skip
def test_an_answer_that_is_no_http_is_a_failure(ask: Ask, data: bytes) -> None:
    with answering_with(data) as address:
        assert failed(ask, url=f"http://{address}")


def test_a_service_that_does_not_answer_is_a_failure(ask: Ask) -> None:
    with answering_with(None) as address:
        assert failed(ask, url=f"http://{address}", timeout=0.1)


def test_a_service_that_is_gone_is_a_failure(ask: Ask) -> None:
    assert failed(ask, url=f"http://{free_address()}")


def test_of_a_large_body_no_more_is_read_than_needed(ask: Ask) -> None:
    head = b"HTTP/1.1 403 No\r\nContent-Length: 1000000000\r\n\r\n"
    with answering_with(head + b"x" * 5_000_000) as address:
        assert ask(url=f"http://{address}", timeout=10.0)["txn.status"] == 403


# --- answers that are kept ---


def test_an_answer_is_kept_by_the_headers_that_are_sent(ask: Ask) -> None:
    with Service() as service:
        ask({"cookie": "a=1"}, url=f"http://{service.address}", cache_ttl=60.0)
        ask({"cookie": "a=1", "x-other": "1"})
        assert len(service.seen) == 1
        ask({"cookie": "a=2"})
        ask({"cookie": "a=1", "authorization": "x"})
        ask()
    assert len(service.seen) == 4


@pytest.mark.parametrize("by, asked", [(["uri"], 1), (["uri", "host"], 2)])
def test_an_answer_is_kept_by_cache_by(ask: Ask, by: list[Any], asked: int) -> None:
    agent = forward_auth.agent
    with Service() as service:
        ask(url=f"http://{service.address}", cache_ttl=60.0, cache_by=by)
        agent.test("auth", headers=Headers(), host="other.example", uri="/a?b=1")
    assert len(service.seen) == asked


@pytest.mark.parametrize(
    "reply, asked",
    [(Reply(200), 1), (Reply(401), 1), (Reply(403), 1), (Reply(404), 2),
     (Reply(200, [("Set-Cookie", "a=1")]), 2), (Reply(302, [("Location", "/")]), 2)],
)  # fmt: skip
def test_answers_of_one_request_alone_are_not_kept(ask: Ask, reply: Reply, asked: int) -> None:
    with Service(lambda _: reply) as service:
        first = ask(url=f"http://{service.address}", cache_ttl=60.0)
        assert ask() == first
    assert len(service.seen) == asked


def test_without_a_ttl_no_answer_is_kept(ask: Ask) -> None:
    with Service() as service:
        ask(url=f"http://{service.address}")
        ask()
    assert len(service.seen) == 2


def test_the_answer_that_was_kept_first_goes_first(ask: Ask) -> None:
    with Service() as service:
        ask({"cookie": "1"}, url=f"http://{service.address}", cache_ttl=60.0, cache_size=2)
        for cookie in ("2", "3", "3", "2", "1"):
            ask({"cookie": cookie})
    assert [seen.headers["cookie"] for seen in service.seen] == ["1", "2", "3", "1"]


# --- tokens ---

RSA_KEY, OTHER_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str | None = "one", **more: str) -> dict[str, Any]:
    algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    made = algorithm.to_jwk(key.public_key(), as_dict=True)
    return {**made, **({"kid": kid} if kid else {}), **more}


def token(
    key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "one", **claims: Any
) -> str:
    now = time.time()
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 60, **claims}
    whole = {name: value for name, value in whole.items() if value is not None}
    return jwt.encode(whole, key, algorithm, {"kid": kid} if kid else None)


def bearer(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., Path]:
    def write(*keys: dict[str, Any]) -> Path:
        path = tmp_path / "keys.json"
        path.write_text(json.dumps({"keys": keys}))
        return path

    return write


def settings(keys: object, **more: Any) -> dict[str, Any]:
    return {"jwt": TokenSettings(str(keys), ISSUER, [AUDIENCE], claims={"sub": "X-User"}, **more)}


@pytest.mark.parametrize(
    "key, algorithm", [(RSA_KEY, "RS256"), (RSA_KEY, "PS256"), (EC_KEY, "ES256")]
)
def test_a_good_token_allows(ask: Ask, keys: Any, key: Any, algorithm: str) -> None:
    given = bearer(token(key, algorithm))
    answer = ask(given, **settings(keys(jwk(key)), algorithms=[algorithm]))
    assert (answer["txn.allowed"], answer["txn.status"]) == (True, 200)
    assert answer["txn.application.x_user"] == "ann"


def hmac_token() -> str:
    """Signed with the text of the public key as the secret, which naive checks accept."""
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = token().split(".")[1]
    head = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"one"}').decode()
    signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = signed.sign(f"{head}.{body}".encode(), pem)
    return f"{head}.{body}.{jwt.utils.base64url_encode(signature).decode()}"


def unsigned_token(algorithm: str) -> str:
    head = jwt.utils.base64url_encode(json.dumps({"alg": algorithm, "kid": "one"}).encode())
    return f"{head.decode()}.{token().split('.')[1]}."


BAD_TOKENS = {
    "expired": lambda: token(exp=time.time() - 60),
    "not yet": lambda: token(nbf=time.time() + 60),
    "no end": lambda: token(exp=None),
    "issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=None),
    "audience": lambda: token(aud="bank"),
    "no audience": lambda: token(aud=None),
    "signature": lambda: token(OTHER_KEY),
    "changed": lambda: token()[:-8] + "AAAAAAAA",
    "none": lambda: unsigned_token("none"),
    "None": lambda: unsigned_token("None"),
    "no algorithm": lambda: unsigned_token(""),
    "public key as secret": hmac_token,
    "other algorithm": lambda: token(algorithm="RS512"),
    "other key type": lambda: token(EC_KEY, "ES256"),
    "unknown key": lambda: token(kid="two"),
    "no key id": lambda: token(kid=None),
    "critical": lambda: jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60}, RSA_KEY, "RS256",
        {"kid": "one", "crit": ["x"], "x": 1},
    ),
    "control characters": lambda: token(sub="ann\r\nx-admin: 1"),
    "claim of objects": lambda: token(sub=None, groups=[{"a": 1}]),
    "claim of surrogates": lambda: token(sub="ann\ud800"),
    "no text": lambda: "\udcff" + token(),
    "no token": lambda: "garbage",
    "no JSON": lambda: "YQ.YQ.YQ",
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_a_bad_token_is_denied(ask: Ask, keys: Any, bad: str) -> None:
    path = keys(jwk(RSA_KEY), jwk(OTHER_KEY, "other"))
    options = settings(path, leeway=0.0)
    options["jwt"].claims["groups"] = "x-groups"
    answer = ask(bearer(BAD_TOKENS[bad]()), **options)
    assert (answer["txn.allowed"], answer["txn.status"]) == (False, 401)
    assert answer["txn.client.www_authenticate"] == 'Bearer error="invalid_token"'
    assert "txn.application.x_user" not in answer


def test_a_token_whose_json_is_nested_deeply_is_denied(
    ask: Ask, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to pyjwt 2.10 that leaves json as it is."""

    def nested(token: str) -> None:
        raise RecursionError

    monkeypatch.setattr(jwt, "get_unverified_header", nested)
    assert ask(bearer(token()), **settings(keys(jwk(RSA_KEY))))["txn.status"] == 401


def test_a_key_for_encryption_or_another_algorithm_checks_no_token(ask: Ask, keys: Any) -> None:
    for more in ({"use": "enc"}, {"alg": "RS512"}):
        path = keys(jwk(RSA_KEY, "one", **more), jwk(OTHER_KEY, "other"))
        assert ask(bearer(token()), **settings(path))["txn.status"] == 401


def test_a_private_key_of_the_key_set_checks_no_token(ask: Ask, keys: Any) -> None:
    private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY))
    path = keys({**private, "kid": "one"})
    assert ask(bearer(token()), **settings(path))["txn.status"] == 401


@pytest.mark.parametrize("leeway", [math.nan, math.inf, -1.0])
def test_a_leeway_with_which_no_token_expires_is_refused(leeway: float) -> None:
    with pytest.raises(ValueError, match=f"leeway: {leeway}, seconds from 0 are needed"):
        settings("keys.json", leeway=leeway)


def test_the_only_key_needs_no_id(ask: Ask, keys: Any) -> None:
    options = settings(keys(jwk(RSA_KEY, None)))
    assert ask(bearer(token(kid=None)), **options)["txn.allowed"] is True


def test_a_token_is_the_whole_of_a_header_of_its_own(ask: Ask, keys: Any) -> None:
    of_header = settings(keys(jwk(RSA_KEY)), algorithms=["RS256"], header="x-token")
    assert ask({"x-token": token(RSA_KEY, "RS256")}, **of_header)["txn.allowed"]
    assert not ask(bearer(token(RSA_KEY, "RS256")))["txn.allowed"]


def test_claims_are_headers_of_the_application(ask: Ask, keys: Any) -> None:
    options = settings(keys(jwk(RSA_KEY)))
    options["jwt"].claims |= {"groups": "x-groups", "admin": "x-admin", "mail": "x-mail"}
    answer = ask(bearer(token(groups=["a", "b"], admin=True, mail=None)), **options)
    fields = [("x-user", "ann"), ("x-groups", "a,b"), ("x-admin", "true")]
    assert Headers(answer["txn.application"]).items() == fields


def test_without_a_token_and_a_service_a_request_is_denied(ask: Ask, keys: Any) -> None:
    answer = ask(**settings(keys(jwk(RSA_KEY))))
    assert (answer["txn.status"], answer["txn.client.www_authenticate"]) == (401, "Bearer")


def test_a_token_is_decided_here_and_other_requests_by_the_service(ask: Ask, keys: Any) -> None:
    with Service() as service:
        options = {"url": f"http://{service.address}", **settings(keys(jwk(RSA_KEY)))}
        assert ask(bearer(token()), **options)["txn.reason"] == "token"
        assert ask(bearer("bad"))["txn.status"] == 401
        assert service.seen == []
        for fields in ({}, {"authorization": "Basic YTpi"}):
            assert ask(fields)["txn.reason"] == "service"
    assert len(service.seen) == 2


# --- the issuer's keys ---


def test_an_unknown_key_id_has_the_keys_fetched_again_but_not_more_often_than_pause(
    ask: Ask,
) -> None:
    current = [jwk(RSA_KEY)]

    def reply(_: Seen) -> Reply:
        return Reply(200, [], json.dumps({"keys": current}).encode())

    with Service(reply) as issuer:
        options = settings(f"http://{issuer.address}/keys", pause=0.0)
        assert ask(bearer(token()), **options)["txn.allowed"] is True
        assert len(issuer.seen) == 1
        current[:] = [jwk(OTHER_KEY, "two")]  # The issuer has changed its key.
        assert ask(bearer(token(OTHER_KEY, kid="two")))["txn.allowed"] is True
        assert ask(bearer(token()))["txn.allowed"] is False, "the old key is gone"

    with Service(reply) as issuer:
        options = settings(f"http://{issuer.address}/keys", pause=1000.0)
        for kid in "abcde":
            assert (
                ask(bearer(token(kid=kid)), **(options if kid == "a" else {}))["txn.status"] == 401
            )
        assert len(issuer.seen) == 1


@pytest.mark.parametrize(
    "reply",
    [Reply(500), Reply(200, [], b"garbage"), Reply(200, [], b"[]"), Reply(200, [], b'{"keys": 1}'),
     Reply(200, [], b'{"keys": []}'), Reply(200, [], b"[" * 100_000), Reply(200, [], b"\xff"),
     Reply(200, [], b'{"keys": [' + b" " * 2**20 + b"]}")],
    ids=["500", "garbage", "list", "number", "empty", "deep", "no text", "large"],
)  # fmt: skip
def test_keys_stay_when_a_fetch_fails(ask: Ask, reply: Reply) -> None:
    good = Reply(200, [], json.dumps({"keys": [jwk(RSA_KEY)]}).encode())
    with Service(lambda _: good) as issuer:
        options = settings(f"http://{issuer.address}/keys", pause=0.0)
        assert ask(bearer(token()), **options)["txn.allowed"] is True
        issuer.reply = lambda _: reply
        with pytest.raises(forward_auth.KeysError):
            ask(bearer(token(kid="two")))
        assert len(issuer.seen) == 2
        assert ask(bearer(token()))["txn.allowed"] is True


def test_without_any_keys_a_token_is_a_failure_until_they_are_there(
    ask: Ask, tmp_path: Path, keys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(forward_auth.KeysError):
        ask(bearer(token()), **settings(tmp_path / "keys.json", pause=0.0))
    why = f"{tmp_path / 'keys.json'}: No such file or directory"
    assert f"the issuer's keys could not be fetched: {why}" in caplog.text
    keys(jwk(RSA_KEY))
    assert ask(bearer(token()))["txn.allowed"] is True


# --- settings ---


@pytest.mark.parametrize(
    "table, error",
    [
        ("", ":3: settings.url: is empty, and there is no table [settings.jwt]"),
        ('url = "ftp://x"', ":4: settings.url: 'ftp://x', http://HOST… or https://HOST… is"),
        ('url = "http://x"\ntimeout = 0', ":5: settings.timeout: 0.0, more than 0 is needed"),
        ('url = "http://x"\nsend = ["a b"]', ":5: settings.send: 'a b' is no header's"),
        ('url = "http://x"\nsend = ["X-Forwarded-For"]', ":5: settings.send: 'x-forwarded-for' is set by"),
        ('url = "http://x"\ncache-by = ["cookie"]', ":5: settings.cache-by: 'cookie' is not one of"),
        ('url = "http://x"\nca-file = "/nowhere"', ":5: settings.ca_file: '/nowhere' is no file"),
        ('[settings.jwt]\nkeys = "k"\nissuer = "i"', ":4: settings.jwt.audience is missing"),
        ('[settings.jwt]\nkeys = "k"\nissuer = "i"\naudience = ["a"]\nalgorithms = ["HS256"]',
         ":8: settings.jwt.algorithms: 'HS256' is not one of"),
        ('[settings.jwt]\nkeys = "k"\nissuer = "i"\naudience = ["a"]\nalgorithms = ["none"]',
         ":8: settings.jwt.algorithms: 'none' is not one of"),
        ('[settings.jwt]\nkeys = "k"\nissuer = "i"\naudience = []',
         ":7: settings.jwt.audience: is empty"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_with_its_line(tmp_path: Path, table: str, error: str) -> None:
    assert said_of("forward_auth", tmp_path, table).startswith(error)


@pytest.mark.parametrize("url", ["http://[x", "http://x]y", "http://x:99999", "http://a b/"])
def test_a_url_that_cannot_be_connected_to_is_refused(tmp_path: Path, url: str) -> None:
    needed = f"{url!r}, http://HOST… or https://HOST… is needed"
    assert needed in said_of("forward_auth", tmp_path, f'url = "{url}"')
    keys = f'[settings.jwt]\nkeys = "{url}"\nissuer = "i"\naudience = ["a"]'
    assert needed in said_of("forward_auth", tmp_path, keys)


def test_a_url_with_control_characters_is_refused(tmp_path: Path) -> None:
    said = said_of("forward_auth", tmp_path, 'url = "http://a/\\u0001"')
    assert ":4: settings.url: 'http://a/\\x01': " in said


def test_the_header_of_tokens_has_a_headers_name(tmp_path: Path) -> None:
    table = '[settings.jwt]\nkeys = "k"\nissuer = "i"\naudience = ["a"]\nheader = "x y"'
    assert "'x y' is no header's name" in said_of("forward_auth", tmp_path, table)


# --- with HAProxy ---


def secured(seen: Seen) -> Reply:
    """A service for the page: it knows a user by a cookie."""
    cookie = seen.headers.get("cookie", "")
    if cookie == "user=ann":
        return Reply(200, [("X-User", "ann"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    if cookie == "user=bob":
        return Reply(403)
    if cookie == "user=new":
        return Reply(302, [("Location", "https://login.example/")])
    if cookie == "user=broken":
        return Reply(500, [("X-User", "root")])
    return Reply(401, [("WWW-Authenticate", "Basic realm=x")])


@contextlib.contextmanager
def running(
    haproxy_binary: str, folder: Path, example: str, service: Service, web: Service
) -> Iterator[Process]:
    """The agent, and HAProxy before the application `web`, with the page's files, in which the
    addresses alone are replaced."""
    text = PAGE.texts(example, (3, 4))["spop.toml"]
    for address in ("127.0.0.1:8081", "127.0.0.1:4180"):
        text = text.replace(address, service.address)
    (folder / "spop.toml").write_text(text)
    give_settings(forward_auth.agent, folder / "spop.toml")
    files = "service" if example == "token" else example  # As the page says.
    options = {"web": web.server_port, "replace": {"127.0.0.1:4180": service.address}}
    with (
        forward_auth.agent.serve_in_background() as server,
        PAGE.run(haproxy_binary, folder, files, agent=str(server.address), **options) as proxy,
    ):
        yield proxy


def decided(by: str) -> list[int]:
    """Number of requests that were allowed, and denied, since the server was made."""
    return [forward_auth.decisions[by, result].value for result in ("allowed", "denied")]


def cookie(user: str) -> dict[str, str]:
    return {"Cookie": f"user={user}", "X-User": "root", "X_User": "root"}


def test_the_service_decides_behind_haproxy(haproxy_binary: str, tmp_path: Path) -> None:
    with (
        Service(secured) as service,
        Service() as web,
        running(haproxy_binary, tmp_path, "service", service, web) as proxy,
    ):
        allowed = request(proxy.port, "/a?b=1", "POST", b"x", cookie("ann"))
        assert (allowed.status, allowed.all("set-cookie")) == (200, ["a=1", "b=2"])
        assert web.seen[0].headers["x-user"] == "ann"
        assert "x_user" not in web.seen[0].headers
        assert service.seen[0].headers["x-forwarded-uri"] == "/a?b=1"
        assert request(proxy.port, headers=cookie("bob")).status == 403
        unknown = request(proxy.port, headers={"X-User": "root"})
        assert (unknown.status, unknown.all("www-authenticate")) == (401, ["Basic realm=x"])
        moved = request(proxy.port, headers=cookie("new"))
        assert (moved.status, moved.all("location")) == (302, ["https://login.example/"])
        assert request(proxy.port, headers=cookie("broken")).status == 503
        assert len(web.seen) == 1
        assert decided("service") == [1, 3]


def test_a_token_decides_behind_haproxy(haproxy_binary: str, tmp_path: Path) -> None:
    key_set = json.dumps({"keys": [jwk(RSA_KEY)]}).encode()
    with (
        Service(lambda _: Reply(200, [], key_set)) as issuer,
        Service() as web,
        running(haproxy_binary, tmp_path, "token", issuer, web) as proxy,
    ):
        given = {**bearer(token()), "X-User": "root", "X_User": "root"}
        assert request(proxy.port, headers=given).status == 200
        assert web.seen[0].headers["x-user"] == "ann"
        assert "x_user" not in web.seen[0].headers
        refused = request(proxy.port, headers=bearer(token(aud="bank")))
        assert refused.all("www-authenticate") == ['Bearer error="invalid_token"']
        assert [refused.status, request(proxy.port).status] == [401, 401]
        assert decided("token") == [1, 2]
        assert forward_auth.key_fetches.value == 1


def test_a_session_of_an_openid_proxy_decides_behind_haproxy(
    haproxy_binary: str, tmp_path: Path
) -> None:
    def oauth2_proxy(seen: Seen) -> Reply:
        """What oauth2-proxy answers."""
        if seen.path != "/oauth2/auth":
            return Reply(200, [], b"login")
        if seen.headers.get("cookie") != "_oauth2_proxy=good":
            return Reply(401)
        return Reply(202, [("X-Auth-Request-User", "ann"), ("X-Auth-Request-Email", "a@b.example")])

    with (
        Service(oauth2_proxy) as openid,
        Service() as web,
        running(haproxy_binary, tmp_path, "oidc", openid, web) as proxy,
    ):
        session = {"Cookie": "_oauth2_proxy=good"}
        for path in ("/a", "/b"):
            assert request(proxy.port, path, headers=session).status == 200
        assert web.seen[0].headers["x-auth-request-email"] == "a@b.example"
        assert len(openid.seen) == 1, "the answer is kept for the session"
        moved = request(proxy.port, "/a?b=1")
        assert moved.all("location") == ["/oauth2/start?rd=%2Fa%3Fb%3D1"]
        assert request(proxy.port, "/oauth2/sign_in").body == b"login"


def test_without_the_agent_or_the_service_requests_are_denied(
    haproxy_binary: str, tmp_path: Path
) -> None:
    with Service() as web:
        with PAGE.run(haproxy_binary, tmp_path, "service", web=web.server_port) as proxy:
            assert request(proxy.port, headers=cookie("ann")).status == 503
        gone = Service()
        gone.__exit__()
        with running(haproxy_binary, tmp_path, "service", gone, web) as proxy:
            assert request(proxy.port, headers=cookie("ann")).status == 503
    assert web.seen == []


@pytest.mark.parametrize("example", ["service", "oidc"])
def test_validate_finds_nothing_wrong_with_the_page(
    haproxy_binary: str, example: str, tmp_path: Path
) -> None:
    assert PAGE.objections(tmp_path, example, haproxy.version(haproxy_binary)) == []
