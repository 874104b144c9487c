"""Runs generators in processes and adds up their results."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from spop.errors import SpopError, reason
from spop.load.generator import Generator, Plan, Result

Progress = Callable[[int, bool], object]
"""Called with the number of answered frames and whether they are measured now."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

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
    resource_tracker.ensure_running()  # Its start, which a child needs, unblocks the signals.
    pipes, children = [], []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # Until a child can handle them.
    try:
        for part in _parts(plan, processes):
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=_generate, args=(part, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        watch = _Watch(pipes, progress, agent_pid)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return watch.run()
        except KeyboardInterrupt:
            for child in children:
                child.terminate()  # It sends what it has measured so far.
            result = watch.run()
            result.interrupted = True
            return result
    finally:
        for child in children:
            child.kill()
            child.join()
        for pipe in pipes:
            pipe.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all processes.
    try:
        generator = Generator(plan, lambda *progress: pipe.send(progress))
        signal.signal(signal.SIGTERM, lambda *_: setattr(generator, "stopped", True))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        pipe.send(generator.run())
    except (OSError, SpopError) as error:
        pipe.send(LoadError(f"{plan.address}: {reason(error)}"))


class _Watch:
    """Reads what the generators tell until all are done. After an interruption it goes on."""

    def __init__(self, pipes: list[Any], progress: Progress, agent_pid: int | None) -> None:
        self._running = list(pipes)
        self._progress = progress
        self._agent_pid = agent_pid
        self._agent_cpu: float | None = None
        self._frames = dict.fromkeys(pipes, 0)
        self._measuring = False
        self._result = Result()

    def run(self) -> Result:
        while self._running:
            ready: Any
            for ready in multiprocessing.connection.wait(self._running):
                self._take(ready, _receive(ready))
        if self._agent_cpu is not None and self._agent_pid is not None:
            self._result.agent_cpu_seconds = cpu_seconds(self._agent_pid) - self._agent_cpu
        return self._result

    def _take(self, pipe: Any, told: Any) -> None:
        if isinstance(told, Result):
            self._running.remove(pipe)
            self._result.merge(told)
            return
        self._frames[pipe], measured = told
        if measured and not self._measuring and self._agent_pid is not None:
            self._agent_cpu = cpu_seconds(self._agent_pid)
        self._measuring = self._measuring or measured
        self._progress(sum(self._frames.values()), self._measuring)


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
