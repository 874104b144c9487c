"""``python -m spop`` and the ``spop`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.exit("spop: the command line needs its extra: pip install 'haproxy-spop[cli]'")
    from spop.cli import main as cli

    cli()


if __name__ == "__main__":
    main()
