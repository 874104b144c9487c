"""Make the tables of HAProxy's fetches, converters and ACLs from the programs themselves.

    python ci/haproxy_keywords.py MANUAL HAPROXY...

MANUAL is ``doc/configuration.txt`` of HAProxy 2.2, which can't print its keywords. Each HAPROXY is
a program of 2.6 or later, built with TLS; one without it lacks keywords and is refused. The result
is ``spop/engine/haproxy/keywords.tsv``. Each row has

    kind  name  arguments  type  places-or-input  first-version  last-version

Kind is ``f``, ``c`` or ``a``: a fetch, a converter, an ACL. Arguments, types and places are written
as in ``haproxy -dKsmp,cnv,acl``. There, a converter's types are *output => input*. An ACL has its
fetch in place of the type, and its match method in place of the input.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).parent.parent / "spop" / "engine" / "haproxy" / "keywords.tsv"
MANUAL_VERSION = "2.2"
MANUAL_LEAVES_OUT = {
    ("c", "url_enc"),
    ("f", "fcgi.docroot"),
    ("f", "fcgi.index"),
    ("f", "pathq"),
    ("f", "ssl_c_chain_der"),
    ("f", "ssl_s_chain_der"),
}
"""Kind and name of what HAProxy 2.2.9 takes all the same."""

_FETCH = re.compile(r"\[ ([Y. ]+) \] ([^(: ]+)(?:\((.*)\))?: (\w+)")
_CONVERTER = re.compile(r"([^(: ]+)(?:\((.*)\))?: (\w+) => (\w+)")
_ACL = re.compile(r"(\S+) = (\S+) -m (\w+)")
_HEADING = re.compile(r"([a-z][\w.+-]*)(?:\(.*)?(?:\s*:.*)?")


class Keyword(NamedTuple):
    kind: str
    name: str
    arguments: str
    type: str
    other: str


class Refused(Exception):
    """Why a program is no source of keywords."""


def main() -> None:
    manual, *programs = sys.argv[1:]
    tables = dict(sorted(map(read, programs), key=lambda table: numbers(table[0])))
    oldest = next(iter(tables.values()))
    tables = {MANUAL_VERSION: set(of_manual(Path(manual).read_text(), oldest)), **tables}
    rows = sorted("\t".join(row) for row in ranges(tables))
    TARGET.write_text("\n".join(["# " + " ".join(tables), *rows, ""]))
    print(f"{TARGET}: {len(rows)} rows")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def read(program: str) -> tuple[str, set[Keyword]]:
    """The version of a program, and its keywords."""
    shown = subprocess.run([program, "-vv"], capture_output=True, text=True, check=True).stdout
    if not re.search("Built with (OpenSSL|SSL library) version", shown):
        raise Refused(f"{program} is built without TLS")
    version = re.search(r"version (\d+\.\d+)", shown)
    if version is None:
        raise Refused(f"{program} tells no version")
    command = [program, "-dKsmp,cnv,acl", "-q", "-c", "-f", "/dev/null"]
    dump = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return version[1], set(keywords(dump))


def keywords(dump: str) -> Iterator[Keyword]:
    """The keywords that a program prints."""
    for line in dump.splitlines():
        if found := _FETCH.fullmatch(line):
            places, name, arguments, gives = found.groups()
            yield Keyword("f", name, arguments or "", gives, places.replace(" ", ""))
        elif found := _CONVERTER.fullmatch(line):
            name, arguments, gives, takes = found.groups()
            yield Keyword("c", name, arguments or "", gives, takes)
        elif found := _ACL.fullmatch(line):
            yield Keyword("a", found[1], "", found[2], found[3])
        elif line and not line.startswith("#"):
            raise Refused(f"a line that is no keyword: {line}")


def of_manual(manual: str, next_version: set[Keyword]) -> Iterator[Keyword]:
    """The keywords that a manual describes, with what the next version prints of them.

    The manual does not tell the types and places of all. 2.6 still has all that 2.2 had.
    """
    described = MANUAL_LEAVES_OUT | set(headings(manual))
    for keyword in next_version:
        kind, name = ("f", keyword.type) if keyword.kind == "a" else keyword[:2]
        if (kind, name) in described or (kind == "c" and name.startswith("map_")):
            yield keyword


def headings(manual: str) -> Iterator[tuple[str, str]]:
    """Kind and name of the converters and fetches that a manual has a heading for."""
    kind = ""
    for line in manual.splitlines():
        if re.match(r"\d+\.\d", line):
            kind = "c" if line.startswith("7.3.1.") else "f" if line.startswith("7.3.") else ""
        elif kind and (heading := _HEADING.fullmatch(line)):
            yield kind, heading[1]


def ranges(tables: Mapping[str, set[Keyword]]) -> Iterator[tuple[str, ...]]:
    """Each keyword with the first and the last of the versions in a row that have it."""
    versions = list(tables)
    for keyword in set().union(*tables.values()):
        first = None
        for version, following in zip(versions, [*versions[1:], None], strict=True):
            if keyword in tables[version]:
                first = first or version
                if following is None or keyword not in tables[following]:
                    yield (*keyword, first, version)
                    first = None


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(str(error))
