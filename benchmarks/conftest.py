"""Feeds pytest-benchmark with what the engine measures.

Sender and receiver are processes of their own, so the time of a call in this process says nothing. The cases of a module
are measured in turn, round by round, before its first test; a test then hands the rounds of its case to pytest-benchmark by
a clock that moves on by what was measured. So its statistics, its tables and its files hold seconds per message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from suites import group

from ipcbus.bench.foreign import PEERS
from ipcbus.bench.machine import describe, sentence
from ipcbus.bench.report import blocks
from ipcbus.bench.run import Effort, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.bench.case import Case
    from ipcbus.bench.figures import Result

SMOKE_SIZES = (64, 1 << 20)
"""Bytes of the messages that a smoke run sends: the smallest, and of arrays the smallest that is large."""
SMOKE_SENDERS = (1, 8)
MEASURED: list[list[Result]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("engine")
    options.addoption("--rounds", type=int, default=5, help="rounds of each case")
    options.addoption("--seconds", type=float, default=0.2, help="what one round should take")
    options.addoption("--smoke", action="store_true", help="one short round of each case, and no large messages")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--smoke"):
        return
    few = [item for item in items if (case := case_of(item)) is None or is_small(case)]
    config.hook.pytest_deselected(items=[item for item in items if item not in few])
    items[:] = few


def is_small(case: Case) -> bool:
    return case.message.size == SMOKE_SIZES[case.scenario == "arrays"] and case.senders in SMOKE_SENDERS


def case_of(item: pytest.Item) -> Case | None:
    return getattr(item, "callspec").params.get("case") if hasattr(item, "callspec") else None  # noqa: B009  not of every item


class Clock:
    """Stands still unless it is told."""

    now = 0.0

    def read(self) -> float:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> dict[Case, Result]:
    """Measure the cases of a module that were selected, in turn."""
    chosen = [case for item in request.session.items if item.path == request.path and (case := case_of(item)) is not None]
    smoke = request.config.getoption("--smoke")
    effort = Effort(1, 0.005) if smoke else Effort(request.config.getoption("--rounds"), request.config.getoption("--seconds"))
    measured = run(list(dict.fromkeys(chosen)), effort)
    MEASURED.append(measured)
    return {result.case: result for result in measured}


@pytest.fixture
def replay(request: pytest.FixtureRequest, results: dict[Case, Result]) -> Callable[[Case], None]:
    """Hand what was measured of a case to pytest-benchmark; fails where a channel could not be measured."""

    def hand_over(case: Case) -> None:
        result = results[case]
        if result.problem is not None and case.carrier in PEERS:
            pytest.skip(result.problem)
        assert result.problem is None, result.problem
        benchmark: Any = request.getfixturevalue("benchmark")
        benchmark.group = group(case)
        benchmark._timer = CLOCK.read
        seconds = iter([sample.seconds for sample in result.samples])
        benchmark.pedantic(lambda: CLOCK.go(next(seconds)), rounds=len(result.samples), iterations=1)
        benchmark.extra_info.update(case=case.facts(), slow=result.slow, messages=[s.messages for s in result.samples])

    return hand_over


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["ipcbus"] = describe(PEERS)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what pytest-benchmark does not know: how each channel does beside its bare primitive and the fastest peer."""
    for results in MEASURED:
        for block in blocks(results):
            terminalreporter.write_sep("-", f"{block.title}: {block.message}, {block.size}")
            for row in block.rows:
                bare = f"  {row.bare} the bare primitive" if row.bare else ""
                peer = f"  {row.peer} {block.best_peer}" if row.peer else ""
                terminalreporter.write_line(f"{row.name:28} {row.problem or f'{row.figure:>11} {row.spread:>6}{bare}{peer}'}")
    if MEASURED:
        names = dict.fromkeys(result.case.carrier for results in MEASURED for result in results)
        terminalreporter.write_line(sentence(describe(names)))
