"""``ipcbus recv``: take messages out of a channel of a bus, and print them."""

import sys
from typing import Annotated

import typer

from ipcbus.cli.show import Printer, follow
from ipcbus.cli.target import Address, Name, connect, opened
from ipcbus.errors import ChannelBusy

__all__ = ["AsJson", "Count", "Headers", "Timeout", "look_here", "recv"]

Count = Annotated[
    int | None,
    typer.Option("-n", "--count", metavar="COUNT", help="How many. Default: until Ctrl-C.", min=1, show_default=False),
]
"""How many messages are wanted."""
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="How long to wait for each; 0 takes what is there. Default: for ever.", min=0),
]
"""How patient to be."""
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document per line; what JSON cannot hold as Python shows it.")
]
"""Whether programs read what is printed."""
Headers = Annotated[bool, typer.Option("--headers", help="With --json: print headers and body of each.")]
"""Whether it has the headers in it."""


def recv(
    name: Name,
    *,
    count: Count = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    headers: Headers = False,
    address: Address = None,
) -> None:
    """Receive the messages of a channel of a bus, and print them: nobody else gets them. To look only, use tap."""
    printer = Printer(as_json=as_json, headers=headers)
    look_here()
    bus = connect(address)
    with opened(bus, name, bus.channel) as channel:
        end = channel._end  # noqa: SLF001  frames, not objects: what cannot be rebuilt here is printed as it came
        try:
            link = end.open_receiver()
        except ChannelBusy as error:
            typer.echo(f"ipcbus: {error}; to look at copies of what is sent: ipcbus tap {name}", err=True)
            raise typer.Exit(1) from error
        follow(link, end.codec, printer, count=count, timeout=timeout)


def look_here() -> None:
    """Have the classes of messages found in the directory in which the command is typed."""
    if "" not in sys.path:
        sys.path.insert(0, "")
