"""Sample expressions and ACLs: the same answers as real HAProxy 2.6, to the value and type.

HAProxy's own SPOE filter evaluates every expression as an argument of a message, and every
condition as that of an event; what the agent receives is what ours has to give.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import Random
from typing import Any

import haproxy
import pytest

from spop import Agent, Message
from spop.engine.acl import AclError, compile_acl, compile_condition
from spop.engine.samples import Place, SampleError, compile_expression, converter, fetch
from spop.engine.samples.registry import CONVERTERS, FETCHES
from spop.engine.stream import Request, Response, Stream, Tls

FILES = Path(__file__).with_name("samples")
"""The expressions and conditions, one a line, and the files that they name."""

REQUESTS = {
    "absolute": (
        b"POST http://ex.com/a/b.html?x=1&y=&z=a%20b&flag&x=2;w=-7&n=99999999999 HTTP/1.1\r\n"
        b"Host: ex.com\r\n"
        b'X-List: a, "b,c" ,,d\r\n'
        b"X-List: One , two\r\n"
        b"X-Empty:\r\n"
        b"X-Number: -12abc\r\n"
        b"X-Many: 1,2,3,4,5,6,7,8,9,10,11,12\r\n"
        b'Cookie: a=1; b="q;r"; c=; a=2\r\n'
        b"Cookie: d = 5 ; bare; e=x=y\r\n"
        b"X-Forwarded-For: unknown, 10.1.2.3, 2001:db8::5\r\n"
        b"X-Ip: 1.2.3.4:80\r\n"
        b"X-Utf: h\xc3\xa9llo \xff\r\n"
        b"Accept: text/html;q=0.5, image/*\r\n"
        b"Content-Length: 14\r\n\r\n"
        b"p=1&q=a+b;r=%4"
    ),
    "origin": (
        b"GET /Static/img//logo.PNG;sid=77?sid=5;q=%e9&empty= HTTP/1.0\r\n"
        b"Host: WWW.Example.org:8080\r\n"
        b"Cookie: sid=ABC\r\n"
        b"X-Number: 42\r\n\r\n"
    ),
    "odd": (
        b"PUT /p//q/?k=1?k=2&&k==3&K=4&k&=5&k=&k=%20+a~frag;k=6;sid=s1/k=7,k=8 HTTP/1.1\r\n"
        b"Host:  a.b.c:81 \r\n"
        b"Host-Extra: x\r\n"
        b"X-List:\r\n"
        b"x-list: ,\r\n"
        b'X-LIST: "unclosed, a\r\n'
        b'X-List: b\\", c, "d\\"e, f", g\r\n'
        b"X-Empty: ,\r\n"
        b"X-Empty:\r\n"
        b"X-Number: +5\r\n"
        b"X-Number: 99999999999, , 0x10, 7 8\r\n"
        b"X-Many: 0\r\n"
        b"Cookie: =v; ; a; b=; a = 1 ; a=2,c=3; A=4;a=5\r\n"
        b'Cookie: d="x; y=1"; e=f=g; h i=j; k="q"r; l=m n ; m="open; a=9\r\n'
        b"Cookie: a==;;sid=\r\n"
        b"X-Forwarded-For: 10.1.1.1:99999, [2001:db8::1], 1.2.3.4:80x, 010.001.1.1\r\n"
        b"X-Forwarded-For: [::1]:80, ::ffff:1.2.3.4, 1.2.3\r\n"
        b"X-Ip: 300.1.1.1, 9.9.9.9:0, 8.8.8.8:\r\n"
        b"X-Utf: \xf0\x9f\x98\x80 \xc3\r\n"
        b"Accept: */*\r\n"
        b"Content-Length: 0\r\n\r\n"
    ),
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: h, i\r\nX-List: ,\r\n\r\n",
}

RESPONSES = {
    "plain": (
        b"HTTP/1.1 404 Not Found\r\n"
        b"Content-Length: 4\r\n"
        b"Set-Cookie: sid=abc; Path=/; HttpOnly\r\n"
        b'Set-Cookie: n=5; expires="a, b"\r\n'
        b"X-List: a, b\r\n"
        b"X-Number: 8\r\n\r\nbody"
    ),
    "odd": (
        b"HTTP/1.0 200 OK\r\n"
        b"Content-Length: 4\r\n"
        b"Set-Cookie: sid=abc; Path=/; HttpOnly\r\n"
        b"Set-Cookie: sid=def; Path=/x, n=9\r\n"
        b'Set-Cookie: n = 5 ; expires="a, b"\r\n'
        b"set-cookie: empty=; Secure\r\n"
        b"SET-COOKIE: sid=\r\n"
        b"Set-Cookie: bare\r\n"
        b"Set-Cookie: =v\r\n"
        b"Set-Cookie: h i=j; k=l\r\n"
        b'X-List: a, "b,c" ,,d\r\n'
        b"x-list: e\r\n"
        b"X-Number: 8, 9x\r\n"
        b"X-Ip: 1.2.3.4:80, ::1\r\n"
        b"Host: resp\r\n\r\nbody"
    ),
    "without its body": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
}
"""An event sees as much of the body as arrived with the headers."""

RESPONSE_EXPRESSIONS = [
    "status",
    "res.ver",
    "res.hdr(x-list)",
    "res.hdr(x-list,1)",
    "res.hdr(none)",
    "res.fhdr(x-list)",
    "hdr(x-list,1)",
    "res.hdr_cnt(x-list)",
    "res.fhdr_cnt",
    "res.hdr_val(x-number)",
    "res.hdrs_bin",
    "res.hdr_names",
    "res.cook(sid)",
    "res.cook(n)",
    "res.cook(Path)",
    "res.cook",
    "res.cook_cnt",
    "res.cook_val(n)",
    "scook(sid)",
    "shdr(x-list)",
    "status,div(100)",
    "res.hdrs",
    "resp_ver",
    "shdr_cnt(x-list)",
    "shdr_val(x-number)",
    "res.hdr_names(:)",
    "res.cook(empty)",
    "res.cook_cnt(sid)",
    "res.cook_cnt(n)",
    "res.cook_cnt(empty)",
    "scook_val(sid)",
    "scook_cnt",
    "res.cook(Secure)",
    "res.cook(expires)",
    "res.cook(h i)",
    "res.hdr()",
    "hdr(host)",
    "hdr(x-list)",
    "hdr(x-list,2)",
    "hdr(x-list,-1)",
    "hdr(x-none)",
    "hdr()",
    "hdr(content-length)",
    "res.hdr_ip(x-ip)",
    "res.hdr_ip(x-ip,1)",
    "shdr_ip(x-ip,1)",
    "res.hdr_cnt(set-cookie)",
    "res.fhdr_cnt(set-cookie)",
    "res.fhdr(set-cookie,2)",
    "res.hdr(set-cookie,2)",
    "res.body",
    "res.body_len",
    "res.body,length",
    "method",
    "method,lower",
    "req.proto_http",
    "src",
    "fe_name",
    "be_name",
]


def corpus(name: str) -> list[str]:
    lines = (FILES / f"{name}.txt").read_text().splitlines()
    return [line.replace("$FILES", str(FILES)) for line in lines if line and line[0] != "#"]


EXPRESSIONS = corpus("expressions")
CONDITIONS = corpus("conditions")


ALL_COMPILED = [compile_expression(text) for text in EXPRESSIONS + RESPONSE_EXPRESSIONS]
CONVERTERS_OF_HEADERS = [
    compile_expression(f"{source},{converters}")
    for source in ("req.hdr(x-list)", "req.hdr(x-ip)")
    for converters in sorted({e.partition("),")[2] for e in EXPRESSIONS if e.startswith("str(")})
    if re.split("[,(]", converters)[0] in CONVERTERS
]


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def parse(data: bytes) -> tuple[list[str], list[tuple[str, str]], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = text(head).split("\r\n")
    pairs = [field.split(":", 1) for field in fields]
    return first.split(" ", 2), [(name, value.strip(" ")) for name, value in pairs], body


def stream_of(request: bytes, response: bytes | None = None) -> Stream:
    (method, uri, version), headers, body = parse(request)
    stream = Stream(
        source=IPv4Address("127.0.0.1"),
        source_port=40000,
        destination=IPv4Address("127.0.0.1"),
        destination_port=80,
        frontend="www",
        request=Request(method, uri, version[5:], headers, body),
    )
    if response is not None:
        (version, status, _), headers, body = parse(response)
        stream.response = Response(int(status), version[5:], headers, body)
        stream.backend = "origin"
    return stream


def quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def messages_of(expressions: list[str], event: str) -> str:
    """Messages e0, e20, ... of 20 expressions each."""
    parts = []
    for start in range(0, len(expressions), 20):
        names = (
            quoted(f"a{number}={expression}")
            for number, expression in enumerate(expressions[start : start + 20])
        )
        parts.append(f"spoe-message e{start}\n    args {' '.join(names)}\n    event {event}")
    return "\n".join(parts)


@contextmanager
def origin(response: bytes) -> Iterator[int]:
    """A server that gives one answer to one request; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def answer() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(response)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def ask(
    binary: str, folder: Path, spoe: str, request: bytes, rules: str
) -> dict[str, tuple[Any, ...]]:
    """What HAProxy tells an agent about one request: arguments by message."""
    agent = Agent()
    told: dict[str, tuple[Any, ...]] = {}
    names = [line.split()[1] for line in spoe.splitlines() if line.startswith("spoe-message")]

    def remember(message: Message) -> None:
        told[message.name] = tuple(message.values)

    for name in names:
        agent.message(name)(remember)
    lists = "".join(
        f"\n    messages {' '.join(names[n : n + 40])}" for n in range(0, len(names), 40)
    )
    head = f"spoe-agent test{lists}\n    timeout hello 5s\n    timeout idle 1m"
    with (
        agent.serve_in_background() as server,
        haproxy.HAProxy(
            binary,
            folder,
            agent=str(server.address),
            spoe=f"{head}\n    timeout processing 15s\n{spoe}\n",
            rules=rules,
            frontend_options="option http-buffer-request",
        ) as proxy,
    ):
        proxy.wait_until_up()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
            client.sendall(request)
            client.recv(65536)
    assert not agent.errors
    return told


def differences(
    expressions: list[str], told: dict[str, tuple[Any, ...]], stream: Stream
) -> list[str]:
    wrong = []
    for number, expression in enumerate(expressions):
        theirs = told[f"e{number - number % 20}"][number % 20]
        ours = compile_expression(expression).evaluate(stream)
        if (type(ours), ours) != (type(theirs), theirs):
            wrong.append(f"{expression}: HAProxy {theirs!r}, we {ours!r}")
    return wrong


@pytest.mark.parametrize("name", REQUESTS)
def test_expressions_of_requests_are_haproxys(haproxy_2_6: str, name: str, tmp_path: Path) -> None:
    assert len(EXPRESSIONS) >= 1000
    request = REQUESTS[name]
    spoe = messages_of(EXPRESSIONS, "on-frontend-http-request")
    told = ask(haproxy_2_6, tmp_path, spoe, request, "http-request return status 200")
    assert not differences(EXPRESSIONS, told, stream_of(request))


@pytest.mark.parametrize("name", RESPONSES)
def test_expressions_of_responses_are_haproxys(haproxy_2_6: str, name: str, tmp_path: Path) -> None:
    spoe = messages_of(RESPONSE_EXPRESSIONS, "on-http-response")
    request = REQUESTS["origin"]
    with origin(RESPONSES[name]) as port:
        rules = f"default_backend origin\nbackend origin\n    server o 127.0.0.1:{port}"
        told = ask(haproxy_2_6, tmp_path, spoe, request, rules)
    assert not differences(RESPONSE_EXPRESSIONS, told, stream_of(request, RESPONSES[name]))


@pytest.mark.parametrize("name", REQUESTS)
def test_conditions_are_haproxys(haproxy_2_6: str, name: str, tmp_path: Path) -> None:
    assert len(CONDITIONS) >= 450
    request = REQUESTS[name]
    spoe = "\n".join(
        f"spoe-message c{number}\n    event on-frontend-http-request if {condition}"
        for number, condition in enumerate(CONDITIONS)
    )
    told = ask(haproxy_2_6, tmp_path, spoe, request, "http-request return status 200")
    stream = stream_of(request)
    wrong = []
    for number, condition in enumerate(CONDITIONS):
        ours = compile_condition(shlex.split(condition)).holds(stream)
        if ours != (f"c{number}" in told):
            wrong.append(f"{condition}: we say {ours}")
    assert not wrong


def odd_text(random: Random) -> str:
    if random.random() < 0.2:
        return random.choice(["9" * 5000, "-" + "0" * 4500 + "7", "1.2.3.4" + "5" * 6000, '"\\'])
    alphabet = 'a=;,"\\ \t:.[]0123456789-+%/?&é\udcff'
    return "".join(random.choices(alphabet, k=random.randrange(30)))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_is_sent_makes_an_expression_raise(seed: int) -> None:
    random = Random(seed)
    names = ["X-List", "X-Number", "Cookie", "Set-Cookie", "X-Forwarded-For", "X-Ip", "Host"]
    headers = [(name, odd_text(random)) for name in names * 2]
    body = odd_text(random).encode("utf-8", "surrogateescape")
    request = Request(random.choice(["GET", "-"]), odd_text(random), "1.1", headers, body)
    response = random.choice([None, Response(200, "1.1", headers, body)])
    variables = {"txn.none": random.choice([None, 5, True, odd_text(random), body])}
    stream = Stream(request=request, response=response, variables=variables)
    for expression in (*ALL_COMPILED, *CONVERTERS_OF_HEADERS):
        value = expression.evaluate(stream)
        assert value is None or type(value) in (bool, int, str, bytes, IPv4Address, IPv6Address)
        if expression.candidates:
            assert None not in expression.candidates(stream)


def refused_by_haproxy(binary: str, folder: Path, lines: list[str]) -> list[str]:
    """Which lines of messages it refuses; it goes on after an error, but not after 50."""
    if len(lines) > 40:
        head, rest = lines[:40], lines[40:]
        return [
            *refused_by_haproxy(binary, folder, head),
            *refused_by_haproxy(binary, folder, rest),
        ]
    head = "[t]\nspoe-agent a\n    use-backend b\n    timeout processing 1s\n    messages"
    parts = [f"{head} m0"]
    parts += [f"spoe-message m{number}\n    {line}" for number, line in enumerate(lines)]
    (folder / "spoe.cfg").write_text("\n".join(parts) + "\n")
    (folder / "haproxy.cfg").write_text(
        "defaults\n    mode http\nfrontend f\n"
        f"    filter spoe engine t config {folder}/spoe.cfg\nbackend b\n    mode tcp\n"
    )
    checked = subprocess.run(
        [binary, "-c", "-f", str(folder / "haproxy.cfg")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    refused = {int(number) for number in re.findall(r"spoe\.cfg:(\d+)\]", checked.stderr)}
    return [line for number, line in enumerate(lines) if 2 * number + 7 in refused]


def refused_by_us(lines: list[str], compile_line: Callable[[str], object]) -> list[str]:
    refused = []
    for line in lines:
        try:
            compile_line(line)
        except (SampleError, AclError):
            refused.append(line)
    return refused


FETCH_NAMES = list(FETCHES)
"""HAProxy's own, before tests add theirs."""

FETCH_ARGUMENTS = {
    "bin": "(00)",
    "bool": "(1)",
    "env": "(HOME)",
    "int": "(1)",
    "ipv4": "(1.2.3.4)",
    "ipv6": "(::1)",
    "meth": "(GET)",
    "str": "(x)",
    "var": "(txn.x)",
}

EVENTS = {
    "on-client-session": Place.FE_CON_ACC,
    "on-frontend-tcp-request": Place.FE_REQ_CNT,
    "on-frontend-http-request": Place.FE_HRQ_HDR,
    "on-backend-tcp-request": Place.BE_REQ_CNT,
    "on-backend-http-request": Place.BE_HRQ_HDR,
    "on-server-session": Place.BE_SRV_CON,
    "on-tcp-response": Place.BE_RES_CNT,
    "on-http-response": Place.BE_HRS_HDR,
}
"""The places of events in backends; in frontends, `FRONTEND_EVENTS` differ."""

FRONTEND_EVENTS = EVENTS | {
    "on-backend-tcp-request": Place.FE_REQ_CNT,
    "on-backend-http-request": Place.FE_HRQ_HDR,
    "on-tcp-response": Place.FE_RES_CNT,
    "on-http-response": Place.FE_HRS_HDR,
}

LISTEN_EVENTS = EVENTS | {
    "on-backend-tcp-request": Place.FE_REQ_CNT,
    "on-backend-http-request": Place.FE_HRQ_HDR,
    "on-tcp-response": Place.FE_RES_CNT | Place.BE_RES_CNT,
    "on-http-response": Place.FE_HRS_HDR | Place.BE_HRS_HDR,
}

BACKEND_EVENTS = {name: place for name, place in EVENTS.items() if place > Place.FE_SET_BCK}

GROUP_RULES = {
    "tcp-request content": Place.FE_REQ_CNT,
    "http-request": Place.FE_HRQ_HDR,
    "tcp-response content": Place.BE_RES_CNT,
    "http-response": Place.BE_HRS_HDR,
}


def expression_of(name: str) -> str:
    return name + FETCH_ARGUMENTS.get(name, "")


def check_configuration(binary: str, folder: Path, spoe: str, proxies: str) -> str:
    """What ``haproxy -c`` says of it."""
    folder.mkdir()
    (folder / "spoe.cfg").write_text(spoe)
    (folder / "haproxy.cfg").write_text(
        "defaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n"
        f"    timeout server 1s\nbackend agents\n    mode tcp\n{proxies}"
    )
    checked = subprocess.run(
        [binary, "-c", "-f", "haproxy.cfg"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return checked.stderr


def engine_of(number: int, lines: str) -> str:
    """A scope ``e<number>`` with one agent."""
    return (
        f"[e{number}]\nspoe-agent a\n    use-backend agents\n    timeout hello 1s\n"
        f"    timeout idle 1s\n    timeout processing 1s\n{lines}"
    )


def refused_events(
    binary: str, folder: Path, cases: list[tuple[str, str, str]]
) -> list[tuple[str, str, str]]:
    """Those of the fetches with kinds of proxies and events that HAProxy refuses."""
    spoe = "".join(
        engine_of(
            number,
            f"    messages m\nspoe-message m\n    args {expression_of(name)}\n    event {event}\n",
        )
        for number, (name, _, event) in enumerate(cases)
    )
    proxies = "".join(
        f"{kind} p{number}\n    filter spoe engine e{number} config spoe.cfg\n"
        for number, (_, kind, _) in enumerate(cases)
    )
    said = check_configuration(binary, folder, spoe, proxies)
    lines = map(int, re.findall(r"haproxy\.cfg:(\d+)\] : 'filter' .* some args extract", said))
    assert said.count("[ALERT]") == said.count("some args extract") + 2 * ("[ALERT]" in said)
    return [cases[(line - 9) // 2] for line in lines]


def test_fetches_may_stand_at_the_events_where_haproxys_may(
    haproxy_2_6: str, tmp_path: Path
) -> None:
    kinds = {"frontend": FRONTEND_EVENTS, "backend": BACKEND_EVENTS, "listen": LISTEN_EVENTS}
    cases = [
        (name, kind, event)
        for name in FETCH_NAMES
        for kind, events in kinds.items()
        for event in events
    ]
    ours = [
        case
        for case in cases
        if not compile_expression(expression_of(case[0])).places & kinds[case[1]][case[2]]
    ]
    # HAProxy gives up after 50 errors.
    chunks = [cases[start : start + 40] for start in range(0, len(cases), 40)]
    folders = [tmp_path / str(number) for number in range(len(chunks))]
    with ThreadPoolExecutor(4) as pool:
        refused = list(pool.map(partial(refused_events, haproxy_2_6), folders, chunks))
    assert [case for chunk in refused for case in chunk] == ours


def test_fetches_may_stand_in_the_rules_where_haproxys_may(
    haproxy_2_6: str, tmp_path: Path
) -> None:
    cases = [(name, rule) for name in FETCH_NAMES for rule in GROUP_RULES]
    spoe = "".join(
        engine_of(
            number,
            f"    groups g\nspoe-message m\n    args {expression_of(name)}\n"
            "spoe-group g\n    messages m\n",
        )
        for number, name in enumerate(FETCH_NAMES)
    )
    proxies = "".join(
        f"listen p{number}\n    filter spoe engine e{number // 4} config spoe.cfg\n"
        f"    {rule} send-spoe-group e{number // 4} g\n"
        for number, (_, rule) in enumerate(cases)
    )
    said = check_configuration(haproxy_2_6, tmp_path / "c", spoe, proxies)
    refused = {int(number) for number in re.findall(r"Proxy 'p(\d+)': Invalid SPOE", said)}
    ours = {
        number
        for number, (name, rule) in enumerate(cases)
        if not compile_expression(expression_of(name)).places & GROUP_RULES[rule]
    }
    assert refused == ours


def test_places_are_those_of_haproxys_own_table(haproxy_2_6: str) -> None:
    listed = subprocess.run(
        [haproxy_2_6, "-dKsmp", "-c", "-f", "/dev/null"], capture_output=True, text=True
    )
    rows = re.findall(r"^\[ ([Y. ]+) \] ([^:(]+)", listed.stdout, re.MULTILINE)
    theirs = {
        name: {n for n, mark in enumerate(marks.split()) if mark == "Y" and n < len(Place)}
        for marks, name in rows
    }
    for name in FETCH_NAMES:
        places = compile_expression(expression_of(name)).places
        assert {n for n, place in enumerate(Place) if place & places} == theirs[name], name


@pytest.mark.parametrize(
    "expression, variables",
    [
        ("path,lower", set()),
        ("var(txn.a.b),add(sess.x),concat(<,req.c,>)", {"txn.a.b", "sess.x", "req.c"}),
        ("int(1),sub(2),mul(proc.n)", {"proc.n"}),
        ("path,strcmp(res.path),iif(txn.a,txn.b)", {"res.path"}),
        ("str(a),add_item(:,txn.i),secure_memcmp(txn.key)", {"txn.i", "txn.key"}),
    ],
)
def test_an_expression_knows_its_variables(expression: str, variables: set[str]) -> None:
    assert compile_expression(expression).variables == variables
    assert compile_acl(["a", expression, "-m", "found"]).variables == variables


def test_a_condition_knows_its_acls_variables() -> None:
    acls = [
        compile_acl(["known", "var(txn.user)", "-m", "found"]),
        compile_acl(["known", "var(sess.user)", "-m", "found"]),
        compile_acl(["unused", "var(txn.unused)", "-m", "found"]),
    ]
    words = ["!known", "TRUE", "or", "{", "path,concat(,req.x)", "/a", "}"]
    assert compile_condition(words, acls).variables == {"txn.user", "sess.user", "req.x"}


def test_bad_expressions_are_refused_as_by_haproxy(haproxy_2_6: str, tmp_path: Path) -> None:
    bad = corpus("bad_expressions")
    lines = [f"args {quoted(f'x={expression}')}" for expression in bad]
    assert refused_by_haproxy(haproxy_2_6, tmp_path, lines) == lines
    assert refused_by_us(bad, compile_expression) == bad


def test_bad_conditions_are_refused_as_by_haproxy(haproxy_2_6: str, tmp_path: Path) -> None:
    bad = corpus("bad_conditions")
    lines = [f"event on-frontend-http-request if {condition}" for condition in bad]
    assert refused_by_haproxy(haproxy_2_6, tmp_path, lines) == lines
    assert refused_by_us(bad, lambda line: compile_condition(shlex.split(line))) == bad


@pytest.mark.parametrize(
    "expression, offset, message",
    [
        ("pth", 0, "unknown fetch 'pth', did you mean 'path'?"),
        ("path,lowr", 5, "unknown converter 'lowr', did you mean 'lower'?"),
        ("req.hdr(host)lower", 13, "missing comma after 'req.hdr'"),
        ("int(x)", 4, "'x' is not an integer"),
        ("path,ipmask", 11, "'ipmask' needs the argument 'mask4'"),
        ("method,add(1)", 7, "converter 'add' takes integer, which can't be made of method"),
        (
            "src,table_conn_cnt(t)",
            4,
            "HAProxy has 'table_conn_cnt'; this engine can't evaluate it",
        ),
        ("path,map(/none/such)", 9, "'map': can't read '/none/such': No such file or directory"),
    ],
)
def test_an_error_says_what_and_where(expression: str, offset: int, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        compile_expression(expression)
    assert (caught.value.message, caught.value.offset) == (message, offset)


@pytest.mark.parametrize("compiled", [compile_expression, lambda name: compile_acl(["a", name])])
def test_an_error_carries_its_hint_as_data(compiled: Callable[[str], object]) -> None:
    with pytest.raises(SampleError) as caught:
        compiled("pth")
    assert (caught.value.problem, caught.value.hint) == (
        "unknown fetch 'pth'",
        "did you mean 'path'?",
    )
    assert str(caught.value) == "unknown fetch 'pth', did you mean 'path'?"


@pytest.mark.parametrize(
    "regex", [r"a\Kb", r"(?R)", r"\p{L}", "(?|a|b)", "a(?i)b", "(?<=a|bc)d", r"\Gb", "(*UTF)a"]
)
def test_what_python_has_no_regular_expression_for_is_an_error(regex: str) -> None:
    with pytest.raises(AclError, match=r"is no regular expression of Python's"):
        compile_acl(["a", "path_reg", regex])


@pytest.mark.parametrize("regex", ["", "[", "*", "(", "a)", "(z"])
def test_a_bad_regular_expression_of_regsub_is_refused(
    haproxy_2_6: str, regex: str, tmp_path: Path
) -> None:
    """HAProxy does so at the end, once it resolves arguments."""
    expression = f'path,regsub("{regex}",x)'
    args = f"spoe-message m\n    args {quoted(f'x={expression}')}\n"
    spoe = engine_of(0, f"    messages m\n{args}    event on-frontend-http-request\n")
    proxy = "frontend f\n    filter spoe engine e0 config spoe.cfg\n"
    assert "regex" in check_configuration(haproxy_2_6, tmp_path / "c", spoe, proxy)
    with pytest.raises(SampleError, match="regular expression"):
        compile_expression(expression)


@pytest.mark.parametrize(
    "words, index, message",
    [
        ("a pth x", 1, "unknown fetch 'pth', did you mean 'path'?"),
        ("a path -m stt x", 3, "unknown match method 'stt', did you mean 'str'?"),
        ("a path -x", 2, "'-x' is no flag of ACLs; '--' goes before patterns that begin with '-'"),
        ("or path /", 0, "'or' can't name an ACL: conditions read it as an operator"),
        ("a src 10.0.0.0/33", 2, "'33' is not an IPv4 mask"),
        ("a", 0, "an ACL needs a name and a criterion"),
    ],
)
def test_an_acls_error_names_the_word(words: str, index: int, message: str) -> None:
    with pytest.raises(AclError) as caught:
        compile_acl(words.split())
    assert (caught.value.message, caught.value.word_index) == (message, index)


def test_acls_of_one_name_are_alternatives() -> None:
    acls = [
        compile_acl(["static", "path_beg", "/img"]),
        compile_acl(["static", "path_end", ".css"]),
    ]
    condition = compile_condition(["static", "!METH_POST"], acls)
    verdicts = [
        condition.holds(Stream(request=Request(method, uri)))
        for method, uri in [("GET", "/img/x"), ("GET", "/a.css"), ("GET", "/"), ("POST", "/a.css")]
    ]
    assert verdicts == [True, True, False, False]


def test_what_the_stream_does_not_know_is_none() -> None:
    for expression in (
        "src",
        "path",
        "req.hdr(host)",
        "status",
        "res.hdr(x)",
        "ssl_fc_sni",
        "var(txn.a)",
    ):
        assert compile_expression(expression).evaluate(Stream()) is None


def test_tls_variables_and_proxies() -> None:
    stream = Stream(
        backend="app",
        tls=Tls(protocol="TLSv1.3", sni="Ex.com", alpn="h2"),
        variables={"txn.n": 5, "sess.host": "ex.com"},
        unique_id="abc-1",
    )
    expected = {
        "ssl_fc": True,
        "ssl_fc_protocol": "TLSv1.3",
        "ssl_fc_sni,lower,strcmp(sess.host)": 0,
        "ssl_fc_has_crt": False,
        "be_name": "app",
        "unique-id": "abc-1",
        "var(txn.n),mul(txn.n)": 25,
        "str(<),concat(a=,txn.n,>)": "<a=5>",
        "str(a),add_item(:,txn.n)": "a:5",
        "var(txn.none,x)": "x",
    }
    assert {e: compile_expression(e).evaluate(stream) for e in expected} == expected


def test_own_fetches_and_converters_take_their_types_from_annotations() -> None:
    @fetch("test.tenant")
    def tenant(stream: Stream, default: str = "none") -> str | None:
        return stream.frontend or default

    @converter("test.repeat")
    def repeat(value: str, times: int) -> str:
        return value * times

    expression = compile_expression("test.tenant(x),test.repeat(2),upper")
    assert expression.evaluate(Stream(frontend="ab")) == "ABAB"
    assert expression.evaluate(Stream()) == "XX"
    assert compile_expression("int(7),test.repeat(2)").evaluate(Stream()) == "77"
    with pytest.raises(SampleError, match=r"'test\.repeat' needs the argument 'times'"):
        compile_expression("test.tenant,test.repeat")


def test_a_value_error_of_an_own_function_is_an_error_of_the_expression() -> None:
    @converter("test.limit")
    def limit(length: int) -> Callable[[str], str]:
        if length < 1:
            raise ValueError("the length is at least 1")
        return lambda value: value[:length]

    assert compile_expression("str(abc),test.limit(2)").evaluate(Stream()) == "ab"
    with pytest.raises(SampleError) as caught:
        compile_expression("path,test.limit(0)")
    error = caught.value
    assert (str(error), error.offset) == ("'test.limit': the length is at least 1", 16)


def test_a_function_without_a_haproxy_type_can_not_register() -> None:
    with pytest.raises(TypeError, match="has no sample type"):

        @fetch("test.list")
        def listed(stream: Stream) -> list[str]:
            return []
