"""The drop-in of ``spoe-forge``: its registry, contexts, actions, negotiation and log.

As there, a connection with pipelining answers up to `max_concurrent_frames` NOTIFY frames at a
time, in the order in which they end. The messages of one run in turn, ``async def`` handlers on
the event loop and others in threads. A handler that fails answers nothing, and of an ACK that
can't be sent the actions that can are. A lost connection cancels its handlers.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from types import ModuleType
from typing import Any

from spop.codec import encode_string, encode_value, encode_varint
from spop.compat.connection import Connection, serve
from spop.compat.imports import functions, overrides
from spop.compat.threads import Done, ThreadCall, Threads
from spop.constants import (
    FLAGS_END,
    LENGTH_SIZE,
    SET_VAR_ARGUMENTS,
    UNSET_VAR_ARGUMENTS,
    ActionType,
    DataType,
    FrameType,
)
from spop.errors import FrameTooBigError, ProtocolError
from spop.frames import Message, Notify
from spop.values import Int64

_SET, _UNSET, _INT64 = int(ActionType.SET_VAR), int(ActionType.UNSET_VAR), int(DataType.INT64)
_STRING = int(DataType.STRING)
_64_BITS, _INT64_END = 0xFFFF_FFFF_FFFF_FFFF, 2**63
_AS_THEY_ARE = (bool, type(None), IPv4Address, IPv6Address, bytes)

INVALID_FRAME, INCOMPATIBLE, PROTOCOL_ERROR, TOO_BIG = 4, 101, 102, 3


class RepeatedArgumentError(ProtocolError):
    """A message has two arguments of one name, which the package refuses."""


def arguments(message: Message) -> dict[str, Any]:
    """The arguments of a message, with text as the package reads it: each byte is a character.

    Raises:
        RepeatedArgumentError: two have one name.
    """
    found: dict[str, Any] = {}
    for name, value in zip(message.names, message.values, strict=True):
        name = as_latin_1(name)
        if name in found:
            raise RepeatedArgumentError(
                f"unexpected duplicate arg {name} in message {as_latin_1(message.name)}"
            )
        found[name] = as_latin_1(value) if type(value) is str else value
    return found


def as_latin_1(text: str) -> str:
    """Text as the package reads it."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


class Actions:
    """Encodes the actions of the package.

    Args:
        handler: ``spoe_forge.server.handler``.
    """

    def __init__(self, handler: ModuleType | Any) -> None:
        from spoe_forge.spop.spop_types import SetVarAction, UnsetVarAction

        self.error: type[Exception] = handler.SpopEncodeError
        self._set_var: Any = SetVarAction
        self._unset_var: Any = UnsetVarAction

    def write(self, action: Any, out: bytearray) -> None:
        """Append an action.

        Raises:
            SpopEncodeError: it can't be encoded.
            TypeError: its scope is no number.
        """
        if isinstance(action, self._set_var):
            out += bytes((_SET, SET_VAR_ARGUMENTS, action.scope))
            self._write_text(action.name, out)
            self._write_value(action.value, out)
        elif isinstance(action, self._unset_var):
            out += bytes((_UNSET, UNSET_VAR_ARGUMENTS, action.scope))
            self._write_text(action.name, out)
        else:
            raise self.error(f"Unexpected Action while encoding: {type(action).__name__}")

    def _write_text(self, text: str, out: bytearray) -> None:
        try:
            encode_string(text if text.isascii() else text.encode("latin-1"), out)
        except UnicodeEncodeError:
            raise self.error(
                f"cannot encode string with codepoints above 255 to SPOP: {text!r}"
            ) from None

    def _write_value(self, value: Any, out: bytearray) -> None:
        if isinstance(value, int) and not isinstance(value, bool):
            if not -_INT64_END <= value < _INT64_END:
                raise self.error(f"INT64 value out of range: {value}")
            out.append(_INT64)
            encode_varint(value & _64_BITS, out)
        elif isinstance(value, str):
            out.append(_STRING)
            self._write_text(value, out)
        elif isinstance(value, _AS_THEY_ARE):
            encode_value(value, out)
        else:
            raise self.error(f"cannot encode unsupported type {type(value)} ({value})")

    def encode(self, actions: list[Any]) -> bytearray:
        """The actions of an ACK."""
        out = bytearray()
        for action in actions:
            self.write(action, out)
        return out


class Served:
    """What the connections of one agent share.

    Args:
        agent: the `SpoeForge`.
        module: ``spoe_forge.spoe_forge``.
    """

    def __init__(self, agent: Any, module: ModuleType | Any) -> None:
        from spoe_forge.agent import registry
        from spoe_forge.server import handler

        self.codes: Any = handler.DisconnectCode
        self.agent = agent
        self.module = module
        self.logger: logging.Logger = agent._logger
        self.server_logger: logging.Logger = handler.logger
        self.registry_logger: logging.Logger = registry.logger
        self.actions: Actions = Actions(handler)
        self.threads: Threads = Threads()
        self._handlers: Mapping[str, Callable[..., Any]] = agent._registry._handlers
        self._context: Any = registry.AgentContext
        self._known: dict[str, tuple[Any, bool]] = {}

    def new_config(self) -> Any:
        """What a connection negotiates with."""
        agent = self.agent
        return self.module.ServerConfiguration(
            max_frame_size=agent._max_frame_size,
            max_concurrent_frames=agent._max_concurrent_frames,
        )

    async def answer(self, messages: list[tuple[str, dict[str, Any]]]) -> list[Any]:
        """Call the handlers, in turn. Returns their actions."""
        actions: list[Any] = []
        for name, found in messages:
            returned, error = None, None
            try:
                returned = await self._call(name, found)
            except Exception as failure:
                error = failure
            actions += self.actions_of(name, returned, error)
        return actions

    async def _call(self, name: str, found: dict[str, Any]) -> Any:
        handler = self._handlers.get(name)
        if handler is None:
            self.registry_logger.warning(f"No handler registered for message '{name}'")
            return None
        if self.is_plain(name):
            return await self.threads.run(partial(handler, self._context(name, found)))
        return await handler(self._context(name, found))

    def is_plain(self, name: str) -> bool:
        """The message has a handler that is not ``async def``."""
        handler = self._handlers.get(name)
        known = self._known.get(name)
        if handler is None:
            return False
        if known is None or known[0] is not handler:
            known = self._known[name] = handler, not inspect.iscoroutinefunction(handler)
        return known[1]

    def call(self, name: str, found: dict[str, Any], done: Done) -> ThreadCall:
        """Call the plain handler of a message in a thread."""
        return self.threads.submit(partial(self._handlers[name], self._context(name, found)), done)

    def actions_of(self, name: str, returned: Any, error: Exception | None) -> list[Any]:
        """The actions of a handler that has ended; none if it failed."""
        if error is not None:
            self.registry_logger.error(
                f"Error in handler for message '{name}': {error}", exc_info=error
            )
        elif returned is not None and not isinstance(returned, list):
            self.logger.error(
                f"Handler for message '{name}' did not return list or None. "
                f"Received {type(returned)} - ignoring its actions"
            )
            returned = None
        actions: list[Any] = returned or []
        if self.logger.isEnabledFor(logging.INFO):
            self.logger.info(
                f"{self.agent.name} handled '{name}', returned {len(actions)} action(s)"
            )
        return actions


class ForgeConnection(Connection):
    """One connection of HAProxy to a `SpoeForge`."""

    def __init__(self, served: Served, connections: set[Connection]) -> None:
        self._served = served
        self._config = served.new_config()
        self._tasks: set[asyncio.Task[list[Any]]] = set()
        self._calls: dict[int, ThreadCall] = {}
        super().__init__(connections, self._config.max_frame_size)

    def hello(self, items: Mapping[str, Any]) -> None:
        config = self._config
        try:
            config.negotiate_server_compatibility(
                _names(items["supported-versions"]),
                items["max-frame-size"],
                _names(items["capabilities"]),
            )
        except KeyError as error:
            self._end(
                PROTOCOL_ERROR,
                f"Not all expected k,v pairs found in HAPROXY_HELLO payload: {error}",
            )
            return
        if not config.is_compatible:
            self._end(INCOMPATIBLE, "Handshake failed to find compatibility.")
            return
        pipelining = "pipelining" in config.capabilities
        calls = config.max_concurrent_frames if pipelining else 1
        self.allow(frame_size=config.max_frame_size, ack=config.max_frame_size, calls=calls)
        hello = {
            "version": config.version,
            "max-frame-size": Int64(config.max_frame_size),
            "capabilities": ",".join(config.capabilities),
        }
        self.send_control(FrameType.AGENT_HELLO, hello)
        if items.get("healthcheck", False):
            self.close()

    def goodbye(self, items: Mapping[str, Any]) -> None:
        code, message = items.get("status-code"), items.get("message")
        if code != 0:
            self._served.server_logger.warning(
                f"Received HAPROXY_DISCONNECT: {message} (status: {code})"
            )
        self._disconnect(0, "Disconnecting normally")

    def unexpected(self, type_: int) -> None:
        expected = "NOTIFY or HAPROXY_DISCONNECT" if self.greeted else "HAPROXY-HELLO"
        try:
            name = FrameType(type_).name
        except ValueError:
            self._end(PROTOCOL_ERROR, f"invalid frame type: {type_}")
        else:
            self._end(INVALID_FRAME, f"Expected {expected}, received {name}")

    def malformed(self, error: ProtocolError) -> None:
        if isinstance(error, FrameTooBigError):
            length = int.from_bytes(self._unread[:LENGTH_SIZE], "big")
            most = self.max_frame_size
            self._end(TOO_BIG, f"Frame size {length} exceeds maximum size {most}")
        else:
            self._end(PROTOCOL_ERROR, str(error))

    def _end(self, code: int, message: str) -> None:
        """End the connection after an error of the peer."""
        message = message[:256]
        name = self._served.codes(code).name
        self._served.server_logger.error(
            f"SPOA server encountered an error, disconnecting: {name}: {message}"
        )
        self._disconnect(code, message)

    def _disconnect(self, code: int, message: str) -> None:
        items = {"status-code": Int64(code), "message": message}
        self.send_control(FrameType.AGENT_DISCONNECT, items)
        self.close()

    def notify(self, frame: Notify) -> None:
        try:
            messages = [(as_latin_1(each.name), arguments(each)) for each in frame.messages]
        except RepeatedArgumentError as error:
            self._end(PROTOCOL_ERROR, str(error))
            return
        self.begin_call()
        if len(messages) == 1 and self._served.is_plain(messages[0][0]):
            # Without a task, which would only wait.
            done = partial(self._returned, frame, messages[0][0])
            self._calls[id(frame)] = self._served.call(*messages[0], done)
            return
        task = self.start(self._served.answer(messages))
        if task.done():
            self._finished(frame, task)
        else:
            self._tasks.add(task)
            task.add_done_callback(partial(self._finished, frame))

    def _returned(
        self, frame: Notify, name: str, returned: Any, error: BaseException | None
    ) -> None:
        """The plain handler of the only message has ended."""
        del self._calls[id(frame)]
        if error is not None and not isinstance(error, Exception):
            return  # It has cancelled its own call.
        try:
            self._acknowledge(frame, self._served.actions_of(name, returned, error))
        except Exception as failure:
            self.fail(failure)

    def _finished(self, frame: Notify, task: asyncio.Task[list[Any]]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        try:
            self._acknowledge(frame, task.result())
        except Exception as error:
            self.fail(error)

    def _acknowledge(self, frame: Notify, actions: list[Any]) -> None:
        try:
            encoded = self._served.actions.encode(actions)
        except self._served.actions.error as error:
            self._acknowledge_some(frame, actions, str(error))
            return
        try:
            self.acknowledge(frame, encoded)
        except FrameTooBigError:
            size = _size_of_empty_ack(frame) + len(encoded)
            reason = f"Frame size {size} exceeds maximum size {self.ack_limit}"
            self._acknowledge_some(frame, actions, reason)

    def _acknowledge_some(self, frame: Notify, actions: list[Any], reason: str) -> None:
        """Send those actions that can be encoded and fit."""
        log = self._served.server_logger
        log.error(
            f"Failed to encode ACK for stream {frame.stream_id}: {reason} - "
            f"acking with salvageable actions only"
        )
        room = self.ack_limit - _size_of_empty_ack(frame)
        encoded = bytearray()
        for action in actions:
            try:
                one = self._served.actions.encode([action])
            except self._served.actions.error as problem:
                log.error(f"Dropping unencodable action {action.name!r}: {problem}")
                continue
            if len(encoded) + len(one) > room:
                log.error(f"Dropping action {action.name!r} - ACK would exceed max frame size")
                continue
            encoded += one
        self.acknowledge(frame, encoded)

    def close(self) -> None:
        super().close()
        self._cancel()

    def eof_received(self) -> bool:
        self._cancel()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._cancel()

    def _cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for call in self._calls.values():
            call.wanted = False


def _size_of_empty_ack(frame: Notify) -> int:
    """Bytes of type, flags and ids."""
    ids = len(encode_varint(frame.stream_id)) + len(encode_varint(frame.frame_id))
    return FLAGS_END - LENGTH_SIZE + ids


def _names(items: str) -> list[str]:
    return [name for item in items.split(",") if (name := item.strip())]


def drop_in(module: ModuleType | Any) -> dict[tuple[Any, str], Any]:
    """What replaces attributes of ``spoe_forge.spoe_forge``: by object and name."""
    class_ = module.SpoeForge
    original = class_.serve
    methods = {"_handler": class_._handler, "_notify_handler": class_._notify_handler}
    handle = module.AgentRegistry.handle_message
    internals = functions(module.ForgeHandler)

    async def _serve(self: Any, host: str, port: int, ssl: Any = None) -> None:
        if (
            overrides(self, **methods)
            or overrides(self._registry, handle_message=handle)
            or functions(module.ForgeHandler) != internals
        ):  # The agent serves connections itself, or has changed how the package does.
            await original(self, host, port, ssl)
            return
        served = Served(self, module)
        try:
            await serve(
                partial(ForgeConnection, served),
                host,
                port,
                lambda: served.logger.info(f"SPOE Forge listening on {host}:{port}"),
                ssl,
            )
        finally:
            served.threads.stop()

    return {(class_, "serve"): _serve}
