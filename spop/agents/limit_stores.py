"""The stores of the agent `ratelimit`: memory that the processes of a machine share, and Redis or
Valkey, which many machines share. They keep how much of each limit is used.

A store is asked for tokens of several limits at once. It grants some of each, or none of all. Both
stores follow the same two rules:

- GCRA: a limit of `amount` in `period` seconds with a `burst`. A token takes period / amount seconds to
  come back. The kept value is the time at which all tokens will be back.
- Fixed windows, which begin at multiples of `period`. The kept value is the number of used tokens.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import math
import mmap
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from spop.errors import reason

ROUNDING = 1e-6
"""Part of a token that a sum of fractions may lack."""


class Rule(NamedTuple):
    """A limit.

    Attributes:
        amount: tokens in a period. It may be a fraction where it is a share of a limit.
        period: seconds.
        burst: with GCRA, the most tokens at once.
        fixed: fixed windows, not GCRA.
    """

    amount: float
    period: float
    burst: float
    fixed: bool

    def share(self, parts: int) -> Rule:
        """This limit for one of so many; a token at least."""
        amount = self.amount / parts
        if self.fixed:
            amount = max(1, amount // 1)
        return self._replace(amount=amount, burst=max(1, self.burst // parts))


class Asked(NamedTuple):
    """A question: tokens of a limit. `key` names who uses it."""

    key: str
    rule: Rule
    tokens: int


class Grant(NamedTuple):
    """An answer.

    Attributes:
        tokens: number of granted tokens.
        free: number of tokens that are left.
        wait: seconds until there is one.
        reset: seconds until all are back.
    """

    tokens: int
    free: int
    wait: float
    reset: float


class StoreError(Exception):
    """The store did not answer."""


class State(NamedTuple):
    """What a rule says about a kept value: free tokens, seconds to wait and to the reset, and the
    value, to which `cost` is added for each token that is taken."""

    free: int
    wait: float
    reset: float
    value: float
    cost: float


def state_of(rule: Rule, kept: float, now: float) -> State:
    """How the rule reads the value that was kept."""
    if rule.fixed:
        end = (now // rule.period + 1) * rule.period
        return State(max(0, int(rule.amount - kept)), end - now, end - now, kept, 1.0)
    step = rule.period / rule.amount
    room = rule.burst * step
    if kept > now + room + step:  # Of a clock that was set back, or of a larger limit: begin anew.
        kept = now
    full = min(max(kept, now), now + room)
    free = math.floor((now + room - full) / step + ROUNDING)
    return State(free, full + step - room - now, full - now, full, step)


class SharedStore:
    """A table in a file that all processes of a machine map.

    It has room for a number of keys. A key has its place in one of 8 slots. If all of them are in
    use, it takes that of the key whose tokens are back first, which then is forgotten.

    Args:
        path: the file. It is made if there is none.
        keys: number of keys.

    Raises:
        OSError: the file can't be used.
        ValueError: it can't have room for so many keys.
    """

    _SLOT = struct.Struct("=Qdd")
    """Hash of the key, its value, and when the value means nothing any more."""
    _WAYS = 8

    def __init__(self, path: Path, keys: int) -> None:
        self._sets = max(1, keys // self._WAYS)
        size = self._sets * self._WAYS * self._SLOT.size
        self._file = path.open("ab+")
        try:
            with self:
                if path.stat().st_size != size:
                    self._file.truncate(size)
                _allocate(self._file.fileno(), size)
            self._memory = mmap.mmap(self._file.fileno(), size)
        except (OSError, OverflowError) as error:
            self._file.close()
            raise ValueError(
                f"keys: no room for {keys} of them in {path}: {reason(error)}"
            ) from None
        self.forgotten: int = 0

    def __enter__(self) -> None:
        """Lock it. Each event loop has a file of its own, and so a lock of its own."""
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        self._memory.close()
        self._file.close()

    def take(self, asked: Sequence[Asked]) -> list[Grant]:
        """Take tokens of all these limits, of each at least one, or of none of them."""
        numbers = [_number(each.key) for each in asked]
        with self:
            now = time.time()
            places = [
                self._place(number, now, each.rule)
                for number, each in zip(numbers, asked, strict=True)
            ]
            states = [
                state_of(each.rule, kept, now)
                for each, (_, kept) in zip(asked, places, strict=True)
            ]
            granted = all(state.free for state in states)
            grants = []
            for each, number, (place, _), state in zip(asked, numbers, places, states, strict=True):
                tokens = min(each.tokens, state.free) if granted else 0
                value = state.value + tokens * state.cost
                reset = state.reset if each.rule.fixed else value - now
                if tokens:
                    self._SLOT.pack_into(self._memory, place, number, value, now + reset)
                grants.append(Grant(tokens, state.free - tokens, state.wait, reset))
        return grants

    def _place(self, number: int, now: float, rule: Rule) -> tuple[int, float]:
        """Where a key's slot is, and its value."""
        size = self._SLOT.size
        # Of a clock that was set back: the value of a window that has not begun yet.
        latest = (now // rule.period + 1.5) * rule.period if rule.fixed else math.inf
        first = number % self._sets * self._WAYS * size
        oldest, place = math.inf, first
        for start in range(first, first + self._WAYS * size, size):
            other, value, end = self._SLOT.unpack_from(self._memory, start)
            if other == number:
                return start, value if now < end < latest else 0.0
            if end < oldest:
                oldest, place = end, start
        self.forgotten += oldest > now
        return place, 0.0


def _allocate(file: int, size: int) -> None:
    """Have room for all of a file. Without it, a full disk kills a process that writes to the map.

    Raises:
        OSError: the disk is full.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:  # macOS lacks it.
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # Not all file systems can.
            raise


def _number(key: str) -> int:
    digest = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local states, granted = {}, true
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 5
  local fixed, count, period = ARGV[at + 1] == '1', tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local burst, wanted = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local kept, s = redis.call('GET', key), {fixed = fixed, wanted = wanted}
  if fixed then
    s.window, s.value, s.cost = math.floor(now / period), 0, 1
    local window, used = string.match(kept or '', '^(%d+) (%d+)$')
    if tonumber(window) == s.window then s.value = tonumber(used) end
    s.free = math.max(0, count - s.value)
    s.reset = (s.window + 1) * period - now
    s.wait = s.reset
  else
    s.cost = period / count
    local room = burst * s.cost
    s.value = tonumber(kept) or 0
    if s.value > now + room + s.cost then s.value = now end
    s.value = math.min(math.max(s.value, now), now + room)
    s.free = math.floor((now + room - s.value) / s.cost + 1e-6)
    s.wait, s.reset = s.value + s.cost - room - now, s.value - now
  end
  if s.free < 1 then granted = false end
  states[i] = s
end
local answer = {}
for i, key in ipairs(KEYS) do
  local s, tokens = states[i], 0
  if granted then
    tokens = math.min(s.wanted, s.free)
    s.value = s.value + tokens * s.cost
    if s.fixed then
      local kept = string.format('%.0f %.0f', s.window, s.value)
      redis.call('SET', key, kept, 'PX', math.ceil(s.reset / 1000))
    else
      s.reset = s.value - now
      local left = math.max(1, math.ceil(s.reset / 1000))
      redis.call('SET', key, string.format('%.3f', s.value), 'PX', left)
    end
  end
  answer[#answer + 1] = tokens
  answer[#answer + 1] = s.free - tokens
  answer[#answer + 1] = math.ceil(s.wait)
  answer[#answer + 1] = math.ceil(s.reset)
end
return answer
"""
"""The rules of `state_of`, in microseconds of the store's clock, as one atomic step."""

PAUSES = 0.1, 1.0
"""Seconds for which a store that failed is not asked: at first, and at most."""


class RedisStore:
    """Redis or Valkey. The questions of a turn of the event loop leave in one write.

    After a failure it is not asked for a while, so that requests do not wait for it.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout: seconds after which an answer is too late.

    Attributes:
        fails: the present failure; "" while it answers.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._redis: Redis = Redis.from_url(
            url, socket_connect_timeout=1.0, socket_timeout=1.0, retry=Retry(NoBackoff(), 1)
        )
        self._timeout = timeout
        self._sha = hashlib.sha1(SCRIPT.encode()).hexdigest()
        self._turn: list[tuple[Sequence[Asked], asyncio.Future[Any]]] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._pause, _ = PAUSES
        self._paused_until = 0.0
        self.fails: str = ""

    async def take(self, asked: Sequence[Asked]) -> list[Grant]:
        """Take tokens of all these limits, of each at least one, or of none of them.

        Raises:
            StoreError: it did not answer in time.
        """
        if time.monotonic() < self._paused_until:
            raise StoreError(self.fails)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[int]] = loop.create_future()
        if not self._turn:
            loop.call_soon(self._send_turn)
        self._turn.append((asked, future))
        try:
            async with asyncio.timeout(self._timeout):
                grants = _grants(await future, len(asked))
        except Exception as error:  # Whatever the library makes of what is no store.
            raise self._failed(str(error) or f"no answer in {self._timeout * 1000:g} ms") from None
        self._pause, _ = PAUSES
        self.fails = ""
        return grants

    async def close(self) -> None:
        await asyncio.gather(*self._sending)
        await self._redis.aclose()

    def _failed(self, why: str) -> StoreError:
        now = time.monotonic()
        if now >= self._paused_until:  # The questions of one turn fail together.
            self._paused_until = now + self._pause
            self._pause = min(2 * self._pause, PAUSES[1])
        self.fails = why
        return StoreError(why)

    def _send_turn(self) -> None:
        turn, self._turn = self._turn, []
        task = asyncio.get_running_loop().create_task(self._send(turn))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, turn: list[tuple[Sequence[Asked], asyncio.Future[Any]]]) -> None:
        try:
            answers = await self._ask([asked for asked, _ in turn])
        except Exception as error:  # Each question gets it.
            answers = [error] * len(turn)
        for (_, future), answer in zip(turn, answers, strict=True):
            if future.done():  # It is too late.
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def _ask(self, questions: list[Sequence[Asked]], may_load: bool = True) -> list[Any]:
        """Ask in one write. A store that forgets the script at once again fails."""
        pipe = self._redis.pipeline(transaction=False)
        for asked in questions:
            pipe.evalsha(self._sha, len(asked), *_arguments(asked))
        answers = await pipe.execute(raise_on_error=False)
        missing = [i for i, each in enumerate(answers) if isinstance(each, NoScriptError)]
        if missing and may_load:
            # The store was restarted. None of these has run, as none knew the script.
            await self._redis.script_load(SCRIPT)
            again = await self._ask([questions[i] for i in missing], may_load=False)
            for index, answer in zip(missing, again, strict=True):
                answers[index] = answer
        return list(answers)


def _grants(found: Any, count: int) -> list[Grant]:
    """What the script has answered.

    Raises:
        TypeError, ValueError: that is not from the script.
    """
    numbers = [int(each) for each in found]
    if len(numbers) != 4 * count:
        raise ValueError(f"the store answers {len(numbers)} numbers to {count} questions")
    return [
        Grant(tokens, free, wait / 1e6, reset / 1e6)
        for tokens, free, wait, reset in zip(*[iter(numbers)] * 4, strict=True)
    ]


def _arguments(asked: Sequence[Asked]) -> list[Any]:
    arguments: list[Any] = [each.key.encode(errors="surrogateescape") for each in asked]
    for each in asked:
        rule = each.rule
        period = round(rule.period * 1e6)
        arguments += [int(rule.fixed), rule.amount, period, rule.burst, each.tokens]
    return arguments
