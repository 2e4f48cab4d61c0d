"""``ipcbus bench``: every transport on the user's own message, beside what people use instead."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipcbus.cli.table import make_table, print_whole
from ipcbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from ipcbus.bench.advice import Advice
    from ipcbus.bench.carriers import Carrier
    from ipcbus.bench.case import Absent, Case
    from ipcbus.bench.figures import Result
    from ipcbus.bench.plan import Plan, Wish
    from ipcbus.bench.report import Block, Row
    from ipcbus.bench.run import Effort

__all__ = ["bench"]

_USUAL = "bytes"
"""What is sent where nobody says."""


def bench(
    *,
    target: Annotated[
        str,
        typer.Option(
            "--object",
            metavar="KIND|MODULE:FACTORY",
            help="What is sent: bytes, dict, dataclass, protobuf, array, or what a function of yours returns; if it has a "
            "parameter it is told the size.",
        ),
    ] = _USUAL,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="one-way, round-trip, request, fan-in, fan-out or arrays; may be repeated. Default: the first two.",
        ),
    ] = None,
    transport: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Only this channel; may be repeated. Default: every installed transport."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="BYTES", help="Such as 64, 1KiB, 64MiB; may be repeated. Default: 64, 1KiB, 64KiB and 1MiB."),
    ] = None,
    serializer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="If the URL names none; may be repeated; all: each that brings the object back. Default: auto.",
        ),
    ] = None,
    senders: Annotated[int, typer.Option(help="Of a fan-in.", min=1, max=64)] = 8,
    receivers: Annotated[int, typer.Option(help="Of a fan-out.", min=2, max=64)] = 4,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure what people use instead in the same run.")] = True,
    rounds: Annotated[int, typer.Option(help="How often to measure everything, in turn.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="How long one measurement counts.", min=0.001, max=3600)] = 0.05,
    limit: Annotated[float, typer.Option(help="Seconds after which one that hangs is killed.", min=0.1, max=86_400)] = 30.0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures to a file; - prints them instead of tables."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw throughput and latency against size: .png, .svg or .html.")
    ] = None,
) -> None:
    """Measure every transport on your own message, beside bare queues, pipes and sockets, and say which to take."""
    from ipcbus.bench.machine import describe
    from ipcbus.bench.plan import make_plan
    from ipcbus.bench.plot import check_plot, draw
    from ipcbus.bench.report import check_file, data
    from ipcbus.bench.run import Effort

    _look_here()
    if plot is not None:
        check_plot(plot)
    if json_file is not None and str(json_file) != "-":
        check_file("--json", json_file)
    wish = _wish(target, scenario, size, senders, receivers)
    carriers, absent = _carriers(transport, _serializers(serializer, wish), peers=peers)
    plan = make_plan(wish, carriers)
    effort = Effort(rounds, seconds, limit)
    absent += plan.absent
    if not any(case.carrier == carrier.key for case in plan.cases for carrier, _ in carriers if carrier.ours):
        raise ConfigError("there is no channel to measure: " + "; ".join(_say_absent(absent)))
    machine = describe(dict.fromkeys(case.carrier for case in plan.cases))
    results = _measure(plan, effort)
    try:
        if json_file is None or str(json_file) != "-":  # before files, which the system may refuse
            _show(results, machine, effort, absent, _advice(results, carriers))
    finally:  # who reads the tables may leave before their end, as head does: the files are wanted all the same
        if json_file is not None:
            _write(json_file, data(machine, effort, results, absent))
        if plot is not None:
            draw(results, plot, machine)
    if not any(result.measured and result.case.carrier == carrier.key for result in results for carrier, _ in carriers):
        raise typer.Exit(1)


# ---------------------------------------------------------------------- what is wanted


def _look_here() -> None:
    import sys

    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's module is most likely in the directory in which this is typed


def _wish(target: str, scenarios: list[str] | None, sizes: list[str] | None, senders: int, receivers: int) -> "Wish":
    from ipcbus.bench.case import SCENARIOS
    from ipcbus.bench.messages import KINDS, count_bytes, say_bytes, takes_size
    from ipcbus.bench.plan import Wish
    from ipcbus.options import nearest
    from ipcbus.settings import PRIVATE_MAX_MESSAGE

    for name in scenarios or ():
        if name not in SCENARIOS:
            raise ConfigError(f"--scenario {name}: there is none of this name; {nearest(name, SCENARIOS)}")
    if target not in KINDS and ":" not in target:
        raise ConfigError(f"--object {target}: {nearest(target, KINDS)} (a message of yours: module:factory)")
    sized = target in KINDS or takes_size(target)
    if sizes and not sized:
        raise ConfigError(f"--size: {target} makes its message as it likes; give it a parameter to be told the size in bytes")
    chosen = tuple(dict.fromkeys(map(count_bytes, sizes or ())))
    if (largest := max(chosen, default=0)) > PRIVATE_MAX_MESSAGE:
        raise ConfigError(f"--size {largest}: that is more than a message may have, {say_bytes(PRIVATE_MAX_MESSAGE)}")
    wanted = tuple(dict.fromkeys(scenarios or ("one-way", "round-trip")))
    if wanted == ("arrays",) and target not in (_USUAL, "array"):
        raise ConfigError(f"--object {target}: --scenario arrays sends nothing but arrays; name no object, or another scenario")
    return Wish(wanted, target, chosen, sized=sized, senders=(senders,), receivers=receivers)


def _serializers(names: list[str] | None, wish: "Wish") -> list[str]:
    """Return the serializers to measure, after the message was made and encoded once: better here than in every process."""
    from ipcbus.bench.channels import able_serializers
    from ipcbus.bench.messages import Message
    from ipcbus.codec import Codec
    from ipcbus.serializers.base import serializers
    from ipcbus.settings import PRIVATE_MAX_MESSAGE

    obj = Message(wish.kind, min(wish.sizes, default=64) if wish.sized else None).make()
    found: dict[str, None] = {}
    for name in names or ["auto"]:
        if name == "all":
            found.update(dict.fromkeys(able_serializers(obj)))
        else:
            if name != "auto":
                serializers.get(name)
            Codec(name, None, private=True, max_message=PRIVATE_MAX_MESSAGE).encode(obj)
            found[name] = None
    if not found:
        raise ConfigError(f"no installed serializer brings back the object of {wish.kind}; run: ipcbus check {wish.kind}")
    return list(found)


def _carriers(
    urls: list[str] | None, serializers: list[str], *, peers: bool
) -> tuple[list[tuple["Carrier", str]], "list[Absent]"]:
    """Return the channels and peers to measure, and which are absent and why."""
    from ipcbus.bench.case import Absent
    from ipcbus.bench.channels import ChannelCarrier, installed
    from ipcbus.bench.foreign import PEERS
    from ipcbus.options import parse_url

    found, absent = installed() if urls is None else ([url if ":" in url else f"{url}:" for url in urls], [])
    carriers: list[tuple[Carrier, str]] = [
        (ChannelCarrier(url, name), name)
        for url in dict.fromkeys(found)
        for name in (["auto"] if "serializer" in parse_url(url).options else serializers)
    ]
    for peer in PEERS.values() if peers else ():
        if (missing := peer.missing()) is not None:
            absent.append(Absent(peer.name, missing))
        elif peer.usual:
            carriers.append((peer, "auto"))
    return carriers, absent


# ---------------------------------------------------------------------- what is done


def _measure(plan: "Plan", effort: "Effort") -> "list[Result]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ipcbus.bench.plan import estimate
    from ipcbus.bench.run import run

    console = Console(stderr=True)
    total = len(plan.cases) * effort.rounds
    took = _say_minutes(estimate(plan.cases, effort.rounds, effort.seconds))
    typer.echo(f"ipcbus: {_count(len(plan.cases), 'case')}, {_count(effort.rounds, 'round')}, take about {took}", err=True)
    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def show(case: "Case") -> None:
            progress.update(task, advance=1, description=f"{case.scenario}  {case.name}  {case.message.label}")

        return run(plan.cases, effort, show)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _say_minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds >= 600 else f"{int(seconds // 60)} min {round(seconds % 60 / 10) * 10} s"


def _advice(results: "list[Result]", carriers: "list[tuple[Carrier, str]]") -> "Advice | None":
    from ipcbus.bench.advice import advise
    from ipcbus.bench.channels import ChannelCarrier

    return advise(results, {one.name: one.capabilities for one, _ in carriers if isinstance(one, ChannelCarrier)})


def _write(path: Path, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=2)
    if str(path) == "-":
        typer.echo(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}") from error


# ---------------------------------------------------------------------- what is shown


def _show(
    results: "list[Result]", machine: dict[str, str], effort: "Effort", absent: "list[Absent]", advice: "Advice | None"
) -> None:
    from rich.console import Console
    from rich.text import Text

    from ipcbus.bench.machine import sentence
    from ipcbus.bench.report import blocks

    console = Console(highlight=False)
    made = blocks(results)
    for title in dict.fromkeys((block.title, block.message) for block in made):
        group = [block for block in made if (block.title, block.message) == title]
        _show_blocks(console, group)
    for result in results:
        if result.problem is not None:
            said = f"{result.case.scenario}, {result.case.name}, {result.case.message.label}: {result.problem}"
            console.print(Text(said, style="red"), soft_wrap=True)
    console.print(Text(sentence(machine), style="dim"), soft_wrap=True)
    rounds = _count(effort.rounds, "round")
    told = f"medians of {rounds} in turn, {effort.seconds:g} s each; ± is half of what lies between the extremes"
    console.print(Text(told, style="dim"), soft_wrap=True)
    if absent:
        console.print()
    for said in _say_absent(absent):
        console.print(Text(f"not measured: {said}", style="dim"), soft_wrap=True)
    if advice is not None:
        _show_advice(console, advice)


def _show_blocks(console: "Console", group: "list[Block]") -> None:
    """Show what can stand in one table: one message, or one kind in several sizes."""
    from rich.text import Text

    first, several = group[0], len(group) > 1
    what = ("median time" if first.trips else "messages per second") if several else first.size
    console.print(Text(f"{first.title}: {first.message}{what and ', ' + what}", style="bold"), soft_wrap=True)
    print_whole(console, _matrix(group) if several else _detail(first))
    if several and any(row.bare or row.peer for block in group for row in block.rows):
        legend = "below a channel: times faster than the bare primitive | than the fastest peer\n"
        console.print(Text(legend, style="dim italic"), soft_wrap=True)


def _say_absent(absent: "list[Absent]") -> list[str]:
    """Return a line for each reason, with all that it is the reason for."""
    names: dict[tuple[str, str], list[str]] = {}
    for one in absent:
        where = "" if one.scenario is None else f" in {one.scenario}"
        names.setdefault((where, one.why), []).append(one.name)
    return [f"{', '.join(found)}{where} ({why})" for (where, why), found in names.items()]


def _show_advice(console: "Console", advice: "Advice") -> None:
    from rich.text import Text

    from ipcbus.options import parse_url

    console.print()
    console.print(Text.assemble("For this message on this machine: ", (advice.url, "bold green")))
    for reason in advice.reasons:
        console.print(Text(f"  - {reason}"), soft_wrap=True)
    if advice.toml is None:
        console.print(Text("\neach channel needs an address of its own, so there is no line for all that are opened as auto:"))
        return
    own = "the one channel that is opened as auto, for another needs another address"
    for_whom = own if parse_url(advice.url).address else "every channel that is opened as auto"
    console.print(Text(f"\nin ipcbus.toml, for {for_whom}:"))
    console.print(Text(f"  {advice.toml}", style="bold"))


def _head(peer: str) -> str:
    """Return the head of the column of ratios to a peer; a long name takes lines of its own, for the table has to fit."""
    return "x\n" + peer.replace(".", ".\n").replace(" ", "\n", 1)


def _name(row: "Row") -> Any:
    from rich.text import Text

    return Text(row.name, "bold green" if row.best else "bold" if row.ours else "dim")


def _detail(block: "Block") -> "Table":
    """Make a table of one message: a column for each thing that is known."""
    table = make_table("")
    heads = ("round trip", "99 of 100\nwithin") if block.trips else ("messages/s", "bytes/s")
    with_bare = any(row.bare for row in block.rows)
    ratios = [*(["x bare"] if with_bare else []), *([_head(block.best_peer)] if block.best_peer else [])]
    for head in (*heads, "spread", *ratios):
        table.add_column(head, justify="right")
    for row in block.rows:
        if row.problem is None:
            told = [*([row.bare] if with_bare else []), *([row.peer] if block.best_peer else [])]
            table.add_row(_name(row), row.figure, row.second, row.spread, *told, style=None if row.ours else "dim")
        else:
            table.add_row(_name(row), "failed", style="red")
    return table


def _matrix(group: "Sequence[Block]") -> "Table":
    """Make a table of several sizes: a column each, and below the figure of a channel its ratios."""
    table = make_table("")
    for block in group:
        table.add_column(block.size, justify="right")
    names = {row.name: row for block in group for row in sorted(block.rows, key=lambda row: not row.ours)}
    for name, first in sorted(names.items(), key=lambda item: not item[1].ours):
        cells = [_cell(next((row for row in block.rows if row.name == name), None)) for block in group]
        table.add_row(_name(first), *cells)
    return table


def _cell(row: "Row | None") -> Any:
    from rich.text import Text

    if row is None:
        return Text("-", "dim")
    if row.problem is not None:
        return Text("failed", "red")
    spread = f" {row.spread:>4}" if row.spread else ""  # of one round there is none, and its place would make tables wide
    text = Text.assemble((row.figure, "bold green" if row.best else "" if row.ours else "dim"), (spread, "dim"))
    if row.bare or row.peer:
        text.append(f"\n{row.bare or '-'}|{row.peer or '-'}", "dim")
    return text
