"""Reads a configuration file as lines of words, each with its section and scope.

The `Reader` decodes the bytes, and handles comments, quotes, conditional blocks, the modifiers
``no`` and ``default``, scopes and sections. It does not know what the words of a line mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from spop.engine.config.conditionals import Surroundings, evaluate
from spop.engine.config.diagnostics import Collector, refusal
from spop.engine.config.model import Location
from spop.engine.config.versions import (
    DEFAULT,
    EMPTY_WORDS,
    FINAL_NEWLINE,
    JOINS_UNSET,
    Version,
    lacks,
)
from spop.engine.config.words import Word, split_words
from spop.engine.samples.errors import did_you_mean

_SPACE = " \t\v\f\r"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.:-]", re.ASCII)
_MODIFIABLE = (
    "option", "log", "busy-polling", "set-dumpable", "strict-limits", "insecure-fork-wanted",
    "numa-cpu-mapping",
)  # fmt: skip
_DIRECTIVES = (
    ".if", ".elif", ".else", ".endif", ".notice", ".warning", ".alert", ".diag",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a configuration file that has words.

    Attributes:
        words: the keyword and the words after it, without a modifier.
        scope: the last ``[name]`` before the line; None if there is none.
        section: the keyword of the line's section.
        opens: the line is the first of its section.
        modifier: the word before the keyword: ``no``, ``default`` or none.
    """

    file: str
    number: int
    words: tuple[Word, ...]
    scope: str | None = None
    section: str | None = None
    opens: bool = False
    modifier: str = ""

    @property
    def keyword(self) -> str:
        return self.words[0].text if self.words else ""

    @property
    def arguments(self) -> list[str]:
        """The words after the keyword. As in HAProxy, an empty word ends the line."""
        texts = [word.text for word in self.words[1:]]
        return texts[: texts.index("")] if "" in texts else texts

    def at(self, index: int, offset: int = 0) -> Location:
        """The location of a character of a word. The keyword has the index 0."""
        if index < len(self.words):
            return Location(self.file, self.number, self.words[index].column(offset))
        end = self.words[-1].columns[-1] if self.words else 1
        return Location(self.file, self.number, end)

    def take(self, most: int) -> list[str]:
        """The arguments, of which there may be at most so many.

        Raises:
            ConfigError: there are more.
        """
        if len(self.arguments) > most:
            unexpected = self.arguments[most]
            before = " ".join(word.text for word in self.words[: most + 1])
            raise refusal(self.at(most + 1), f"unexpected '{unexpected}' after '{before}'")
        return self.arguments

    @contextmanager
    def refusing(self, index: int) -> Iterator[None]:
        """Refuse a word where a ValueError is raised in the ``with`` statement."""
        try:
            yield
        except ValueError as error:
            raise refusal(self.at(index), str(error)) from None


def not_in_names(name: str) -> str | None:
    """The first character that HAProxy allows in no name of a section; None if there is none."""
    match = _NOT_IN_NAMES.search(name)
    return match[0] if match else None


@dataclass(slots=True)
class _Block:
    """A conditional block whose ``.endif`` was not read yet (section 2.4).

    Attributes:
        taken: the lines of its current branch are read.
        done: no later branch is read.
        in_else: its ``.else`` was read.
    """

    taken: bool
    done: bool
    in_else: bool = False


@dataclass(slots=True, eq=False)
class Reader:
    """Iterates over the lines of a configuration file.

    Args:
        data: the contents of the file.
        collector: is told of mistakes.
        sections: the keywords that open a section.
        version: the HAProxy that decides what is a mistake; None is 2.6.
        strict: report what HAProxy refuses: lines before the first section, modifiers of keywords
            that have none, and a missing newline at the end.
        environment: the variables of the environment; by default this process's. ``setenv`` and
            its like in a section ``global`` change it.
    """

    data: bytes | str
    file: str
    collector: Collector
    sections: Collection[str]
    version: Version | None = field(default=None, kw_only=True)
    strict: bool = field(default=True, kw_only=True)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ), kw_only=True)
    _number: int = field(default=0, init=False)
    _scope: str | None = field(default=None, init=False)
    _section: str | None = field(default=None, init=False)
    _section_name: str = field(default="", init=False)
    _blocks: list[_Block] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[Line]:
        for number, text in enumerate(self._lines(), 1):
            self._number = number
            with self.collector.collecting():
                if text.lstrip(_SPACE).startswith("["):
                    self._enter_scope(text)
                    continue
                words = split_words(
                    text,
                    self._variable,
                    self._at,
                    joins_unset=(self.version or DEFAULT).branch in JOINS_UNSET,
                )
                if not words or not words[0].text or self._directive(words):
                    continue
                line = self._in_section(self._modified(words))
                if line:
                    self._report_empty_word(line)
                    if line.section == "global":
                        self._change_environment(line)
                    yield line
        if self._blocks:
            self.collector.error(self._at(1), "an '.if' has no '.endif'")

    def _lines(self) -> Iterator[str]:
        """The lines, each up to its end or a NUL. HAProxy takes a NUL for the end of the file."""
        data = self.data
        text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
        lines = text.split("\n")
        last = lines.pop()
        for number, line in enumerate([*lines, last] if last else lines, 1):
            if "\0" in line:
                location = Location(self.file, number, line.index("\0") + 1)
                self.collector.error(location, "a NUL character")
            yield line.partition("\0")[0]
        if last and "\0" not in last and self.strict:
            self._report_missing_newline(Location(self.file, len(lines) + 1, len(last) + 1))

    def _report_missing_newline(self, location: Location) -> None:
        """A missing newline is an error since HAProxy 2.3, and a warning if no version is given."""
        message = "the last line has no end"
        if self.version is None:
            self.collector.warning(location, message, "HAProxy refuses it since 2.3")
        elif self.version.branch >= FINAL_NEWLINE:
            self.collector.error(location, message, "HAProxy takes the file for cut off")

    def _report_empty_word(self, line: Line) -> None:
        """An empty word ends a line. HAProxy refuses it since 3.3."""
        texts = [word.text for word in line.words]
        if self.version and self.version.branch >= EMPTY_WORDS and "" in texts:
            location = line.at(texts.index(""))
            hint = "is a variable of the environment unset?"
            self.collector.error(location, "an empty word ends the line", hint)

    def _at(self, column: int) -> Location:
        return Location(self.file, self._number, column)

    def _variable(self, name: str) -> str | None:
        internal = {
            ".FILE": self.file,
            ".LINE": str(self._number),
            ".SECTION": self._section_name,
        }
        return internal.get(name) if name.startswith(".") else self.environment.get(name)

    def _change_environment(self, line: Line) -> None:
        """Do what ``setenv``, ``presetenv``, ``unsetenv`` and ``resetenv`` do (section 3.1)."""
        names, environment = line.arguments, self.environment
        if line.keyword in ("setenv", "presetenv") and len(names) > 1:
            if line.keyword == "setenv" or names[0] not in environment:
                environment[names[0]] = names[1]
        elif line.keyword in ("unsetenv", "resetenv"):
            for name in list(environment):
                if (name in names) is (line.keyword == "unsetenv"):
                    del environment[name]

    def _enter_scope(self, text: str) -> None:
        """Read a line ``[NAME]`` (section 2.1 of the SPOE document)."""
        start = len(text) - len(text.lstrip(_SPACE)) + 1
        name, bracket, rest = text[start:].partition("]")
        if not bracket or not name:
            raise refusal(self._at(start), "a scope needs a name, as in '[name]'")
        if bad := not_in_names(name):
            raise refusal(
                self._at(start + name.index(bad) + 1), f"a scope's name can't have '{bad}'"
            )
        after = rest.lstrip(_SPACE)
        if after and after[0] != "#":
            column = len(text) - len(after) + 1
            raise refusal(self._at(column), f"unexpected '{after.rstrip()}' after a scope")
        self._scope = name

    def _modified(self, words: list[Word]) -> Line:
        """A line, its modifier apart."""
        modifier = words[0].text
        if modifier not in ("no", "default"):
            return Line(self.file, self._number, tuple(words), self._scope)
        # HAProxy up to 2.7 leaves the last word after "default" twice.
        twice = modifier == "default" and (self.version or DEFAULT).branch < (2, 8)
        kept = _shifted(words) if twice else tuple(words[1:])
        line = Line(self.file, self._number, kept, self._scope, modifier=modifier)
        if self.strict and line.keyword not in _MODIFIABLE:
            self.collector.error(
                self._at(words[0].column()), f"'{modifier}' goes before 'option' and 'log' only"
            )
        return line

    def _in_section(self, line: Line) -> Line | None:
        opens = line.keyword in self.sections
        if opens:
            self._section = line.keyword
            self._section_name = line.arguments[0] if line.arguments else line.keyword
        if self._section is None:
            if self.strict:
                self.collector.error(
                    line.at(0),
                    f"'{line.keyword}' is in no section",
                    self._hint_for_first_keyword(line.keyword),
                )
            return None
        return replace(line, section=self._section, opens=opens)

    def _hint_for_first_keyword(self, keyword: str) -> str | None:
        if keyword.startswith("\ufeff"):
            return "the file begins with a byte order mark"
        return did_you_mean(keyword, self.sections)

    # --- directives ---

    def _directive(self, words: list[Word]) -> bool:
        """Execute a directive. Returns True if the line has nothing else to read."""
        name = words[0].text
        location = self._at(words[0].column())
        line = Line(self.file, self._number, tuple(words))
        if name == ".if":
            self._if(line)
        elif name in (".elif", ".else", ".endif"):
            self._close_branch(line, location)
        elif any(not block.taken for block in self._blocks):
            return True
        elif name.startswith("."):
            self._report_text(line, location)
        else:
            return False
        if self.version and (reason := lacks("directives", self.version)):
            self.collector.error(location, reason, rule="version")
        return True

    def _if(self, line: Line) -> None:
        skipped = any(not block.taken for block in self._blocks)
        block = _Block(taken=False, done=True)
        self._blocks.append(block)
        if not skipped:
            block.taken = block.done = self._holds(line)

    def _close_branch(self, line: Line, location: Location) -> None:
        name = line.keyword
        if not self._blocks:
            raise refusal(location, f"'{name}' without an '.if'")
        block = self._blocks[-1]
        if name == ".endif":
            self._blocks.pop()
        elif block.in_else:
            raise refusal(location, f"'{name}' after '.else'")
        elif name == ".else":
            block.in_else = True
            block.taken = not block.done
        else:
            block.taken = not block.done and self._holds(line)
            block.done |= block.taken
        if name != ".elif":
            line.take(0)

    def _holds(self, line: Line) -> bool:
        """Whether the expression of an ``.if`` or ``.elif`` line is true."""
        words = line.words[1:]

        def at(offset: int) -> Location:
            columns = [column for word in words for column in word.columns]
            return self._at(columns[min(offset, len(columns) - 1)])

        surroundings = Surroundings(self.version or DEFAULT, at, self.environment)
        return evaluate(" ".join(word.text for word in words), surroundings)

    def _report_text(self, line: Line, location: Location) -> None:
        name = line.keyword
        if name not in _DIRECTIVES:
            raise refusal(location, f"unknown directive '{name}'", did_you_mean(name, _DIRECTIVES))
        if len(line.arguments) > 1:
            raise refusal(line.at(2), f"'{name}' takes one word", "put the text in quotes")
        text = "".join(line.arguments)
        if name == ".alert":
            raise refusal(location, text)
        if name == ".warning":
            self.collector.warning(location, text)


def _shifted(words: list[Word]) -> tuple[Word, ...]:
    """The words after ``default``, shifted as HAProxy up to 2.7 does."""
    texts = [word.text for word in words]
    end = texts.index("") if "" in texts else len(words)
    return (*words[1:end], *words[end - 1 :])
