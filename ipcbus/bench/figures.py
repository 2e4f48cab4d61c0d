"""Figures: medians, spreads and ratios of rounds that were measured in turn."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipcbus.bench.case import Case, Sample

__all__ = ["Result", "quantile", "ratio"]


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which a part of the values lies; they are sorted and at least one."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


@dataclass(slots=True)
class Result:
    """All rounds of one case. Where a round failed the case is given up, and ``problem`` says why."""

    case: Case
    samples: list[Sample]
    problem: str | None = None
    stuck: bool = False

    @property
    def seconds(self) -> float:
        """For one message: the median of the rounds."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def rate(self) -> float:
        """Messages per second."""
        return 1 / self.seconds

    @property
    def spread(self) -> float:
        """Half the distance between the fastest and the slowest round, as a part of the median."""
        times = [sample.seconds for sample in self.samples]
        return (max(times) - min(times)) / 2 / self.seconds

    @property
    def slow(self) -> float | None:
        """Of round trips: the median of what 99 of 100 stay below, in seconds."""
        times = [sample.slow for sample in self.samples if sample.slow is not None]
        return statistics.median(times) if times else None

    @property
    def measured(self) -> bool:
        """Whether there is a figure."""
        return bool(self.samples) and self.problem is None


def ratio(result: Result, other: Result) -> float | None:
    """Return how many times faster a result is than another: the median of the rounds' ratios, None where one has none.

    Round by round, because what slows the machine down for a while slows both.
    """
    if not (result.measured and other.measured):
        return None
    pairs = zip(result.samples, other.samples, strict=False)
    return statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)
