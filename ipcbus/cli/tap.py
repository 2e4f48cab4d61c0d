"""``ipcbus tap``: look at what goes through a channel of a bus, and take nothing."""

from typing import Annotated

import typer

from ipcbus.bus.tap import Tap
from ipcbus.cli.recv import AsJson, Count, Headers, Timeout, look_here
from ipcbus.cli.show import Printer, follow
from ipcbus.cli.target import Address, Name, connect, opened

__all__ = ["tap"]


def tap(
    name: Name,
    *,
    count: Count = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    headers: Headers = False,
    capacity: Annotated[
        int, typer.Option(metavar="COUNT", help="Copies of each sending process that may wait to be printed.", min=1)
    ] = 1024,
    address: Address = None,
) -> None:
    """Print copies of what is sent through a channel of a bus from now on. Nobody waits for it; what it misses is counted."""
    printer = Printer(as_json=as_json, headers=headers)
    look_here()
    bus = connect(address)
    with opened(bus, name, lambda name: bus.tap(name, capacity)) as taken:
        typer.echo(f"ipcbus: copies of what is sent to {name!r} from now on; Ctrl-C ends it", err=True)
        end = taken._channel._end  # noqa: SLF001  as recv
        follow(end.open_receiver(), end.codec, printer, count=count, timeout=timeout, also=_Missed(taken))


class _Missed:
    """Says how many were missed, when there are more."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._said = 0

    def __call__(self) -> None:
        if (missed := self._tap.missed) != self._said:
            typer.echo(f"ipcbus: {missed - self._said} more were sent and missed here ({missed} in all)", err=True)
            self._said = missed
