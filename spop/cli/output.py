"""What a command does with a terminal, pipe or file that can't take its output."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any

import click

from spop.errors import reason

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Main(click.Group):
    """The command. Its output never ends in a traceback.

    A mistake is one line. A character that the output's encoding lacks is shown as an escape, for
    example ``\\udcff``. A reader that has seen enough ends the command with status 0. A full disk
    is an error.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _open_missing()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        output = sys.stdout
        try:
            return super().main(*args, **kwargs)
        except SystemExit:
            if sys.stdout is not output:  # click has found that nobody reads it.
                _discard_output()
                sys.exit(0)
            raise
        except OSError as error:
            if error.errno not in _NO_ROOM or error.filename is not None:
                raise
            _discard_output()
            click.echo(f"Error: cannot write to standard output: {reason(error)}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:  # One line says it. click would print four.
            line = error.format_message()
            if isinstance(error, click.MissingParameter) and error.ctx:
                line = f"{line.rstrip('.')}: see {error.ctx.command_path} --help"
            click.echo(f"Error: {line}", err=True)
            ctx.exit(error.exit_code)


def _open_missing() -> None:
    """Open the null device for each standard stream that was closed.

    It takes the stream's own descriptor, which no socket gets then.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process.


def _discard_output() -> None:
    """Lose what is still in the buffer, which Python would write at its end."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
