"""Fuzzes one target with Atheris, in the process that `run.py` starts, or runs single inputs.

    python fuzz/one.py TARGET EVERY [libFuzzer's options] [CORPUS...]

Each input runs with the compiled twins, and each of EVERY inputs with those in Python, too. Their
outcomes must be equal. A failure's input is written to a file; give that file to repeat it.
"""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

import atheris
from pair import compiled, in_python, plain, same
from targets import FOLLOWED, WITHOUT_TWINS


def followed(name: str) -> Any:
    """The target, with the branches of its modules in Python followed. The rest tells of itself in C.

    To follow a module takes a second for each thousand lines, so what these modules import is imported first.
    """
    importlib.import_module(f"targets.{name}")
    modules = FOLLOWED.get(name, ())
    for module in list(sys.modules):
        if module.startswith((*modules, "targets.")):
            del sys.modules[module]
    with atheris.instrument_imports():
        for module in modules:
            importlib.import_module(module)
    return importlib.import_module(f"targets.{name}")


def main() -> None:
    name, every = sys.argv[1], int(sys.argv[2])
    target = followed(name)
    ours, theirs = compiled(), None if name in WITHOUT_TWINS else in_python()
    count = 0

    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        found = target.outcome(ours, data)
        if theirs is not None and count % every == 0:
            expected = target.outcome(theirs, data)
            assert same(found, expected), f"\n{plain(found)}\n{plain(expected)}"

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # Byte by byte and with the dictionary one time in four.
        if seed % 4 == 0:
            return bytes(atheris.Mutate(data, max_size))
        return bytes(target.mutate(data, max_size, seed))

    options = [sys.argv[0], *sys.argv[3:]]
    atheris.Setup(options, run, custom_mutator=mutate)
    gc.freeze()  # The collector doesn't look at what stays.
    atheris.Fuzz()


if __name__ == "__main__":
    main()
