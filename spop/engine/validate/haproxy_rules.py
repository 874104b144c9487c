"""Rules about a haproxy.cfg and the SPOE file that it names: groups, filters, backends, limits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from spop.constants import DEFAULT_BUFSIZE, LENGTH_SIZE
from spop.engine.config.diagnostics import Diagnostic
from spop.engine.config.lines import Line
from spop.engine.config.resolution import misplaced
from spop.engine.config.values import frame_limit, leading_integer, size_of
from spop.engine.config.versions import HEADER_LISTS
from spop.engine.samples import Place
from spop.engine.samples.errors import did_you_mean
from spop.engine.validate.haproxy_cfg import HAProxyConfig
from spop.engine.validate.setup import EngineSetup, Setup, error, note, warning

Found = Iterator[Diagnostic]

_HEADERS_BIN = re.compile("(add|set|del)-headers-bin")
_BODY = re.compile(r"req\.body(?:_len|_param|_size)?\b")


def group_unused(setup: Setup, engine: EngineSetup) -> Found:
    """A group that no rule sends."""
    sent = {rule.group for rule in engine.group_rules}
    for group in engine.config.groups.values():
        if setup.haproxy and group.name not in sent:
            yield warning(
                group.location,
                f"no rule of {setup.haproxy.file} sends the group '{group.name}'",
                f"add 'http-request send-spoe-group {engine.config.engine} {group.name}'",
            )


def filter_missing(setup: Setup, engine: EngineSetup) -> Found:
    """An engine that no ``filter spoe`` line names."""
    if setup.haproxy and not engine.filters:
        name = engine.config.engine
        yield warning(
            engine.config.location,
            f"no 'filter spoe' of {setup.haproxy.file} names the engine '{name}' of this file",
            f"add 'filter spoe engine {name} config {setup.file}' to a frontend",
        )


def filter_line(setup: Setup) -> Found:
    """A ``filter spoe`` line without a file, with other words, or of an engine that has one."""
    seen = set()
    for line in setup.haproxy.filters() if setup.haproxy else ():
        words = line.line.arguments[1:]
        unknown = [word for word in words[::2] if word not in ("engine", "config")]
        if unknown or len(words) % 2:
            what = f"'{unknown[0]}' means nothing in it" if unknown else f"'{words[-1]}' of nothing"
            yield error(line.location, f"a filter spoe line: {what}", _FILTER)
        elif not line.config:
            yield error(line.location, "a filter spoe line names no file", _FILTER)
        engine = line.proxy, line.engine or line.config
        if engine in seen:
            yield error(
                line.location,
                f"{line.proxy.kind} '{line.proxy.name}' has another filter of this engine",
                "delete one of the lines",
            )
        seen.add(engine)


_FILTER = "write 'filter spoe engine NAME config FILE'"


def filter_unknown(setup: Setup) -> Found:
    """A ``filter spoe`` line that names a scope which the file does not have."""
    known = [scope for scope in setup.scopes if scope is not None]
    for line in setup.own_filters:
        if line.engine is None and None not in setup.scopes:
            yield error(
                line.location,
                f"{setup.file} has no spoe-agent outside of its scopes",
                f"name one of them: 'engine {known[0]}'" if known else "add one",
            )
        if line.engine is not None and line.engine not in known:
            yield error(
                line.location,
                f"{setup.file} has no scope '[{line.engine}]'",
                did_you_mean(line.engine, known) or f"it has {', '.join(known) or 'none'}",
            )


def headers_bin(setup: Setup) -> Found:
    """A rule ``add-headers-bin`` or its like, before HAProxy 3.4."""
    if setup.haproxy is None or setup.version.branch >= HEADER_LISTS:
        return
    for _, line in setup.haproxy.lines():
        action = line.arguments[0] if line.arguments else ""
        if line.keyword.startswith("http-") and _HEADERS_BIN.fullmatch(action):
            yield error(
                line.at(1),
                f"HAProxy {setup.version.major}.{setup.version.minor} has no '{action}'",
                "it is new in 3.4; before, set each header with 'set-header NAME %[var(…)]'",
            )


def group_unknown(setup: Setup) -> Found:
    """A rule that sends a group which its engine does not have, or names no engine."""
    engines = {engine.config.engine: engine for engine in setup.engines}
    if setup.haproxy is None or len(engines) < len(setup.scopes):
        return
    others = {line.engine for line in setup.haproxy.filters()} - engines.keys()
    for rule in setup.haproxy.group_rules():
        engine = engines.get(rule.engine)
        if engine is None and rule.engine not in others:
            hint = did_you_mean(rule.engine, engines) or f"there are {', '.join(engines)}"
            yield error(rule.location, f"no filter has the engine '{rule.engine}'", hint)
        elif engine and rule.group not in engine.config.groups:
            groups = engine.config.groups
            hint = did_you_mean(rule.group, groups) or "name it on the agent's 'groups' line"
            yield error(
                rule.location, f"the engine '{rule.engine}' has no group '{rule.group}'", hint
            )


def group_engine(setup: Setup, engine: EngineSetup) -> Found:
    """A rule that sends a group in a proxy without the filter of its engine."""
    proxies = {line.proxy for line in engine.filters}
    for rule in engine.group_rules:
        if proxies and rule.proxy not in proxies:
            yield error(
                rule.location,
                f"{rule.proxy.kind} '{rule.proxy.name}' has no filter of '{rule.engine}'",
                f"add the 'filter spoe engine {rule.engine}' line to it",
            )


def group_rule(setup: Setup) -> Found:
    """A rule ``send-spoe-group`` of a kind that can't send one, or with words too many."""
    for rule in setup.haproxy.group_rules() if setup.haproxy else ():
        words = [rule.line.keyword, *rule.line.arguments]
        index = words.index("send-spoe-group")
        kind, rest = " ".join(words[:index]), words[index + 3 :]
        if kind not in _SENDERS or (
            kind == "tcp-response content" and rule.proxy.kind == "frontend"
        ):
            yield error(
                rule.line.at(index), f"'{kind}' of a {rule.proxy.kind} can't send a group",
                "rules of 'http-request', 'http-response' and 'tcp-request content' can, and of "
                "'tcp-response content' in a backend",
            )  # fmt: skip
        elif rest and rest[0] not in ("if", "unless"):
            yield error(
                rule.line.at(index + 3), f"unexpected '{rest[0]}' after the group's name",
                "a condition begins with 'if' or 'unless'",
            )  # fmt: skip


_SENDERS = ("http-request", "http-response", "tcp-request content", "tcp-response content")
_PLACES = {
    "tcp-request": (Place.FE_REQ_CNT, Place.BE_REQ_CNT),
    "http-request": (Place.FE_HRQ_HDR, Place.BE_HRQ_HDR),
    "tcp-response": (Place.FE_RES_CNT, Place.BE_RES_CNT),
    "http-response": (Place.FE_HRS_HDR, Place.BE_HRS_HDR),
}
"""Where the samples of each kind of rule are taken, in a frontend and in a backend."""


def group_place(setup: Setup, engine: EngineSetup) -> Found:
    """A group with an argument that can't be had where a rule sends it."""
    for rule in engine.group_rules:
        group = engine.config.groups.get(rule.group)
        frontend, backend = _PLACES.get(rule.line.keyword, (Place(0), Place(0)))
        place = {"frontend": frontend, "backend": backend}.get(rule.proxy.kind, frontend | backend)
        for message in group.messages if group and place else ():
            for index in misplaced(message.arguments, place):
                text = message.arguments[index].expression.text
                yield error(
                    rule.location,
                    f"'{text}' of the message '{message.name}' can't be had at this rule",
                    "send the group at another rule, or leave the argument out",
                )


def argument_objects(setup: Setup, engine: EngineSetup) -> Found:
    """An argument that names a backend, table, server, userlist or ring that there isn't."""
    sections = [engine.sections.messages[message.name] for message in engine.messages]
    agent = [engine.sections.agent] if engine.sections.agent else []
    for kind, name, location in (
        each for section in (*agent, *sections) for each in section.objects
    ):
        for line in engine.filters:
            if not name and kind == "table" and not line.proxy.last("stick-table"):
                yield error(
                    location,
                    f"{line.proxy.kind} '{line.proxy.name}' has no stick-table",
                    "add one, or name the table of another proxy",
                )
        if kind == "ring" and setup.version.branch < (2, 4):
            continue  # These took any.
        if setup.haproxy and name and not setup.haproxy.has(kind, name):
            yield error(
                location,
                f"{setup.haproxy.file} has no {kind} '{name}'",
                "correct the name, or add the section",
            )


def backend_missing(setup: Setup, engine: EngineSetup) -> Found:
    """``use-backend`` of a backend that there isn't."""
    name = engine.config.backend
    if setup.haproxy and engine.backend is None:
        known = [p.name for p in setup.haproxy.proxies if p.kind != "frontend"]
        hint = did_you_mean(name, known) or f"add 'backend {name}' to {setup.haproxy.file}"
        message = f"{setup.haproxy.file} has no backend '{name}'"
        yield error(engine.place("use-backend"), message, hint)


def backend_servers(setup: Setup, engine: EngineSetup) -> Found:
    """A backend without servers."""
    backend = engine.backend
    keywords = ("server", "server-template")
    if backend and not any(line.keyword in keywords for line in backend.lines):
        yield error(
            backend.location, f"backend '{backend.name}' has no server", "add the agent's address"
        )


def backend_mode(setup: Setup, engine: EngineSetup) -> Found:
    """A backend in a mode that SPOE can't use."""
    backend = engine.backend
    if backend is None:
        return
    allowed = ("tcp", "spop") if setup.version.rewritten else ("tcp",)
    if backend.mode not in allowed:
        line = backend.last("mode")
        location = line.at(0) if line and line in backend.lines else backend.location
        yield error(
            location,
            f"backend '{backend.name}' of the agent is in mode {backend.mode}",
            f"write 'mode {allowed[-1]}' in it",
        )


def backend_check(setup: Setup, engine: EngineSetup) -> Found:
    """A backend whose health checks don't speak SPOP."""
    backend = engine.backend
    if backend is None or backend.last("option", "spop-check"):
        return
    checked = any("check" in [w.text for w in line.words] for line in backend.lines)
    what = "its health checks only connect" if checked else "its servers are not checked"
    yield warning(
        backend.location,
        f"backend '{backend.name}' has no 'option spop-check': {what}",
        "add 'option spop-check', and 'check' to its servers",
    )


def server_timeout(setup: Setup, engine: EngineSetup) -> Found:
    """``timeout server`` below the processing timeout."""
    backend, processing = engine.backend, engine.config.processing_timeout
    limit = backend.time("server") if backend else None
    if backend and limit and processing and limit < processing:
        line = backend.last("timeout", "server")
        yield warning(
            line.at(0) if line else backend.location,
            f"'timeout server' of {limit:g} s is below the processing timeout of {processing:g} s",
            "make it longer: it closes the connections that wait for an answer",
        )


def client_timeout(setup: Setup, engine: EngineSetup) -> Found:
    """A processing timeout above ``timeout client``."""
    processing = engine.config.processing_timeout
    for line in engine.filters:
        limit = line.proxy.time("client")
        if processing and limit and processing > limit:
            yield warning(
                engine.place("timeout processing"),
                f"the processing timeout of {processing:g} s is above 'timeout client' of "
                f"{limit:g} s in {line.proxy.kind} '{line.proxy.name}'",
                "make it shorter: clients are gone before the agent answers",
            )


def server_maxconn(setup: Setup, engine: EngineSetup) -> Found:
    """``maxconn`` of a server below a written ``nbthread``."""
    threads = leading_integer(setup.haproxy.setting("nbthread")) if setup.haproxy else 0
    for line in engine.backend.lines if engine.backend else ():
        words = [word.text for word in line.words]
        if threads and line.keyword == "server" and "maxconn" in words[:-1]:
            index = words.index("maxconn")
            if words[index + 1].isdecimal() and 0 < int(words[index + 1]) < threads:
                yield warning(
                    line.at(index),
                    f"'maxconn {words[index + 1]}' is below 'nbthread {threads}'",
                    "each thread has connections of its own: allow one for each at least",
                )


def bufsize(haproxy: HAProxyConfig | None) -> int:
    """``tune.bufsize``."""
    return size_of(haproxy.setting("tune.bufsize") if haproxy else "") or DEFAULT_BUFSIZE


def frame_size(setup: Setup, engine: EngineSetup) -> Found:
    """``max-frame-size`` above what ``tune.bufsize`` allows."""
    limit = frame_limit(bufsize(setup.haproxy))
    size = engine.config.max_frame_size
    if setup.haproxy and size > limit and "max-frame-size" in _written(engine):
        yield error(
            engine.place("max-frame-size"),
            f"'max-frame-size {size}' is above tune.bufsize - 4, which is {limit}",
            f"write {limit}, or 'tune.bufsize {size + LENGTH_SIZE}' in {setup.haproxy.file}",
        )


def _written(engine: EngineSetup) -> dict[str, object]:
    return dict(engine.sections.agent.places) if engine.sections.agent else {}


def body_waits(setup: Setup, engine: EngineSetup) -> Found:
    """``req.body`` where nothing waits for the body."""
    for line in engine.filters:
        if line.proxy.last("option", "http-buffer-request") or any(
            "wait-for-body" in [word.text for word in other.words] for other in line.proxy.lines
        ):
            continue
        for message in engine.messages:
            for index, argument in enumerate(message.arguments):
                if _BODY.match(argument.expression.text):
                    yield warning(
                        engine.argument(message, index),
                        f"{line.proxy.kind} '{line.proxy.name}' does not wait for the body: "
                        f"'{argument.expression.text}' is what came with the headers",
                        "add 'option http-buffer-request' to it",
                    )


def fails_open(setup: Setup, engine: EngineSetup) -> Found:
    """Nothing denies requests when the agent is down."""
    if not engine.filters:
        return
    if any(_asks(engine, other) for line in engine.filters for other in line.proxy.lines):
        return
    variable = engine.config.set_on_error
    yield note(
        engine.config.location,
        "no rule asks whether the agent has answered: without an agent, all requests pass",
        f"to deny then, add 'http-request deny if {{ var({variable}) -m found }}'"
        if variable
        else "to deny then, set 'option set-on-error', and deny if its variable is found",
    )


def _asks(engine: EngineSetup, line: Line) -> bool:
    """Whether what becomes of a request depends on the agent's answer being there."""
    text = " ".join(word.text for word in line.words)
    found = _CONDITION.search(text)
    if found is None or _SHOWS.match(text):
        return False
    condition = found[0]
    if re.search(rf"nbsrv\({re.escape(engine.config.backend)}\)|srv_is_up", condition):
        return True
    if engine.config.set_on_error and engine.config.set_on_error in condition:
        return True
    absent = re.search(r"-m found|^ unless|! ?\{", condition)
    return absent is not None and f".{engine.config.var_prefix}." in condition


_CONDITION = re.compile(r"^acl .*| (?:if|unless) .*")
_SHOWS = re.compile(r"http-\S+ (?:set|add|del|replace)-|capture ")
"""Rules after which a request passes all the same."""
