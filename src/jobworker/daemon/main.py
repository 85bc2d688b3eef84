"""The program `jobworker`: its commands and what they are told."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

import jobworker
from jobworker import garbage, program
from jobworker.cgroups.delegation import OWN
from jobworker.command import Group, Option, complete_commands
from jobworker.daemon import bounds, config
from jobworker.daemon.listen import parse_listen
from jobworker.errors import JobWorkerError
from jobworker.job.service import (
    DEFAULT_CGROUP_ROOT,
    DEFAULT_LOG_DIR,
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
)
from jobworker.rpc.defaults import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobworker.auth.certs import Outcome

_PROGRAM: Final = "jobworker"
_CERTS: Final = Path("/etc/jobworker/certs")
_CONFIG: Final = f"{__name__}.config"
"""The key of the configuration file's path in a click context."""
_PLACES: Final = ("cert", "key", "ca", "log_dir", "state_dir", "run_dir", "cgroup_root")
"""What `check` looks at; a bound has been looked at when it was read."""


class _Setting(Option):
    """A flag that names, when its value is wrong, the place where that was written."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return what messages call it."""
        source = ctx.get_parameter_source(self.name) if ctx and self.name else None
        if source is ParameterSource.ENVIRONMENT:
            return f"{self.envvar} in the environment"
        if source is ParameterSource.DEFAULT_MAP:
            assert ctx is not None  # noqa: S101 - it has told the source
            return f"{self.opts[0].removeprefix('--')} in {ctx.meta[_CONFIG]}"
        return f"'{self.opts[0]}'"


class _Absolute(click.Path):
    """A path that messages name in full: who reads them may be elsewhere."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(os.fsdecode(super().convert(value, param, ctx))).absolute()


class _CgroupRoot(_Absolute):
    """A path, or the word that stands for the server's own cgroup."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return OWN if value == str(OWN) else super().convert(value, param, ctx)


# Whether they can be read is for those to say that read them.
_FILE: Final = _Absolute(path_type=Path, dir_okay=False, readable=False)
_DIRECTORY: Final = _Absolute(path_type=Path, file_okay=False, readable=False)
_AS_TYPED: Final = click.Path(path_type=Path, file_okay=False, readable=False)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(jobworker.__version__, prog_name=_PROGRAM, message="%(prog)s %(version)s")
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
            cls=_Setting,
            envvar="JOBWORKER_CONFIG",
            show_envvar=True,
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            default_text=f"{config.DEFAULT_CONFIG}, if there is one",
            help="Configuration file; relative paths in it are relative to it.",
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
        _option("--cgroup-root", type=_CgroupRoot(file_okay=False, readable=False),
                default_text=f"the same if it was delegated, else {DEFAULT_CGROUP_ROOT}",
                help="A cgroup2 mount or a directory in one; mounted if it is missing or empty. "
                f'"{OWN}" stands for the cgroup that the server was started in.'),
        _option("--audit-log", type=_FILE, default_text="audit.log in the state directory",
                help="Where every decision and every change is written."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _bounds(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say how much is kept and may run."""
    for flag, (kind, default, text) in reversed(bounds.FLAGS.items()):
        metavar = kind.name.upper()
        command = _option(flag, type=kind, default=default, metavar=metavar, help=text)(command)
    return command


def _option(flag: str, **attributes: Any) -> Callable[..., Any]:
    name = flag.removeprefix("--").replace("-", "_").upper()
    # JOBWORKER_CERT and its like are the client's; who has exported them must not serve with them.
    prefix = config.ENV_PREFIX if name not in ("CERT", "KEY", "CA") else config.SERVER_PREFIX
    return click.option(
        flag, cls=_Setting, envvar=f"{prefix}_{name}", show_default=True, show_envvar=True,
        **attributes,
    )  # fmt: skip


def _read_config(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    try:
        file = config.read(path)
        context.obj = file.policy()
    except JobWorkerError as error:
        raise click.UsageError(str(error)) from error
    context.default_map = file.defaults()
    context.meta[_CONFIG] = file.path


@cli.command(short_help="Serve until SIGTERM or Ctrl-C")
@_settings
@_bounds
@click.option(
    "--cleanup",
    is_flag=True,
    help="When the server ends, remove its cgroup and unmount what it mounted.",
)
@click.pass_context
def serve(context: click.Context, /, listen: str, audit_log: Path | None, **given: Any) -> None:
    """Serve until SIGTERM or Ctrl-C. Jobs go on running and are found again by the next start.

    Finished jobs are removed, the one that ended first first, when they are older, more or larger
    than what is kept. A job that would be one more than may run is refused.
    """
    # gRPC's core writes of refused handshakes and taken ports to stderr; what matters, we say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    garbage.put_off()
    from jobworker.daemon.serve import Settings
    from jobworker.daemon.serve import serve as run

    host, port = parse_listen(listen)
    settings = Settings(
        host=host, port=port, policy=context.obj,
        audit_log=_audit_log(audit_log, given),
        retention=bounds.take_retention(given), running=bounds.take_running_limits(given), **given,
    )  # fmt: skip
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(run(settings, lambda address: program.write(f"jobworker is ready on {address}")))


def _audit_log(given: Path | None, places: Mapping[str, Any]) -> Path:
    state_dir: Path = places["state_dir"]
    return given or state_dir / "audit.log"


@cli.command(short_help="Show whether jobs could run here")
@_settings
@_bounds
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to show it.",
)
@click.pass_context
def check(
    context: click.Context, /, style: str, listen: str, audit_log: Path | None, **given: Any
) -> None:
    """Show whether jobs could run here, and which limits the kernel can apply.

    It takes the settings of serve. Exit status 1 if jobs could not run, 2 for a setting that serve
    would refuse.
    """
    from jobworker.daemon import check as checking

    host, port = parse_listen(listen)
    places = {name: given[name] for name in _PLACES}
    found = checking.look(host=host, port=port, audit_log=_audit_log(audit_log, given), **places)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    program.write(checking.as_json(found) if style == "json" else checking.as_text(found, width))
    context.exit(0 if found.usable else program.FAILED)


@cli.group(short_help="Make certificates for development")
def certs() -> None:
    """Make certificates for development and tests."""


@certs.command(short_help="Make an authority and the usual certificates")
@click.argument("directory", type=_AS_TYPED, default=Path("certs"))
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


@certs.command(short_help="Make a certificate for a further user")
@click.argument("common_name")
@click.argument("directory", type=_AS_TYPED, default=Path("certs"))
@click.option("--force", is_flag=True, help="Issue the certificate anew, with a new key.")
def user(common_name: str, directory: Path, force: bool) -> None:
    """Issue a client certificate for a further user.

    What the user may do is said in the server's configuration, under [users].
    """
    from jobworker.auth import certs as making

    _say(making.issue_client(directory, common_name, force=force))


@cli.command("help", short_help="Help about any command")
@click.argument("names", metavar="[COMMAND]...", nargs=-1, shell_complete=complete_commands)
@click.pass_context
def show_help(context: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of COMMAND, or of the program."""
    program.show_help(context, names)


def _say(outcome: Outcome) -> None:
    for path in outcome.written:
        program.write(f"wrote {path}")
    for path in outcome.kept:
        program.write(f"kept  {path}")


def main() -> None:
    """Run the program and exit."""
    if "_JOBWORKER_COMPLETE" in os.environ:
        cli.main(prog_name=_PROGRAM)
    sys.exit(program.run(cli, _PROGRAM, sys.argv[1:]))


if __name__ == "__main__":
    main()
