"""``ipcbus demo``: a chat room in the browser, or its self-check over every transport."""

import socket
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from ipcbus.cli.need import DATABASE, SERVER, need
from ipcbus.cli.table import make_table
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
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets your network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 picks a free one.", min=0, max=65535)] = 8080,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where to keep what is said, such as sqlite:///chat.db."),
    ] = None,
    browse: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Run a chat whose sockets and logic live in separate processes; open the page in two windows."""
    need("demo", SERVER | DATABASE)
    if check:
        _check(transport)
        return
    if transport and len(transport) > 1:
        raise ConfigError(f"one chat runs over one transport, but {len(transport)} are given; --check takes several")
    from ipcbus.demo import chat_config, sqlite
    from ipcbus.demo.selfcheck import channel_url
    from ipcbus.web.server import serve

    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = channel_url(transport[0] if transport else "auto:")
    with TemporaryDirectory(prefix="ipcbus-demo-") as folder:
        config = chat_config(url, bind, database=database or sqlite(folder), ticker=True)
        status = serve(config, ready=lambda server: _say(server, host, browse=browse))
    raise typer.Exit(status)


def _say(server: "Server", host: str, *, browse: bool) -> None:
    typer.echo(f"the chat is at {server.url} - open it in two windows; Ctrl-C ends it")
    if host in ("0.0.0.0", "::") and (address := _own_address()):  # noqa: S104  compared, not bound to
        typer.echo(f"on a phone in the same network: http://{address}:{server.port}/")
    if browse:
        typer.launch(server.url)


def _own_address() -> str | None:
    """Return the address by which others of this network reach this machine, or None if it is in none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only has the kernel choose
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


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
    from rich.text import Text

    table = make_table("transport", "chat", "messages", "seconds", "what failed")
    for row in rows:
        state = Text("ok", "green") if row.ok else Text("FAILED", "bold red")
        table.add_row(Text(row.url), state, str(row.messages), f"{row.seconds:.2f}", Text(row.failed or ""))
    return table
