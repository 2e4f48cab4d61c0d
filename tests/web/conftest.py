from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ipcbus import endpoint
from ipcbus.web.loop import loop_factory

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    endpoint.destroy_closed()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Services that run in child processes: children get a copy of sys.path, so they find the module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "programs"))
    return importlib.import_module("web_programs")
