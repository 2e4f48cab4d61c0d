"""``ipcbus serve``: run the WebSocket server that a TOML file describes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ipcbus.cli.need import SERVER, need

if TYPE_CHECKING:
    from ipcbus.web.server import Server

__all__ = ["announce", "serve"]


def serve(
    file: Annotated[Path, typer.Argument(metavar="APP.TOML", help="What to serve.", show_default=False)],
) -> None:
    """Run the WebSocket server that a TOML file describes, until SIGINT or SIGTERM."""
    need("serve", SERVER)
    from ipcbus.web.server import serve as engine

    raise typer.Exit(engine(file, ready=announce))


def announce(server: "Server") -> None:
    """Say where the server is to be found, at once even into a pipe."""
    typer.echo(f"serving at {server.url} - Ctrl-C stops it")
