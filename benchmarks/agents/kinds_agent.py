"""The benchmark's agent with a handler of each kind, and one for any arguments.

KIND in the environment leaves one handler alone, as an agent with ``async def`` handlers has an
event loop for all.
"""

import asyncio
import os
import time
from ipaddress import IPv4Address

from spop import Agent, Cache, Message

agent = Agent(name="kinds")


@agent.message("inline")
def inline(ip: IPv4Address) -> dict[str, int]:
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("cached", cache=Cache(ttl=3600.0, size=100_000))
def cached(ip: IPv4Address) -> dict[str, int]:
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("blocking", blocking=True)
def blocking(ip: IPv4Address) -> dict[str, int]:
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("async-at-once")
async def at_once(ip: IPv4Address) -> dict[str, int]:
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("async")
async def asynchronous(ip: IPv4Address) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("sleeping", blocking=True)
def sleeping(ip: IPv4Address) -> dict[str, int]:
    time.sleep(0.05)
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("sleeping-long", blocking=True)
def sleeping_long(ip: IPv4Address) -> dict[str, int]:
    time.sleep(0.5)
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("async-sleeping")
async def async_sleeping(ip: IPv4Address) -> dict[str, int]:
    await asyncio.sleep(0.05)
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("busy")
def busy(ip: IPv4Address) -> dict[str, int]:
    sum(range(10_000))
    return {"sess.ip_score": ip.packed[-1]}


@agent.message("any")
def anything(message: Message) -> dict[str, int]:
    return {"sess.arguments": len(message.names)}


if "KIND" in os.environ:
    for name in agent.handlers.keys() - {os.environ["KIND"]}:
        del agent.handlers[name]
