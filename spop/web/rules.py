"""The rules of a policy, by the names of HAProxy's ``http-request`` and ``http-response`` rules.

A rule is data; `spop.web.transaction` acts on it. The functions compile what they are given,
so that what is wrong is known at import. `when` is a `Condition`, such as
``var("txn.waf.action") == "deny"``, or HAProxy's words after ``if``:
``"{ var(txn.waf.action) -m str deny }"``; without it a rule always applies. Text may have
samples in it, ``%[...]``, or be a `Variable`.

All raise ValueError where HAProxy would refuse what is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from spop.engine.samples import Expression, SampleError, compile_expression
from spop.web.conditions import Condition, Variable, condition_of, var
from spop.web.texts import Text, text_of

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done where `when` holds."""

    when: Condition | None

    def readers(self) -> Iterator[Condition | Text | Expression]:
        """All in it that read samples."""
        if self.when is not None:
            yield self.when


@dataclass(frozen=True, slots=True)
class Allow(Rule):
    """No further rule is looked at."""


@dataclass(frozen=True, slots=True)
class SendGroup(Rule):
    """The messages of a group are sent."""

    group: str


@dataclass(frozen=True, slots=True)
class Deny(Rule):
    """Answered without the application, or in its place. `status` None is HAProxy's."""

    status: int | None
    body: Text | bytes
    content_type: str
    headers: tuple[tuple[str, Text], ...]

    def readers(self) -> Iterator[Condition | Text | Expression]:
        yield from Rule.readers(self)
        if isinstance(self.body, Text):
            yield self.body
        for _, value in self.headers:
            yield value


@dataclass(frozen=True, slots=True)
class Redirect(Rule):
    """Sent elsewhere."""

    location: Text
    status: int

    def readers(self) -> Iterator[Condition | Text | Expression]:
        yield from Rule.readers(self)
        yield self.location


@dataclass(frozen=True, slots=True)
class SetHeader(Rule):
    """A header field in place of those of its name, or besides them; without a value, none."""

    name: str
    value: Text | None
    beside: bool = False

    def readers(self) -> Iterator[Condition | Text | Expression]:
        yield from Rule.readers(self)
        if self.value is not None:
            yield self.value


@dataclass(frozen=True, slots=True)
class SetVar(Rule):
    """A variable becomes a sample."""

    name: str
    expression: Expression

    def readers(self) -> Iterator[Condition | Text | Expression]:
        yield from Rule.readers(self)
        yield self.expression


def allow(*, when: Condition | str | None = None) -> Rule:
    """Go on without looking at the rules that follow."""
    return Allow(condition_of(when))


def deny(
    status: int | None = None,
    body: str | bytes = "",
    *,
    content_type: str = "text/plain; charset=utf-8",
    headers: Mapping[str, str | Variable] | None = None,
    when: Condition | str | None = None,
) -> Rule:
    """Answer the request with an error.

    Args:
        status: 200 to 599; by default 403 for requests, and 502 in place of a response.
        body: text, whose samples are escaped where `content_type` is HTML; or bytes as they are.
    """
    if status is not None and not 200 <= status <= 599:
        raise ValueError(f"status {status}: 200 to 599 ends a request")
    return Deny(
        condition_of(when),
        status,
        body if isinstance(body, bytes) else text_of(body),
        content_type,
        tuple((_token(name), text_of(value)) for name, value in (headers or {}).items()),
    )


def redirect(
    location: str | Variable, status: int = 302, *, when: Condition | str | None = None
) -> Rule:
    """Answer the request with where to go: 301, 302, 303, 307 or 308."""
    if status not in _REDIRECTS:
        raise ValueError(f"status {status} is no redirection: {', '.join(map(str, _REDIRECTS))}")
    return Redirect(condition_of(when), text_of(location), status)


def set_header(name: str, value: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Set a header field, in place of all of its name.

    A `value` that is a variable, or one sample, removes them where it isn't set: nobody's
    client may say what an agent didn't.
    """
    return SetHeader(condition_of(when), _token(name), text_of(value))


def add_header(name: str, value: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Add a header field to those of its name."""
    return SetHeader(condition_of(when), _token(name), text_of(value), beside=True)


def del_header(name: str, *, when: Condition | str | None = None) -> Rule:
    """Remove all header fields of a name."""
    return SetHeader(condition_of(when), _token(name), None)


def set_var(name: str, expression: str, *, when: Condition | str | None = None) -> Rule:
    """Set a variable, such as ``"txn.host"``, to a sample, such as ``"req.hdr(host),lower"``."""
    try:
        return SetVar(condition_of(when), var(name).name, compile_expression(expression))
    except SampleError as error:
        raise ValueError(f"{expression!r}: {error}") from None


def send_group(name: str, *, when: Condition | str | None = None) -> Rule:
    """Send the messages of a ``spoe-group``, and go on when they are answered."""
    return SendGroup(condition_of(when), name)


def _token(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} can't name a header")
    return name
