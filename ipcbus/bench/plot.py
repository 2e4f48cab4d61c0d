"""Plots: throughput and latency against the size of the message, as a picture or a page."""

from __future__ import annotations

import html
import io
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ipcbus.bench.foreign import PEERS
from ipcbus.bench.machine import sentence
from ipcbus.bench.messages import say_bytes
from ipcbus.bench.report import check_file, crowded
from ipcbus.errors import ConfigError, IpcbusError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ipcbus.bench.figures import Result

__all__ = ["FORMATS", "check_plot", "draw"]

FORMATS = (".png", ".svg", ".html")
"""The endings of files that can be drawn."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#8a6d00")
"""Colours that those can tell apart, too, who see fewer; of the Okabe-Ito palette, without yellow and black, and two more."""
_MARKERS = "osD^vP*X"
_PEER_COLOURS = ("#6e6e6e", "#a3a3a3", "#8a7f72")
_PEER_LINES = ("--", ":", "-.")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; max-width: 75rem; padding: 0 1rem; overflow-x: auto }}
svg {{ width: 100%; min-width: 56rem; height: auto }}
</style>
</head>
<body>
{svg}
</body>
</html>
"""


def check_plot(path: Path) -> None:
    """Make sure that a plot can be drawn there, before anything is measured for it.

    Raises:
        ConfigError: the name has none of the endings of ``FORMATS``, or no file of that name can be written.
        IpcbusError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot {path}: the file must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    check_file("--plot", path)
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise IpcbusError("--plot needs matplotlib; try: pip install 'ipcbus[bench]'") from error


def draw(results: Sequence[Result], path: Path, machine: dict[str, str]) -> None:
    """Draw results into a file, in the format of its ending.

    One panel for each scenario that was measured; channels in colour, peers grey. Where only one size was measured, bars.

    Raises:
        ConfigError: the file cannot be written.
    """
    measured = [result for result in results if result.measured]
    scenarios = list(dict.fromkeys(crowded(result.case) for result in measured))
    figure = import_module("matplotlib.figure").Figure(figsize=(1 + 6.2 * max(len(scenarios), 1), 5.6), layout="constrained")
    styles = _styles(measured)
    for axes, scenario in zip(figure.subplots(1, max(len(scenarios), 1), squeeze=False)[0], scenarios, strict=False):
        shown = [result for result in measured if crowded(result.case) == scenario]
        sized = len({result.case.message.size for result in shown}) > 1
        (_lines if sized else _bars)(axes, shown, styles)
        axes.set_title(scenario, fontsize=11)
    _legend(figure, styles)
    title = f"ipcbus bench: {_say_messages(measured)}"
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(sentence(machine), fontsize=7, color="#666666")
    try:
        _save(figure, path, title)
    except OSError as error:
        raise ConfigError(f"--plot {path}: cannot be written: {error.strerror}") from error


def _say_messages(measured: Sequence[Result]) -> str:
    """Return what was sent: each kind, and its size where that is on no axis."""
    messages = dict.fromkeys(result.case.message for result in measured)
    sizes = Counter(message.kind for message in messages)
    return "; ".join(dict.fromkeys(each.kind if sizes[each.kind] > 1 else each.label for each in messages))


def _styles(measured: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Return how each carrier is drawn, channels first, each group from fast to slow."""
    names = dict.fromkeys(result.case.name for result in measured)
    carriers = {result.case.name: result.case.carrier for result in measured}
    ours = [name for name in names if carriers[name] not in PEERS]
    theirs = [name for name in names if carriers[name] in PEERS]
    styles: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(ours):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        styles[name] = {"color": colour, "marker": marker, "linewidth": 2.0, "markersize": 6, "zorder": 3}
    for number, name in enumerate(theirs):
        colour, marker = _PEER_COLOURS[number % len(_PEER_COLOURS)], _MARKERS[number % len(_MARKERS)]
        thin = {"linewidth": 1.0, "linestyle": _PEER_LINES[number % len(_PEER_LINES)], "zorder": 2}
        styles[name] = {"color": colour, "marker": marker, "markerfacecolor": "white", "markersize": 5, **thin}
    return styles


def _value(result: Result, seconds: float) -> float:
    return seconds * 1e6 if result.case.trips else 1 / seconds


def _name_axis(result: Result) -> str:
    return "µs for a round trip (less is better)" if result.case.trips else "messages per second (more is better)"


def _lines(axes: Any, shown: Sequence[Result], styles: dict[str, dict[str, Any]]) -> None:
    for name, style in styles.items():
        own = sorted((r for r in shown if r.case.name == name), key=lambda r: r.case.message.size or 0)
        if not own:
            continue
        sizes = [result.case.message.size for result in own]
        axes.plot(sizes, [_value(result, result.seconds) for result in own], label=name, **style)
        if own[0].case.carrier not in PEERS:
            times = [[sample.seconds for sample in result.samples] for result in own]
            low = [_value(result, min(taken)) for result, taken in zip(own, times, strict=True)]
            high = [_value(result, max(taken)) for result, taken in zip(own, times, strict=True)]
            axes.fill_between(sizes, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({result.case.message.size for result in shown if result.case.message.size})
    axes.set_xticks(ticks, [say_bytes(size) for size in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("size of the message", fontsize=9)
    axes.set_ylabel(_name_axis(shown[0]), fontsize=9)
    axes.grid(which="major", color="#e3e3e3", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, shown: Sequence[Result], styles: dict[str, dict[str, Any]]) -> None:
    ordered = sorted(shown, key=lambda result: result.seconds, reverse=True)
    names = [result.case.name for result in ordered]
    values = [_value(result, result.seconds) for result in ordered]
    rounds = [[_value(result, sample.seconds) for sample in result.samples] for result in ordered]
    below = [value - min(found) for value, found in zip(values, rounds, strict=True)]
    above = [max(found) - value for value, found in zip(values, rounds, strict=True)]
    axes.barh(names, values, xerr=[below, above], color=[styles[name]["color"] for name in names], ecolor="#444444", height=0.7)
    axes.set_xlabel(_name_axis(shown[0]), fontsize=9)
    axes.locator_params(axis="x", nbins=5)  # millions are wide
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(b=True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, styles: dict[str, dict[str, Any]]) -> None:
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    labels = [name for name in styles if name in found]
    if labels:
        figure.legend([found[name] for name in labels], labels, loc="outside right upper", fontsize=8, frameon=False)


def _save(figure: Any, path: Path, title: str) -> None:
    if path.suffix.lower() == ".png":
        figure.savefig(path, format="png", dpi=130)
        return
    made = io.StringIO()
    figure.savefig(made, format="svg", metadata={"Date": None})
    svg = made.getvalue()
    if path.suffix.lower() == ".html":
        inline = svg[svg.index("<svg") :]
        svg = _PAGE.format(title=html.escape(title), svg=inline)
    path.write_text(svg, encoding="utf-8")
