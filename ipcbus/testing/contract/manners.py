"""What a channel does to the process that it is in, and to the threads beside it; rules 10, 11, 13, 15 and 16."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.errors import ChannelEmpty, ChannelFull
from ipcbus.testing import children, leaks
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import LATE, PATIENCE, Subject, pattern, raises, wait_until_blocked

if TYPE_CHECKING:
    from collections.abc import Iterator

_MANY = 1024
"""Descriptors that ``select()`` can tell apart."""


@check(13, largest=300_000)
def check_leaves_no_trace(subject: Subject) -> None:
    """A channel that is gone has left no file and changed no signal, and no program started meanwhile has a part of it."""
    settings = subject.settings()
    _use(subject, settings)  # what a process sets up once and keeps is not a trace
    fds, held, signals = leaks.snapshot().fds, leaks.held(), _signals()
    with _used(subject, settings) as channel:
        inheritable = [name for name in leaks.snapshot().fds - fds if _is_inheritable(int(name.split()[0]))]
        files = leaks.held() - held
        channel.destroy()
    assert not inheritable, f"programs that this process starts inherit descriptors of a channel: {sorted(inheritable)}"
    left = [name for name in files if Path(name).exists()]
    assert not left, f"a channel was used and destroyed, and left files behind: {sorted(left)}"
    changed = _signals() - signals
    assert not changed, f"a channel was used and closed, and has changed what signals do: {sorted(changed)}"


@check(13, 16, largest=300_000)
def check_fork_frees(subject: Subject) -> None:
    """What a forked child has of its parent's ends goes when it closes the channel; the parent's go on.

    Descriptors without anything behind them, such as eventfds, are let pass: they keep nothing alive by which others tell
    that somebody is there, and not every driver can be taken apart in a child.
    """
    settings = subject.settings()
    _use(subject, settings)  # as above
    before = leaks.snapshot()
    with _used(subject, settings) as channel:
        opened = frozenset(fd for fd in leaks.snapshot().fds - before.fds if "-> anon_inode:" not in fd)
        children.inherited[:] = [channel]
        try:
            left = subject.start(children.close_inherited, opened, start_method="fork").result()
        finally:
            children.inherited.clear()
        assert not left, "a forked child closed the channel that it inherited, and has still open:\n" + "\n".join(left)
        channel.send("after", timeout=PATIENCE)
        assert channel.recv(timeout=PATIENCE) == "after", "the parent's end does not work after a child has closed its own"


@check(13, largest=2 << 20)
def check_memory(subject: Subject) -> None:
    """Messages that were received and let go of take no memory any more."""
    channel = subject.open(capacity=4)

    def send(count: int) -> None:
        for n in range(count):
            channel.send(pattern(1 << 20, n), timeout=PATIENCE)

    def pass_through(count: int) -> None:
        sending = subject.thread(send, count)
        for _ in range(count):
            channel.recv(timeout=PATIENCE)
        sending.result()

    pass_through(16)
    before = _resident()
    pass_through(48)
    grown = _resident() - before
    assert grown < 24, f"48 messages of 1 MiB were received and dropped, and the process has grown by {grown:.0f} MiB"


@check(10, largest=300_000)
def check_many_descriptors(subject: Subject) -> None:
    """A channel works in a process that has more descriptors open than ``select()`` can tell apart."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MANY
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return  # here no process can
    with contextlib.ExitStack() as held:
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        last = -1
        while last < _MANY:
            last = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, last)
        with _used(subject, subject.settings()) as channel:
            raises(ChannelEmpty, channel.recv, timeout=0.01)


@check(10, 15)
def check_waits_alone(subject: Subject) -> None:
    """A thread that waits holds up no other: what need not wait does not, and other deadlines are kept."""
    channel = subject.open(capacity=1)
    receiving = subject.thread(channel.recv)
    wait_until_blocked(receiving)
    for timeout in (0, 0.02):
        other = subject.thread(channel.recv, timeout=timeout)
        raises(ChannelEmpty, other.result, LATE, most=2 * LATE)
    assert subject.thread(ipcbus.wait, [channel], timeout=0).result(LATE) == [], "an empty channel is ready"
    subject.thread(channel.stats).result(LATE)
    channel.send("first", timeout=PATIENCE)
    assert receiving.result() == "first", "the message did not arrive"

    channel.send("second", timeout=PATIENCE)
    sending = subject.thread(channel.send, "third")
    wait_until_blocked(sending)
    for timeout in (0, 0.02):
        other = subject.thread(channel.send, "over", timeout=timeout)
        raises(ChannelFull, other.result, LATE, most=2 * LATE)
    assert subject.thread(ipcbus.wait, [channel.sender], timeout=0).result(LATE) == [], "a full channel is ready for a send"
    subject.thread(channel.stats).result(LATE)
    assert [channel.recv(timeout=PATIENCE) for _ in range(2)] == ["second", "third"], "not what was accepted arrived"
    sending.result()
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(10, 11)
def check_signal_meanwhile(subject: Subject) -> None:
    """A signal whose handler returns changes nothing for a call that waits: it goes on to its deadline."""
    if threading.current_thread() is not threading.main_thread():
        return  # where no handler runs
    channel = subject.open(capacity=1)
    struck: list[float] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: struck.append(time.monotonic()))
    try:
        for kind, call, then in (
            (ChannelEmpty, lambda: channel.recv(timeout=0.04), lambda: channel.send(1, timeout=PATIENCE)),
            (ChannelFull, lambda: channel.send(2, timeout=0.04), lambda: channel.recv(timeout=PATIENCE)),
        ):
            until = time.monotonic() + PATIENCE
            meanwhile = 0
            while meanwhile < 10:  # on a busy machine signals come too early or too late, and prove nothing
                assert time.monotonic() < until, f"only {meanwhile} signals came while a call waited: the check proved nothing"
                struck.clear()
                with _strikes(subject):
                    started = time.monotonic()
                    raises(kind, call, least=0.04, most=0.04 + LATE)
                meanwhile += sum(moment - started < 0.04 for moment in struck)
            then()
    finally:
        signal.signal(signal.SIGUSR2, before)


@contextlib.contextmanager
def _strikes(subject: Subject) -> Iterator[None]:
    """Have this thread struck by SIGUSR2 again and again."""
    me, over = threading.get_ident(), threading.Event()

    def strike() -> None:
        while not over.wait(0.005):
            signal.pthread_kill(me, signal.SIGUSR2)

    striking = subject.thread(strike)
    try:
        yield
    finally:
        over.set()
        striking.result()


def _use(subject: Subject, settings: dict[str, Any]) -> None:
    with _used(subject, settings):
        pass


@contextlib.contextmanager
def _used(subject: Subject, settings: dict[str, Any]) -> Iterator[ipcbus.Channel]:
    """Open a channel, use it in the ways there are, and close it."""
    with ipcbus.open(subject.fresh_url(), capacity=4, **settings) as channel:
        for message in (1, b"bytes", pattern(200_000, 1)):
            sending = subject.thread(channel.send, message, timeout=PATIENCE)
            assert channel.recv(timeout=PATIENCE) == message, "the message did not arrive"
            sending.result()
        ipcbus.wait([channel, channel.sender], timeout=0)
        yield channel


def _signals() -> frozenset[str]:
    """Return what signals do, as Python knows it and, for what was changed behind its back, as the kernel does."""
    status = Path("/proc/thread-self/status").read_text().splitlines()
    known = {f"{signal.Signals(number).name}: {signal.getsignal(number)}" for number in signal.Signals}
    return frozenset(known | {line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt"))})


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # closed meanwhile


def _resident() -> float:
    """Return how many MiB of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)
