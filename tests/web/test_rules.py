"""Rules: what may be written, when they apply, and what they do to requests and responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from servers import Answer, ask, waitress_serving

from spop.engine import Engine, Variables
from spop.web import (
    Condition,
    Rule,
    WSGIMiddleware,
    add_header,
    agent_failed,
    allow,
    del_header,
    deny,
    redirect,
    send_group,
    set_header,
    set_var,
    var,
)

SET = {
    "txn.text": "deny",
    "txn.number": 80,
    "txn.flag": True,
    "txn.raw": b"\xff",
}


@pytest.fixture
def answer(make_engine: Callable[..., Any]) -> Callable[..., Answer]:
    """What is answered where the rules are these: the application shows its headers."""
    engine = make_engine(Engine)

    def ask_with(
        http_request: Iterable[Rule] = (), http_response: Iterable[Rule] = (), **request: Any
    ) -> Answer:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            shown = sorted(f"{k}={v}" for k, v in environ.items() if k.startswith("HTTP_X"))
            start_response("200 OK", [("X-Old", "1"), ("X-Old", "2"), ("X-Other", "3")])
            return ["\n".join(shown).encode("latin-1")]

        middleware = WSGIMiddleware(
            app, engine, http_request=http_request, http_response=http_response
        )
        with waitress_serving(middleware) as port:
            return ask(port, **request)

    return ask_with


def holds(engine: Engine, when: Condition | str) -> bool:
    """Whether a condition is true where `SET` are the variables."""
    rules = [deny(418, when=when)]
    middleware = WSGIMiddleware(lambda environ, start: [], engine, http_request=rules)
    statuses: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a", "wsgi.url_scheme": "http"}

    middleware(
        {**environ, "spop.variables": Variables(SET)}, lambda status, *_: statuses.append(status)
    )
    return statuses == ["418 I'm a Teapot"]


@pytest.mark.parametrize(
    "when, expected",
    [
        (var("txn.text") == "deny", True),
        (var("txn.text") != "deny", False),
        (var("txn.unset") == "deny", False),
        (var("txn.unset") != "deny", True),
        (var("txn.text").is_in({"deny", "drop"}), True),
        (var("txn.text").is_in(["allow"]), False),
        (var("txn.number") > 79, True),
        (var("txn.number") >= 80, True),
        (var("txn.number") < 80, False),
        (var("txn.number") <= 80, True),
        (var("txn.number") < "90", False),
        (var("txn.unset") < 1, False),
        (var("txn.raw").is_in("text"), False),
        (var("txn.flag") == True, True),  # noqa: E712
        (var("txn.text").is_set(), True),
        (var("txn.unset").is_set(), False),
        (~var("txn.unset").is_set(), True),
        ((var("txn.number") > 1) & (var("txn.text") == "deny"), True),
        ((var("txn.number") > 99) & (var("txn.text") == "deny"), False),
        ((var("txn.number") > 99) | (var("txn.text") == "deny"), True),
        (agent_failed, False),
        ("{ var(txn.text) -m str deny }", True),
        ("{ var(txn.number) -m int gt 80 }", False),
        ("METH_GET { path /a } !{ var(txn.unset) -m found }", True),
        ('{ var(txn.text) -m str "a deny" } or { path_beg /a }', True),
    ],
)
def test_conditions(make_engine: Callable[..., Any], when: Any, expected: bool) -> None:
    assert holds(make_engine(Engine, to="127.0.0.1:1", events=False), when) is expected


@pytest.mark.parametrize(
    "wrong, why",
    [
        (lambda: var("waf.action"), "names no variable"),
        (lambda: var("txn.waf action"), "names no variable"),
        (lambda: deny(when="{ path_begg /a }"), "unknown fetch 'path_begg'"),
        (lambda: deny(when="{ path_beg /a"), "missing closing '}'"),
        (lambda: deny(when='{ path "/a }'), "unmatched quote"),
        (lambda: deny(when=""), "at least one ACL"),
        (lambda: deny(99), "200 to 599"),
        (lambda: deny(body="%[nothing]"), "unknown fetch"),
        (lambda: deny(headers={"a b": "c"}), "can't name a header"),
        (lambda: redirect("/", 200), "no redirection"),
        (lambda: redirect("/%[path"), r"no '\]'"),
        (lambda: set_header("x\r\ny", "z"), "can't name a header"),
        (lambda: set_header("x", "%[path,nothing]"), "unknown converter"),
        (lambda: set_var("txn.x", "nothing"), "unknown fetch"),
        (lambda: set_var("x", "path"), "names no variable"),
    ],
)
def test_what_haproxy_would_refuse_is_refused(wrong: Callable[[], Rule], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        wrong()


def test_a_condition_is_no_bool() -> None:
    with pytest.raises(TypeError, match="combine several"):
        bool(var("txn.a") == 1)
    with pytest.raises(TypeError, match="combine several"):
        0 < var("txn.a") < 5  # type: ignore[operator]  # noqa: B015


def test_a_group_that_does_not_exist(make_engine: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="unknown group 'requests': request, response"):
        WSGIMiddleware(
            lambda environ, start: [],
            make_engine(Engine, events=False),
            http_request=[send_group("requests")],
        )


def test_max_body_is_one_byte_at_least(make_engine: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="max_body is 0"):
        WSGIMiddleware(lambda environ, start: [], make_engine(Engine), max_body=0)


def test_deny(answer: Callable[..., Answer]) -> None:
    found = answer(
        [
            deny(
                451,
                "<p>%[path] %[src]</p>",
                content_type="text/html",
                headers={"X-Score": var("txn.waf.score"), "X-Unset": var("txn.waf.unset")},
                when=var("txn.waf.action") == "deny",
            )
        ],
        target="/<attack>",
    )
    assert found.status == 451
    assert found.body == b"<p>/&lt;attack&gt; 127.0.0.1</p>"
    assert found.header("content-type") == "text/html"
    assert found.header("x-score") == "80"
    assert found.header("x-unset") is None
    assert found.header("cache-control") == "no-cache"


def test_what_denies_by_default(answer: Callable[..., Answer]) -> None:
    assert answer([deny()])[0::2] == (403, b"")
    assert answer((), [deny(body=b"no")])[0::2] == (502, b"no")
    head = answer([deny(body="12345")], method="HEAD")
    assert (head.status, head.body, head.header("content-length")) == (403, b"", "5")


def test_redirect_to_what_the_agent_says(answer: Callable[..., Answer]) -> None:
    rules = [redirect(var("txn.waf.to"), 303, when=var("txn.waf.to").is_set())]
    found = answer(rules, target="/moved")
    assert found.status == 303
    assert found.header("location") == "https://example.com/%C3%A9?q=1%20%0D%0Ax:%20y"
    assert answer(rules).status == 200


def test_redirect_to_text_with_samples(answer: Callable[..., Answer]) -> None:
    found = answer(
        [redirect("/in?next=%[path,regsub([b],x),url_enc]", 307)], target="/ab c".replace(" ", "+")
    )
    assert (found.status, found.header("location")) == (307, "/in?next=%2Fax%2Bc")


def test_request_headers(answer: Callable[..., Answer]) -> None:
    rules = [
        set_header("X-User", var("txn.waf.user")),
        set_header("x-mixed", "%[method] %[var(txn.waf.unset)]|100%"),
        add_header("x-list", "b"),
        add_header("x-new", "%[path]"),
        del_header("x-gone"),
    ]
    sent = {"X-User": "admin", "x-list": "a", "x-gone": "1", "x-kept": "k"}
    assert answer(rules, headers=sent).body.decode().split("\n") == [
        "HTTP_X_KEPT=k",
        "HTTP_X_LIST=a,b",
        "HTTP_X_MIXED=GET |100%",
        "HTTP_X_NEW=/",
        "HTTP_X_USER=zoë",
    ]


def test_a_client_cannot_say_what_the_agent_did_not(answer: Callable[..., Answer]) -> None:
    rules = [set_header("x-user", var("txn.waf.user"))]
    assert answer(rules, target="/nobody", headers={"x-user": "admin"}).body == b""


def test_no_line_ends_in_headers(answer: Callable[..., Answer]) -> None:
    rules = [set_header("x-user", var("txn.waf.user"))]
    found = answer(rules, rules, target="/lines")
    assert found.body == b"HTTP_X_USER=a  x-evil: 1"
    assert found.header("x-user") == "a  x-evil: 1"


def test_response_headers(answer: Callable[..., Answer]) -> None:
    found = answer(
        (),
        [
            set_header("X-Old", var("txn.waf.score")),
            add_header("X-Other", "%[var(res.waf.checked)]"),
            del_header("Date"),
            set_header("x-missing", var("req.waf.once")),  # It ended with the request.
        ],
    )
    assert found.header("x-old") == "80"
    assert found.header("x-other") == "3,200"
    assert found.header("x-missing") is None


def test_rules_in_order_until_one_ends_them(answer: Callable[..., Answer]) -> None:
    rules = [
        set_var("txn.host", "req.hdr(host),lower,field(1,:)"),
        set_header("x-host", var("txn.host")),
        allow(when="{ path /free }"),
        set_header("x-after", "1"),
        deny(when=var("txn.host") == "127.0.0.1"),
    ]
    free = answer(rules, target="/free", headers={"host": "A.example"})
    assert (free.status, free.body) == (200, b"HTTP_X_HOST=a.example")
    assert answer(rules).status == 403
