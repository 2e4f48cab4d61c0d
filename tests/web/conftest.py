from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ipcbus import endpoints
from ipcbus.web.loop import loop_factory

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session", autouse=True)
def _warm_loop() -> None:
    """Have the event loop's library open what it keeps for as long as the process lives."""
    make = loop_factory()
    if make is not None:
        loop = make()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(autouse=True)
def _as_at_exit(_warm_loop: None, _no_leaks: None) -> Iterator[None]:
    """Remove what channels have a name for, as the exit of this process would: a closed channel keeps it until then."""
    yield
    endpoints.destroy_closed()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str | None]:
    """The URL of a PostgreSQL started for the tests of one file; None where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROGRAMS))
        postgres = importlib.import_module("postgres")
    if postgres.programs() is None:
        yield None
        return
    with postgres.running() as address:
        yield f"postgresql+psycopg://{address}"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Services that run in child processes: children get a copy of sys.path, so they find the module."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("web_programs")
