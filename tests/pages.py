"""The whole files that a page of the documentation shows, and HAProxy run with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import haproxy
import trustme

from spop.engine.config import check_spoe
from spop.engine.config.versions import Version
from spop.engine.validate import EngineSetup, Setup, check_setup, read_haproxy_cfg
from spop.testing.haproxy import Process

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(
    r"<!-- (\w+): /etc/(?:haproxy|spop)/([\w.]+)(?: (since|until) (\d\.\d))? -->\n```\w*\n(.*?)```",
    re.DOTALL,
)


class File(NamedTuple):
    example: str
    name: str
    bound: str
    version: str
    text: str

    def fits(self, version: tuple[int, ...]) -> bool:
        limit = Version.of_haproxy(self.version).branch if self.version else (0, 0)
        return version[:2] <= limit if self.bound == "until" else version[:2] >= limit


class Page:
    """A page. A comment before each block of it names the example and the file."""

    def __init__(self, name: str) -> None:
        self.files = [File(*found) for found in _BLOCK.findall((DOCS / name).read_text())]
        self.examples = list(dict.fromkeys(file.example for file in self.files))

    def texts(self, example: str, version: tuple[int, ...]) -> dict[str, str]:
        """The text of each file of an example for a version; those for it alone come last."""
        found = [file for file in self.files if file.example == example and file.fits(version)]
        texts = {file.name: file.text for file in sorted(found, key=lambda file: file.bound)}
        if version < (3, 1):  # As the page says.
            texts = {name: text.replace("mode spop", "mode tcp") for name, text in texts.items()}
        return texts

    def run(
        self,
        binary: str,
        folder: Path,
        example: str,
        *,
        web: int = 1,
        agent: str = "",
        replace: Mapping[str, str] | None = None,
    ) -> Process:
        """HAProxy with the example's files, in which ports, paths and what `replace` has are replaced."""
        texts = self.texts(example, haproxy.version(binary))
        trustme.CA().cert_pem.write_to_path(folder / "agents.pem")
        cfg = texts["haproxy.cfg"].replace("/etc/haproxy", str(folder))
        cfg = re.sub(r"bind :\d+", "bind fd@FD", cfg).replace("127.0.0.1:8080", f"127.0.0.1:{web}")
        cfg = cfg.replace("127.0.0.1:9000", agent or "127.0.0.1:9")
        spoe = texts["spoe.cfg"]
        for old, new in (replace or {}).items():
            cfg, spoe = cfg.replace(old, new), spoe.replace(old, new)
        found = re.match(r"global\n(.*?)\n\n", cfg, re.DOTALL)  # HAProxy wants one such section.
        options, cfg = (found[1], cfg[found.end() :]) if found else ("", cfg)
        escaped = cfg.replace("{", "{{").replace("}", "}}").replace("fd@FD", "fd@{fd}")
        return Process(binary, folder, config=escaped, spoe=spoe, global_options=options)

    def objections(self, folder: Path, example: str, version: haproxy.Version) -> list[str]:
        """What `spop validate` finds in the example's files."""
        texts = self.texts(example, version)
        for name, text in texts.items():
            (folder / name).write_text(text)
        branch = f"{version.major}.{version.minor}"
        scope = re.findall(r"^\[(.*)\]", texts["spoe.cfg"])[0]
        report = check_spoe(folder / "spoe.cfg", scope, haproxy_version=branch)
        setup = Setup(
            str(folder / "spoe.cfg"),
            [EngineSetup(report.result(), report.sections)],
            read_haproxy_cfg(folder / "haproxy.cfg"),
            None,
            Version.of_haproxy(branch),
            [scope],
        )
        return [str(d) for d in check_setup(setup) if d.severity.value != "note"]
