"""From a variable that a handler sets to the lines of a frontend that use it.

The last word of its name decides: ``denied`` and its like deny, ``allowed`` and its like deny when
false, ``location`` redirects, ``add_headers`` and its like change headers. Any other variable of a
request becomes a header for the site, and of a response a field of the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from spop.engine.config.model import Event
from spop.engine.config.versions import HEADER_LISTS
from spop.haproxy_version import Version

_DENY = {
    "ban", "banned", "block", "blocked", "denied", "deny", "forbidden", "reject", "rejected"
}  # fmt: skip
_ALLOW = {"accept", "accepted", "allow", "allowed", "authorized", "ok", "permit", "permitted"}
_REDIRECT = {"location", "redirect"}
_HEADER_LISTS = {
    **dict.fromkeys(["add", "add_headers", "headers_add"], "add-headers-bin"),
    **dict.fromkeys(["set_headers", "headers_set"], "set-headers-bin"),
    **dict.fromkeys(
        ["remove", "remove_headers", "del_headers", "headers_remove"], "del-headers-bin"
    ),
}


def in_order(variables: Iterable[str]) -> list[str]:
    """Variables as ``txn.NAME``, in the order of their rules: headers are removed before others of
    the same names are added."""

    def removes(variable: str) -> bool:
        return _HEADER_LISTS.get(variable.split(".", 1)[1].lower()) == "del-headers-bin"

    return sorted(variables, key=lambda variable: (not removes(variable), variable))


def rules_of(variable: str, event: Event, version: Version) -> Iterator[str]:
    """The lines for a variable, by its whole name in HAProxy: ``txn.PREFIX.NAME``.

    A response's variable without a rule of its own has none: `is_logged`.
    """
    name = variable.split(".", 2)[2].lower()
    word = re.split(r"[._]", name)[-1]
    kind = "http-response" if event is Event.ON_HTTP_RESPONSE else "http-request"
    deny = f"{kind} deny deny_status 403"
    if word in _DENY:
        yield f"{deny} if {{ var({variable}) -m bool }}"
        yield f"# Fail closed, also when the agent does not answer:\n# {deny} unless {{ var({variable}) -m found }}"
    elif word in _ALLOW:
        yield f"{deny} if {{ var({variable}) -m found }} !{{ var({variable}) -m bool }}"
        yield f"# Fail closed, also when the agent does not answer:\n# {deny} unless {{ var({variable}) -m bool }}"
    elif action := _HEADER_LISTS.get(name):
        new = version.branch >= HEADER_LISTS
        since = "" if new else "# HAProxy 3.4 and later: "
        yield f"{since}{kind} {action} var({variable})"
    elif word in _REDIRECT and kind == "http-request":
        yield f"http-request redirect location %[var({variable})] if {{ var({variable}) -m found }}"
    elif kind == "http-request":
        yield f"http-request set-header {_header(name)} %[var({variable})]"


def is_logged(variable: str, event: Event, version: Version) -> bool:
    """Whether the variable is a field of the log: nothing else uses it."""
    return not any(rules_of(variable, event, version))


def _header(name: str) -> str:
    return "-".join(["X", *(part.capitalize() for part in re.split(r"[._]+", name) if part)])
