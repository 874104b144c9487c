"""500 requests and TCP streams, through HAProxy 2.6 and through the engine, with one SPOE file:
the agent is told the same bytes in the same order, and the variables are the same afterwards.

What the agent answers is made by chance of the bytes that it was told.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

import haproxy
from proxied import Heard, Origin, Proxied, exchange
from scripted_agent import ScriptedAgent, Told, Wire

from spop.engine import AsyncEngine, Engine, Event, Request, Response, Session, Stream
from spop.engine.config import Proxy, load_spoe
from spop.engine.filter import StreamContext
from spop.engine.variables import PROCESS
from spop.values import UNSET, Int32, Int64, UInt32, UInt64

NAMES = ("a", "b", "c", "nobody.knows_it")
SCOPES = ("proc", "sess", "txn", "req", "res")

HTTP_SPOE = """
[first]
spoe-agent first
    messages session-1 session-2 tcp-fe fe-1 fe-2 fe-3
    messages tcp-be be-1 be-2 server tcp-response response-1 response-2 twice
    groups in-request in-response
    use-backend agents
    option var-prefix p
    option set-on-error error
    option set-process-time took
    option set-total-time took_in_all
    timeout hello 5s
    timeout idle 1m
    timeout processing 15s

spoe-message session-1
    args ip=src port=src_port to=dst to-port=dst_port before=var(sess.p.a)
    event on-client-session
spoe-message session-2
    args one=int(1) six=ipv6(2001:db8::1) str(text) yes=bool(true) bin(00ff)
    event on-client-session if { src 127.0.0.0/29 }

spoe-message tcp-fe
    args a=var(txn.p.a) b=var(sess.p.b) c=var(req.p.c) src
    event on-frontend-tcp-request unless { src 127.0.0.3 }

spoe-message fe-1
    args method=method path=path query=query url=url version=req.ver id=unique-id
    args headers=req.hdrs bin=req.hdrs_bin body=req.body size=req.body_size length=req.body_len
    event on-frontend-http-request
spoe-message fe-2
    acl posted method POST PUT
    acl long req.body_len gt 50
    args ssl=ssl_fc host=req.hdr(host) req.hdr(x-list,1) req.hdr(x-list,-1) full=req.fhdr(x-list)
    args count=req.hdr_cnt(x-list) cookie=req.cook(sid) other=req.cook(other) none=req.hdr(nope)
    event on-frontend-http-request if posted long or { path_beg /a }
spoe-message fe-3
    args p=url_param(x) lower=path,lower,crc32 number=req.hdr_val(x-number) body=req.body
    event on-frontend-http-request unless { hdr_cnt(x-list) gt 1 }

spoe-message tcp-be
    args a=var(sess.p.a) b=var(txn.p.b) c=var(txn.p.c)
    event on-backend-tcp-request if { var(txn.p.a) -m found }
spoe-message be-1
    args a=var(txn.p.a) b=var(req.p.b) proc=var(proc.p.a) never=var(proc.p.c) path=path
    event on-backend-http-request
spoe-message be-2
    args x=var(sess.p.a) y=var(txn.q.a) z=var(req.q.b)
    event on-backend-http-request if { var(sess.p.a) -m found } !{ method GET }

spoe-message server
    args a=var(req.p.a) b=var(res.p.b) c=var(txn.p.c) d=var(sess.p.a)
    event on-server-session
spoe-message tcp-response
    args a=var(res.p.a) b=var(req.p.b) c=var(txn.p.c)
    event on-tcp-response
spoe-message response-1
    args status=status version=res.ver headers=res.hdrs type=res.hdr(content-type)
    args cookie=res.cook(sid) list=res.fhdr(x-list) a=var(res.p.a) b=var(req.p.b)
    event on-http-response
spoe-message response-2
    args status,div(100) var(txn.p.a),length
    event on-http-response if { status 400:599 } or { var(res.p.b) -m found }
spoe-message twice
    args src src
    event on-http-response

spoe-message grouped-1
    args a=var(txn.p.a) b=var(sess.p.b) c=var(req.p.c) path=path
spoe-message grouped-2
    args method=method body=req.body
spoe-message grouped-response
    args status=status a=var(res.p.a) b=var(txn.p.b) c=var(sess.p.c)
spoe-group in-request
    messages grouped-1 grouped-2
spoe-group in-response
    messages grouped-response

[second]
spoe-agent second
    messages again response-again
    use-backend agents
    option var-prefix q
    timeout hello 5s
    timeout idle 1m
    timeout processing 15s
    option set-on-error error
spoe-message again
    args path=path of-first=var(txn.p.a) of-its-request=var(req.p.b) own=var(txn.q.b)
    event on-frontend-http-request
spoe-message response-again
    args status=status own=var(txn.q.a) of-first=var(res.p.b)
    event on-http-response if { var(txn.q.a) -m found }
"""

HTTP_CONFIG = """
frontend www
    bind fd@{{fd}}
    option http-buffer-request
    unique-id-format id-%[req.hdr(x-number)]
    filter spoe engine first config {{folder}}/spoe.cfg
    filter spoe engine second config {{folder}}/spoe.cfg
    http-request send-spoe-group first in-request
{set_seen}
    http-response send-spoe-group first in-response
{set_headers}
    default_backend origin

backend origin
    server origin 127.0.0.1:{port}

backend agents
    mode tcp
    server agent {agent}
"""

TCP_SPOE = """
[first]
spoe-agent first
    messages session tcp-fe tcp-be server tcp-response
    groups in-request in-response
    use-backend agents
    option var-prefix p
    timeout hello 5s
    timeout idle 1m
    timeout processing 15s
spoe-message session
    args ip=src port=src_port
    event on-client-session
spoe-message tcp-fe
    args a=var(sess.p.a) b=var(txn.p.b) c=var(req.p.c)
    event on-frontend-tcp-request
spoe-message tcp-be
    args a=var(req.p.a) b=var(sess.p.b) c=var(txn.p.c)
    event on-backend-tcp-request unless { var(txn.p.b) -m found }
spoe-message server
    args a=var(req.p.a) b=var(res.p.b) c=var(txn.p.c)
    event on-server-session
spoe-message tcp-response
    args a=var(res.p.a) b=var(req.p.b) c=var(txn.p.c)
    event on-tcp-response
spoe-message grouped
    args a=var(txn.p.a) b=var(sess.p.b) c=var(req.p.c)
spoe-message grouped-response
    args a=var(txn.p.a) b=var(sess.p.b) c=var(res.p.c)
spoe-group in-request
    messages grouped
spoe-group in-response
    messages grouped-response
"""

TCP_CONFIG = """
# A `listen` section has on-backend-tcp-request happen as on-frontend-tcp-request.
listen tcp
    mode tcp
    bind fd@{{fd}}
    filter spoe engine first config {{folder}}/spoe.cfg
    log stdout format raw daemon
    log-format "{shown}"
    tcp-request inspect-delay 10s
    tcp-request content accept if !{{{{ req.len gt 0 }}}} WAIT_END
    tcp-request content send-spoe-group first in-request
    tcp-response inspect-delay 10s
    tcp-response content send-spoe-group first in-response
    server origin 127.0.0.1:{port}

backend agents
    mode tcp
    server agent {agent}
"""


# --- requests by chance ---


class Case(NamedTuple):
    source: str
    request: bytes
    response: bytes


METHODS = ("GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS")
PATHS = ("/", "/a/b.html", "/a//c;d=1", "/%41/x%20y", "/index.php", "/A", "/b" * 200)
QUERIES = ("", "?", "?x=1&y=2", "?x=&x=3", "?flag", "?x=a+b%20c", "?y=1;x=5")
FIELDS = (
    "X-List: a, b",
    "X-List: c",
    'X-List: "d,e" ,, f',
    "x-list:",
    "Cookie: sid=abc; other=1",
    "Cookie: other=2;sid=;x=y",
    "X-Number: -12abc",
    "X-Empty:   ",
    "Accept: */*;q=0.1",
    "X-Utf: h\u00e9llo",
    "X-Long: " + "y" * 300,
)
ANSWERED_FIELDS = (
    "Content-Type: text/html; charset=utf-8",
    "Set-Cookie: sid=1; Path=/",
    "Set-Cookie: sid=2",
    "X-List: p, q",
    "X-List: r",
    "Server: some",
)
BODIES = (0, 0, 1, 40, 100, 3000, 9000)
"""The largest in several messages of one event fits no frame and comes in fragments."""


def some(chance: random.Random, among: tuple[str, ...], most: int) -> list[str]:
    return [chance.choice(among) for _ in range(chance.randrange(most + 1))]


def case(chance: random.Random, source: str) -> Case:
    method = chance.choice(METHODS)
    body = bytes(chance.randrange(32, 127) for _ in range(chance.choice(BODIES)))
    fields = ["Host: example.com", *some(chance, FIELDS, 6)]
    if method not in ("POST", "PUT", "PATCH"):
        body = b""
    else:
        fields.append(f"Content-Length: {len(body)}")
    chance.shuffle(fields)
    uri = chance.choice(PATHS) + chance.choice(QUERIES)
    request = "\r\n".join([f"{method} {uri} HTTP/1.1", *fields, "", ""]).encode() + body
    status = chance.choice((200, 200, 201, 302, 404, 500))
    answered = [f"Content-Length: {0 if method == 'HEAD' else 5}"]
    answered += some(chance, ANSWERED_FIELDS, 4)
    response = "\r\n".join([f"HTTP/1.1 {status} Whatever", *answered, "", ""]).encode()
    return Case(source, request, response + (b"" if method == "HEAD" else b"body\n"))


def sessions(seed: int, count: int) -> list[list[Case]]:
    """Connections with some requests each, so many requests in all."""
    chance = random.Random(seed)
    made: list[list[Case]] = []
    while count:
        source = f"127.0.0.{chance.randrange(1, 20)}"
        made.append([case(chance, source) for _ in range(min(count, chance.randrange(1, 5)))])
        count -= len(made[-1])
    return made


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def parsed(data: bytes) -> tuple[list[str], list[tuple[str, str]], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = text(head).split("\r\n")
    pairs = (field.split(":", 1) for field in fields)
    return first.split(" ", 2), [(name, value.strip(" ")) for name, value in pairs], body


# --- the agent ---

VALUES: tuple[Any, ...] = (
    None,
    UNSET,
    True,
    False,
    7,
    Int32(-7),
    UInt32(4_000_000_000),
    Int64(-(2**40)),
    UInt64(2**40),
    UInt64(2**63 + 5),
    IPv4Address("10.1.2.3"),
    IPv6Address("2001:db8::7"),
    "text",
    "with spaces, and more",
    "",
    b"binary~",
)


def by_chance(wire: Wire, told: Told) -> None:
    chance = random.Random(zlib.crc32(told.payload))
    wire.answer(
        told.notify,
        {
            f"{chance.choice(SCOPES)}.{chance.choice(NAMES)}": chance.choice(VALUES)
            for _ in range(chance.randrange(6))
        },
    )


VARIABLES = [f"{scope}.p.{name}" for scope in ("proc", "sess", "txn", "res") for name in NAMES]
VARIABLES += [f"txn.q.{name}" for name in NAMES]
VARIABLES += ["txn.p.error", "txn.q.error"]
TIMES = ["txn.p.took", "txn.p.took_in_all"]
SEEN = [f"req.{prefix}.{name}" for prefix in "pq" for name in NAMES]
"""Variables of the request, which its rules see, and put aside."""


def aside(variable: str) -> str:
    return f"txn.seen_{variable.replace('.', '_')}"


def shown(value: Any) -> str:
    """As HAProxy puts a variable in a header."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def header(variable: str) -> str:
    return f"x-v-{variable.replace('.', '-').replace('_', '-')}"


class Outcome(NamedTuple):
    """Of one stream: what the agent was told, and the variables at the end."""

    told: list[tuple[list[str], bytes]]
    variables: dict[str, str]
    times: list[bool]
    """Whether each of `TIMES` is a number."""


def outcome(agent: ScriptedAgent, variables: dict[str, str], times: list[str]) -> Outcome:
    told = [(told.names, told.payload) for told in agent.take()]
    return Outcome(told, variables, [time.isdecimal() for time in times])


# --- through HAProxy ---


def http_config(agent: ScriptedAgent, origin: Origin) -> str:
    set_seen = "".join(f"    http-request set-var({aside(v)}) var({v})\n" for v in SEEN)
    displayed = [*VARIABLES, *TIMES, *map(aside, SEEN)]
    set_headers = "".join(
        f"    http-response set-header {header(v)} %[var({v})]\n" for v in displayed
    )
    return HTTP_CONFIG.format(
        set_seen=set_seen, set_headers=set_headers, port=origin.port, agent=agent.address
    )


def through_haproxy(
    binary: str, folder: Path, cases: list[list[Case]]
) -> tuple[list[Outcome], list[list[tuple[str, int]]]]:
    """Outcomes of all requests, and the client's and HAProxy's address of each connection."""
    outcomes, addresses = [], []
    with (
        ScriptedAgent(by_chance) as agent,
        Origin() as origin,
        Proxied(binary, folder, config=http_config(agent, origin), spoe=HTTP_SPOE) as proxy,
    ):
        for session in cases:
            with proxy.connect(session[0].source) as sock:
                addresses.append([sock.getsockname(), sock.getpeername()])
                for one in session:
                    origin.response = one.response
                    heard = exchange(sock, one.request)
                    outcomes.append(haproxys_outcome(agent, heard))
    return outcomes, addresses


def haproxys_outcome(agent: ScriptedAgent, heard: Heard) -> Outcome:
    variables = {v: heard.headers[header(v)] for v in [*VARIABLES, *map(aside, SEEN)]}
    return outcome(agent, variables, [heard.headers[header(v)] for v in TIMES])


# --- through the engine ---

Step = tuple[StreamContext, str, str]


def stream_of(one: Case, addresses: list[tuple[str, int]], session: Session) -> Stream:
    (method, uri, version), headers, body = parsed(one.request)
    numbers = [value for name, value in headers if name == "X-Number"]
    return Stream(
        source=ip_address(addresses[0][0]),
        source_port=addresses[0][1],
        destination=ip_address(addresses[1][0]),
        destination_port=addresses[1][1],
        frontend="www",
        request=Request(method, uri, version[5:], headers, body),
        unique_id="id-" + (numbers[-1] if numbers else ""),
        session=session,
    )


def response_of(one: Case) -> Response:
    (version, status, _), headers, body = parsed(one.response)
    return Response(int(status), version[5:], headers, body)


def life(first: StreamContext, second: StreamContext, one: Case) -> Iterator[Step]:
    """What happens to a stream, in HAProxy's order."""
    variables = first.vars
    for event in Event:
        if event is Event.ON_HTTP_RESPONSE:
            first.stream.response = response_of(one)
        yield first, "event", event
        yield second, "event", event
        if event is Event.ON_FRONTEND_HTTP_REQUEST:
            yield first, "send_group", "in-request"
            for variable in SEEN:
                if variable in variables:
                    variables[aside(variable)] = variables[variable]
    yield first, "send_group", "in-response"


def our_outcome(agent: ScriptedAgent, context: StreamContext) -> Outcome:
    displayed = {v: shown(context.vars.get(v)) for v in [*VARIABLES, *map(aside, SEEN)]}
    return outcome(agent, displayed, [shown(context.vars.get(v)) for v in TIMES])


def settings(agent: ScriptedAgent) -> dict[str, Any]:
    return {
        "backends": {"agents": agent.address},
        "variables": VARIABLES,
        "haproxy_version": "2.6",
    }


def through_engine(
    file: Path, cases: list[list[Case]], addresses: list[list[tuple[str, int]]]
) -> Iterator[Outcome]:
    with (
        ScriptedAgent(by_chance) as agent,
        Engine.from_file(file, "first", **settings(agent)) as first,
        Engine.from_file(file, "second", **settings(agent)) as second,
    ):
        for session_cases, ends in zip(cases, addresses, strict=True):
            session = Session()
            for one in session_cases:
                stream = stream_of(one, ends, session)
                with first.stream(stream) as mine, second.stream(stream) as other:
                    for context, step, name in life(mine, other, one):
                        getattr(context, step)(name)
                    yield our_outcome(agent, mine)


async def through_async_engine(
    file: Path, cases: list[list[Case]], addresses: list[list[tuple[str, int]]]
) -> list[Outcome]:
    outcomes = []
    with ScriptedAgent(by_chance) as agent:
        async with (
            AsyncEngine.from_file(file, "first", **settings(agent)) as first,
            AsyncEngine.from_file(file, "second", **settings(agent)) as second,
        ):
            for session_cases, ends in zip(cases, addresses, strict=True):
                session = Session()
                for one in session_cases:
                    stream = stream_of(one, ends, session)
                    async with first.stream(stream) as mine, second.stream(stream) as other:
                        for context, step, name in life(mine, other, one):
                            await getattr(context, step)(name)
                        outcomes.append(our_outcome(agent, mine))
    return outcomes


def differences(
    requests: list[bytes], theirs: list[Outcome], ours: list[Outcome]
) -> list[tuple[Any, ...]]:
    """Per request that went otherwise: what HAProxy did, what the engine did."""
    wrong = []
    for number, (request, their, our) in enumerate(zip(requests, theirs, ours, strict=True)):
        if their != our:
            told = [pair for pair in zip(their.told, our.told, strict=False) if pair[0] != pair[1]]
            names = [name for name, _ in their.told], [name for name, _ in our.told]
            variables = {
                name: (value, our.variables[name])
                for name, value in their.variables.items()
                if value != our.variables[name]
            }
            wrong.append((number, request[:200], names, told[:1], variables, their.times))
    return wrong


def test_500_requests_as_haproxy_handles_them(haproxy_2_6: str, tmp_path: Path) -> None:
    cases = sessions(seed=20240229, count=500)
    requests = [one.request for session in cases for one in session]
    theirs, addresses = through_haproxy(haproxy_2_6, tmp_path, cases)
    file = tmp_path / "spoe.cfg"
    PROCESS.clear()
    ours = list(through_engine(file, cases, addresses))
    assert not differences(requests, theirs, ours)[:3]
    PROCESS.clear()
    ours = asyncio.run(through_async_engine(file, cases, addresses))
    assert not differences(requests, theirs, ours)[:3]
    assert sum(len(their.told) for their in theirs) > 4000
    assert all(their.times == [True, True] for their in theirs)


# --- TCP ---

TCP_VARIABLES = [f"{scope}.p.{name}" for scope in ("sess", "txn", "res") for name in NAMES]
TCP_EVENTS = [event for event in Event if "http" not in event]
TCP_SOURCES = [f"127.0.0.{2 + number % 9}" for number in range(100)]


def tcp_config(agent: ScriptedAgent, origin: Origin) -> str:
    displayed = "|".join(f"%[var({v})]" for v in TCP_VARIABLES)
    # With the bytes counted, the line is not written before the end.
    return TCP_CONFIG.format(
        shown=f"|%ci:%cp|{displayed}|%B", port=origin.port, agent=agent.address
    )


def tcp_through_haproxy(binary: str, folder: Path) -> tuple[list[Outcome], list[tuple[str, int]]]:
    """Outcomes of all streams, and their clients' addresses."""
    told, clients = [], []
    with (
        ScriptedAgent(by_chance) as agent,
        Origin(b"answer") as origin,
        Proxied(binary, folder, config=tcp_config(agent, origin), spoe=TCP_SPOE) as proxy,
    ):
        for source in TCP_SOURCES:
            with proxy.connect(source) as sock:
                clients.append(sock.getsockname())
                sock.sendall(b"hello\r\n\r\n")
                assert sock.recv(100) == b"answer"
            told.append([(told.names, told.payload) for told in agent.take()])

        def logged() -> list[str]:
            return [line for line in proxy.log().splitlines() if line.startswith("|")]

        haproxy.wait_until(lambda: len(logged()) == len(TCP_SOURCES), "a line for each stream")
        # HAProxy has threads, and may log one stream before another that ended earlier.
    values = {client: line for _, client, *line, _ in (line.split("|") for line in logged())}
    lines = [values[f"{host}:{port}"] for host, port in clients]
    variables = [dict(zip(TCP_VARIABLES, line, strict=True)) for line in lines]
    return [Outcome(*pair, []) for pair in zip(told, variables, strict=True)], clients


def tcp_life(context: StreamContext) -> Iterator[tuple[str, str]]:
    for event in TCP_EVENTS:
        yield "event", event
        if event is Event.ON_FRONTEND_TCP_REQUEST:
            yield "send_group", "in-request"
    yield "send_group", "in-response"


def tcp_outcome(agent: ScriptedAgent, context: StreamContext) -> Outcome:
    told = [(told.names, told.payload) for told in agent.take()]
    return Outcome(told, {v: in_log(context.vars.get(v)) for v in TCP_VARIABLES}, [])


def in_log(value: Any) -> str:
    """As HAProxy puts a variable in its log."""
    return shown(value) or "-"


def tcp_through_engine(file: Path, clients: list[tuple[str, int]]) -> list[Outcome]:
    outcomes = []
    with (
        ScriptedAgent(by_chance) as agent,
        Engine(load_spoe(file, "first", proxy=Proxy.LISTEN), **settings(agent)) as engine,
    ):
        for host, port in clients:
            with engine.stream(source=ip_address(host), source_port=port) as context:
                for step, name in tcp_life(context):
                    getattr(context, step)(name)
                outcomes.append(tcp_outcome(agent, context))
    return outcomes


async def tcp_through_async_engine(file: Path, clients: list[tuple[str, int]]) -> list[Outcome]:
    outcomes = []
    with ScriptedAgent(by_chance) as agent:
        config = load_spoe(file, "first", proxy=Proxy.LISTEN)
        async with AsyncEngine(config, **settings(agent)) as engine:
            for host, port in clients:
                async with engine.stream(source=ip_address(host), source_port=port) as context:
                    for step, name in tcp_life(context):
                        await getattr(context, step)(name)
                    outcomes.append(tcp_outcome(agent, context))
    return outcomes


def test_tcp_streams_as_haproxy_handles_them(haproxy_2_6: str, tmp_path: Path) -> None:
    theirs, clients = tcp_through_haproxy(haproxy_2_6, tmp_path)
    file = tmp_path / "spoe.cfg"
    requests = [b""] * len(theirs)
    PROCESS.clear()
    assert not differences(requests, theirs, tcp_through_engine(file, clients))[:3]
    PROCESS.clear()
    ours = asyncio.run(tcp_through_async_engine(file, clients))
    assert not differences(requests, theirs, ours)[:3]
    assert sum(len(their.told) for their in theirs) > 500
