"""``python -m spop.compat [--codec-only] SCRIPT [ARG]...``: run an agent of another package."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import NoReturn

from spop.compat import codecs, install, installed

MISSING = 2
"""The exit code where the package that the script needs is not installed."""


def main(arguments: list[str] | None = None) -> None:
    """Run a script as ``python SCRIPT`` does, with what it imports replaced."""
    parser = argparse.ArgumentParser(
        prog="python -m spop.compat",
        description="Run an agent that was written for haproxyspoa or spoe-forge.",
    )
    parser.add_argument(
        "--codec-only", action="store_true", help="keep the package's server, replace its codec"
    )
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", metavar="ARG", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)
    if not os.path.isfile(chosen.script):
        parser.error(f"no file {chosen.script}")
    _run(chosen.script, chosen.arguments, chosen.codec_only)


def _run(script: str, arguments: list[str], codec_only: bool) -> None:
    sys.argv = [script, *arguments]
    if not sys.flags.safe_path:
        # First of all, as the package may stand beside the script.
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    try:
        codecs.install() if codec_only else install()
    except ModuleNotFoundError as error:
        _end_without(error)
    try:
        runpy.run_path(os.path.abspath(script), run_name="__main__")
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in installed() or name not in codecs.PACKAGES:
            raise
        _end_without(error)


def _end_without(error: ModuleNotFoundError) -> NoReturn:
    print(f"spop.compat: {error.msg}", file=sys.stderr)
    sys.exit(MISSING)


if __name__ == "__main__":
    main()
