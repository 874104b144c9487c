"""Agents of many kinds, for which `spop config` writes files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop import Ack, Agent, Batch, Cache, Headers, Message, StreamState

address = Agent(name="address")


@address.message("check-ip")
def check_ip(ip: IPv4Address | IPv6Address) -> dict[str, Any]:
    return {"sess.ip_score": ip.packed[-1]}


text = Agent(name="text")


@text.message("texts")
def texts(ip: str, method: str, body: str) -> dict[str, Any]:
    return {"txn.seen": f"{method} {ip} {body}"}


in_bytes = Agent(name="in_bytes")


@in_bytes.message("bytes")
def of_bytes(path: bytes, body: bytes, headers: bytes) -> dict[str, Any]:
    return {"txn.sizes": f"{len(path)} {len(body)} {bool(headers)}"}


header_fields = Agent(name="headers")


@header_fields.message("headers")
def fields(headers: Headers) -> dict[str, Any]:
    return {"txn.user": headers.get("x-user")}


header_text = Agent(name="header-text")


@header_text.message("headers")
def field_text(headers: str) -> dict[str, Any]:
    return {"txn.has_user": "x-user: ann" in headers.lower()}


line = Agent(name="line")


@line.message("line")
def request_line(
    method: str, path: str, url: str, version: str, query: str = "none"
) -> dict[str, Any]:
    return {"txn.line": f"{method} {path} {url} {version} {query}"}


browser = Agent(name="browser")


@browser.message("browser")
async def who(host: str, user_agent: str, referer: str | None, x_user: str) -> dict[str, Any]:
    return {"req.browser": f"{bool(host)} {user_agent} {referer} {x_user}"}


stream = Agent(name="stream")


@stream.message("request")
def request(path: str, state: StreamState) -> dict[str, Any]:
    state["path"] = path
    return {}


@stream.message("response")
def response(status: int, state: StreamState) -> dict[str, Any]:
    return {"txn.blocked": status == 200 and state.get("path") == "/p"}


asynchronous = Agent(name="async")


@asynchronous.message("slow", timeout=5.0, on_timeout={"txn.late": True})
async def slow(path: str) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"txn.late": False, "txn.path": path}


blocking = Agent(name="blocking")


@blocking.message("blocking", blocking=True)
def wait(port: int) -> dict[str, Any]:
    return {"txn.has_port": port > 0}


batches = Agent(name="batches")


@batches.message("score", batch=Batch(size=4, wait=0.001))
def score(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"txn.score": len(str(message["path"]))} for message in messages]


whole = Agent(name="whole")


@whole.message("whole")
def take(message: Message, ack: Ack) -> None:
    ack.set("txn", "whole", f"{message['method']} {message['ip']}")


cached = Agent(name="cached")


@cached.message("cached", cache=Cache(ttl=30.0, size=10))
def look_up(host: str) -> dict[str, Any]:
    return {"txn.known": bool(host)}


denies = Agent(name="denies")


@denies.message("deny")
def deny(ip: IPv4Address) -> dict[str, Any]:
    return {"txn.ip_blocked": ip.is_loopback}


allows = Agent(name="allows")


@allows.message("allow")
def allow(method: str) -> dict[str, Any]:
    return {"txn.allowed": method != "POST", "txn.why": "method"}


unknown = Agent(name="unknown")


@unknown.message("unknown")
def guess(
    country: str, asn: int, vip: bool, near: IPv4Address, far: IPv6Address, raw: bytes, thing: Any
) -> dict[str, Any]:
    return {"txn.guessed": f"{country} {asn} {vip} {near} {far} {raw!r} {thing}"}


defaults = Agent(name="defaults")


@defaults.message("defaults")
def optional(path: str, country: str = "??", *, tenant: int = 7) -> dict[str, Any]:
    return {"txn.of": f"{path} {country} {tenant}"}


redirects = Agent(name="redirects")


@redirects.message("redirect")
def redirect(path: str) -> dict[str, Any]:
    return {"txn.location": f"/new{path}"} if not path.startswith("/new") else {}


lists = Agent(name="lists")


@lists.message("lists", sets=["txn.add", "txn.remove"])
def change(headers: Headers) -> dict[str, Any]:
    gone = Headers([("x-user", "")])
    return {"txn.add": Headers([("x-added", "yes")]), "txn.remove": gone.names()}


connection = Agent(name="connection")


@connection.message("connection")
def about(
    src_port: int, dst: IPv4Address | IPv6Address, dst_port: int, ssl: bool, sni: str | None,
    now: int, request_id: str,
) -> dict[str, Any]:  # fmt: skip
    return {"txn.about": f"{dst} {ssl} {sni} {len(request_id)} {now > 0}"}


answers = Agent(name="answers")


@answers.message("check-answer")
def answer(
    status: int, headers: Headers, response_content_type: str | None, ip: IPv4Address
) -> dict[str, Any]:
    return {"txn.denied": status == 200 and headers.get("content-type") == response_content_type}


@dataclass(frozen=True)
class Settings:
    greeting: str = "hello"


settings = Agent(name="My App/1", config=Settings, on_error={"txn.failed": True})


@settings.lifespan
async def resources() -> AsyncIterator[dict[str, Any]]:
    yield {"name": "world"}


@settings.message("greet")
async def greet(method: str) -> dict[str, Any]:
    return {"txn.greeting": f"{settings.config.greeting} {settings.state['name']}"}


included = Agent(name="included")
included.include(address, prefix="a.")
included.include(allows, prefix="b.")

mirror = Agent(name="mirror")
SEEN: list[str] = []


@mirror.message("mirror", blocking=True, ack_first=True)
def keep(method: str, path: str, body: bytes) -> None:
    SEEN.append(f"{method} {path} {body!r}")


process = Agent(name="process")


@process.message("count")
def count() -> dict[str, Any]:
    return {"proc.count": 1, "sess.count_seen": True}


replaces = Agent(name="replaces")


@replaces.message("replace")
def replace(method: str) -> dict[str, Any]:
    user = Headers([("x-user", "bob")])
    return {"txn.add": user, "txn.remove": user.names()}


odd_names = Agent(name="é odd name!")


@odd_names.message("names")
def names(message: Message) -> dict[str, Any]:
    return {"txn.seen": f"{message['a b']} {message['#c$d']} {message['é']}"}
