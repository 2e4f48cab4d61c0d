"""A process started by spawn that knows nothing of the test: what it gets, it got by messages."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ipcbus
from ipcbus.plumbing.fds import close_all
from ipcbus.testing.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_SERVE = """
import traceback
for code, obj in requests:
    space = {"obj": obj, "result": None}
    try:
        exec(code, space)
        answers.send((None, space["result"]))
    except BaseException:
        answers.send((traceback.format_exc(), None))
    space.clear()
    obj = None
"""


class Child:
    """Runs code in the other process."""

    def __init__(self, requests: ipcbus.Channel, answers: ipcbus.Channel) -> None:
        self._requests = requests
        self._answers = answers

    def run(self, code: str, obj: Any = None) -> Any:
        """Send an object over, run code that finds it as ``obj``, and return what the code left in ``result``."""
        self._requests.send((code, obj), timeout=10)
        error, result = self._answers.recv(timeout=30)
        assert error is None, error
        return result


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    # Of these channels' files none is kept: it would seem to be left behind by the test that sent the first large message.
    with ipcbus.open("pipe:?kept_bytes=0") as requests, ipcbus.open("pipe:?kept_bytes=0") as answers:
        space = {"requests": requests.receiver, "answers": answers.sender}
        process = multiprocessing.get_context("spawn").Process(target=exec, args=(_SERVE, space))
        process.start()
        try:
            made = Child(requests, answers)
            made.run("pass")  # opens both ends here, or the first test would seem to leave them behind
            yield made
        finally:
            requests.shutdown()
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
    assert process.exitcode == 0


@pytest.fixture
def few() -> Iterator[Callable[[int], None]]:
    """Set how many descriptors this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


_CLOSABLE = 8
"""How many of the descriptors that ``scarce`` takes there are at least, wherever the numbers in use have gaps."""


@pytest.fixture
def no_descriptors() -> Callable[[], AbstractContextManager[None]]:
    """Return what uses up this process's descriptors, for as long as it is entered."""

    @contextlib.contextmanager
    def use_up() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held: list[int] = []
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        try:
            with contextlib.suppress(OSError):  # EMFILE, and that is meant
                while True:
                    held.append(os.dup(0))
            yield
        finally:
            close_all(held)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return use_up


@pytest.fixture
def scarce(few: Callable[[int], None]) -> Iterator[Callable[[int], list[int]]]:
    """Leave this process so many descriptors to open, and return some that can be closed for more."""
    taken: list[int] = []

    def leave(count: int) -> list[int]:
        few(max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1 + count + _CLOSABLE)
        with contextlib.suppress(OSError):  # EMFILE, and that is meant
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        return taken

    yield leave
    while taken:
        os.close(taken.pop())


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions that run in child processes: children get a copy of sys.path, so they find the module."""
    return _module(monkeypatch, "supervised")


@pytest.fixture
def askers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Those that answer, ask and call back."""
    return _module(monkeypatch, "askers")


def _module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "programs"))
    return importlib.import_module(name)


@pytest.fixture
def subject() -> Iterator[Subject]:
    """What starts processes beside a test, and ends them with it."""
    with Subject("pipe:", "fork") as made:
        yield made
