from __future__ import annotations

import importlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ipcbus import endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _as_at_exit(_no_leaks: None) -> Iterator[None]:
    """Remove what channels have a name for, as the exit of this process would: a closed channel keeps it until then."""
    yield
    endpoint._destroy_homes()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions and services that run in child processes: children get a copy of sys.path, so they find the module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "programs"))
    return importlib.import_module("web_programs")


@pytest.fixture
def gone() -> Callable[[int, float], bool]:
    """Wait until a process has ended; also one that is no child of this process."""

    def wait(pid: int, seconds: float) -> bool:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([fd], [], [], seconds)[0])
        finally:
            os.close(fd)

    return wait
