"""An agent for ``haproxyspoa``, as agents in use are written: run it with HOST and PORT."""

import asyncio
import logging
import sys
from ipaddress import IPv4Address

from haproxyspoa.payloads.ack import AckPayload
from haproxyspoa.spoa_server import SpoaServer

logging.basicConfig(level=logging.WARNING)
agent = SpoaServer()
lookups: dict[str, asyncio.Future[str]] = {}
lock = asyncio.Lock()


async def look_up(path: str) -> str:
    """Requests for one path share a lookup."""
    async with lock:
        future = lookups.get(path)
        if future is None:
            future = lookups[path] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.01, future.set_result, path.upper())
    return await future


@agent.handler("request")
async def request(path: str, headers: str, client_ip: str | IPv4Address, pass_cookie: bytes):
    reply = AckPayload()
    reply.set_txn_var("target", await look_up(path))
    reply = reply.set_txn_var("size", len(headers)).set_txn_var("ip", str(client_ip))
    return reply.set_txn_var("cookie", pass_cookie) if pass_cookie else reply


@agent.handler("response")
async def response(status: int, **others):
    if status == 500:
        raise RuntimeError("no answer for this one")
    return AckPayload().set_txn_var("passed", status < 400).set_txn_var("others", len(others))


async def main(host: str, port: str) -> None:
    # As a program with other servers beside the agent.
    await asyncio.gather(agent._run(host=host, port=int(port)), asyncio.sleep(0))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
