"""Rules 12 to 15 and 20: shutdown, close, threads, and facts that hold."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import pickle
import queue
import time
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.errors import (
    ChannelClosed,
    ChannelEmpty,
    ChannelFull,
    ConfigError,
    EndOfChannel,
    InsecureConfiguration,
    Unsupported,
)
from ipcbus.testing import children, leaks
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import ENDING, LATE, PATIENCE, Subject, pattern, raises, wait_until_blocked
from ipcbus.transport import LINGER

if TYPE_CHECKING:
    from collections.abc import Callable


@check(12)
def check_shutdown(subject: Subject) -> None:
    """After shutdown a send raises, receivers drain, and then get EndOfChannel every time they ask."""
    channel = subject.open()
    for message in (0, b"one", 2):
        channel.send(message, timeout=PATIENCE)
    subject.thread(channel.shutdown).result(3 * LATE)
    for timeout in (0, 0.1, None):
        raises(ChannelClosed, channel.send, "late", timeout=timeout)
        raises(ChannelClosed, channel.send, b"late", timeout=timeout)
    got = [channel.recv(timeout=PATIENCE) for _ in range(3)]
    assert got == [0, b"one", 2], f"what was sent before the shutdown arrived as {got}"
    raises(EndOfChannel, channel.recv, timeout=PATIENCE, most=ENDING)
    for timeout in (0, 0.1, None):
        raises(EndOfChannel, channel.recv, timeout=timeout)
    subject.thread(channel.shutdown).result(3 * LATE)
    raises(EndOfChannel, channel.recv, timeout=0)


@check(12)
def check_shutdown_unused(subject: Subject) -> None:
    """A channel that nobody used yet can be shut down, from either side."""
    for role in ("sender", "receiver"):
        channel = subject.open()
        subject.thread(getattr(channel, role).shutdown).result()
        raises(EndOfChannel, channel.recv, timeout=PATIENCE, most=ENDING)
        raises(ChannelClosed, channel.send, "late", timeout=1)


@check(12)
def check_shutdown_wakes(subject: Subject) -> None:
    """A shutdown wakes who is blocked: a receiver gets EndOfChannel, a sender ChannelClosed."""
    channel = subject.open(capacity=1)
    receiving = subject.thread(channel.recv, timeout=PATIENCE)
    wait_until_blocked(receiving)
    subject.thread(channel.shutdown).result(3 * LATE)
    raises(EndOfChannel, receiving.result, most=ENDING)

    channel = subject.open(capacity=1)
    channel.send(1, timeout=PATIENCE)
    sending = subject.thread(channel.send, 2, timeout=PATIENCE)
    wait_until_blocked(sending)
    subject.thread(channel.shutdown).result(3 * LATE)
    raises(ChannelClosed, sending.result)
    assert channel.recv(timeout=PATIENCE) == 1, "what was accepted before the shutdown did not arrive"
    raises(EndOfChannel, channel.recv, timeout=PATIENCE, most=ENDING)


@check(12)
def check_shutdown_overlap(subject: Subject) -> None:
    """Of sends that overlap a shutdown, each that returned is delivered, in order, and the stream ends."""
    for attempt in range(5):
        channel = subject.open(capacity=8)
        sent: list[int] = []

        def send(channel: ipcbus.Channel = channel, sent: list[int] = sent) -> None:
            for n in range(1_000_000):
                try:
                    channel.send(n, timeout=PATIENCE)
                except ChannelClosed:
                    return
                sent.append(n)

        sending = subject.thread(send)
        got = [channel.recv(timeout=PATIENCE) for _ in range(20 * attempt + 1)]
        channel.shutdown()
        got += list(_until_end(channel))
        sending.result()
        assert got == list(range(len(got))), "messages around a shutdown arrived out of order or twice"
        assert len(sent) <= len(got) <= len(sent) + 1, f"{len(sent)} sends returned and {len(got)} messages arrived"


@check(12)
def check_iteration(subject: Subject) -> None:
    """A for loop over a channel ends at its end."""
    channel = subject.open(capacity=4)

    def send() -> None:
        for n in range(50):
            channel.send(n, timeout=PATIENCE)
        channel.shutdown()

    sending = subject.thread(send)
    assert subject.thread(list, channel).result() == list(range(50)), "a loop over the channel did not see all of it"
    sending.result()


@check(13, 14)
def check_close(subject: Subject) -> None:
    """Close is idempotent and quick; every use after it raises ChannelClosed."""
    channel = subject.open(capacity=2)
    channel.send(1, timeout=PATIENCE)
    channel.send(2, timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == 1, "the message did not arrive"
    started = time.monotonic()
    for _ in range(3):
        subject.thread(channel.close).result(LINGER + LATE)
    took = time.monotonic() - started
    assert took < LINGER + LATE, f"close took {took:.1f} s; it may take {LINGER} s"
    uses: list[Callable[[], object]] = [
        lambda: channel.send(3, timeout=0),
        lambda: channel.send(3),
        lambda: channel.send(b"bytes", timeout=0),
        lambda: channel.recv(timeout=0),
        channel.recv,
        channel.recv_message,
        lambda: channel.recv_many(3),
        channel.__iter__().__next__,
        channel.fileno,
        lambda: ipcbus.wait([channel], timeout=0.1),
        channel.sender.fileno,
        channel.receiver.recv,
        lambda: pickle.dumps(channel),
    ]
    if channel._end.codec.trusted:  # noqa: SLF001  else nobody asks through it
        uses += [lambda: channel.request(3, timeout=LATE), lambda: channel.submit(3)]
    for use in uses:
        task = subject.thread(use)
        raises(ChannelClosed, task.result, LATE)
    assert repr(channel), "a closed channel has no repr"
    assert channel.stats().received == 1, "a closed channel has no counters"


@check(13, 14)
def check_close_unused(subject: Subject) -> None:
    """A channel that was never used closes, and stays closed."""
    channel = subject.open()
    channel.close()
    raises(ChannelClosed, channel.send, 1, timeout=0)
    raises(ChannelClosed, channel.recv, timeout=0)


@check(13, largest=4 << 20)
def check_close_wakes(subject: Subject) -> None:
    """Close wakes a blocked call of another thread, which gets ChannelClosed."""
    channel = subject.open(capacity=1)
    receiving = [subject.thread(channel.recv) for _ in range(2)]
    for task in receiving:
        wait_until_blocked(task)
    channel.close()
    for task in receiving:
        raises(ChannelClosed, task.result, LATE, most=LATE + LATE)

    for message in ("small", pattern(3 << 20, 1)):
        channel = subject.open(capacity=1)
        channel.send(1, timeout=PATIENCE)
        sending = subject.thread(channel.send, message)
        wait_until_blocked(sending)
        subject.thread(channel.close).result(LINGER + LATE)
        raises(ChannelClosed, sending.result, LATE, most=LATE + LATE)


@check(13, 20)
def check_close_one_role(subject: Subject) -> None:
    """Closing one role of a channel leaves the other role of this process open; a channel that comes again has both."""
    channel = subject.open()
    channel.send("kept", timeout=PATIENCE)
    channel.receiver.ready()
    channel.sender.close()
    raises(ChannelClosed, channel.send, "late", timeout=0)
    assert channel.recv(timeout=PATIENCE) == "kept", "closing the sending end took a message away"
    raises(ChannelEmpty, channel.recv, timeout=0)  # and no end: who else sends goes on
    again: ipcbus.Channel = pickle.loads(pickle.dumps(channel))
    again.send("again", timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == "again", "the channel that came again does not work"
    again.receiver.close()
    again = pickle.loads(pickle.dumps(channel))
    again.send("both", timeout=PATIENCE)
    assert again.recv(timeout=PATIENCE) == "both", "the channel that came again does not receive"


@check(13, applies=lambda can: can.capacity_scope == "channel")
def check_close_keeps(subject: Subject) -> None:
    """What waits in a channel when its receiving end closes is there for the next."""
    channel = subject.open(capacity=8)
    passed_on = pickle.dumps(channel.receiver)
    for n in range(4):
        channel.send(n, timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == 0, "the first message did not arrive"
    channel.receiver.close()
    with contextlib.closing(pickle.loads(passed_on)) as successor:
        got = [successor.recv(timeout=PATIENCE) for _ in range(3)]
    assert got == [1, 2, 3], f"of what waited when the receiving end closed, the next got {got}"


@check(13, largest=300_000)
def check_close_frees(subject: Subject) -> None:
    """Close frees every descriptor, thread and name that a channel used, whatever came before."""

    def use() -> None:
        with ipcbus.open(subject.fresh_url(), capacity=4, **settings) as channel:
            for message in (1, pattern(200_000, 1)):
                sending = subject.thread(channel.send, message, timeout=PATIENCE)
                channel.recv(timeout=PATIENCE)
                sending.result()
            ipcbus.wait([channel, channel.sender], timeout=0)
            for n in range(120):  # what is left behind now and then only
                channel.send(n, timeout=PATIENCE)
                channel.recv(timeout=PATIENCE)
            raises(ChannelEmpty, channel.recv, timeout=0.001)
            channel.send(2, timeout=PATIENCE)
            asyncio.run(asyncio.wait_for(channel.aio.recv(), PATIENCE))
            for n in range(4):
                channel.send(n, timeout=PATIENCE)
            raises(ChannelFull, channel.send, 4, timeout=0.001)
            channel.shutdown()
            assert list(_until_end(channel)) == [0, 1, 2, 3], "not what was accepted before the shutdown arrived"

    settings = subject.settings()
    use()  # what a process sets up once and keeps is not a leak
    before = leaks.snapshot()
    for _ in range(3):
        use()
    left = leaks.compare(before, grace=2.0)
    assert not left, "three channels were used and closed, and left behind:\n" + "\n".join(left)


@check(15, largest=30_000)
def check_threads(subject: Subject) -> None:
    """Four sending and two receiving threads share a channel: every message arrives exactly once, in each sender's order."""
    channel = subject.open(capacity=16)
    each = 250

    def send(number: int) -> None:
        for n in range(each):
            channel.send((number, n, pattern(20_000, n) if n % 50 == 0 else b""), timeout=PATIENCE)

    def receive() -> list[tuple[int, int]]:
        got = []
        for number, n, data in _until_end(channel):
            assert data == (pattern(20_000, n) if n % 50 == 0 else b""), f"message {n} of thread {number} arrived torn"
            got.append((number, n))
        return got

    receiving = [subject.thread(receive) for _ in range(2)]
    sending = [subject.thread(send, number) for number in range(4)]
    for task in sending:
        task.result(2 * PATIENCE)
    channel.shutdown()
    parts = [task.result(2 * PATIENCE) for task in receiving]
    everything = sorted(parts[0] + parts[1])
    assert len(everything) == 4 * each, f"{4 * each} messages were sent by threads, {len(everything)} arrived"
    assert everything == [(number, n) for number in range(4) for n in range(each)], "a message arrived twice, another never"
    for part in parts:
        for number in range(4):
            order = [n for sender, n in part if sender == number]
            assert order == sorted(order), f"the messages of thread {number} arrived out of order"


@check(20)
def check_roles(subject: Subject) -> None:
    """The sending side cannot receive, nor the receiving side send, and a role cannot be widened."""
    channel = subject.open()
    sender, receiver = channel.sender, channel.receiver
    sender.send(1, timeout=PATIENCE)
    assert receiver.recv(timeout=PATIENCE) == 1, "the two roles of a channel do not meet"
    raises(Unsupported, receiver.send, 1, timeout=0)
    raises(Unsupported, sender.recv, timeout=0)
    raises(Unsupported, lambda: asyncio.run(_awaited(receiver.aio.send(1, timeout=0))))
    raises(Unsupported, lambda: asyncio.run(_awaited(sender.aio.recv(timeout=0))))
    raises(Unsupported, lambda: sender.receiver)
    raises(Unsupported, lambda: receiver.sender)
    assert sender.sender == sender != channel, "equality of channels ignores or confuses their roles"


@check(20)
def check_facts(subject: Subject) -> None:
    """What a channel says about itself is what its transport declares."""
    channel = subject.open(capacity=7)
    assert channel.capabilities == subject.transport.capabilities, "the channel's capabilities are not its transport's"
    for name, sentence in dataclasses.asdict(channel.guarantees()).items():
        assert isinstance(sentence, str), f"guarantees: {name} is {sentence!r}"
        assert sentence, f"guarantees: {name} is empty"
    assert channel.url.startswith(subject.transport.scheme + ":"), f"{channel.url} is not of scheme {subject.transport.scheme}"
    assert subject.transport.scheme in repr(channel), f"{channel!r} does not say which transport it uses"
    channel.send(1, timeout=PATIENCE)
    channel.recv(timeout=PATIENCE)
    stats = channel.stats()
    assert (stats.sent, stats.received, stats.dropped, stats.capacity) == (1, 1, 0, 7), f"stats() says {stats}"


@check(20)
def check_undeclared(subject: Subject) -> None:
    """What the transport does not declare raises Unsupported; a wrong option names itself."""
    if not subject.capabilities.many_receivers:
        raises(Unsupported, subject.open, receivers="many")
    if not subject.capabilities.drops_old:
        raises(Unsupported, subject.open, overflow="drop_old")
    if not subject.private:
        raises(InsecureConfiguration, subject.open, key_file=None, serializer="pickle")
    for wrong in ({"capacity": 0}, {"capacity": 1 << 40}, {"capacty": 5}, {"overflow": "maybe"}, {"max_message": 1}):
        error = raises(ConfigError, subject.open, **wrong)
        assert next(iter(wrong)) in str(error), f"the error does not name {next(iter(wrong))}: {error}"


@check(10, 14)
def check_error_classes(subject: Subject) -> None:
    """Errors are what callers of queues and of pipes expect, and pickle."""
    channel = subject.open(capacity=1)
    empty = raises(ChannelEmpty, channel.recv, timeout=0)
    channel.send(1, timeout=PATIENCE)
    full = raises(ChannelFull, channel.send, 2, timeout=0)
    channel.shutdown()
    closed = raises(ChannelClosed, channel.send, 2, timeout=0)
    assert channel.recv(timeout=PATIENCE) == 1, "the message did not arrive"
    end = raises(EndOfChannel, channel.recv, timeout=PATIENCE, most=ENDING)
    assert isinstance(empty, (queue.Empty, TimeoutError)), "ChannelEmpty is no queue.Empty"
    assert isinstance(full, (queue.Full, TimeoutError)), "ChannelFull is no queue.Full"
    assert isinstance(end, EOFError), "EndOfChannel is no EOFError"
    for error in (empty, full, closed, end):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error)), f"{error!r} unpickles as {again!r}"
        assert str(error), f"{type(error).__name__} says nothing"


@check(16)
def check_value(subject: Subject) -> None:
    """A channel is a value: its copy, and what comes out of its pickle in the same process, is the same, and costs nothing."""
    channel = subject.open()
    for duplicate in (copy.copy, copy.deepcopy):
        twin = duplicate(channel)  # before its first use, and of an end that is limited
        assert (twin, duplicate(channel.sender)) == (channel, channel.sender), f"{duplicate.__name__} makes another channel"
        del twin
        channel.send(duplicate.__name__, timeout=PATIENCE)
        assert channel.recv(timeout=PATIENCE) == duplicate.__name__, "the message did not arrive"
    again: ipcbus.Channel = pickle.loads(pickle.dumps(channel))
    assert again == channel, "a channel and its pickle's channel are not equal"
    assert hash(again) == hash(channel), "equal channels have different hashes"
    again.send("through the copy", timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == "through the copy", "a copy is another channel"
    assert pickle.loads(pickle.dumps(channel.sender)) == channel.sender, "a role is lost on the way"
    assert subject.open() != channel, "two channels are equal"
    before = leaks.snapshot()
    for _ in range(3):
        pickle.loads(pickle.dumps(channel))
    left = leaks.compare(before)
    assert not left, "three pickles of a channel were loaded and dropped, and left behind:\n" + "\n".join(left)


@check(20, applies=lambda can: not can.crosses_processes)
def check_confined(subject: Subject) -> None:
    """A transport that stays in its process says so in any other, inherited or sent, and harms nothing."""
    channel = subject.open()
    channel.send("stays", timeout=PATIENCE)
    said = subject.start(children.expect_unsupported, channel, start_method="fork").result()
    assert said == ["Unsupported", "Unsupported"], f"send and recv in a forked child ended in {said}"
    said = subject.start(children.unpickle, pickle.dumps(channel), start_method="forkserver").result()
    assert said == "Unsupported", f"unpickling the channel in another process ended in {said}"
    assert channel.recv(timeout=PATIENCE) == "stays", "the child's attempt took the message"


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _until_end(channel: ipcbus.Channel) -> Any:
    """Receive until the end, each message within PATIENCE."""
    while True:
        try:
            message = channel.recv(timeout=PATIENCE)
        except EndOfChannel:
            return
        yield message
