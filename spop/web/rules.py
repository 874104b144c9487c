"""Rules, by the names of HAProxy's ``http-request`` and ``http-response`` rules.

A rule is data, and `spop.web.decision` acts on it. The functions compile their arguments, so
that a mistake is found at import. A text may have samples, ``%[...]``, or be a `Variable`. `when`
is a `Condition`, such as ``var("txn.waf.action") == "deny"``, or the words after HAProxy's ``if``:
``"{ var(txn.waf.action) -m str deny }"``. Without it a rule always applies.

All functions raise ValueError where HAProxy would refuse an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from spop.engine.samples import Expression, SampleError, compile_expression
from spop.web.conditions import Condition, Variable, condition_of, var
from spop.web.texts import Text, text_of

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_REDIRECTS = (301, 302, 303, 307, 308)

Reads = Condition | Text | Expression
"""A part of a rule that reads samples."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An action that is done if the condition `when` holds."""

    when: Condition | None

    def readers(self) -> Iterator[Reads]:
        """The parts of the rule that read samples."""
        for field in fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Reads):
                yield part


@dataclass(frozen=True, slots=True)
class Allow(Rule):
    """Skip the rules after this one."""


@dataclass(frozen=True, slots=True)
class SendGroup(Rule):
    """Send the messages of a group."""

    group: str


@dataclass(frozen=True, slots=True)
class Deny(Rule):
    """Answer in place of the application. A `status` of None is 403 or, for a response, 502."""

    status: int | None
    body: Text | bytes
    content_type: str
    headers: tuple[tuple[str, Text], ...]

    def readers(self) -> Iterator[Reads]:
        yield from Rule.readers(self)
        for _, value in self.headers:
            yield value


@dataclass(frozen=True, slots=True)
class Redirect(Rule):
    """Answer with a redirection."""

    location: Text
    status: int


@dataclass(frozen=True, slots=True)
class SetHeader(Rule):
    """Replace the header fields of a name, or add one (`beside`). Without a value, remove them."""

    name: str
    value: Text | None
    beside: bool = False


@dataclass(frozen=True, slots=True)
class AddHeaders(Rule):
    """Add the header fields of a list. `replaces`: remove those of each name before."""

    fields: Expression
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class DelHeaders(Rule):
    """Remove the header fields of the names in a list."""

    names: Expression


@dataclass(frozen=True, slots=True)
class SetVar(Rule):
    """Set a variable to a sample."""

    name: str
    expression: Expression


def allow(*, when: Condition | str | None = None) -> Rule:
    """Skip the rules after this one."""
    return Allow(_condition(when))


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
        status: 200 to 599; by default 403 for a request, and 502 in place of a response.
        body: a text, or bytes. Samples of a text are escaped if `content_type` is HTML.
    """
    if status is not None and not 200 <= status <= 599:
        raise ValueError(f"status {status}: 200 to 599 ends a request")
    return Deny(
        _condition(when),
        status,
        body if isinstance(body, bytes) else text_of(body),
        content_type,
        tuple((_token(name), text_of(value)) for name, value in (headers or {}).items()),
    )


def redirect(
    location: str | Variable, status: int = 302, *, when: Condition | str | None = None
) -> Rule:
    """Answer the request with a redirection: 301, 302, 303, 307 or 308."""
    if status not in _REDIRECTS:
        raise ValueError(f"status {status} is no redirection: {', '.join(map(str, _REDIRECTS))}")
    return Redirect(_condition(when), text_of(location), status)


def set_header(name: str, value: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Set a header field, in place of all fields of its name.

    If `value` is a variable or a single sample, and is not set, the fields are removed. So a client
    can't set a field that an agent did not set.
    """
    return SetHeader(_condition(when), _token(name), text_of(value))


def add_header(name: str, value: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Add a header field to those of its name."""
    return SetHeader(_condition(when), _token(name), text_of(value), beside=True)


def del_header(name: str, *, when: Condition | str | None = None) -> Rule:
    """Remove all header fields of a name."""
    return SetHeader(_condition(when), _token(name), None)


def add_headers_bin(fields: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Add the header fields of a sample, such as ``var("txn.waf.add")``.

    An agent answers such a list as `spop.Headers`. As in HAProxy 3.4, some names are passed over,
    such as ``content-length``. So are values with CR, LF or NUL, and names that are no token.
    """
    return AddHeaders(_condition(when), _list_of(fields))


def set_headers_bin(fields: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Set the header fields of a sample. Of a name that repeats in it, the last one stays."""
    return AddHeaders(_condition(when), _list_of(fields), replaces=True)


def del_headers_bin(names: str | Variable, *, when: Condition | str | None = None) -> Rule:
    """Remove all header fields of the names in a sample, which an agent answers as
    `spop.Headers.names()`."""
    return DelHeaders(_condition(when), _list_of(names))


def _list_of(sample: str | Variable) -> Expression:
    text = f"var({sample.name})" if isinstance(sample, Variable) else sample
    try:
        return compile_expression(text)
    except SampleError as error:
        raise ValueError(f"{text!r}: {error}") from None


def set_var(name: str, expression: str, *, when: Condition | str | None = None) -> Rule:
    """Set a variable, such as ``"txn.host"``, to a sample, such as ``"req.hdr(host),lower"``."""
    try:
        return SetVar(_condition(when), var(name).name, compile_expression(expression))
    except SampleError as error:
        raise ValueError(f"{expression!r}: {error}") from None


def send_group(name: str, *, when: Condition | str | None = None) -> Rule:
    """Send the messages of a ``spoe-group``, and wait for their answer."""
    return SendGroup(_condition(when), name)


def _condition(when: Condition | str | None) -> Condition | None:
    return None if when is None else condition_of(when)


def _token(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} can't name a header")
    return name
