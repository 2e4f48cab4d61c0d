"""Readiness: wait(), descriptors and the asyncio face; rules 10, 11 and 13 as they look from there."""

from __future__ import annotations

import asyncio
import random
import resource
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull, EndOfChannel
from ipcbus.testing import children
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import ENDING, LATE, PATIENCE, Subject, pattern, raises

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType


@check(9, 10, 15)
def check_one_at_a_time(subject: Subject) -> None:
    """No wake-up is lost between a look and the sleep behind it, where both sides wait for each message."""
    channel = subject.open(capacity=1)
    count, patience = 300, 3 * LATE

    def send() -> None:
        for n in range(count):
            channel.send(n, timeout=patience)

    def receive() -> None:
        for n in range(count):
            try:
                got = channel.recv(timeout=patience)
            except ChannelEmpty as error:
                raise AssertionError(f"message {n} of {count} did not come: one side sleeps, and was not woken") from error
            assert got == n, f"message {n} arrived as {got}"

    receiving, sending = subject.thread(_mixed, receive, 1), subject.thread(_mixed, send, 2)
    receiving.result(3 * PATIENCE)
    sending.result()


def _mixed(call: Callable[[], None], seed: int) -> None:
    """Call, and have other threads run between any two lines of Python, a tenth of them."""
    moments = random.Random(seed)  # noqa: S311  instants, not secrets

    def step(_: FrameType, event: str, __: object) -> Any:
        if event == "line" and moments.random() < 0.1:
            time.sleep(0)
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        call()
    finally:
        sys.settrace(before)


@check(10)
def check_wait(subject: Subject) -> None:
    """wait() sees a channel as ready exactly while a message is there, also one that was read ahead."""
    channel = subject.open()
    assert ipcbus.wait([channel], timeout=0) == [], "an empty channel is ready"
    for n in range(3):
        channel.send(n, timeout=PATIENCE)
    for n in range(3):
        assert ipcbus.wait([channel], timeout=PATIENCE) == [channel], f"{3 - n} messages are there and the channel is not ready"
        assert channel.recv(timeout=0 if n else PATIENCE) == n, f"message {n} did not arrive in its turn"
    raises(ChannelEmpty, channel.recv, timeout=0)
    assert ipcbus.wait([channel], timeout=0.02) == [], "a drained channel is ready"


@check(10, largest=200_000)
def check_wait_fresh(subject: Subject) -> None:
    """What wait() calls ready can be received with timeout=0, for every one of many fresh messages."""
    channel = subject.open(capacity=4)

    def send() -> None:
        for n in range(200):
            channel.send((n, pattern(100_000 if n % 40 == 0 else 10, n)), timeout=PATIENCE)

    sending = subject.thread(send)
    got = 0
    false_alarms = 0
    while got < 200:
        assert ipcbus.wait([channel], timeout=PATIENCE) == [channel], f"nothing is ready after {got} of 200 messages"
        try:
            n, _ = channel.recv(timeout=0)
        except ChannelEmpty:
            false_alarms += 1
            assert false_alarms < 200, "wait() calls the channel ready again and again, and nothing is there"
            continue
        assert n == got, f"message {got} arrived as {n}"
        got += 1
    sending.result()


@check(10)
def check_wait_wakes(subject: Subject) -> None:
    """A wait that sleeps is woken by a message, by room and, on either side, by a shutdown."""
    channel = subject.open(capacity=1)
    for n in range(3):
        waiting = subject.thread(ipcbus.wait, [channel], timeout=PATIENCE)
        time.sleep(0.02)  # so that the wait is likely to sleep already; it must be woken either way
        channel.send(n, timeout=PATIENCE)
        assert waiting.result(LATE) == [channel], "a message did not wake a wait for it"
        waiting = subject.thread(ipcbus.wait, [channel.sender], timeout=PATIENCE)
        time.sleep(0.02)  # as above
        assert channel.recv(timeout=PATIENCE) == n, "the message did not arrive"
        assert waiting.result(LATE) == [channel.sender], "room did not wake a wait for it"
    waiting = subject.thread(ipcbus.wait, [channel], timeout=PATIENCE)
    time.sleep(0.02)  # as above
    channel.shutdown()
    assert waiting.result(ENDING) == [channel], "a shutdown did not wake a wait"
    raises(EndOfChannel, channel.recv, timeout=0)

    full = subject.open(capacity=1)
    full.send(1, timeout=PATIENCE)
    waiting = subject.thread(ipcbus.wait, [full.sender], timeout=PATIENCE)
    time.sleep(0.02)  # as above
    full.shutdown()
    assert waiting.result(LATE) == [full.sender], "a shutdown did not wake a wait for room"
    raises(ChannelClosed, full.send, 2, timeout=0)


@check(9, 10)
def check_wait_sender(subject: Subject) -> None:
    """A sending side is ready exactly while there is room."""
    channel = subject.open(capacity=2)
    sender = channel.sender
    for n in range(2):
        assert ipcbus.wait([sender], timeout=PATIENCE) == [sender], "there is room and the sending side is not ready"
        sender.send(n, timeout=0)
    raises(ChannelFull, sender.send, 2, timeout=0)
    assert ipcbus.wait([sender], timeout=0.02) == [], "the channel is full and the sending side is ready"
    channel.recv(timeout=PATIENCE)
    assert ipcbus.wait([sender, channel], timeout=PATIENCE) != [], "neither side is ready"
    assert ipcbus.wait([sender], timeout=PATIENCE) == [sender], "room was made and the sending side is not ready"
    sender.send(2, timeout=0)


@check(10)
def check_wait_mixed(subject: Subject) -> None:
    """wait() takes channels, sockets and plain descriptors together, and returns what is ready, in order."""
    first, second = subject.open(), subject.open()
    here, there = socket.socketpair()
    with here, there:
        things = [here, first, second, there.fileno()]
        assert ipcbus.wait(things, timeout=0.02) == [], "nothing happened, and something is ready"
        second.send(1, timeout=PATIENCE)
        assert ipcbus.wait(things, timeout=PATIENCE) == [second], "not exactly the channel with a message is ready"
        there.send(b"x")
        assert ipcbus.wait(things, timeout=PATIENCE) == [here, second], "not exactly the socket and the channel are ready"
        second.recv(timeout=PATIENCE)
        assert ipcbus.wait(things, timeout=PATIENCE) == [here], "not exactly the socket is ready"


@check(10)
def check_wait_quiet(subject: Subject) -> None:
    """Waiting for nothing costs nothing: no polling, no descriptor that is always readable."""
    channel = subject.open(capacity=1)
    channel.send(1, timeout=PATIENCE)
    channel.recv(timeout=PATIENCE)
    raises(ChannelEmpty, channel.recv, timeout=0)
    full = subject.open(capacity=1)
    full.send(1, timeout=PATIENCE)
    raises(ChannelFull, full.send, 1, timeout=0)
    started, cpu, wakes = time.monotonic(), time.process_time(), _wakes()
    assert ipcbus.wait([channel, full.sender], timeout=0.2) == [], "nothing can be done, and something is ready"
    took, cpu, wakes = time.monotonic() - started, time.process_time() - cpu, _wakes() - wakes
    assert took >= 0.19, f"a wait of 0.2 s was over after {took:.3f} s"
    assert cpu < 0.05, f"during a wait of 0.2 s the process used {cpu:.2f} s of processor time: it, or a thread, polls"
    assert wakes < 20, f"during a wait of 0.2 s the process's threads went to sleep {wakes} times: one of them polls"


def _wakes() -> int:
    """Return how often threads of this process have gone to sleep."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


@check(10)
def check_descriptor(subject: Subject) -> None:
    """The descriptor stays the same, and polls readable after recv found nothing and a message came."""
    channel = subject.open()
    descriptor = channel.fileno()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    for n in range(5):
        raises(ChannelEmpty, channel.recv, timeout=0)
        channel.send(n, timeout=PATIENCE)
        assert poller.poll(PATIENCE * 1000), f"message {n} did not make the descriptor readable"
        assert channel.recv(timeout=PATIENCE) == n, f"message {n} did not arrive"
        assert channel.fileno() == descriptor, "the descriptor changed"


# --------------------------------------------------------------------------- asyncio


def _run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        try:
            await asyncio.wait_for(main, PATIENCE)
        except TimeoutError as error:
            raise AssertionError("coroutines were stuck") from error

    asyncio.run(bounded())


@check(1, 10, largest=300_000)
def check_aio(subject: Subject) -> None:
    """Coroutines send and receive in order, wait for room, and see the end."""
    channel = subject.open(capacity=3)

    async def send() -> None:
        for n in range(100):
            await channel.aio.send((n, pattern(200_000 if n % 30 == 0 else 10, n)), timeout=PATIENCE)
        channel.shutdown()

    async def main() -> None:
        sending = asyncio.create_task(send())
        got = []
        async for n, data in channel.aio:
            assert data == pattern(200_000 if n % 30 == 0 else 10, n), f"message {n} arrived torn"
            got.append(n)
        await sending
        assert got == list(range(100)), f"arrived as {got}"
        for call in (channel.aio.recv, channel.aio.recv_message):
            try:
                await call(timeout=0)
            except EndOfChannel:
                continue
            raise AssertionError("there was something after the end")

    _run(main())


@check(10)
def check_aio_deadlines(subject: Subject) -> None:
    """Awaited calls honour their deadlines and let other tasks run meanwhile."""
    channel = subject.open(capacity=1)

    async def main() -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        counting = asyncio.create_task(count())
        for timeout in (0, 0.05, 0.15):
            await _raises(ChannelEmpty, channel.aio.recv(timeout=timeout), timeout)
        await channel.aio.send(1, timeout=PATIENCE)
        for timeout in (0, 0.05, 0.15):
            await _raises(ChannelFull, channel.aio.send(2, timeout=timeout), timeout)
        assert turns >= 5, f"another task got {turns} turns in 0.4 s: the calls block the loop"
        counting.cancel()
        assert await channel.aio.recv(timeout=PATIENCE) == 1, "the message did not arrive"

    _run(main())


@check(9, 10)
def check_aio_room(subject: Subject) -> None:
    """An awaited send waits for room and goes on when a thread receives."""
    channel = subject.open(capacity=1)

    async def main() -> None:
        await channel.aio.send(1, timeout=PATIENCE)
        sending = asyncio.create_task(channel.aio.send(2, timeout=PATIENCE))
        await asyncio.sleep(0.02)
        assert not sending.done(), "a send into a full channel did not wait"
        assert await asyncio.to_thread(channel.recv, PATIENCE) == 1, "the first message did not arrive"
        await sending
        assert await channel.aio.recv(timeout=PATIENCE) == 2, "the second message did not arrive"

    _run(main())


@check(11, largest=200_000)
def check_aio_cancelled_recv(subject: Subject) -> None:
    """Receives cancelled at many instants under traffic lose nothing."""
    channel = subject.open(capacity=8)
    moments = random.Random(3)  # noqa: S311  instants, not secrets

    def send() -> None:
        for n in range(400):
            channel.send((n, pattern(100_000 if n % 50 == 0 else 10, n)), timeout=PATIENCE)
            if n % 3 == 0:
                time.sleep(moments.random() * 0.001)  # so that receives wait now and then
        channel.shutdown()

    async def main() -> None:
        got = []
        for _ in range(20):
            receiving = asyncio.create_task(channel.aio.recv())
            await asyncio.sleep(0)
            receiving.cancel()
            await asyncio.wait([receiving])
            assert receiving.cancelled(), "a receive on an empty channel was over before it was cancelled"
        sending = subject.thread(send)
        while True:
            receiving = asyncio.create_task(channel.aio.recv(timeout=PATIENCE))
            await asyncio.sleep(moments.choice((0, 0, 0.0002)))
            if not receiving.done():
                receiving.cancel()
            try:
                n, _ = await receiving
            except asyncio.CancelledError:
                continue
            except EndOfChannel:
                break
            got.append(n)
        assert got == list(range(400)), f"of 400 messages {len(got)} were received beside cancelled receives"
        sending.result()

    _run(main())


@check(15)
def check_aio_tasks(subject: Subject) -> None:
    """Several tasks wait on one channel, through any object for it: each message goes to one, and all see the end."""
    channel = subject.open(capacity=4)

    async def receive(aio: Any) -> list[int]:
        got = []
        try:
            while True:
                got.append(await aio.recv())
        except EndOfChannel:
            return got

    async def main() -> None:
        receiving = [asyncio.create_task(receive(face.aio)) for face in (channel, channel, channel.receiver)]
        await asyncio.sleep(0.02)
        for n in range(60):
            await channel.aio.send(n, timeout=PATIENCE)
            if n % 10 == 0:
                await asyncio.sleep(0.002)
        channel.shutdown()
        parts = await asyncio.gather(*receiving)
        assert sorted(n for part in parts for n in part) == list(range(60)), "a message went to two tasks, or to none"
        for part in parts:
            assert part == sorted(part), "messages arrived out of order"

    _run(main())


@check(13)
def check_aio_close_wakes(subject: Subject) -> None:
    """Close ends an awaited receive and an awaited send with ChannelClosed."""

    async def main() -> None:
        channel = subject.open(capacity=1)
        receiving = asyncio.create_task(channel.aio.recv())
        await asyncio.sleep(0.02)
        channel.close()
        await _raises(ChannelClosed, receiving, 0)
        channel = subject.open(capacity=1)
        await channel.aio.send(1, timeout=PATIENCE)
        sending = asyncio.create_task(channel.aio.send(2))
        await asyncio.sleep(0.02)
        channel.close()
        await _raises(ChannelClosed, sending, 0)

    _run(main())


@check(10)
def check_aio_quiet(subject: Subject) -> None:
    """An awaited receive on an empty channel costs nothing."""
    channel = subject.open()

    async def main() -> None:
        await channel.aio.send(1, timeout=PATIENCE)
        await channel.aio.recv(timeout=PATIENCE)
        cpu = time.thread_time()
        await _raises(ChannelEmpty, channel.aio.recv(timeout=0.2), 0.2)
        cpu = time.thread_time() - cpu
        assert cpu < 0.05, f"awaiting a message for 0.2 s used {cpu:.2f} s of processor time: it polls"

    _run(main())


@check(10, scope="process")
def check_wait_sentinel(subject: Subject) -> None:
    """wait() takes a process's sentinel beside channels."""
    channel = subject.open()
    child = subject.start(children.idle)
    assert ipcbus.wait([channel, child.process.sentinel], timeout=0.02) == [], "the process lives and its sentinel is ready"
    child.say()
    child.result()
    ready = ipcbus.wait([channel, child.process.sentinel], timeout=PATIENCE)
    assert ready == [child.process.sentinel], f"the process has ended, and ready are {ready}"


async def _raises(kind: type[BaseException], awaitable: Any, least: float) -> None:
    started = time.monotonic()
    try:
        value = await asyncio.wait_for(awaitable, least + 2 * LATE)
    except kind:
        took = time.monotonic() - started
        assert least * 0.9 <= took <= least + LATE, f"{kind.__name__} after {took:.2f} s; the deadline was {least} s"
        return
    except TimeoutError as error:
        raise AssertionError(f"an awaited call that should raise {kind.__name__} was stuck") from error
    raise AssertionError(f"an awaited call returned {value!r}; it should raise {kind.__name__}")
