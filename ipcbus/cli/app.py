"""The application: the subcommands, and what becomes of their errors."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ipcbus import __version__
from ipcbus.cli.bench import bench
from ipcbus.cli.bus import bus
from ipcbus.cli.check import check
from ipcbus.cli.demo import demo
from ipcbus.cli.doctor import doctor
from ipcbus.cli.recv import recv
from ipcbus.cli.send import send
from ipcbus.cli.serve import serve
from ipcbus.cli.tap import tap
from ipcbus.cli.transports import transports
from ipcbus.errors import (
    ConfigError,
    InsecureConfiguration,
    IpcbusError,
    UnknownSerializer,
    UnknownTransport,
    Unsupported,
)

__all__ = ["app"]

_MISCONFIGURED = (ConfigError, InsecureConfiguration, UnknownSerializer, UnknownTransport, Unsupported)


class _Commands(TyperGroup):
    """Turns the errors of ipcbus into one line on stderr and an exit code; a traceback would say nothing more."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except IpcbusError as error:
            typer.echo(f"ipcbus: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, _MISCONFIGURED) else 1) from error


app = typer.Typer(
    cls=_Commands,
    help="One Channel over interchangeable transports: look at them, try objects on them, run servers over them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback of ours is to be reported as it is
)
"""The application, for tests and for programs that mount it in their own."""

for _command in (transports, doctor, check, bench, demo, serve, send, recv, tap):
    app.command()(_command)
app.add_typer(bus, name="bus")


def _show_version(wanted: bool) -> None:  # noqa: FBT001  the option parser passes the flag by position
    if wanted:
        typer.echo(f"ipcbus {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has done the work
