"""ACLs and conditions (sections 7.1, 7.2 and 7.4 of HAProxy's manual).

`compile_acl` and `compile_condition` compile the words of a line. The reader of configurations and
the rules of `spop.web` call them. Expressions and patterns are in `spop.engine.samples`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from spop.engine.samples import Expression, SampleError, compile_expression
from spop.engine.samples.errors import did_you_mean
from spop.engine.samples.expression import is_converter
from spop.engine.samples.patterns import (
    METHODS,
    Predicate,
    any_of,
    disjunction,
    parse_bound,
    read_map,
    read_patterns,
)
from spop.engine.samples.regexes import UnsupportedRegexError
from spop.engine.samples.types import CASTS, Cast, SampleType, cast, castable, unchanged
from spop.engine.samples.vocabulary import ENGINE, Remark, Vocabulary
from spop.engine.stream import Stream

__all__ = ["compile_acl", "compile_condition"]

Test = Callable[[Stream], bool]

_NAME = re.compile(r"[A-Za-z0-9_.:-]+", re.ASCII)
_CRITERION = re.compile(r"[A-Za-z0-9._:+-]+", re.ASCII)
ONE_METHOD = (3, 3)
"""The first branch of HAProxy that refuses a second ``-m``."""
_OPERATORS = ("eq", "ge", "gt", "le", "lt")

_DEFAULT_METHODS = {
    SampleType.BOOL: "bool",
    SampleType.INT: "int",
    SampleType.ADDR: "ip",
    SampleType.IPV4: "ip",
    SampleType.IPV6: "ip",
    SampleType.STR: "str",
}
"""The match method for a type of sample where no ``-m`` chooses one."""

_WITH_SUFFIXES = {
    "base": "base",
    "cook": "req.cook",
    "hdr": "req.hdr",
    "path": "path",
    "scook": "res.cook",
    "shdr": "res.hdr",
    "url": "url",
    "urlp": "urlp",
}
_SUFFIXES = ("beg", "dir", "dom", "end", "len", "reg", "sub")

CRITERIA: Mapping[str, tuple[str, str]] = {
    **{name: (source, "str") for name, source in _WITH_SUFFIXES.items()},
    **{
        f"{name}_{suffix}": (source, suffix)
        for name, source in _WITH_SUFFIXES.items()
        for suffix in _SUFFIXES
    },
    "method": ("method", "meth"),
    "req_ver": ("req.ver", "str"),
    "resp_ver": ("res.ver", "str"),
    "ssl_fc_sni_end": ("ssl_fc_sni", "end"),
    "ssl_fc_sni_reg": ("ssl_fc_sni", "reg"),
}
"""The names that only ACLs have: the fetch that a name stands for, and its match method."""

PREDEFINED = {
    "TRUE": "always_true",
    "FALSE": "always_false",
    "HTTP": "req.proto_http",
    "HTTP_1.0": "req.ver 1.0",
    "HTTP_1.1": "req.ver 1.1",
    "HTTP_2.0": "req.ver 2.0",
    "HTTP_CONTENT": "req.hdr_val(content-length) gt 0",
    "HTTP_URL_ABS": "url_reg ^[^/:]*://",
    "HTTP_URL_SLASH": "url_beg /",
    "HTTP_URL_STAR": "url *",
    "LOCALHOST": "src 127.0.0.1/8 ::1",
    "METH_CONNECT": "method CONNECT",
    "METH_DELETE": "method DELETE",
    "METH_GET": "method GET HEAD",
    "METH_HEAD": "method HEAD",
    "METH_OPTIONS": "method OPTIONS",
    "METH_POST": "method POST",
    "METH_PUT": "method PUT",
    "METH_TRACE": "method TRACE",
    "RDP_COOKIE": "req.rdp_cookie_cnt gt 0",
    "REQ_CONTENT": "req.len gt 0",
    "WAIT_END": "wait_end",
}
"""ACLs that need no declaration (section 7.4)."""


class AclError(SampleError):
    """An ACL or condition that HAProxy would refuse.

    Attributes:
        word_index: which of the words is wrong, from 0.
    """

    def __init__(self, problem: str, word_index: int, hint: str | None = None) -> None:
        super().__init__(problem, hint=hint)
        self.word_index = word_index


@dataclass(frozen=True, slots=True)
class Acl:
    """A named test. ACLs of the same name are alternatives. An anonymous ACL has no name.

    Attributes:
        variables: the whole names of the variables in its criterion, such as ``"txn.user"``.
        remarks: as of an `Expression`. Offsets are indexes of words.
    """

    name: str
    matches: Test = field(repr=False)
    variables: frozenset[str] = frozenset()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True)
class AclCondition:
    """A disjunction of conjunctions of ACLs, each of which may be negated (section 7.2).

    Attributes:
        holds: whether the words after ``if`` are true of a stream.
        variables: the whole names of the variables in its ACLs.
        remarks: those on its anonymous ACLs.
    """

    holds: Test = field(repr=False)
    variables: frozenset[str] = frozenset()
    remarks: tuple[Remark, ...] = ()


def compile_acl(words: Sequence[str], vocabulary: Vocabulary = ENGINE) -> Acl:
    """Compile the words after ``acl``: a name, a criterion, flags and patterns.

    Raises:
        AclError: HAProxy would refuse the ACL, or an address is a host name.
    """
    if len(words) < 2:
        raise AclError("an ACL needs a name and a criterion", max(len(words) - 1, 0))
    name = words[0]
    if not _NAME.fullmatch(name):
        raise AclError(f"'{name}': an ACL's name has letters, digits and '-_.:' only", 0)
    if name.lower() == "or":
        raise AclError(f"'{name}' can't name an ACL: conditions read it as an operator", 0)
    return _AclParser(words, 1, vocabulary).parse(name)


def compile_condition(
    words: Sequence[str], acls: Iterable[Acl] = (), vocabulary: Vocabulary = ENGINE
) -> AclCondition:
    """Compile the words after ``if`` or ``unless``.

    Args:
        words: an empty word ends the condition, as it ends a line of HAProxy's.
        acls: the declared ACLs. The predefined ones are known.

    Raises:
        AclError: HAProxy would refuse the condition.
    """
    if not words:
        raise AclError("a condition needs at least one ACL", 0)
    if "" in words:
        words = words[: words.index("")]
    declared: dict[str, list[Acl]] = {}
    for acl in acls:
        declared.setdefault(acl.name, []).append(acl)
    suites: list[list[Test]] = [[]]
    used: list[Acl] = []
    negated = False
    index = 0
    while index < len(words):
        word = words[index].lstrip("!")
        negated ^= (len(words[index]) - len(word)) % 2 == 1
        end = index + 1
        if word.lower() == "or" or word == "||":
            suites.append([])
            negated = False
        elif word:
            if word == "{":
                end = _closing_brace(words, index) + 1
                alternatives = [_AclParser(words[: end - 1], index + 1, vocabulary).parse()]
            else:
                alternatives = _named(word, declared, index, vocabulary)
            used += alternatives
            test = disjunction([acl.matches for acl in alternatives])
            suites[-1].append(_negation(test) if negated else test)
            negated = False
        index = end
    suites = [suite for suite in suites if suite]
    return AclCondition(
        disjunction([_all_of(suite) for suite in suites]),
        frozenset().union(*(acl.variables for acl in used)),
        tuple(remark for acl in used if not acl.name for remark in acl.remarks),
    )


def _closing_brace(words: Sequence[str], opening: int) -> int:
    for index in range(opening + 1, len(words)):
        if words[index] == "}":
            return index
    raise AclError("missing closing '}' in condition", opening)


def _named(
    name: str, declared: Mapping[str, list[Acl]], index: int, vocabulary: Vocabulary
) -> list[Acl]:
    if name in declared:
        return declared[name]
    if name in PREDEFINED:
        try:
            acl = compile_acl([name, *PREDEFINED[name].split()], vocabulary)
        except AclError as error:
            raise AclError(error.problem, index) from None
        remarks = (replace(remark, offset=index) for remark in acl.remarks)
        return [replace(acl, name="", remarks=tuple(remarks))]
    hint = did_you_mean(name, [*declared, *PREDEFINED])
    raise AclError(f"unknown ACL '{name}'", index, hint)


def _all_of(tests: Sequence[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]

    def all_hold(stream: Stream) -> bool:
        for test in tests:  # noqa: SIM110 - as in `disjunction`
            if not test(stream):
                return False
        return True

    return all_hold


def _negation(test: Test) -> Test:
    return lambda stream: not test(stream)


class _AclParser:
    """Reads a criterion, its flags and its patterns from the words of a line."""

    def __init__(self, words: Sequence[str], index: int, vocabulary: Vocabulary) -> None:
        self._words = words
        self._index = index
        self._vocabulary = vocabulary
        self._ignore_case = False
        self._as_map = False
        self._loaded = False
        self._chosen = False
        self._patterns: list[tuple[str, bool]] = []
        self._remarks: list[Remark] = []

    def parse(self, name: str = "") -> Acl:
        start = self._index
        if not self._peek():
            raise AclError("missing criterion of an ACL", max(start - 1, 0))
        expression, self._method = self._criterion()
        self._gives = expression.gives
        while (flag := self._peek()).startswith("-"):
            self._index += 1
            if flag == "--":
                break
            self._flag(flag)
        if self._method is None:
            self._refuse_without_method()
        if self._method in ("int", "len"):
            self._integer_patterns()
        else:
            while word := self._peek():
                self._add(word)
                self._index += 1
        remarks = tuple(replace(remark, offset=start) for remark in expression.remarks)
        remarks += tuple(self._remarks)
        return Acl(name, self._test(expression), expression.variables, remarks)

    def _peek(self) -> str:
        return self._words[self._index] if self._index < len(self._words) else ""

    def _criterion(self) -> tuple[Expression, str | None]:
        start = self._index
        text = self._words[start]
        match = _CRITERION.match(text)
        name = match[0] if match else ""
        criterion = CRITERIA.get(name) or self._vocabulary.criterion(name)
        source, method = criterion or (name, None)
        self._index += 1
        if criterion is None:
            # HAProxy applies converters that are words of their own, and also takes them as
            # patterns.
            following = takewhile(self._is_converter, self._words[self._index :])
            text = ",".join([text, *following])
        try:
            expression = compile_expression(source + text[len(name) :], self._vocabulary)
        except SampleError as error:
            raise AclError(error.problem, start, error.hint) from None
        if method is None or expression.converted:
            method = _DEFAULT_METHODS.get(expression.gives)
        return expression, method

    def _is_converter(self, word: str) -> bool:
        return is_converter(word, self._vocabulary)

    def _refuse_without_method(self) -> None:
        raise AclError(
            f"choose with '-m' how to match a sample of type {self._gives.value}", self._index - 1
        )

    def _flag(self, flag: str) -> None:
        if flag == "-i":
            self._ignore_case = True
        elif flag == "-M":
            self._as_map = True
        elif flag == "-m":
            self._choose_method(self._flag_value(flag))
        elif flag == "-f":
            self._load(self._flag_value(flag))
        elif flag == "-u":
            value = self._flag_value(flag)
            if not (value.isascii() and value.isdecimal()):
                raise AclError("the argument of '-u' is an integer", self._index - 1)
        elif flag != "-n":
            raise AclError(
                f"'{flag}' is no flag of ACLs; '--' goes before patterns that begin with '-'",
                self._index - 1,
            )

    def _flag_value(self, flag: str) -> str:
        value = self._peek()
        if not value:
            raise AclError(f"'{flag}' needs a value", self._index - 1)
        self._index += 1
        return value

    def _choose_method(self, name: str) -> None:
        index = self._index - 1
        if self._loaded:
            raise AclError("'-m' has to come before files of patterns", index)
        if self._chosen and self._vocabulary.branch >= ONE_METHOD:
            raise AclError("an ACL has one '-m'", index, "keep the last")
        if name not in METHODS or name == "meth":
            hint = did_you_mean(name, METHODS)
            raise AclError(f"unknown match method '{name}'", index, hint)
        takes = METHODS[name].takes
        if takes and not castable(self._gives, takes, self._vocabulary.branch):
            raise AclError(f"'{name}' can't match a sample of type {self._gives.value}", index)
        self._method = name
        self._chosen = True

    def _load(self, path: str) -> None:
        if self._method is None:
            self._refuse_without_method()
        try:
            keys = [key for key, _ in read_map(path)] if self._as_map else read_patterns(path)
        except ValueError as error:
            raise AclError(str(error), self._index - 1) from None
        self._loaded = True
        for key in keys:
            self._add(key, self._index - 1)

    def _add(self, word: str, index: int | None = None) -> None:
        assert self._method
        try:
            any_of(self._method, [(word, self._ignore_case)])
        except ValueError as error:
            where = self._index if index is None else index
            if not self._vocabulary.of_haproxy or not isinstance(error, UnsupportedRegexError):
                raise AclError(str(error), where) from None
            text = f"HAProxy takes '{word}'; this engine can't match it"
            self._remarks.append(Remark(text, where, missing=True))
            return
        self._patterns.append((word, self._ignore_case))

    def _integer_patterns(self) -> None:
        operator = "eq"
        while word := self._peek():
            if word in _OPERATORS:
                operator = word
            else:
                self._add(self._range(operator, word))
            self._index += 1

    def _range(self, operator: str, word: str) -> str:
        """The range of an operator and a number (section 7.1.2); a range stays as it is."""
        if operator == "eq" or ":" in word or "-" in word[1:]:
            return word
        try:
            number = parse_bound(word)
        except ValueError as error:
            raise AclError(str(error), self._index) from None
        return {
            "ge": f"{number}:",
            "gt": f"{number + 1}:",
            "le": f":{number}",
            "lt": f":{number - 1}",
        }[operator]

    def _test(self, expression: Expression) -> Test:
        assert self._method
        takes = METHODS[self._method].takes
        matches = any_of(self._method, self._patterns)
        if takes is None:
            return _found(expression)
        if expression.candidates is None:
            return _matching(expression.evaluate, CASTS[takes], matches)
        return _matching_any(expression.candidates, CASTS[takes], matches)


# The tests of an ACL are closures over all that is known when it is compiled. They don't call
# `cast` for a value that needs none: 0.11 µs in place of 0.16.


def _found(expression: Expression) -> Test:
    evaluate, candidates = expression.evaluate, expression.candidates
    if candidates is None:
        return lambda stream: evaluate(stream) is not None
    return lambda stream: any(True for _ in candidates(stream))


def _matching(
    evaluate: Callable[[Stream], Any], casts: Mapping[type, Cast], matches: Predicate
) -> Test:
    as_it_is = unchanged(casts)

    def test(stream: Stream) -> bool:
        value = evaluate(stream)
        if type(value) not in as_it_is:
            value = cast(value, casts)
            if value is None:
                return False
        return matches(value)

    return test


def _matching_any(
    candidates: Callable[[Stream], Iterable[Any]],
    casts: Mapping[type, Cast],
    matches: Predicate,
) -> Test:
    as_it_is = unchanged(casts)

    def test(stream: Stream) -> bool:
        for value in candidates(stream):
            if type(value) not in as_it_is:
                value = cast(value, casts)
                if value is None:
                    continue
            if matches(value):
                return True
        return False

    return test
