"""``ipcbus demo``: a chat room in the browser, or its self-check over every transport."""

from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    *,
    transport: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Use this one; may be repeated with --check.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the chat without a browser, once per transport, and say what went wrong.")
    ] = False,
    port: Annotated[
        int, typer.Option(help="Where to listen on the loopback address; 0: any free port.", min=0, max=65535)
    ] = 8765,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Run a chat room whose sockets and logic are separate processes; open the printed URL in two windows."""
    raise NotImplementedError
