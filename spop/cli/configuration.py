"""The TOML file of ``spop serve --config``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from spop.errors import reason

SETTINGS = "settings"
"""The table of the agent's own settings; `spop.cli.settings` reads it."""

UNKNOWN = "spop.unknown_keys"
"""Of `context.meta`: texts about the keys that no option has."""


def read_configuration(
    context: click.Context, _: click.Parameter, path: Path | None
) -> Path | None:
    """Have the file's values be the command's defaults. Returns the path.

    What is to be said of unknown keys is left in `context.meta`, as there is no log yet.

    Raises:
        click.UsageError: the file can't be read, or a value is no good. The message begins with
            file, line and key.
    """
    if path is None:
        return None
    values, text = read_toml(path)
    parameters = _parameters(context)
    defaults = {}
    unknown = context.meta.setdefault(UNKNOWN, [])
    for key, value in values.items():
        if key == SETTINGS:
            continue
        place = f"{path}:{_line_of(key, text)}"
        parameter = parameters.get(key.replace("-", "_"))
        if parameter is None:
            unknown.append(f"{place}: there is no key {key!r}{_hint(key, parameters)}")
            continue
        defaults[parameter.name] = _checked(context, parameter, key, value, place)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The values of a file, and its text.

    Raises:
        click.UsageError: it can't be read.
    """
    import tomllib

    try:
        text = path.read_text("utf-8")
        return tomllib.loads(text), text
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{path}: {error}") from None


def _parameters(context: click.Context) -> dict[str, click.Parameter]:
    found = {p.name: p for p in context.command.params if p.name}
    found["agent"] = found.pop("target")
    for unfit in ("config", "check_config", "help"):
        found.pop(unfit, None)
    return found


def _checked(
    context: click.Context, parameter: click.Parameter, key: str, value: Any, place: str
) -> Any:
    if parameter.multiple and isinstance(value, str):
        value = [value]
    wanted = "true or false" if getattr(parameter, "is_flag", False) else None
    if wanted and not isinstance(value, bool):
        raise click.UsageError(f"{place}: {key}: {value!r} is not {wanted}")
    if isinstance(value, dict) or (isinstance(value, list) and not parameter.multiple):
        raise click.UsageError(f"{place}: {key}: one value is wanted, not {value!r}")
    if isinstance(value, bool) and not wanted:
        raise click.UsageError(f"{place}: {key}: {value!r} is no value for it")
    try:
        parameter.type_cast_value(context, value)
    except click.BadParameter as error:
        raise click.UsageError(f"{place}: {key}: {error.message}") from None
    return value


def _line_of(key: str, text: str) -> int:
    found = re.search(rf"(?m)^\s*(?:\[\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]", text)
    return text.count("\n", 0, found.start()) + found[0].count("\n") + 1 if found else 1


def _hint(key: str, known: dict[str, click.Parameter]) -> str:
    import difflib

    close = difflib.get_close_matches(key.replace("-", "_"), [*known, SETTINGS], 1)
    return f"; is it {close[0]!r}?" if close else ""
