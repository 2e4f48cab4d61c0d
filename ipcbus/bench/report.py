"""Reports: the rows of a table and the data of a file, made of results."""

from __future__ import annotations

import dataclasses
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipcbus.bench.crew import carrier_of
from ipcbus.bench.figures import Result, ratio
from ipcbus.bench.foreign import PEERS, bare_of
from ipcbus.bench.messages import say_bytes
from ipcbus.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ipcbus.bench.case import Absent, Case
    from ipcbus.bench.run import Effort

__all__ = ["Block", "Row", "blocks", "check_file", "crowded", "data", "say_rate", "say_seconds"]


def check_file(option: str, path: Path) -> None:
    """Make sure that a file can be written, before anything is measured for it; raises ``ConfigError``."""
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: this is a directory; name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: you may not write there; name another file")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what was measured, in words."""

    name: str
    ours: bool
    figure: str
    """Messages per second, or the time of a round trip."""
    second: str
    """Bytes per second, or the time that 99 of 100 round trips stay below."""
    spread: str
    bare: str
    """Times faster than the bare primitive."""
    peer: str
    """Times faster than the best peer."""
    problem: str | None = None
    best: bool = False
    """Whether no other channel is faster."""


@dataclass(frozen=True, slots=True)
class Block:
    """The rows that can be compared: one scenario, one message."""

    title: str
    """The scenario, and how many take part."""
    message: str
    """What was sent."""
    size: str
    """How large it was."""
    trips: bool
    best_peer: str | None
    rows: tuple[Row, ...]
    """Fastest first; behind them those without a figure."""


def blocks(results: Sequence[Result]) -> list[Block]:
    """Arrange results for tables, fastest first."""
    return [_block(list(group)) for _, group in itertools.groupby(results, key=lambda result: _comparable(result.case))]


def _comparable(case: Case) -> tuple[object, ...]:
    return case.scenario, case.message, case.senders, case.receivers


def _block(group: list[Result]) -> Block:
    case = group[0].case
    by_name = {result.case.name: result for result in group}
    measured = sorted((result for result in group if result.measured), key=lambda result: result.seconds)
    best = next((result for result in measured if _is_peer(result)), None)
    ours = next((result for result in measured if _is_ours(result)), None)
    rows = [_row(result, by_name, best, best_of_ours=result is ours) for result in measured]
    rows += [Row(r.case.name, _is_ours(r), "", "", "", "", "", r.problem or "not measured") for r in group if not r.measured]
    size = case.message.size or next((result.samples[0].size for result in measured), None)
    said = say_bytes(size) if size else ""
    return Block(crowded(case), case.message.kind, said, case.trips, best.case.name if best is not None else None, tuple(rows))


def _is_ours(result: Result) -> bool:
    return result.case.carrier not in PEERS


def _is_peer(result: Result) -> bool:
    return not _is_ours(result) and result.case.carrier != "memcpy"  # which carries nothing


def crowded(case: Case) -> str:
    """Return a case's scenario with how many processes take part, where it is more than two."""
    if case.senders > 1:
        return f"{case.scenario}, {case.senders} senders"
    return f"{case.scenario}, {case.receivers} receivers" if case.receivers > 1 else case.scenario


def _row(result: Result, others: dict[str, Result], best: Result | None, *, best_of_ours: bool) -> Row:
    bare = others.get(bare_of(carrier_of(result.case))) if _is_ours(result) else None
    if result.case.trips:
        figure, second = say_seconds(result.seconds), say_seconds(result.slow) if result.slow else ""
    else:
        figure, second = say_rate(result.rate), say_bytes(result.rate * (result.samples[0].size or 0)) + "/s"
    peer = ratio(result, best) if best is not None and _is_ours(result) else None
    return Row(
        name=result.case.name,
        ours=_is_ours(result),
        figure=figure,
        second=second,
        spread=f"±{result.spread:.0%}" if len(result.samples) > 1 else "",
        bare=_times(ratio(result, bare) if bare is not None else None),
        peer=_times(peer),
        best=best_of_ours,
    )


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def say_rate(rate: float) -> str:
    """Write messages per second for people."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def say_seconds(seconds: float) -> str:
    """Write a short time for people."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{seconds:.2f} s"


def data(machine: dict[str, str], effort: Effort, results: Iterable[Result], absent: Iterable[Absent]) -> dict[str, Any]:
    """Return everything as plain data, for JSON: each case with its rounds, medians and ratios. Times are in seconds."""
    kept = list(results)
    peers = {(_comparable(result.case), result.case.name): result for result in kept}
    rows = []
    for result in kept:
        fair = {name: other for (which, name), other in peers.items() if which == _comparable(result.case)}
        ratios = {name: ratio(result, other) for name, other in fair.items() if other is not result and _is_peer(other)}
        rows.append(
            {
                **result.case.facts(),
                "problem": result.problem,
                "stuck": result.stuck,
                "rounds": [dataclasses.asdict(sample) for sample in result.samples],
                "seconds": result.seconds if result.measured else None,
                "slow": result.slow if result.measured else None,
                "times_faster_than": {name: value for name, value in ratios.items() if value is not None},
            }
        )
    median = "seconds is the median of the rounds for one message, or for one round trip"
    return {
        "machine": machine,
        "effort": dataclasses.asdict(effort),
        "units": median,
        "results": rows,
        "absent": [dataclasses.asdict(one) for one in absent],
    }
