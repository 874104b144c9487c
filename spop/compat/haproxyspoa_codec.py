"""Functions in place of those of the codec of ``haproxyspoa``."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from spop.codec import decode_messages, encode_string
from spop.compat import samples
from spop.compat.codecs import Replacement, outcomes
from spop.compat.haproxyspoa import SET_VAR, Package, write_value
from spop.errors import ProtocolError
from spop.frames import Message

_INTEGERS_END = 2**64


def replacements() -> list[Replacement]:
    from haproxyspoa import spoa_server
    from haproxyspoa.payloads import ack

    package = Package(spoa_server)
    return [
        Replacement(
            "haproxyspoa.payloads.notify",
            "parse_list_of_messages",
            lambda original: _parse(package, original),
            _parsed,
        ),
        Replacement(
            "haproxyspoa.payloads.ack.AckPayload",
            "to_bytes",
            lambda _: _to_bytes(package),
            lambda function: outcomes(
                lambda payload: (function(payload).getvalue(), function(payload).tell()),
                [(payload,) for payload in _payloads(ack)],
            ),
        ),
    ]


def _parsed(function: Callable[[io.BytesIO], Any]) -> list[Any]:
    payloads = [io.BytesIO(payload) for payload in samples.PAYLOADS]
    return [*outcomes(function, [(each,) for each in payloads]), [each.tell() for each in payloads]]


def _payloads(ack: Any) -> list[Any]:
    scope = ack.ActionVarScope
    payloads = [ack.AckPayload().set_txn_var("name", value) for value in samples.VALUES]
    payloads += [ack.AckPayload().set_var(each, "name.of", 1) for each in scope]
    many = ack.AckPayload().unset_var(scope.SESSION, "gone").set_txn_var("a", 1)
    odd = [
        ack.AckPayload().set_var(*args) for args in ((scope.PROCESS, "n\u00fc", 1), ("txn", "a", 1))
    ]
    return [*payloads, many.set_txn_var("b", "c"), *odd, ack.AckPayload([None])]


def _parse(package: Package, original: Any) -> Callable[[io.BytesIO], dict[str, Any]]:
    def parse_list_of_messages(payload: io.BytesIO) -> dict[str, Any]:
        start = payload.tell()
        try:
            messages = decode_messages(payload.read())
        except ProtocolError:
            messages = None
        if messages is None or not all(_is_ascii(message) for message in messages):
            payload.seek(start)
            parsed: dict[str, Any] = original(payload)
            return parsed
        return {message.name: package.arguments(message) for message in messages}

    return parse_list_of_messages


def _is_ascii(message: Message) -> bool:
    texts = (message.name, *message.names, *message.values)
    return all(type(text) is not str or text.isascii() for text in texts)


def _to_bytes(package: Package) -> Callable[[Any], io.BytesIO]:
    set_var = package.set_var

    def to_bytes(self: Any) -> io.BytesIO:
        out = bytearray()
        for action in self.actions:
            if type(action) is set_var and _is_plain(action):
                out += bytes((*SET_VAR, action.scope.value))
                encode_string(action.name, out)
                write_value(action.value, out)
            else:
                out += action.to_bytes()
        buffer = io.BytesIO()
        buffer.write(out)
        return buffer

    return to_bytes


def _is_plain(action: Any) -> bool:
    """The original writes it as we do."""
    value = action.value
    if isinstance(value, int):
        plain = 0 <= value < _INTEGERS_END
    else:
        plain = value.isascii() if type(value) is str else True
    return plain and action.name.isascii()
