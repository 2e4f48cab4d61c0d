"""Advice: which transport to take for a message, from what was measured and what each transport promises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipcbus.bench.foreign import PEERS
from ipcbus.bench.messages import say_bytes
from ipcbus.bench.report import crowded
from ipcbus.options import parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ipcbus.bench.figures import Result
    from ipcbus.transport import Capabilities

__all__ = ["Advice", "advise"]

CLOSE = 1.15
"""Times slower that a channel may be and still count as fast as the fastest: less is noise on a machine in use."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to take, why, and what to write down for it."""

    url: str
    reasons: tuple[str, ...]
    toml: str | None
    """None where every channel needs an address of its own, so that no line says it for all."""


def advise(results: Sequence[Result], capabilities: Mapping[str, Capabilities]) -> Advice | None:
    """Recommend a channel for what was measured, None where no channel was.

    The measure of a channel is how many times slower than the fastest one it is, as the geometric mean of all blocks of
    comparable figures: throughput and latency, small messages and large, count alike. Only channels that could be measured
    in every block are considered, and of those only channels that need no address, if there are any: only they can be what
    ``auto:`` means. Among those that are about as fast as the best, one whose users may be killed is taken.

    Args:
        results: of one or several scenarios and messages.
        capabilities: by the names of the channels.
    """
    factors = _slowdowns(results)
    if not factors:
        return None
    most = max(len(slow) for slow in factors.values())
    complete = {name: slow for name, slow in factors.items() if len(slow) == most}
    means = {name: _mean(list(slow.values())) for name, slow in complete.items()}
    lacking = {name for name in means if capabilities[name].addressable and not parse_url(_url(name)).address}
    usable = {name: mean for name, mean in means.items() if name not in lacking} or means
    best = min(usable.values())
    close = [name for name, mean in usable.items() if mean <= best * CLOSE]
    chosen = min(close, key=lambda name: (not capabilities[name].survives_kill, capabilities[name].addressable, means[name]))
    fastest = min(means, key=lambda name: means[name])
    toml = None if chosen in lacking else f'transport = "{_url(chosen)}"'
    return Advice(_url(chosen), tuple(_reasons(chosen, fastest, complete, means, capabilities)), toml)


_Block = tuple[str, str]


def _slowdowns(results: Sequence[Result]) -> dict[str, dict[_Block, float]]:
    """Return by channel and block how many times slower it is than the fastest channel there."""
    times: dict[_Block, dict[str, float]] = {}
    for result in results:
        if result.measured and result.case.carrier not in PEERS:
            times.setdefault(_block(result), {})[result.case.name] = result.seconds
    factors: dict[str, dict[_Block, float]] = {}
    for block, found in times.items():
        for name, seconds in found.items():
            factors.setdefault(name, {})[block] = seconds / min(found.values())
    return factors


def _block(result: Result) -> _Block:
    case = result.case
    size = "" if case.message.size is None else f" of {say_bytes(case.message.size)}"
    return crowded(case), f"{case.message.kind}{size}"


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _reasons(
    chosen: str,
    fastest: str,
    factors: Mapping[str, Mapping[_Block, float]],
    means: Mapping[str, float],
    capabilities: Mapping[str, Capabilities],
) -> list[str]:
    reasons = []
    if chosen == fastest:
        others = sorted((mean, name) for name, mean in means.items() if name != chosen)
        if others:
            mean, name = others[0]
            slower = mean / means[chosen]
            how = f"{slower:.1f} times slower" if slower > CLOSE else "about as fast"
            reasons.append(f"over all that was measured the fastest; next is {name}, {how}")
    elif means[chosen] > means[fastest] * CLOSE:
        slower = means[chosen] / means[fastest]
        reasons.append(f"{fastest} was {slower:.1f} times faster, but each of its channels needs an address of its own")
    else:
        reasons.append(f"about as fast as {fastest}, which was first")
        if capabilities[chosen].survives_kill and not capabilities[fastest].survives_kill:
            reasons.append(f"a process that is killed does it no harm, which {fastest} cannot say")
        elif capabilities[fastest].addressable and not capabilities[chosen].addressable:
            reasons.append(f"no other user or machine can reach it, unlike {fastest}")
    lost = {block: factor for block, factor in factors[chosen].items() if factor > CLOSE}
    for (what, message), factor in sorted(lost.items(), key=lambda item: -item[1])[:2]:
        winner = min(factors, key=lambda name: factors[name].get((what, message), math.inf))
        reasons.append(f"{winner} is {factor:.1f} times faster in {what} with {message}")
    if not capabilities[chosen].survives_kill:
        reasons.append("a process killed in the wrong instant takes it along, so give its calls a timeout")
    return reasons


def _url(name: str) -> str:
    """Return the URL of a channel as it is called in a report: its own, and the serializer behind a space."""
    url, _, serializer = name.partition(" ")
    return f"{url}{'&' if parse_url(url).options else '?'}serializer={serializer}" if serializer else url
