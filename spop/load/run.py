"""Runs generators in processes and adds up their results."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spop.errors import SpopError, reason
from spop.load.generator import Generator, Plan, Result

Progress = Callable[[int, bool], object]
"""Called with the number of answered frames and whether they are measured now."""

_TICK = os.sysconf("SC_CLK_TCK")


class LoadError(SpopError):
    """A generator could not start. The message says why."""


def run(plan: Plan, processes: int, progress: Progress, *, agent_pid: int | None = None) -> Result:
    """Run a plan in several processes, which share its connections, rate and count.

    Args:
        agent_pid: the agent's process. Its processor time is measured, with that of its children.

    Raises:
        LoadError: a generator could not connect.
    """
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for part in _parts(plan, processes):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_generate, args=(part, theirs), daemon=True)
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        return _watch(pipes, progress, agent_pid)
    finally:
        for child in children:
            child.terminate()
            child.join()
        for pipe in pipes:
            pipe.close()


def _parts(plan: Plan, processes: int) -> list[Plan]:
    processes = min(processes, plan.connections)
    return [
        replace(
            plan,
            connections=_share(plan.connections, number, processes),
            rate=None if plan.rate is None else plan.rate / processes,
            count=None if plan.count is None else _share(plan.count, number, processes),
            engine_id=f"{plan.engine_id}-{number}",
        )
        for number in range(processes)
    ]


def _share(whole: int, number: int, parts: int) -> int:
    return whole // parts + (number < whole % parts)


def _generate(plan: Plan, pipe: multiprocessing.connection.Connection) -> None:
    """Run in a child. It sends its progress, and in the end the result or an error."""
    try:
        told = Generator(plan, lambda *progress: pipe.send(progress)).run()
        pipe.send(told)
    except (OSError, SpopError) as error:
        pipe.send(LoadError(f"{plan.address}: {reason(error)}"))


def _watch(pipes: list[Any], progress: Progress, agent_pid: int | None) -> Result:
    """Receive from the generators until all have ended."""
    result, running, frames = Result(), list(pipes), dict.fromkeys(pipes, 0)
    measuring = False
    agent_cpu: float | None = None
    while running:
        ready: Any
        for ready in multiprocessing.connection.wait(running):
            told = _receive(ready)
            if isinstance(told, Result):
                running.remove(ready)
                result.merge(told)
                continue
            frames[ready], measured = told
            if measured and not measuring and agent_pid is not None:
                agent_cpu = cpu_seconds(agent_pid)
            measuring = measuring or measured
            progress(sum(frames.values()), measuring)
    if agent_cpu is not None and agent_pid is not None:
        result.agent_cpu_seconds = cpu_seconds(agent_pid) - agent_cpu
    return result


def _receive(pipe: multiprocessing.connection.Connection) -> Any:
    """A generator's result or progress. Raises LoadError if it failed."""
    try:
        told = pipe.recv()
    except EOFError:
        raise LoadError("a generator died") from None
    if isinstance(told, LoadError):
        raise told
    return told


def cpu_seconds(pid: int) -> float:
    """The processor time in seconds of a process and its living descendants."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(stat.parent.name)
        parents[number] = int(fields[1])
        ticks[number] = int(fields[11]) + int(fields[12])
    return sum(used for each, used in ticks.items() if _descends(each, pid, parents)) / _TICK


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid == ancestor:
            return True
        pid = parents[pid]
    return False
