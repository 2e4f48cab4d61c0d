"""The subject of a check: a URL and a start method, and everything that was opened or started for it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import ipcbus
from ipcbus.options import parse_url
from ipcbus.plumbing import rundir
from ipcbus.testing import children
from ipcbus.testing.children import PATIENCE, pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from ipcbus.transport import Capabilities, Transport

__all__ = [
    "ENDING",
    "LATE",
    "PATIENCE",
    "Child",
    "StartMethod",
    "Subject",
    "Task",
    "pattern",
    "preload_forkserver",
    "raises",
    "wait_until_blocked",
]

E = TypeVar("E", bound=BaseException)

StartMethod: TypeAlias = Literal["fork", "spawn", "forkserver"]
"""How ``multiprocessing`` makes a process."""

LATE = 1.0
"""Seconds by which a call may overrun its deadline: what a busy machine needs to run a thread that is ready."""
ENDING = 3 * LATE
"""Seconds within which a receiver learns of the end: some transports listen for a moment before they know of it."""

_starting = threading.Lock()


@dataclass(frozen=True)
class Subject:
    """One transport under one start method. A context manager: what was opened or started is closed and ended at exit.

    Args:
        url: the channel URL, or a function that makes a fresh one per channel (for addresses that can be used once).
        start_method: how :meth:`start` makes processes.
    """

    url: str | Callable[[], str]
    start_method: StartMethod = "fork"
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False, repr=False, compare=False)

    def fresh_url(self) -> str:
        """Return a URL that no other channel uses."""
        return self.url if isinstance(self.url, str) else self.url()

    @property
    def transport(self) -> type[Transport]:
        """The transport of the URL."""
        return ipcbus.transports.get(parse_url(self.fresh_url()).scheme)

    @property
    def capabilities(self) -> Capabilities:
        """What the transport declares; checks branch on nothing else."""
        return self.transport.capabilities

    @property
    def private(self) -> bool:
        """Whether only this user's processes can reach the channel, so that it needs no key for pickle."""
        return not (self.capabilities.crosses_hosts or self.capabilities.addressable)

    def settings(self) -> dict[str, Any]:
        """Return the options every channel of a check is opened with: a key where strangers could reach it."""
        if self.private:
            return {}
        descriptor, path = tempfile.mkstemp(prefix="ipcbus-contract-key-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"a key that only this check knows")
        self._held.callback(Path(path).unlink)
        return {"key_file": path}

    def open(self, **options: Any) -> ipcbus.Channel:
        """Open a channel; it is closed when the subject is."""
        channel = ipcbus.open(self.fresh_url(), **{**self.settings(), **options})
        self._held.callback(channel.close)
        return channel

    def start(self, function: Callable[..., Any], *args: Any, start_method: StartMethod | None = None) -> Child:
        """Start a process that runs ``function(line, *args)``; it is ended when the subject is.

        Args:
            function: importable by its name, whatever the test runner: one of :mod:`ipcbus.testing.children`.
            *args: go to the process as ``multiprocessing`` takes them.
            start_method: another one than the subject's.
        """
        child = Child(start_method or self.start_method, function, args)
        self._held.callback(child.end)
        return child

    def thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
        """Run a function in a thread."""
        task = Task(function, args, kwargs)
        self._held.callback(task.end)
        return task

    def close(self) -> None:
        """Close and end everything, the last first, and remove what killed processes left behind."""
        self._held.close()
        rundir.reap(rundir.base())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Child:
    """A process started for a check, and the line it talks through beside the channel that is checked.

    Attributes:
        process: the ``multiprocessing`` process.
    """

    def __init__(self, start_method: StartMethod, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            preload_forkserver()
        self._line, there = context.Pipe()
        # The line travels as an argument, so it is open in the parent until the process has started.
        self.process = context.Process(target=children.main, args=(there, function, args))  # type: ignore[attr-defined]  # typeshed has Process only on the concrete contexts
        with there, _bare_main(), warnings.catch_warnings():
            # Forking with threads is what rule 16 is about; Python 3.12 and later warn of it.
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork.*", category=DeprecationWarning)
            self.process.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process.pid is not None
        return int(self.process.pid)

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Return the next thing the process says; an ``AssertionError`` tells of its failure, its death or its silence."""
        if not self._line.poll(timeout):
            os.kill(self.pid, signal.SIGUSR1)
            self.process.join(0.2)  # the time to write its stacks to stderr
            raise AssertionError(f"the {self.process} said nothing for {timeout} s: it is stuck; stderr says where")
        try:
            kind, value = self._line.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(PATIENCE)
            raise AssertionError(f"the {self.process} died without a word (exit code {self.process.exitcode})") from error
        if kind == "failed":
            raise AssertionError(f"in the process under {self.process}:\n{value}")
        return value

    def say(self, value: Any = None) -> None:
        """Tell the process something it waits for."""
        self._line.send(value)

    def result(self, timeout: float = PATIENCE) -> Any:
        """Return what the function returned and wait until the process has ended, without an error."""
        value = self.hear(timeout)
        self.process.join(timeout)
        assert self.process.exitcode == 0, f"{self.process} should have ended by itself, with exit code 0"
        return value

    def kill(self) -> None:
        """End the process without its knowledge (SIGKILL) and wait until it is gone."""
        self.process.kill()
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"{self.process} survived SIGKILL for {PATIENCE} s"

    def end(self) -> None:
        """End the process, whatever it does, and free what belongs to it. Idempotent."""
        self._line.close()  # a process that waits for a word ends by itself now
        self.process.join(0.5)
        if self.process.exitcode is None:
            self.kill()
        self.process.close()


class Task:
    """A function running in a thread."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._name = getattr(function, "__qualname__", repr(function))
        self._thread = threading.Thread(
            target=self._run, args=(function, args, kwargs), daemon=True, name=f"check {self._name}"
        )
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._value = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  handed to whoever asks for the result
            self._error = error

    @property
    def running(self) -> bool:
        """Whether the function has not returned yet."""
        return self._thread.is_alive()

    def result(self, timeout: float = PATIENCE) -> Any:
        """Return what the function returned, or raise what it raised; an ``AssertionError`` if it is stuck."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise AssertionError(f"{self._name} did not return within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value

    def end(self) -> None:
        """Wait until the function is over, for a while."""
        self._thread.join(0.5)


def wait_until_blocked(task: Task) -> None:
    """Give a thread the time to get into its call. That it is late weakens a check, and never fails one."""
    threading.Event().wait(0.05)
    assert task.running, f"the call should be blocked; it ended with {task.result()!r}"


def raises(kind: type[E], call: Callable[..., Any], *args: Any, least: float = 0.0, most: float = LATE, **kwargs: Any) -> E:
    """Call and return the error it raises.

    Args:
        kind: the error it must raise.
        call: what to call, with the arguments that follow.
        *args: positional arguments of the call.
        least: seconds the call must take.
        most: seconds the call may take.
        **kwargs: keyword arguments of the call.

    Raises:
        AssertionError: it returned, raised something else, or took too long or too short.
    """
    said = (
        f"{getattr(call, '__qualname__', call)}({', '.join([*map(_brief, args), *(f'{k}={v!r}' for k, v in kwargs.items())])})"
    )
    started = time.monotonic()
    try:
        value = call(*args, **kwargs)
    except kind as error:
        took = time.monotonic() - started
        assert took <= most, f"{said} raised {kind.__name__} after {took:.2f} s; {most:.2f} s were allowed"
        assert took >= least * 0.9, f"{said} raised {kind.__name__} after {took:.3f} s; it had {least} s to try"
        return error
    except Exception as error:
        raise AssertionError(f"{said} raised {error!r}; it should raise {kind.__name__}") from error
    raise AssertionError(f"{said} returned {_brief(value)}; it should raise {kind.__name__}")


def preload_forkserver(*more: str) -> None:
    """Have multiprocessing's fork server import what children need, once for all of them; no effect once it runs."""
    modules = [children.__name__, "ipcbus.testing.faults", *more]
    for scheme in ipcbus.transports:
        with contextlib.suppress(ipcbus.IpcbusError):  # not installed, and then no child needs it
            modules.append(ipcbus.transports.get(scheme).__module__)
    multiprocessing.get_context("forkserver").set_forkserver_preload(modules)


def _brief(value: object) -> str:
    text = repr(value) if not isinstance(value, (bytes, bytearray)) or len(value) < 40 else f"{len(value)} bytes"
    return text if len(text) < 80 else text[:77] + "..."


@contextlib.contextmanager
def _bare_main() -> Iterator[None]:
    """Hide the main module while a process starts: importing a test runner's takes longer than everything else."""
    with _starting:
        real = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = real
