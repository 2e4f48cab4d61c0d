"""``ipcbus serve``: run the WebSocket server that a TOML file describes."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    file: Annotated[Path, typer.Argument(metavar="APP.TOML", help="What to serve.", show_default=False)],
) -> None:
    """Run the WebSocket server that a TOML file describes, until SIGINT or SIGTERM."""
    from ipcbus.web.server import serve as engine

    engine(file)
