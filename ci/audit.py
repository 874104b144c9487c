"""Licences and known holes of all that is installed beside this package.

    python ci/audit.py

A licence that is not known to be free to use fails. So does a hole that has a fix. Where the
advisory service can't be asked, that is said, and is no failure.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distributions

FREE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Python-2\.0|MPL|Mozilla Public"
    r"|Unlicense|Zope|Public Domain|CC0|Zlib|HPND|0BSD|LGPL|GPL-2\.0-or-later)\b",
    re.IGNORECASE,
)
Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def licence(package: Distribution) -> str:
    """What a package says of its licence, in one line."""
    data = package.metadata
    classifiers = [
        each.rpartition(" :: ")[2]
        for each in data.get_all("Classifier") or []
        if each.startswith("License ::")
    ]
    found = data.get("License-Expression") or ", ".join(classifiers) or data.get("License") or ""
    return str(found).strip().partition("\n")[0][:80] or "unknown"


def unfree() -> Iterator[str]:
    """Packages whose licence is none of the known ones. Prints all."""
    for package in sorted(distributions(), key=lambda each: each.metadata["Name"].lower()):
        name, text = package.metadata["Name"], licence(package)
        print(f"{name} {package.version}: {text}")
        if not FREE.search(text):
            yield f"{name}: licence {text!r}"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def holes(run: Run = run) -> Iterator[str]:
    """Known holes that have a fix, as `pip-audit` tells. Prints how many packages it asked for."""
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--format=json"]
    try:
        done = run([*command, "--progress-spinner=off"])
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError) as error:
        why = error if isinstance(error, subprocess.TimeoutExpired) else last_line(done.stderr)
        print(f"known holes: not checked, the advisory service can't be asked: {why}")
        return
    asked = [each for each in packages if "vulns" in each]
    print(f"known holes: asked for {len(asked)} of {len(packages)} packages", end="; ")
    print("the service does not know the others" if len(asked) < len(packages) else "all")
    for package in asked:
        for hole in package["vulns"]:
            if hole["fix_versions"]:
                yield f"{package['name']}: {hole['id']}, mended in {hole['fix_versions'][0]}"


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:200]


def main() -> int:
    found = [*unfree(), *holes()]
    print(*found, sep="\n", end="\n" * bool(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
