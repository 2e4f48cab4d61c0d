"""``ipcbus bus ls``: the channels of a bus, who uses them, and how much goes through them."""

import dataclasses
import json
import select
import sys
from typing import TYPE_CHECKING, Annotated, Self

import typer

from ipcbus.cli.table import fit, make_table, print_whole
from ipcbus.cli.target import Address, connect

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ipcbus.bus.facts import ChannelFacts

__all__ = ["bus", "ls"]

_MOST_PIDS = 8
"""Users that a row names; of the others it gives the number."""
_NARROW = 60
"""Columns of a terminal below which the names would be folded until nothing is left of them."""

bus = typer.Typer(help="Look at a bus that runs on this machine.", no_args_is_help=True)
"""``ipcbus bus``."""


@bus.callback()
def _bus() -> None:
    """Look at a bus that runs on this machine."""  # with it, a single subcommand is a subcommand still


@bus.command()
def ls(
    *,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Measure rates over this time; 0 does without.", min=0, max=86_400)
    ] = 0.5,
    watch: Annotated[bool, typer.Option("--watch", help="Look again after every interval, until Enter or Ctrl-C.")] = False,
) -> None:
    """Show the channels of a bus: their users, how many messages wait, and how many come and go per second."""
    where = connect(address)
    show = _Json() if as_json else _Table(where.address)
    with show:
        before = where.channels()
        if not interval and not watch:
            show.show(before)
            return
        while True:
            ended = _pause(interval or 0.5, watch=watch)
            after = where.channels()
            show.show(_rates(before, after))
            before = after
            if ended or not watch:
                return


def _rates(before: "list[ChannelFacts]", after: "list[ChannelFacts]") -> "list[ChannelFacts]":
    known = {facts.name: facts for facts in before}
    return [facts.since(known[facts.name]) if facts.name in known else facts for facts in after]


def _pause(seconds: float, *, watch: bool) -> bool:
    """Let time pass; True as soon as somebody at the keyboard has pressed Enter."""
    keyboard = [sys.stdin] if watch and sys.stdin is not None and sys.stdin.isatty() else []
    ready, _, _ = select.select(keyboard, [], [], seconds)
    return bool(ready)


class _Json:
    """One list per look, each in a line of its own."""

    def show(self, channels: "list[ChannelFacts]") -> None:
        typer.echo(json.dumps([dataclasses.asdict(facts) for facts in channels]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Have nothing to end."""


class _Table:
    """A table, in place of the one before it where this is a terminal that is wide enough."""

    def __init__(self, address: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._address = address
        self._console = Console()
        in_place = self._console.is_terminal and self._console.width >= _NARROW
        self._live = Live(console=self._console, auto_refresh=False) if in_place else None

    def show(self, channels: "list[ChannelFacts]") -> None:
        from rich.text import Text

        if not channels:
            self._put(Text(f"no process has opened a channel by name on the bus at {self._address} yet"))
        elif self._live is None:
            print_whole(self._console, _table(channels))
        else:
            table = _table(channels)
            fit(self._console, table)  # what is too wide even then is folded: it takes the place of the one before
            self._put(table)

    def _put(self, shown: "Table | Text") -> None:
        if self._live is None:
            self._console.print(shown, soft_wrap=True)
        else:
            self._live.update(shown, refresh=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _table(channels: "list[ChannelFacts]") -> "Table":
    from rich.text import Text

    table = make_table()
    for head in ("channel", "url"):
        table.add_column(head, overflow="fold")
    for head in ("waiting", "capacity", "in/s", "out/s", "sent", "received"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("users", overflow="fold")
    if tapped := any(facts.taps for facts in channels):
        table.add_column("taps", overflow="fold")
    for facts in channels:
        numbers = (facts.depth, facts.capacity, facts.sent_per_second, facts.received_per_second, facts.sent, facts.received)
        pids = [_pids(facts.users), *([_pids(facts.taps)] if tapped else [])]
        table.add_row(Text(facts.name), Text(facts.url), *map(_number, numbers), *pids)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _pids(pids: tuple[int, ...]) -> str:
    named = " ".join(map(str, pids[:_MOST_PIDS])) + (" ..." if len(pids) > _MOST_PIDS else "")
    return f"{len(pids)}: {named}" if pids else "0"
