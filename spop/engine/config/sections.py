"""The three kinds of section of an SPOE file (sections 2.2 to 2.4 of the SPOE document).

Each section is filled line by line. `spop.engine.config.resolution` checks later whether the names
in it exist.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from spop.constants import MIN_FRAME_SIZE
from spop.engine.acl import Acl, AclCondition, AclError, compile_acl, compile_condition
from spop.engine.config.diagnostics import Collector, ConfigError, listed, refusal
from spop.engine.config.dialect import Dialect, Missing
from spop.engine.config.lines import Line, not_in_names
from spop.engine.config.log_targets import NOT_LOGGED_TO, read_log_target
from spop.engine.config.model import Argument, Event, Location, LogTarget
from spop.engine.config.values import seconds, unsigned
from spop.engine.config.versions import REPLACED_BY, ignores, lacks
from spop.engine.samples import SampleError, compile_expression
from spop.engine.samples.errors import did_you_mean
from spop.engine.samples.vocabulary import Remark

NOT_IN_VARIABLES = re.compile(r"[^A-Za-z0-9_.]", re.ASCII)

_HOW_TO_RUN = "missing='unavailable' runs the file with the sample not available"

Keywords = Mapping[str, Callable[..., None]]
"""The methods that read the lines of a section, by keyword."""

_NUMBERS: Mapping[str, tuple[range, str]] = {
    "max-waiting-frames": (range(1, 2**32), "number of frames, from 1"),
    "maxconnrate": (range(2**32), "number"),
    "maxerrrate": (range(2**32), "number"),
}
"""The numbers that HAProxy takes (section 2.2)."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a line that refers to something else, and its location."""

    name: str
    location: Location


class Section:
    """A section that is being read.

    Attributes:
        name: empty if HAProxy would refuse the name.
        objects: kind and name of what arguments name in a ``haproxy.cfg``, and where.
    """

    kind: ClassVar[str]
    KEYWORDS: ClassVar[Keywords]

    def __init__(self, line: Line, collector: Collector, dialect: Dialect) -> None:
        self.location: Location = line.at(1 if line.arguments else 0)
        self.name: str = ""
        self.objects: list[tuple[str, str, Location]] = []
        self._collector = collector
        self._dialect = dialect
        with collector.collecting():
            self.name = self._read_name(line)
        self._ignored(self.kind, line)

    def _read_name(self, line: Line) -> str:
        if not line.arguments:
            raise refusal(line.at(0), f"a name is missing after '{self.kind}'")
        (name,) = line.take(1)
        if bad := not_in_names(name):
            raise refusal(
                line.at(1, name.index(bad)),
                f"'{bad}' in '{name}': a name has letters, digits and '-_.:' only",
            )
        return name

    def take(self, line: Line) -> None:
        """Read a line of the section.

        Raises:
            ConfigError: HAProxy would refuse the line.
        """
        if line.keyword in self.KEYWORDS:
            self.KEYWORDS[line.keyword](self, line)
        elif line.keyword:
            self._take_unknown(line)

    def _ignored(self, keyword: str, line: Line, index: int = 0) -> bool:
        """Whether this HAProxy ignores a keyword. Reports that, or that it has none such."""
        version = self._dialect.version
        if version and (reason := lacks(keyword, version)):
            self._collector.error(line.at(index), reason, rule="version")
        if version is None or not ignores(keyword, version):
            return False
        self._collector.note(
            line.at(index),
            f"HAProxy ignores '{keyword}' since 3.1",
            f"in its place: {REPLACED_BY[keyword]}",
            "ignored",
        )
        return True

    def _report(self, remarks: Iterable[Remark], at: Callable[[int], Location]) -> None:
        """Report what is to be said of names that HAProxy has.

        Raises:
            ConfigError: the engine can't evaluate one, and that is an error.
        """
        for remark in remarks:
            location = at(remark.offset)
            self.objects += [(kind, name, location) for kind, name in remark.objects]
            if not remark.missing:
                self._collector.warning(location, remark.text, rule="doubtful")
            elif self._dialect.missing is Missing.ERROR:
                raise refusal(location, remark.text, _HOW_TO_RUN, "missing")
            else:
                self._collector.note(location, remark.text, rule="missing")

    def _take_unknown(self, line: Line) -> None:
        known = sorted(self.KEYWORDS)
        hint = did_you_mean(line.keyword, known) or f"it has {listed(known)}"
        raise refusal(line.at(0), f"unknown keyword '{line.keyword}' in {self.kind}", hint)


def _add_mentions(line: Line, mentions: list[Mention], what: str) -> None:
    for index, name in enumerate(line.arguments, 1):
        location = line.at(index)
        before = next((mention for mention in mentions if mention.name == name), None)
        if before:
            raise refusal(
                location, f"{what} '{name}' is already used in line {before.location.line}"
            )
        mentions.append(Mention(name, location))


class AgentSection(Section):
    """A ``spoe-agent`` section.

    Attributes:
        settings: fields of `AgentConfig`. A field whose line is missing has its default there.
        places: the last line of each keyword, such as ``"use-backend"`` and ``"option async"``.
    """

    kind = "spoe-agent"

    def __init__(self, line: Line, collector: Collector, dialect: Dialect) -> None:
        super().__init__(line, collector, dialect)
        self.messages: list[Mention] = []
        self.groups: list[Mention] = []
        self.timeouts: dict[str, float | None] = dict.fromkeys(("hello", "idle", "processing"))
        self.var_prefix: str | None = None
        self.registered: list[Mention] = []
        self.set_variables: dict[str, str] = {}
        self.log_targets: list[LogTarget] = []
        self.settings: dict[str, Any] = {"max_frame_size": dialect.frame_limit}
        self.places: dict[str, Location] = {}

    def take(self, line: Line) -> None:
        named = line.keyword in ("option", "timeout")
        keyword = " ".join([line.keyword, *line.arguments[:1]]) if named else line.keyword
        self.places[keyword] = line.at(0)
        if self._ignored(keyword, line):
            self._pass_over(line)
        else:
            super().take(line)

    def _pass_over(self, line: Line) -> None:
        # HAProxy reads no value that it ignores. It still counts the words, of rates excepted.
        if line.keyword in ("timeout", "option"):
            line.take(2 if line.keyword == "timeout" else 1)
        elif not line.arguments:
            raise refusal(line.at(1), f"'{line.keyword}' needs a number")
        elif line.keyword == "max-waiting-frames":
            line.take(1)

    def _use_backend(self, line: Line) -> None:
        self.settings["backend"] = self._value(line, "the name of a backend")

    def _messages(self, line: Line) -> None:
        _add_mentions(line, self.messages, "spoe-message")

    def _groups(self, line: Line) -> None:
        _add_mentions(line, self.groups, "spoe-group")

    def _value(self, line: Line, what: str) -> str:
        if not line.arguments:
            raise refusal(line.at(1), f"'{line.keyword}' needs {what}")
        return line.take(1)[0]

    def _number(self, line: Line) -> None:
        number = unsigned(self._value(line, "a number"))
        allowed, described = self._allowed(line.keyword)
        if number not in allowed:
            raise refusal(line.at(1), f"'{line.arguments[0]}' is no {described}")
        self.settings[line.keyword.replace("-", "_")] = number

    def _allowed(self, keyword: str) -> tuple[range, str]:
        if keyword != "max-frame-size":
            return _NUMBERS[keyword]
        limit = self._dialect.frame_limit
        described = f"size of frames, from {MIN_FRAME_SIZE} to {limit}, which is tune.bufsize - 4"
        return range(MIN_FRAME_SIZE, limit + 1), described

    def _register_var_names(self, line: Line) -> None:
        if not line.arguments:
            raise refusal(line.at(1), "'register-var-names' needs names of variables")
        for index, name in enumerate(line.arguments, 1):
            self.registered.append(Mention(name, line.at(index)))

    def _timeout(self, line: Line) -> None:
        which, *value = line.take(2) or [""]
        if which == "ack":  # The first release of SPOE had it; it was removed as redundant.
            raise refusal(
                line.at(1),
                "there is no 'timeout ack' any more: all it did is done by 'timeout processing'",
                "delete the line",
            )
        if which not in self.timeouts:
            hint = did_you_mean(which, self.timeouts)
            raise refusal(line.at(1), f"'timeout' is one of {listed(list(self.timeouts))}", hint)
        if not value:
            raise refusal(line.at(2), f"'timeout {which}' needs a time, as '100ms'")
        with line.refusing(2):
            self.timeouts[which] = seconds(value[0]) or None

    def _log(self, line: Line) -> None:
        if line.modifier == "no":
            line.take(0)
            self.log_targets.clear()
            self.settings["log_global"] = False
        elif line.arguments == ["global"]:
            self.settings["log_global"] = True
        else:
            self._add_log_target(line)

    def _add_log_target(self, line: Line) -> None:
        target = read_log_target(line, self._dialect.version)
        kind, at, name = target.address.partition("@")
        if at and kind in NOT_LOGGED_TO:
            if kind == "ring":
                self.objects.append((kind, name, line.at(1)))
            self._collector.note(
                line.at(1), f"the engine can't log to '{target.address}'", rule="log"
            )
        elif "format" in line.arguments:
            written = "raw" if target.address in ("stdout", "stderr") else "priority"
            if target.format != written:
                index = line.arguments.index("format") + 2
                message = f"the engine writes '{written}' there, not '{target.format}'"
                self._collector.note(line.at(index), message, rule="log")
        self.log_targets.append(target)

    def _option(self, line: Line) -> None:
        if not line.arguments:
            raise refusal(line.at(1), "'option' needs the name of one")
        name = line.arguments[0]
        # Section 2.2: "[no] option ..." is for the switches only.
        if name in _SWITCHES or (name in _FLAGS and line.modifier != "no"):
            line.take(1)
            field = "asynchronous" if name == "async" else name.replace("-", "_")
            self.settings[field] = line.modifier != "no"
        elif line.modifier == "no":
            raise refusal(line.at(1), f"'no' is not for the option '{name}'")
        elif name in _NAMING:
            self._set_name(name, line)
        else:
            known = [*_SWITCHES, *_FLAGS, *_NAMING]
            hint = did_you_mean(name, known) or f"there are {listed(known)}"
            raise refusal(line.at(1), f"unknown option '{name}'", hint)

    def _set_name(self, option: str, line: Line) -> None:
        if len(line.arguments) < 2:
            raise refusal(line.at(2), f"'option {option}' needs a name")
        name = line.take(2)[1]
        if bad := NOT_IN_VARIABLES.search(name):
            raise refusal(
                line.at(2, bad.start()),
                f"'{bad[0]}' in '{name}': a variable's name has letters, digits, '_' and '.' only",
            )
        if option == "var-prefix":
            self.var_prefix = name
        else:
            self.set_variables[option] = name

    KEYWORDS: ClassVar[Keywords] = {
        "groups": _groups,
        "log": _log,
        "max-frame-size": _number,
        "max-waiting-frames": _number,
        "maxconnrate": _number,
        "maxerrrate": _number,
        "messages": _messages,
        "option": _option,
        "register-var-names": _register_var_names,
        "timeout": _timeout,
        "use-backend": _use_backend,
    }


_SWITCHES = ("async", "dontlog-normal", "pipelining", "send-frag-payload")
_FLAGS = ("continue-on-error", "force-set-var")
_NAMING = ("set-on-error", "set-process-time", "set-total-time", "var-prefix")


class GroupSection(Section):
    """A ``spoe-group`` section."""

    kind = "spoe-group"

    def __init__(self, line: Line, collector: Collector, dialect: Dialect) -> None:
        super().__init__(line, collector, dialect)
        self.messages: list[Mention] = []

    def _messages(self, line: Line) -> None:
        _add_mentions(line, self.messages, "spoe-message")

    KEYWORDS: ClassVar[Keywords] = {"messages": _messages}


class MessageSection(Section):
    """A ``spoe-message`` section.

    Attributes:
        acls: the declared ACLs, used or not.
        event, condition, unless: those of the last ``event`` line. HAProxy ignores the others.
        variables: the variables in its expressions, ACLs and conditions.
    """

    kind = "spoe-message"

    def __init__(self, line: Line, collector: Collector, dialect: Dialect) -> None:
        super().__init__(line, collector, dialect)
        self.arguments: list[tuple[Argument, Location]] = []
        self.acls: list[Acl] = []
        self.event: Event | None = None
        self.condition: AclCondition | None = None
        self.unless: bool = False
        self.variables: set[str] = set()

    def _take_unknown(self, line: Line) -> None:
        # HAProxy refuses an unknown keyword in the other sections only.
        self._collector.warning(
            line.at(0),
            f"'{line.keyword}' means nothing in {self.kind}, and HAProxy passes over it",
            did_you_mean(line.keyword, self.KEYWORDS),
        )

    def _args(self, line: Line) -> None:
        for index, word in enumerate(line.arguments, 1):
            with self._collector.collecting():
                self._add_argument(line, index, word)

    def _add_argument(self, line: Line, index: int, word: str) -> None:
        name, equals, text = word.partition("=")
        if not equals:
            name, text = "", word
        start = len(word) - len(text)
        try:
            expression = compile_expression(text, self._dialect.vocabulary)
        except SampleError as error:
            location = line.at(index, start + error.offset)
            raise refusal(location, error.problem, error.hint) from None
        self._report(expression.remarks, lambda offset: line.at(index, start + offset))
        self.arguments.append((Argument(name, expression), line.at(index)))
        self.variables |= expression.variables

    def _acl(self, line: Line) -> None:
        self._ignored("acl", line)
        try:
            acl = compile_acl(line.arguments, self._dialect.vocabulary)
        except AclError as error:
            raise self._refused(line, 1, error) from None
        self._report(acl.remarks, lambda index: line.at(1 + index))
        self.acls.append(acl)
        self.variables |= acl.variables

    def _event(self, line: Line) -> None:
        if not line.arguments:
            raise refusal(line.at(1), "the name of an event is missing")
        name, *rest = line.arguments
        known = [event.value for event in Event]
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {listed(known)}"
            raise refusal(line.at(1), f"unknown event '{name}'", hint)
        if self.event:
            self._collector.warning(
                line.at(0),
                f"another 'event' line: the last one counts, and '{self.event.value}' is lost",
                "write a message for each event",
                "events",
            )
        self.event = Event(name)
        if rest:
            self._set_condition(line, rest[0])

    def _set_condition(self, line: Line, word: str) -> None:
        if word not in ("if", "unless"):
            raise refusal(line.at(2), f"'if' or 'unless' may follow an event, not '{word}'")
        self._ignored("conditions", line, 2)
        self.condition = self._compiled(line)
        self.unless = word == "unless"
        self.variables |= self.condition.variables

    def _compiled(self, line: Line) -> AclCondition:
        words = line.arguments[2:]
        if all(word.lower() in ("or", "||") or not word.strip("!") for word in words):
            # HAProxy takes such a condition, and finds no suite of ACLs that holds.
            self._collector.warning(line.at(2), "the condition names no ACL, so it never holds")
            return AclCondition(holds=lambda stream: False)
        try:
            condition = compile_condition(words, self.acls, self._dialect.vocabulary)
        except AclError as error:
            raise self._refused(line, 3, error) from None
        self._report(condition.remarks, lambda index: line.at(3 + index))
        return condition

    def _refused(self, line: Line, first: int, error: AclError) -> ConfigError:
        return refusal(line.at(first + error.word_index), error.problem, error.hint)

    KEYWORDS: ClassVar[Keywords] = {
        "acl": _acl,
        "args": _args,
        "event": _event,
    }


SECTIONS: Mapping[str, type[Section]] = {
    section.kind: section for section in (AgentSection, GroupSection, MessageSection)
}
"""The sections of an SPOE file by the keyword that opens them."""
