"""``ipcbus demo``: a chat room in the browser, or its self-check over every transport."""

from typing import TYPE_CHECKING, Annotated

import typer

from ipcbus.errors import ConfigError

if TYPE_CHECKING:
    from ipcbus.demo.selfcheck import Row
    from ipcbus.web.server import Server

__all__ = ["demo"]


def demo(
    *,
    transport: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="How messages travel between the processes. With --check, several may be given."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Run the chat over each transport with clients of its own, and exit with 1 if one fails."),
    ] = False,
    port: Annotated[int, typer.Option(help="Where to listen on this machine; 0 picks a free port.", min=0, max=65535)] = 8080,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Run a chat whose sockets and logic live in separate processes; open the page in two windows."""
    if check:
        _check(transport)
        return
    if transport and len(transport) > 1:
        raise ConfigError(f"one chat runs over one transport, but {len(transport)} are given; --check takes several")
    from ipcbus.demo import chat_config
    from ipcbus.web.server import serve

    def ready(server: "Server") -> None:
        typer.echo(f"the chat is at {server.url} - open it in two windows; Ctrl-C ends it")
        if browse:
            typer.launch(server.url)

    config = chat_config(transport[0] if transport else "auto:", bind=f"127.0.0.1:{port}")
    raise typer.Exit(serve(config, ready=ready))


def _check(transports: list[str] | None) -> None:
    from rich.console import Console

    from ipcbus.demo.selfcheck import run_check

    rows = run_check(transports)
    Console().print(_table(rows))
    if not rows:
        raise ConfigError("no transport that crosses processes is installed; run: ipcbus transports")
    if wrong := [row.url for row in rows if not row.ok]:
        typer.echo(f"ipcbus: the chat failed over {', '.join(wrong)}", err=True)
        raise typer.Exit(1)


def _table(rows: "list[Row]") -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("transport", "chat", "messages", "seconds", "what failed", box=SIMPLE_HEAD, padding=(0, 1))
    for row in rows:
        state = Text("ok", "green") if row.ok else Text("FAILED", "bold red")
        table.add_row(Text(row.url), state, str(row.messages), f"{row.seconds:.2f}", Text(row.failed or ""))
    return table
