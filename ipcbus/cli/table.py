"""Tables of the commands, of which nothing is cut: what is looked for may be just that."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["fit", "make_table", "print_whole"]


def make_table(*heads: str) -> "Table":
    """Make a table as all commands have them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    return Table(*(Column(head, overflow="fold") for head in heads), box=SIMPLE_HEAD, padding=(0, 1))


def fit(console: "Console", table: "Table") -> int:
    """Move the columns of a table together where it is too wide for the console; return the width that it then has."""
    if (width := _width(console, table)) > console.width:
        table.padding, table.show_edge = 0, False
        width = _width(console, table)
    return width


def print_whole(console: "Console", table: "Table") -> None:
    """Print a table, wider than the console if need be."""
    before, console.width = console.width, max(console.width, fit(console, table))
    console.print(table)
    if not table.show_edge:
        console.print()  # as the edge would be
    console.width = before


def _width(console: "Console", table: "Table") -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=1000), table).maximum
