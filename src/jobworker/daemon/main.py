"""The program `jobworker`: its commands and what they are told."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import jobworker
from jobworker.daemon import config
from jobworker.errors import JobWorkerError
from jobworker.job.service import (
    DEFAULT_CGROUP_ROOT,
    DEFAULT_LOG_DIR,
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
)
from jobworker.rpc.defaults import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobworker.auth.certs import Outcome

_PROGRAM: Final = "jobworker"
_CERTS: Final = Path("/etc/jobworker/certs")
# Whether they can be read is for those to say that read them.
_FILE: Final = click.Path(path_type=Path, dir_okay=False, readable=False)
_DIRECTORY: Final = click.Path(path_type=Path, file_okay=False, readable=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(jobworker.__version__, prog_name=_PROGRAM)
def cli() -> None:
    """Run commands on this host for remote clients.

    Clients use jobworker-cli.
    """


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say where a server keeps things; `check` looks at the same places."""
    options = [
        click.option(
            "--config",
            "config_file",
            type=_FILE,
            envvar="JOBWORKER_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            help=f"Configuration file.  [default: {config.DEFAULT_CONFIG}, if there is one]",
        ),
        _option("--listen", default=DEFAULT_ADDRESS, metavar="HOST:PORT",
                help="Address to serve on; port 0 takes a free one."),
        _option("--cert", type=_FILE, default=_CERTS / "jobworker.crt", help="Server certificate."),
        _option("--key", type=_FILE, default=_CERTS / "jobworker.key", help="Its private key."),
        _option("--ca", type=_FILE, default=_CERTS / "ca.crt",
                help="Certificate authority that clients' certificates are signed by."),
        _option("--log-dir", type=_DIRECTORY, default=DEFAULT_LOG_DIR,
                help="Where the output of jobs is kept."),
        _option("--state-dir", type=_DIRECTORY, default=DEFAULT_STATE_DIR,
                help="Where the registry of jobs is kept."),
        _option("--run-dir", type=_DIRECTORY, default=DEFAULT_RUN_DIR,
                help="Where server and shim meet."),
        _option("--cgroup-root", type=_DIRECTORY, default=DEFAULT_CGROUP_ROOT,
                help="A cgroup2 mount or a directory in one; mounted if it is missing or empty."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _option(flag: str, **attributes: Any) -> Callable[..., Any]:
    name = flag.removeprefix("--").replace("-", "_").upper()
    # JOBWORKER_CERT and its like are the client's; who has exported them must not serve with them.
    prefix = config.ENV_PREFIX if name not in ("CERT", "KEY", "CA") else config.SERVER_PREFIX
    return click.option(
        flag, envvar=f"{prefix}_{name}", show_default=True, show_envvar=True,
        **attributes,
    )  # fmt: skip


def _read_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    try:
        file = config.read(path)
        context.obj = file.policy()
    except JobWorkerError as error:
        raise click.UsageError(str(error)) from error
    context.default_map = file.defaults()


@cli.command()
@_settings
@_option("--audit-log", type=_FILE, help="Audit log.  [default: audit.log in the state directory]")
@click.option(
    "--cleanup",
    is_flag=True,
    help="When the server ends, remove its cgroup and unmount what it mounted.",
)
@click.pass_context
def serve(context: click.Context, /, listen: str, audit_log: Path | None, **given: Any) -> None:
    """Serve until SIGTERM or Ctrl-C. Jobs go on running and are found again by the next start."""
    # gRPC's core writes of refused handshakes and taken ports to stderr; what matters, we say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from jobworker.daemon.serve import Settings
    from jobworker.daemon.serve import serve as run

    host, port = config.parse_listen(listen)
    settings = Settings(
        host=host, port=port, policy=context.obj,
        audit_log=audit_log or given["state_dir"] / "audit.log", **given,
    )  # fmt: skip
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(run(settings, lambda address: click.echo(f"jobworker is ready on {address}")))


@cli.command()
@_settings
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to show it.",
)
def check(style: str, **places: Any) -> None:
    """Show whether jobs could run here, and which limits the kernel can apply.

    Exit status 1 if jobs could not run.
    """
    from jobworker.daemon import check as checking

    del places["listen"]
    found = checking.look(**places)
    click.echo(checking.as_json(found) if style == "json" else checking.as_text(found))
    sys.exit(0 if found.usable else 1)


@cli.group()
def certs() -> None:
    """Make certificates for development and tests."""


@certs.command()
@click.argument("directory", type=_DIRECTORY, default=Path("certs"))
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST",
    help="A further name or address of the server; may be repeated.",
)
@click.option("--force", is_flag=True, help="Issue the certificates anew, with new keys.")
def init(directory: Path, names: tuple[str, ...], force: bool) -> None:
    """Make a certificate authority, the server's certificate, and user_alpha's and user_bravo's.

    What is there and valid is kept. DIRECTORY is "certs" unless given.
    """
    from jobworker.auth import certs as making

    _say(making.init(directory, names=names, force=force))


@certs.command()
@click.argument("common_name")
@click.argument("directory", type=_DIRECTORY, default=Path("certs"))
def user(common_name: str, directory: Path) -> None:
    """Issue a client certificate for a further user.

    What the user may do is said in the server's configuration, under [users].
    """
    from jobworker.auth import certs as making

    _say(making.issue_client(directory, common_name))


def _say(outcome: Outcome) -> None:
    for path in outcome.written:
        click.echo(f"wrote {path}")
    for path in outcome.kept:
        click.echo(f"kept  {path}")


def main() -> None:
    """Run the program; errors that jobworker raises on purpose become one line and status 1."""
    try:
        cli(prog_name=_PROGRAM)
    except JobWorkerError as error:
        click.echo(f"{_PROGRAM}: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
