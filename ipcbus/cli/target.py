"""What the commands that look at a bus have in common: how they find it, and its channels."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from ipcbus.bus.bus import Bus

__all__ = ["Address", "Name", "connect", "opened"]

T = TypeVar("T")

Address = Annotated[
    str | None,
    typer.Option(
        metavar="DIRECTORY",
        help="The bus. Default: that of IPCBUS_ADDRESS, that of ipcbus.toml, or the only one of yours on this machine.",
    ),
]
"""The option by which a bus is chosen."""
Name = Annotated[str, typer.Argument(metavar="NAME", help="The channel's name on the bus.", show_default=False)]
"""The argument that names a channel."""


def connect(address: str | None) -> Bus:
    """Return the bus that is meant; raises ``ConfigError`` where that is not clear."""
    from ipcbus.bus.find import find

    return Bus.connect(find(address))


def opened(bus: Bus, name: str, make: Callable[[str], T]) -> T:
    """Return what ``make`` opens by a name, and say it if nobody has opened a channel by this name before: it may be a slip."""
    known = [facts.name for facts in bus.channels()]
    made = make(name)
    if name not in known:
        there = f"; there are {', '.join(known)}" if known else ""
        typer.echo(f"ipcbus: nobody has opened {name!r} on this bus before, so it is made now{there}", err=True)
    return made
