"""``ipcbus doctor``: what on this machine helps or hinders, and which transports work here."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcbus.cli.table import make_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.doctor.finding import Finding

__all__ = ["doctor"]

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what killed processes left behind. Without it nothing is changed.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long to try each transport before it counts as hung.", min=0.1, max=86_400),
    ] = 5.0,
) -> None:
    """Look at this machine: limits, directories, leftovers, configuration; and send a message through each transport."""
    from ipcbus.doctor.examine import examine

    findings = list(examine(clean=clean, timeout=timeout))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _show(findings: "Sequence[Finding]") -> None:
    from rich.console import Console
    from rich.text import Text

    table = make_table()
    table.add_column("subject", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        found: Any = Text(finding.said)
        if finding.advice is not None:
            found.append(f"\n-> {finding.advice}", style="italic")
        table.add_row(Text(finding.subject), Text(finding.state, _STYLES[finding.state]), found)
    console = Console()
    console.print(table)
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    said = "no problems" if not counts["problem"] else f"{counts['problem']} problem{'s' * (counts['problem'] > 1)}"
    console.print(f"{said}, {counts['note']} note{'s' * (counts['note'] != 1)}", highlight=False)
