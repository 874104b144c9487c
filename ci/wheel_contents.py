"""Checks what is in wheels and sdists: python ci/wheel_contents.py FILE...

A wheel has no generated C, no tests and no symbols, is typed and small. A pure one is for every
Python and system. An sdist has all that its tests need.
"""

from __future__ import annotations

import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

LARGEST = 1_000_000
"""Bytes of a wheel."""

SDIST_HAS = (
    "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "mkdocs.yml", "pyproject.toml", "setup.py",
    "tests/conftest.py", "tests/wire.py", "docs/index.md", "examples/demo.py", "ci/smoke.py",
    "benchmarks/c/sink.c", "benchmarks/results/history.csv", "contrib/wireshark/spop.lua", "spop/_codec.pyx", "spop/_objects.pxd",
)  # fmt: skip


def main() -> None:
    found = [f"{path}: {problem}" for path in sys.argv[1:] for problem in problems(Path(path))]
    print("\n".join(found) or f"{len(sys.argv) - 1} files are as they should be")
    sys.exit(bool(found))


def problems(path: Path) -> Iterator[str]:
    """What is wrong with a wheel or an sdist."""
    return problems_of_wheel(path) if path.suffix == ".whl" else problems_of_sdist(path)


def problems_of_wheel(path: Path) -> Iterator[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        modules = [name for name in names if name.endswith((".so", ".pyd"))]
        for name in names:
            if not name.startswith(("spop/", "haproxy_spop-")) or name.endswith(
                (".c", ".pyx", ".pxd", ".pyc")
            ):
                yield f"{name} does not belong there"
        for name in ("spop/py.typed", "spop/server/status.html", "spop/compat/__main__.py"):
            if name not in names:
                yield f"{name} is missing"
        for name in modules:
            if has_symbols(wheel.read(name)):
                yield f"{name} is not stripped"
    pure = path.name.endswith("-py3-none-any.whl")
    if pure == bool(modules):
        yield f"it has {len(modules)} compiled modules"
    if path.stat().st_size > LARGEST:
        yield f"it has {path.stat().st_size} bytes"


def has_symbols(module: bytes) -> bool:
    """An ELF file has a table of symbols besides the one for the dynamic linker."""
    if not module.startswith(b"\x7fELF\x02\x01"):
        return False
    start = struct.unpack_from("<Q", module, 0x28)[0]
    size, count = struct.unpack_from("<HH", module, 0x3A)
    types = [struct.unpack_from("<I", module, start + i * size + 4)[0] for i in range(count)]
    return 2 in types  # SHT_SYMTAB


def problems_of_sdist(path: Path) -> Iterator[str]:
    """What is wrong with an sdist."""
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for name in SDIST_HAS:
        if name not in names:
            yield f"{name} is missing"
    for name in names:
        if name.endswith((".so", ".pyc")) or (name.startswith("spop/") and name.endswith(".c")):
            yield f"{name} does not belong there"


if __name__ == "__main__":
    main()
