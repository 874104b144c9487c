"""The drop-in of ``haproxyspoa``, the release and its fork: handlers, answers and log as there.

The package's own classes stay in use: its `SpoaServer` has the handlers, its actions are encoded
here. Like the original, a connection is in lock step, the handlers of a NOTIFY run concurrently,
and a failing one closes the connection without an ACK, so that HAProxy's ``set-on-error`` fires.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from types import CoroutineType, ModuleType
from typing import Any

from spop.codec import encode_string, encode_value, encode_varint
from spop.compat.connection import Connection, serve
from spop.compat.imports import Functions, functions, overrides
from spop.constants import (
    DEFAULT_MAX_FRAME_SIZE,
    HAPROXY_FRAME_SIZE,
    SET_VAR_ARGUMENTS,
    UNSET_VAR_ARGUMENTS,
    ActionType,
    DataType,
    FrameType,
)
from spop.errors import ProtocolError
from spop.frames import Message, Notify
from spop.values import UInt32

SET_VAR = bytes((ActionType.SET_VAR, SET_VAR_ARGUMENTS))
UNSET_VAR = bytes((ActionType.UNSET_VAR, UNSET_VAR_ARGUMENTS))
"""Type and number of arguments of the actions."""
_INT64 = int(DataType.INT64)
_64_BITS = 0xFFFF_FFFF_FFFF_FFFF
_ENCODABLE = (str, IPv4Address, IPv6Address, bytes)

Arguments = dict[str, Any]


class Package:
    """What is read of the installed package.

    Args:
        module: ``haproxyspoa.spoa_server``.
    """

    def __init__(self, module: ModuleType | Any) -> None:
        from haproxyspoa import spoa_data_types
        from haproxyspoa.payloads import ack

        self.logger: logging.Logger = module.logger
        self.adapter: Any = module.FlowIdLoggerAdapter
        self.set_var: Any = ack.ActionSetVar
        self.unset_var: Any = ack.ActionUnsetVar
        # The release reads each BOOL as False, and agents were written for that.
        self.reads_true: bool = spoa_data_types.parse_typed_data(io.BytesIO(b"\x11"))
        hello = module.SpoaConnection.handle_hello_handshake
        # The fork logs HELLO and health checks at a lower level.
        self.hello_level: int = (
            logging.DEBUG if "debug" in hello.__code__.co_names else logging.INFO
        )

    def arguments(self, message: Message) -> Arguments:
        """The keyword arguments of a handler: repeated ones are lists."""
        names = message.names
        pairs = list(zip(names, message.values, strict=True))
        if not self.reads_true:
            pairs = [(name, False if value is True else value) for name, value in pairs]
        found: Arguments = dict(pairs)
        if len(found) < len(names):
            for name in {name for name in names if names.count(name) > 1}:
                found[name] = [value for other, value in pairs if other == name]
        return found

    def write(self, action: Any, out: bytearray) -> None:
        """Append an action.

        Raises:
            Exception: it can't be encoded.
        """
        class_ = type(action)
        if class_ is self.set_var:
            out += SET_VAR
            out.append(action.scope)
            encode_string(action.name, out)
            write_value(action.value, out)
        elif class_ is self.unset_var:
            out += UNSET_VAR
            out.append(action.scope)
            encode_string(action.name, out)
        else:
            out += action.to_bytes()


def write_value(value: Any, out: bytearray) -> None:
    """Append a value in the package's types: integers and booleans are INT64.

    Raises:
        TypeError: the package has no type for it.
    """
    if isinstance(value, int):
        out.append(_INT64)
        encode_varint(value & _64_BITS, out)
    elif isinstance(value, _ENCODABLE):
        encode_value(value, out)
    else:
        raise TypeError(f"Unable to serialize type {type(value)} into an SPOP-equivalent!")


class SpoaConnection(Connection):
    """One connection of HAProxy to a `SpoaServer`."""

    def __init__(self, package: Package, server: Any, connections: set[Connection]) -> None:
        super().__init__(connections, DEFAULT_MAX_FRAME_SIZE)
        self._package = package
        self._handlers: Mapping[str, list[Callable[..., Any]]] = server.handlers
        self._logger: Any = package.adapter(package.logger, {"flow_id": secrets.token_hex(4)})
        self.allow(ack=HAPROXY_FRAME_SIZE)

    def hello(self, items: Mapping[str, Any]) -> None:
        self._log_hello("Received `hello handshake`, responding with agent capabilities of: ''")
        offered = items.get("max-frame-size")
        if isinstance(offered, int):
            self.allow(ack=min(offered, HAPROXY_FRAME_SIZE))
        self.send_control(
            FrameType.AGENT_HELLO,
            {"version": "2.0", "max-frame-size": UInt32(self.ack_limit), "capabilities": ""},
        )
        if items.get("healthcheck"):
            self._log_hello("Health check, immediately disconnecting")
            self.close()

    def _log_hello(self, line: str) -> None:
        self._logger.log(self._package.hello_level, line)

    def goodbye(self, items: Mapping[str, Any]) -> None:
        code = items.get("status-code")
        if code != 0:
            self._logger.info(
                f"Haproxy is disconnecting us with status code {code} - `{items.get('message')}`"
            )
        self._logger.info("Agent is now dropping connection")
        self.send_control(FrameType.AGENT_DISCONNECT, {"status-code": UInt32(0), "message": ""})
        self.close()

    def unexpected(self, type_: int) -> None:
        if not self.greeted:
            self._logger.error(f"Expected a `hello` frame from HAProxy, but received {type_}")
            self.close()

    def malformed(self, error: ProtocolError) -> None:
        self.fail(error)

    def notify(self, frame: Notify) -> None:
        self.begin_call()
        try:
            answers = self._call(frame)
            if isinstance(answers, list):
                self._acknowledge(frame, answers)
            elif answers.done():
                self._finished(frame, answers)
            else:
                answers.add_done_callback(partial(self._finished_later, frame))
        except (Exception, asyncio.CancelledError) as error:
            self.fail(error)

    def _call(self, frame: Notify) -> Any:
        """Call the handlers. Returns their answers, or a future of these, or of the only one."""
        logs = self._package.logger.isEnabledFor(logging.INFO)
        if logs:
            self._logger.debug("Incoming `notify` frame from HAProxy")
        calls: list[Any] = []
        try:
            for name, arguments in self._messages(frame):
                if logs:
                    self._logger.info(f"Received request on key '{name}'")
                for handler in self._handlers.get(name, ()):
                    calls.append(handler(**arguments))  # noqa: PERF401 - closed if the next fails.
        except BaseException:
            for call in calls:
                if inspect.iscoroutine(call):
                    call.close()
            raise
        if logs:
            self._logger.info(f"Found {len(calls)} matching handlers, awaiting response...")
        if len(calls) == 1 and type(calls[0]) is CoroutineType:
            return self.start(calls[0])
        return asyncio.gather(*calls) if calls else calls

    def _messages(self, frame: Notify) -> Iterable[tuple[str, Arguments]]:
        """The messages by name; of several with the same name the arguments of the last."""
        arguments = self._package.arguments
        if len(frame.messages) == 1:
            message = frame.messages[0]
            return ((message.name, arguments(message)),)
        return {message.name: arguments(message) for message in frame.messages}.items()

    def _finished_later(self, frame: Notify, future: asyncio.Future[Any]) -> None:
        try:
            self._finished(frame, future)
        except (Exception, asyncio.CancelledError) as error:
            self.fail(error)

    def _finished(self, frame: Notify, future: asyncio.Future[Any]) -> None:
        answers = future.result()
        self._acknowledge(frame, [answers] if isinstance(future, asyncio.Task) else answers)

    def _acknowledge(self, frame: Notify, answers: list[Any]) -> None:
        actions, write = bytearray(), self._package.write
        for answer in answers:
            for action in answer.actions:
                write(action, actions)
        if self._package.logger.isEnabledFor(logging.INFO):
            self._logger.info(f"Responding with combined payload of {len(actions)} bytes")
        self.acknowledge(frame, actions)


def _internals(module: ModuleType | Any) -> Functions:
    """What is done here in other ways."""
    ack = sys.modules["haproxyspoa.payloads.ack"]
    return functions(module.SpoaConnection, ack.ActionSetVar, ack.ActionUnsetVar)


def drop_in(module: ModuleType | Any) -> dict[tuple[Any, str], Any]:
    """What replaces attributes of ``haproxyspoa.spoa_server``: by object and name."""
    server_class = module.SpoaServer
    original, handle = server_class._run, server_class.handle_connection
    internals = _internals(module)

    async def _run(self: Any, host: str = "0.0.0.0", port: int = 9002) -> None:
        # The agent serves connections itself, or has changed how the package does.
        if overrides(self, handle_connection=handle) or _internals(module) != internals:
            await original(self, host, port)
            return
        package = Package(module)
        await serve(
            partial(SpoaConnection, package, self),
            host,
            port,
            lambda: package.logger.info(f"HAProxy SPO Agent listening at {host}:{port}"),
        )

    return {(server_class, "_run"): _run}
