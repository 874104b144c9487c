"""``spop completion``: what makes a shell complete the command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes the words of the spop command.

    \b
    Examples:
      spop completion bash > ~/.local/share/bash-completion/completions/spop
      spop completion zsh > ~/.zfunc/_spop
      spop completion fish > ~/.config/fish/completions/spop.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "spop", "_SPOP_COMPLETE").source())
