"""Rules 9, 10, 11 and 19: room, deadlines, and what a call that gave up leaves behind."""

from __future__ import annotations

import contextlib
import math
import resource
import threading
import time
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelEmpty, ChannelFull, EncodeError, EndOfChannel
from ipcbus.testing import children
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import LATE, PATIENCE, Subject, pattern, raises, wait_until_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import ipcbus


_LONG = 1.05
"""Seconds after which something that waits without a timeout is taken to do so for ever."""


@check(9, 19)
def check_capacity(subject: Subject) -> None:
    """Exactly ``capacity`` messages are accepted; the next is refused in time; one received makes room for one."""
    for capacity in (1, 2, 5):
        channel = subject.open(capacity=capacity)
        for n in range(capacity):
            channel.send(n, timeout=PATIENCE)
        raises(ChannelFull, channel.send, "over", timeout=0)
        depth = channel.stats().depth  # as the sending end alone can tell
        assert depth in (None, capacity), f"{capacity} messages were sent, stats() of the sender says {depth}"
        raises(ChannelFull, channel.send, "over", timeout=0.05, least=0.05, most=0.05 + LATE)
        for n in range(2 * capacity):
            assert channel.recv(timeout=PATIENCE) == n, f"message {n} did not arrive in its turn"
            channel.send(capacity + n, timeout=PATIENCE)
            raises(ChannelFull, channel.send, "over", timeout=0)
        depth = channel.stats().depth
        assert depth in (None, capacity), f"{capacity} messages wait, stats() says {depth}"
        for n in range(2 * capacity, 3 * capacity):
            assert channel.recv(timeout=PATIENCE) == n, f"message {n} did not arrive in its turn"
        raises(ChannelEmpty, channel.recv, timeout=0)
        assert channel.stats().depth in (None, 0), f"nothing waits, stats() says {channel.stats().depth}"
        channel.close()


@check(9)
def check_overflow_fail(subject: Subject) -> None:
    """``overflow="fail"`` raises at once, whatever the timeout."""
    channel = subject.open(capacity=2, overflow="fail")
    for n in range(2):
        channel.send(n)
    for _ in range(3):
        raises(ChannelFull, channel.send, "over", timeout=30)
    assert [channel.recv(timeout=PATIENCE) for _ in range(2)] == [0, 1], "what had been accepted did not arrive"
    raises(ChannelEmpty, channel.recv, timeout=0)
    assert channel.stats().dropped == 0, "an error is not a drop"


@check(9)
def check_overflow_drop_new(subject: Subject) -> None:
    """``overflow="drop_new"`` never blocks, keeps what was there and counts what it dropped."""
    channel = subject.open(capacity=3, overflow="drop_new")
    for n in range(10):
        channel.send(n)
    assert [channel.recv(timeout=PATIENCE) for _ in range(3)] == [0, 1, 2], "the oldest three did not arrive"
    raises(ChannelEmpty, channel.recv, timeout=0)
    stats = channel.stats()
    assert (stats.sent, stats.dropped) == (3, 7), f"3 of 10 were sent and 7 dropped; stats() says {stats}"

    channel = subject.open(capacity=3, overflow="drop_new")
    sent = channel.send_many([b"bytes", *range(9)])
    assert sent == 3, f"send_many over a channel of 3 sent 3 and dropped the rest, and returned {sent}"
    assert [channel.recv(timeout=PATIENCE) for _ in range(3)] == [b"bytes", 0, 1], "not the oldest three of send_many arrived"
    stats = channel.stats()
    assert (stats.sent, stats.dropped) == (3, 7), f"3 of 10 were sent at once and 7 dropped; stats() says {stats}"


@check(9, applies=lambda can: can.drops_old)
def check_overflow_drop_old(subject: Subject) -> None:
    """``overflow="drop_old"`` never blocks, keeps the newest and counts what it dropped."""
    channel = subject.open(capacity=3, overflow="drop_old")
    for n in range(10):
        channel.send(n)
    assert [channel.recv(timeout=PATIENCE) for _ in range(3)] == [7, 8, 9], "the newest three did not arrive"
    raises(ChannelEmpty, channel.recv, timeout=0)
    stats = channel.stats()
    assert (stats.sent, stats.dropped) == (10, 7), f"10 were sent and 7 of them dropped; stats() says {stats}"
    # As by a sender that found no room, and a receiver was faster: what it says is what is counted.
    dropped = channel._end.open_sender().discard_oldest(LATE)  # noqa: SLF001  no call of a channel's is that slow for certain
    assert not dropped, "the sending end says that it dropped a message of an empty channel"


@check(10)
def check_recv_deadline(subject: Subject) -> None:
    """An empty channel raises ChannelEmpty at the deadline: not before, not much later, and at once for 0."""
    channel = subject.open()
    for timeout in (0, 0.02, 0.2, 0):
        with _asleep():
            raises(ChannelEmpty, channel.recv, timeout=timeout, least=timeout, most=timeout + LATE)
    _never_blocks(lambda: raises(ChannelEmpty, channel.recv, timeout=0))
    raises(ChannelEmpty, subject.thread(channel.recv, timeout=-1).result, LATE)  # as a deadline that has passed gives it
    channel.send(1, timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == 1, "the channel is not usable after timeouts"


@check(10)
def check_endless_timeout(subject: Subject) -> None:
    """A call without a timeout waits for ever; one that is longer than a system can wait is the same, and no error."""
    idle, full = subject.open(capacity=1), subject.open(capacity=1)
    full.send(1, timeout=PATIENCE)
    patient = [subject.thread(idle.recv), subject.thread(full.send, 2)]
    until = time.monotonic() + _LONG
    for timeout in (3e6, 1e12, math.inf):
        channel = subject.open(capacity=1)
        receiving = subject.thread(channel.recv, timeout=timeout)
        wait_until_blocked(receiving)
        channel.send(1, timeout=PATIENCE)
        assert receiving.result() == 1, f"what came while recv waited with timeout={timeout} did not arrive"
        channel.send(2, timeout=timeout)
        sending = subject.thread(channel.send, 3, timeout=timeout)
        wait_until_blocked(sending)
        assert channel.recv(timeout=PATIENCE) == 2, "what was accepted did not arrive"
        sending.result()
        assert channel.recv(timeout=timeout) == 3, f"what waited for room with timeout={timeout} did not arrive"
        channel.close()
    time.sleep(max(0.0, until - time.monotonic()))
    for task in patient:
        assert task.running, f"a call without a timeout gave up: {children.outcome(task.result)}"
    idle.send(1, timeout=PATIENCE)
    assert patient[0].result() == 1, "what came for a receive without a timeout did not arrive"
    assert [full.recv(timeout=PATIENCE) for _ in range(2)] == [1, 2], "what waited for room without a timeout did not arrive"
    patient[1].result()


@check(10, largest=4 << 20)
def check_send_deadline(subject: Subject) -> None:
    """A full channel raises ChannelFull at the deadline, for small and large messages alike."""
    channel = subject.open(capacity=2)
    for n in range(2):
        channel.send(n, timeout=PATIENCE)
    for size in (10, 3 << 20):
        message = pattern(size, 1)
        for timeout in (0, 0.02, 0.2):
            with _asleep():
                raises(ChannelFull, channel.send, message, timeout=timeout, least=timeout, most=timeout + LATE)
    _never_blocks(lambda: raises(ChannelFull, channel.send, "over", timeout=0))
    raises(ChannelFull, subject.thread(channel.send, "over", timeout=-1).result, LATE)  # as above
    assert [channel.recv(timeout=PATIENCE) for _ in range(2)] == [0, 1], "what had been accepted did not arrive"
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(10, 11, largest=5 << 20)
def check_large_send_deadline(subject: Subject) -> None:
    """A large message that nobody receives is accepted or refused by the deadline; refused, it never arrives."""
    channel = subject.open(capacity=4)
    expected: list[Any] = []
    for n, timeout in enumerate((0, 0.05, 0.3)):
        message = pattern(4 << 20, n)
        started = time.monotonic()
        try:
            channel.send(message, timeout=timeout)
        except ChannelFull:
            pass
        else:
            expected.append(message)
        took = time.monotonic() - started
        assert took <= timeout + LATE, f"send of 4 MiB with timeout={timeout} took {took:.2f} s"

    def send_rest() -> None:
        for value in ("small", pattern(2 << 20, 9), "end"):
            channel.send(value, timeout=PATIENCE)

    expected += ["small", pattern(2 << 20, 9), "end"]
    sending = subject.thread(send_rest)
    for n, value in enumerate(expected):
        got = channel.recv(timeout=PATIENCE)
        assert got == value, f"message {n} of {len(expected)} is not what was accepted: a refused one arrived, or a torn one"
    sending.result()
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(10, 11, largest=4 << 20)
def check_impatient_receiver(subject: Subject) -> None:
    """A receiver that times out again and again in the middle of large messages gets each of them whole."""
    channel = subject.open(capacity=4)
    messages = [pattern(size, n) for n, size in enumerate((3 << 20, 10, 1 << 20, 0, 100_000, 2 << 20))]

    def send() -> None:
        for message in messages:
            channel.send(message, timeout=PATIENCE)

    sending = subject.thread(send)
    got: list[bytes] = []
    until = time.monotonic() + PATIENCE
    while len(got) < len(messages) and time.monotonic() < until:
        try:
            got.append(channel.recv(timeout=0.0005))
        except ChannelEmpty:
            continue
    sending.result()
    assert got == messages, f"{len(got)} of {len(messages)} messages arrived whole for a receiver with a timeout of 0.5 ms"


@check(9, 19)
def check_room_after_drain(subject: Subject) -> None:
    """All room is back as soon as everything was received, without another call of the receiver."""
    for capacity, some in ((4, 3), (100, 90), (100, 100), (1024, 1000)):
        channel = subject.open(capacity=capacity)
        for _ in range(2):
            for n in range(some):
                channel.send(n, timeout=PATIENCE)
            assert [channel.recv(timeout=PATIENCE) for _ in range(some)] == list(range(some)), "messages arrived out of order"
        for n in range(capacity):
            channel.send(n, timeout=LATE)
        raises(ChannelFull, channel.send, 0, timeout=0)


@check(10, 11, largest=400_000)
def check_impatient_sender(subject: Subject) -> None:
    """Sends that time out beside a slow receiver: what was accepted arrives whole, what was refused never does."""
    channel = subject.open(capacity=2)
    accepted: list[int] = []

    def send() -> None:
        for n in range(60):
            try:
                channel.send((n, pattern(300_000 if n % 3 == 0 else 20, n)), timeout=0.002)
            except ChannelFull:
                continue
            accepted.append(n)
        channel.shutdown()

    sending = subject.thread(send)
    got: list[int] = []
    while True:
        try:
            n, data = channel.recv(timeout=PATIENCE)
        except EndOfChannel:
            break
        assert data == pattern(300_000 if n % 3 == 0 else 20, n), f"message {n} arrived torn"
        got.append(n)
        time.sleep(0.003)  # the slow receiver
    sending.result()
    assert got == accepted, (
        f"accepted but not received: {set(accepted) - set(got)}; refused but received: {set(got) - set(accepted)}"
    )


@check(9, 10, 15)
def check_threads_find_room(subject: Subject) -> None:
    """Threads that share a sending end and do not wait are not refused while there is room for all of them."""
    channel = subject.open(capacity=1000)
    channel.send("first", timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == "first", "the first message did not arrive"
    threads, each = 3, 50

    def send(number: int, start: threading.Barrier) -> None:
        start.wait(PATIENCE)
        for n in range(each):
            channel.send((number, n), timeout=0)

    for _ in range(5):
        start = threading.Barrier(threads)
        for task in [subject.thread(send, number, start) for number in range(threads)]:
            task.result()
        got = sorted(channel.recv(timeout=PATIENCE) for _ in range(threads * each))
        expected = [(number, n) for number in range(threads) for n in range(each)]
        assert got == expected, "of what threads had sent a message arrived twice, and another never"
    assert channel.stats().dropped == 0, f"nothing was dropped, stats() counts {channel.stats().dropped}"


@check(9)
def check_blocked_send_resumes(subject: Subject) -> None:
    """A send that waits for room goes on when a message is received."""
    channel = subject.open(capacity=1)
    channel.send("first", timeout=PATIENCE)
    sending = subject.thread(channel.send, "second", timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == "first", "the first message did not arrive"
    sending.result()
    assert channel.recv(timeout=PATIENCE) == "second", "the message that had to wait did not arrive"


@check(11, largest=400_000)
def check_interrupted_send(subject: Subject) -> None:
    """Sends interrupted by a raising signal handler, hundreds of times: the channel goes on, every message is whole."""
    child = subject.start(children.interrupted_send, subject.fresh_url(), subject.settings(), start_method="forkserver")
    interrupts = child.result(3 * PATIENCE)
    assert interrupts > children.ENOUGH, f"only {interrupts} calls were interrupted: the check proved nothing"


@check(11, largest=400_000)
def check_interrupted_recv(subject: Subject) -> None:
    """Receives interrupted by a raising signal handler: at most the one in hand is lost, every other arrives whole."""
    child = subject.start(children.interrupted_recv, subject.fresh_url(), subject.settings(), start_method="forkserver")
    interrupts = child.result(3 * PATIENCE)
    assert interrupts > children.ENOUGH, f"only {interrupts} calls were interrupted: the check proved nothing"


@check(9)
def check_many_at_once(subject: Subject) -> None:
    """send_many stops at the deadline and says how many it sent; recv_many takes what is there."""
    channel = subject.open(capacity=5)
    started = time.monotonic()
    assert channel.send_many([*range(10)], timeout=0.05) == 5, "send_many over a channel of 5 did not send 5"
    took = time.monotonic() - started
    assert took <= 0.05 + LATE, f"send_many with timeout=0.05 took {took:.2f} s"
    raises(ChannelFull, channel.send_many, [10], timeout=0)
    got: list[int] = []
    while len(got) < 5:
        some = channel.recv_many(3, timeout=PATIENCE)
        assert 1 <= len(some) <= 3, f"recv_many(3) returned {len(some)} messages"
        got += some
    assert got == [0, 1, 2, 3, 4], f"arrived as {got}"
    raises(ChannelEmpty, channel.recv_many, 3, timeout=0)


@check(1, 3, 9, largest=400_000)
def check_many_of_all_kinds(subject: Subject) -> None:
    """A list of messages of every size and kind arrives whole and in order, whatever the transport sends together."""
    channel = subject.open(capacity=32)
    values: list[Any] = [pattern(size, size) for size in (0, 1, 64, 900, 64, 5000, 0, 64, 70_000, 3, 300_000, 64)]
    values = [value for part in values for value in (part, {"n": len(part)}, part[:64])]
    values += [b"%d" % number for number in range(200)]
    sending = subject.thread(_send_many_and_end, channel, values)
    got: list[Any] = []
    while not got or got[-1] != "end":
        got += channel.recv_many(7, timeout=PATIENCE)
    got.pop()
    assert sending.result() == len(values), f"send_many returned {sending.result()} for {len(values)} messages"
    assert len(got) == len(values), f"{len(got)} of {len(values)} messages arrived"
    wrong = next((at for at, (one, other) in enumerate(zip(got, values, strict=True)) if one != other), None)
    assert wrong is None, f"message {wrong} of {len(values)} arrived as {got[wrong or 0]!r:.80}"
    stats = channel.stats()
    assert (stats.sent, stats.received) == (len(values) + 1, len(values) + 1), f"stats() says {stats}"


def _send_many_and_end(channel: ipcbus.Channel, values: list[Any]) -> int:
    sent = channel.send_many(values, timeout=3 * PATIENCE)
    channel.send("end", timeout=PATIENCE)
    return sent


@check(6, 9)
def check_many_up_to_a_culprit(subject: Subject) -> None:
    """What comes before something that cannot travel is sent, what comes behind it is not."""
    channel = subject.open(capacity=8)
    raises(EncodeError, channel.send_many, [b"before", 1, lambda: None, b"behind"], timeout=PATIENCE)
    channel.send("next", timeout=PATIENCE)
    got = [channel.recv(timeout=PATIENCE) for _ in range(3)]
    assert got == [b"before", 1, "next"], f"arrived as {got}"


@contextlib.contextmanager
def _asleep() -> Iterator[None]:
    """See to it that what waits in here for at most 0.2 s sleeps until it is woken, and does not look again and again."""
    before, cpu = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw, time.thread_time()
    yield
    wakes, cpu = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before, time.thread_time() - cpu
    assert wakes < 10, f"a call that waited for nothing went to sleep {wakes} times: it polls"
    assert cpu < 0.1, f"a call that waited for nothing used {cpu:.2f} s of processor time: it polls"


def _never_blocks(call: Callable[[], object]) -> None:
    """Call five times: a busy machine may hold up one call, but not each of them."""
    took = []
    for _ in range(5):
        started = time.monotonic()
        call()
        took.append(time.monotonic() - started)
    assert min(took) < 0.05, f"the quickest of five calls with timeout=0 took {min(took):.2f} s: they block"
