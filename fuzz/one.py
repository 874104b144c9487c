"""Fuzzes one target with Atheris, in the process that `run.py` starts, or runs single inputs.

    python fuzz/one.py TARGET EVERY [libFuzzer's options] [CORPUS...]

Each input runs with the compiled twins, and each of EVERY inputs with those in Python, too. Their
outcomes must be equal. A failure's input is written to a file; give that file to repeat it.
"""

from __future__ import annotations

import importlib
import sys

import atheris

# What has no compiled twin is followed branch by branch. The rest tells of itself in C.
for name in ("dpkt", "spop.agent", "spop.codec"):
    importlib.import_module(name)
for name in ("spop.connection", "spop.handshake"):
    sys.modules.pop(name, None)
with atheris.instrument_imports():
    for name in ("spop.connection", "spop.cli.capture", "spop.engine.config.spoe"):
        importlib.import_module(name)

from pair import compiled, in_python, plain  # noqa: E402
from targets import WITHOUT_TWINS  # noqa: E402


def main() -> None:
    name, every = sys.argv[1], int(sys.argv[2])
    target = importlib.import_module(f"targets.{name}")
    ours, theirs = compiled(), None if name in WITHOUT_TWINS else in_python()
    count = 0

    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        found = target.outcome(ours, data)
        if theirs is not None and count % every == 0:
            expected = target.outcome(theirs, data)
            assert plain(found) == plain(expected), f"\n{found}\n{expected}"

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # Byte by byte and with the dictionary one time in four.
        if seed % 4 == 0:
            return bytes(atheris.Mutate(data, max_size))
        return bytes(target.mutate(data, max_size, seed))

    options = [sys.argv[0], *sys.argv[3:]]
    atheris.Setup(options, run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
