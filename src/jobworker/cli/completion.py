"""``jobworker-cli completion``: what a shell needs to complete commands and flags."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from jobworker.cli.options import SectionedCommand
from jobworker.program import write

SHELLS = ("bash", "zsh", "fish")


class _Shell(click.Choice[str]):
    """One of the shells. If it is missing, the metavar in the message names them all."""

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        """Add nothing: click's list has a line for each, and messages here are one line."""
        del param, ctx
        return ""


@click.command(
    cls=SectionedCommand,
    short_help="Completion for your shell",
    options_metavar="[FLAGS]",
    epilog="""\b
bash, in ~/.bashrc:  eval "$(jobworker-cli completion bash)"
zsh, in ~/.zshrc:    eval "$(jobworker-cli completion zsh)"
fish, in ~/.config/fish/config.fish:  jobworker-cli completion fish | source
""",
)
@click.argument("shell", type=_Shell(SHELLS), metavar="bash|zsh|fish")
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands and flags."""
    program = ctx.find_root()
    name = str(program.info_name)
    script = get_completion_class(shell)
    assert script is not None  # noqa: S101 - click has them all
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    write(script(program.command, {}, name, variable).source())
