"""An agent's own settings: a dataclass, filled from a table of TOML and from the environment."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import ipaddress
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PREFIX = "SPOP_SETTINGS__"
"""How the environment's names of settings begin. `__` stands between the keys of nested ones."""

_TEXTS: tuple[type, ...] = (
    Path,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)
"""Types that are made from text."""

Place = Callable[[str], str]
"""File and line of a key."""


class _Text(str):
    """A value as the environment has it."""


class SettingsError(ValueError):
    """A setting is missing or can't be used. The message has place, key and reason."""


class Source(typing.NamedTuple):
    """A table of settings.

    Attributes:
        place: where a key stands, for errors.
    """

    name: str
    table: Mapping[str, Any]
    place: Place


def _variable(path: str) -> str:
    """The environment's name of a setting."""
    return PREFIX + re.sub(r"[.-]", lambda found: "__" if found[0] == "." else "_", path.upper())


def environment(variables: Mapping[str, str]) -> Source:
    """The settings that environment variables have.

    Raises:
        SettingsError: one variable has a table, and another a key of it.
    """
    table: dict[str, Any] = {}
    for name in sorted(variables):  # So that a table comes before its keys.
        if name.startswith(PREFIX):
            path = name.removeprefix(PREFIX).lower().split("__")
            inner = table
            for depth, key in enumerate(path[:-1], 1):
                inner = inner.setdefault(key, {})
                if isinstance(inner, str):
                    whole = _variable(".".join(path[:depth]))
                    raise SettingsError(f"{name}: {whole} is set, too; one of the two is needed")
            inner[path[-1]] = _Text(variables[name])
    return Source("environment", table, _variable)


def fill(kind: type, *sources: Source) -> Any:
    """An instance of the dataclass `kind`. Of a setting with several sources the last counts, of
    a table each key by itself.

    Raises:
        SettingsError: a key is unknown, a value is of another type or refused by the dataclass,
            or a field without a default is set nowhere.
    """
    table: dict[str, Any] = {}
    for source in sources:
        table = _merged(table, source.table)
    whole = Source("", table, functools.partial(_place_of, sources=sources))
    return _made(kind, _values(kind, table, whole, ""), "", whole)


def _merged(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables as one. Where both have a value, that of `other` counts."""
    merged = dict(table)
    for name, value in other.items():
        key = _key_in(table, name)
        there = merged.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            value = _merged(there, value)
        merged[key] = value
    return merged


def _key_in(table: Mapping[str, Any], name: str) -> str:
    """How a table writes a key, with "-" or "_"; `name` where it has none."""
    same = (each for each in table if each.replace("-", "_") == name.replace("-", "_"))
    return name if name in table else next(same, name)


def _values(kind: type, table: Mapping[str, Any], source: Source, outer: str) -> dict[str, Any]:
    fields = {each.name: each for each in dataclasses.fields(kind) if each.init}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        name, path = key.replace("-", "_"), f"{outer}{key}"
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"; is it {close[0]!r}?" if close else ""
            raise SettingsError(f"{source.place(path)}there is no setting {path!r}{hint}")
        try:
            values[name] = _converted(hints[name], value, source, path)
        except SettingsError:
            raise
        except ValueError as error:
            raise SettingsError(f"{source.place(path)}settings.{path}: {error}") from None
    return values


def _made(kind: type, values: dict[str, Any], outer: str, source: Source) -> Any:
    where = source.place(outer.rstrip("."))
    for each in dataclasses.fields(kind):
        has_default = each.default is not dataclasses.MISSING
        has_default = has_default or each.default_factory is not dataclasses.MISSING
        if each.init and not has_default and each.name not in values:
            path = f"{outer}{each.name}"
            raise SettingsError(
                f"{where}settings.{path} is missing: set {path} in the file's table [settings] "
                f"or {_variable(path)}"
            )
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        key, colon, reason = str(error).partition(": ")
        if colon and any(each.name == key for each in dataclasses.fields(kind)):
            where = source.place(outer + key)
            raise SettingsError(f"{where}settings.{outer}{key}: {reason}") from None
        name = ".".join(["settings", *filter(None, [outer.rstrip(".")])])
        raise SettingsError(f"{where}{name}: {error}") from None


def _place_of(key: str, sources: tuple[Source, ...]) -> str:
    """Where the last source that has a key has it, or else where the file has the table, with a
    colon behind it."""
    for source in reversed(sources):
        table, written = source.table, list[str]()
        for name in key.split("."):
            there = _key_in(table, name)
            if there not in table:
                break
            written.append(there)
            table = table[there] if isinstance(table[there], Mapping) else {}
        else:
            return f"{source.place('.'.join(written))}: "
    return next((f"{each.place(key)}: " for each in sources if each.place is not _variable), "")


def _converted(hint: Any, value: Any, source: Source, path: str) -> Any:
    """A value as its field has it.

    Raises:
        ValueError: it is of another type. The message says which is needed.
    """
    if hint is Any or hint is object:
        return str(value) if isinstance(value, _Text) else value
    if isinstance(value, _Text):
        value = _parsed(hint, str(value))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _converted(args[0], value, source, path)
    if origin in (typing.Union, types.UnionType):
        return _of_union(args, value, source, path)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin in (list, tuple, set, frozenset):
        return _of_list(origin, args, value, source, path)
    if origin is dict and isinstance(value, Mapping):
        member = args[1] if len(args) == 2 else Any
        return {k: _converted(member, v, source, f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _made(hint, _values(hint, value, source, f"{path}."), f"{path}.", source)
    return _of_class(origin or hint, value)


def _of_union(args: tuple[Any, ...], value: Any, source: Source, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [member for member in args if member is not type(None)]
    if len(members) == 1:  # Its errors have their place already.
        return _converted(members[0], value, source, path)
    reasons = []
    for member in members:
        try:
            return _converted(member, value, source, path)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


def _of_list(origin: Any, args: tuple[Any, ...], value: Any, source: Source, path: str) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"a list is needed, not {value!r}")
    repeated = origin is not tuple or len(args) != 2 or args[1] is ...
    member = args[0] if args else Any
    if not repeated or (origin is tuple and len(args) > 2):
        if len(args) != len(value):
            raise ValueError(f"{len(args)} values are needed, not {len(value)}")
        return tuple(
            _converted(hint, each, source, path) for hint, each in zip(args, value, strict=True)
        )
    return origin(_converted(member, each, source, path) for each in value)


def _of_class(kind: Any, value: Any) -> Any:
    if not isinstance(kind, type):
        return value
    if issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(repr(each.value) for each in kind)
            raise ValueError(f"{value!r} is not one of {known}") from None
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and isinstance(value, bool):
        raise ValueError(f"an int is needed, not {value!r}")
    if isinstance(value, kind):
        return value
    if kind in _TEXTS and isinstance(value, str):
        make: Callable[[str], Any] = kind
        return make(value)
    raise ValueError(f"{kind.__name__} is needed, not {value!r}")


def _parsed(hint: Any, text: str) -> Any:
    """A value of the environment: text where text is taken, else as TOML has it."""
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    takes_text = any(m is str or (isinstance(m, type) and issubclass(m, _TEXTS)) for m in members)
    if takes_text or any(_is_enum(member) for member in members):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_enum(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return any(isinstance(each, str) for each in typing.get_args(hint))
    return isinstance(hint, type) and issubclass(hint, enum.Enum)
