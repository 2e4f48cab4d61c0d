"""``ipcbus transports``: what each installed transport can do, and whether it works on this machine."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer

from ipcbus.cli.table import make_table, print_whole
from ipcbus.errors import TransportUnavailable
from ipcbus.options import URL
from ipcbus.selection import select
from ipcbus.selection import transports as registry
from ipcbus.transport import Capabilities, Guarantees, Transport

__all__ = ["Row", "survey", "transports"]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What is known about one scheme."""

    scheme: str
    works: bool
    """Whether a child process sent a message through a channel of this scheme just now, and it arrived."""
    problem: str | None
    """Why it does not work, and what to do about it."""
    transport: type[Transport] | None
    """None where it cannot be loaded."""

    def facts(self) -> dict[str, Any]:
        """Return the row as plain data, for JSON."""
        transport = self.transport
        return {
            "scheme": self.scheme,
            "works": self.works,
            "problem": self.problem,
            "capabilities": transport and dataclasses.asdict(transport.capabilities),
            "guarantees": transport and dataclasses.asdict(transport.guarantees),
            "options": transport and [field.name for field in dataclasses.fields(transport.options)],
        }


def survey() -> list[Row]:
    """Try every installed transport, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_try, registry))


def _try(scheme: str) -> Row:
    try:
        transport = registry.get(scheme)
    except TransportUnavailable as error:
        return Row(scheme, works=False, problem=str(error), transport=None)
    except Exception as error:  # noqa: BLE001  somebody's broken plugin is a row of the table, not the end of it
        return Row(scheme, works=False, problem=f"{type(error).__name__}: {error}", transport=None)
    from ipcbus.doctor.trial import attempt

    problem = attempt(scheme, transport).problem
    return Row(scheme, works=problem is None, problem=problem, transport=transport)


def transports(
    scheme: Annotated[str | None, typer.Argument(help="Show everything about this one.", show_default=False)] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
) -> None:
    """Show what each installed transport can do, and whether it works on this machine; of auto, which one it is here."""
    if scheme is not None:
        # What there is not says what is close, or what to install.
        scheme = select(URL(scheme.rstrip(":"), "", {}), {})[0].scheme
    rows = survey() if scheme is None else [_try(scheme)]
    if as_json:
        typer.echo(json.dumps([row.facts() for row in rows], indent=2))
    elif scheme is None:
        _show_all(rows)
    else:
        _show_one(rows[0])


def _show_all(rows: list[Row]) -> None:
    from rich.console import Console

    # One column per transport: there are more things to know about one than there are transports.
    table = make_table("", *(row.scheme for row in rows))
    table.add_row("works here", *(_word(row.works) for row in rows))
    for field in dataclasses.fields(Capabilities):
        values = [getattr(row.transport.capabilities, field.name) if row.transport else None for row in rows]
        table.add_row(_label(field.name), *map(_word, values))
    table.add_row("delivery", *(_fold(row.transport.guarantees.delivery) if row.transport else "-" for row in rows))
    console = Console()
    print_whole(console, table)
    for row in rows:
        if row.problem:
            console.print(f"{row.scheme}: {row.problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print("More about one of them: ipcbus transports SCHEME", style="dim", highlight=False)


def _show_one(row: Row) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    if row.transport is None:
        console.print(f"{row.scheme}: {row.problem}", style="red", markup=False, highlight=False)
        return
    table = Table("", Column(overflow="fold"), show_header=False, box=SIMPLE, padding=(0, 1))
    table.add_row("scheme", f"{row.scheme}:")
    table.add_row("works here", _word(row.works) if row.problem is None else f"no: {row.problem}")
    table.add_section()
    for field in dataclasses.fields(Capabilities):
        table.add_row(_label(field.name), _word(getattr(row.transport.capabilities, field.name)))
    table.add_section()
    for field in dataclasses.fields(Guarantees):
        table.add_row(_label(field.name), str(getattr(row.transport.guarantees, field.name)))
    table.add_section()
    table.add_row("own options", ", ".join(field.name for field in dataclasses.fields(row.transport.options)) or "none")
    console.print(table)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _fold(name: str) -> str:
    """Write ``at-most-once`` in two short lines: the longest word makes the column."""
    return name.replace("-", " ", 1).replace("-", "\n")


def _word(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
