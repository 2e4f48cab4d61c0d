"""What the processes of the checks run, and the objects they exchange: importable by name under every start method."""

# ruff: noqa: ARG001  every function that a child runs gets the line first, whether or not it has something to say

from __future__ import annotations

import faulthandler
import gc
import pickle
import random
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import ipcbus
import ipcbus.serializers
from ipcbus.errors import ChannelClosed, ChannelFull, EndOfChannel, IpcbusError
from ipcbus.serializers.base import Serializer
from ipcbus.testing import leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from ipcbus.transport import Buffer

PATIENCE = 10.0
"""Seconds after which something that should have happened is taken to be stuck."""


class Line:
    """A child's end of the line to the check that started it."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def say(self, value: object) -> None:
        """Tell the check something."""
        self._connection.send(("said", value))

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Wait for a word of the check; without one the process ends."""
        if not self._connection.poll(timeout):
            raise TimeoutError(f"the check said nothing for {timeout} s")
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            sys.exit(3)  # the check is over and wants nothing any more


def main(connection: Connection[Any, Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run a function in a child and tell the check how it went. SIGUSR1 makes it show where its threads are."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        value = function(Line(connection), *args)
    except Exception:  # noqa: BLE001  the check reports it
        connection.send(("failed", traceback.format_exc()))
        sys.exit(2)
    connection.send(("said", value))


# --------------------------------------------------------------------------- what they exchange


class Buffers:
    """Carries each part out of band where it is large enough."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self.parts = list(parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Buffers) and [bytes(part) for part in self.parts] == [bytes(part) for part in other.parts]

    def __hash__(self) -> int:
        return hash(tuple(bytes(part) for part in self.parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return Buffers, ([pickle.PickleBuffer(part) for part in self.parts],)


class Poison:
    """Pickles, and cannot be rebuilt."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, (self.number,)


def explode(number: int) -> None:
    """Refuse to be rebuilt."""
    raise RuntimeError(f"number {number} cannot be rebuilt")


class Unpicklable:
    """Raises while it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise ValueError("this one refuses to travel")


class Text(Serializer):
    """Text as UTF-8: a serializer that no receiver of these checks is sent anything by."""

    name = "contract-text"
    content_type = "text/plain"

    def dumps(self, obj: Any) -> tuple[Buffer, Sequence[Buffer]]:
        """Encode a text."""
        return str(obj).encode(), ()

    def loads(self, payload: Buffer, buffers: Sequence[Buffer]) -> Any:  # noqa: ARG002  texts have none
        """Decode a text."""
        return bytes(payload).decode()


def register_text() -> None:
    """Make :class:`Text` known in this process."""
    ipcbus.serializers.register(Text.name, Text)


# --------------------------------------------------------------------------- what they do


def pattern(size: int, seed: int) -> bytes:
    """Return bytes that differ from the pattern of every other seed, and from their own shifts."""
    step = 1 + 2 * (seed % 128)
    unit = bytes((seed + step * i) % 256 for i in range(256)) + seed.to_bytes(5, "little")
    return (unit * (size // len(unit) + 1))[:size]


def outcome(call: Callable[[], object]) -> str:
    """Return the name of the ipcbus error that a call raises, or what it returned."""
    try:
        return repr(call())
    except IpcbusError as error:
        return type(error).__name__


def idle(line: Line) -> None:
    """Wait for a word and end."""
    line.hear(6 * PATIENCE)


def echo(line: Line, there: ipcbus.Channel, back: ipcbus.Channel) -> None:
    """Send back whatever comes, until the end."""
    line.say("ready")
    while True:
        try:
            message = there.recv(timeout=PATIENCE)
        except EndOfChannel:
            break
        back.send(message, timeout=PATIENCE)
    back.shutdown()


def send_numbered(line: Line, channel: ipcbus.Channel, number: int, count: int) -> None:
    """Send ``(number, n, data)`` with sizes around what transports treat specially, and end at once."""
    for n in range(count):
        channel.send((number, n, pattern(sized(n), n)), timeout=2 * PATIENCE)


def sized(n: int) -> int:
    """Return the size of message ``n`` of :func:`send_numbered`."""
    return (0, 10, 64, 5_000, 70_000)[n % 5] if n % 25 == 0 else n % 200


def send_on_demand(line: Line, channel: ipcbus.Channel) -> None:
    """Send what the check says, until it says nothing more; report how each send went."""
    while (value := line.hear()) is not None:
        line.say(outcome(lambda value=value: channel.send(value, timeout=PATIENCE)))  # type: ignore[misc]  # a default in a lambda


def recv_on_demand(line: Line, channel: ipcbus.Channel) -> None:
    """Receive with the timeout that the check says, until it says None; report how each went."""
    while (timeout := line.hear()) is not None:
        line.say(outcome(lambda timeout=timeout: channel.recv(timeout=timeout)))  # type: ignore[misc]  # a default in a lambda


def recv_until_end(line: Line, channel: ipcbus.Channel) -> list[Any]:
    """Receive until the end; ask for the end thrice."""
    got = []
    line.say("ready")
    while True:
        try:
            got.append(channel.recv(timeout=PATIENCE))
        except EndOfChannel:
            break
    for timeout in (0, PATIENCE):
        try:
            channel.recv(timeout=timeout)
        except EndOfChannel:
            continue
        raise AssertionError("there was something after the end")
    return got


def compete(line: Line, channel: ipcbus.Channel) -> list[Any]:
    """Take one, report it, and when told to, take more until the end."""
    got = [channel.recv(timeout=PATIENCE)]
    line.say("took one")
    line.hear()
    while True:
        try:
            got.append(channel.recv(timeout=PATIENCE))
        except EndOfChannel:
            return got


def send_until_closed(line: Line, channel: ipcbus.Channel) -> int:
    """Send numbers until the channel is shut down; return how many were accepted."""
    n = 0
    while True:
        try:
            channel.send(n, timeout=PATIENCE)
        except ChannelClosed:
            return n
        n += 1
        if n == 1:
            line.say("sending")


def send_until_full(line: Line, channel: ipcbus.Channel, padding: bytes = b"") -> int:
    """Send numbers until the channel is full; return how many were accepted."""
    n = 0
    try:
        while True:
            channel.send((n, padding), timeout=0.2)
            n += 1
    except ChannelFull:
        line.say(n)
        line.hear()
        return n


def send_for_ever(line: Line, channel: ipcbus.Channel, number: int) -> None:
    """Send numbered messages of mixed sizes until killed."""
    line.say("sending")
    for n in range(10_000_000):
        channel.send((number, n, pattern((20, 8_000, 200_000)[n % 3], n)), timeout=3 * PATIENCE)


def recv_for_ever(line: Line, channel: ipcbus.Channel) -> None:
    """Receive until killed."""
    n, _ = channel.recv(timeout=PATIENCE)
    line.say(n)
    while True:
        channel.recv(timeout=3 * PATIENCE)


def recv_one_and_hold(line: Line, channel: ipcbus.Channel) -> None:
    """Receive one message, and then keep the receiving end without using it."""
    line.say(channel.recv(timeout=PATIENCE))
    line.hear(6 * PATIENCE)


def recv_count(line: Line, channel: ipcbus.Channel, count: int) -> list[Any]:
    """Receive so many messages."""
    line.say("ready")
    return [channel.recv(timeout=PATIENCE) for _ in range(count)]


def recv_marked(line: Line, channel: ipcbus.Channel) -> list[int]:
    """Receive whole messages until the mark; return their numbers."""
    channel.ready()  # opens this end, so that from "ready" on nobody is told of the dead one any more
    line.say("ready")
    got: list[int] = []
    while True:
        n, data = channel.recv(timeout=PATIENCE)
        if n == "mark":
            return got
        assert data == pattern((20, 8_000, 200_000)[n % 3], n), f"message {n} arrived torn at the successor"
        got.append(n)


inherited: list[ipcbus.Channel] = []
"""Channels for a forked child that does not get them as arguments."""


def use_inherited(line: Line) -> None:
    """Receive two messages from the first inherited channel and send them through the second."""
    there, back = inherited
    back.send([there.recv(timeout=PATIENCE), there.recv(timeout=PATIENCE)], timeout=PATIENCE)


def recv_inherited(line: Line) -> str:
    """Try to receive through a channel that was merely inherited, and report."""
    (channel,) = inherited
    return outcome(lambda: channel.recv(timeout=0))


def close_inherited(line: Line, opened: frozenset[str]) -> list[str]:
    """Close a channel that was merely inherited, and return which of the parent's descriptors for it are still here."""
    (channel,) = inherited
    channel.close()
    gc.collect()
    return sorted(opened & leaks.snapshot().fds)


def send_and_close(line: Line, channel: ipcbus.Channel, values: list[Any]) -> str:
    """Send, close, and report what a further send does."""
    for value in values:
        channel.send(value, timeout=PATIENCE)
    channel.close()
    return outcome(lambda: channel.send("late", timeout=0))


def use_roles(line: Line, sender: ipcbus.Channel, receiver: ipcbus.Channel) -> list[str]:
    """Use each end for what it is for, and for what it is not."""
    sender.send("from the child", timeout=PATIENCE)
    return [
        outcome(lambda: sender.recv(timeout=0)),
        outcome(lambda: receiver.send(1, timeout=0)),
        outcome(lambda: receiver.recv(timeout=PATIENCE)),
    ]


def answer(line: Line, requests: ipcbus.Channel) -> None:
    """Receive a request with a channel in it, and answer through that."""
    line.say("ready")
    request = requests.recv(timeout=PATIENCE)
    request["reply_to"].send(request["value"] * 2, timeout=PATIENCE)


def expect_unsupported(line: Line, channel: ipcbus.Channel) -> list[str]:
    """Report how send and recv go in a process that the channel does not reach."""
    return [outcome(lambda: channel.send(1, timeout=0)), outcome(lambda: channel.recv(timeout=0))]


def unpickle(line: Line, data: bytes) -> str:
    """Report how unpickling goes."""
    return outcome(lambda: pickle.loads(data))


# --------------------------------------------------------------------------- interrupted calls


class Interrupt(BaseException):
    """What the signal handler raises, as SIGINT's raises KeyboardInterrupt."""


class Interrupter:
    """Runs calls that a signal handler may interrupt at any instant."""

    def __init__(self) -> None:
        self.count = 0
        self._random = random.Random(7)  # noqa: S311  instants, not secrets
        signal.signal(signal.SIGALRM, self._interrupt)

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise Interrupt

    def call(self, function: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
        """Call; return whether it returned, and what."""
        moment = self._random.choice((0.0002, 0.001, 0.005)) * self._random.random() + 1e-6
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, moment)
                value = function(*args)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)  # or it would strike whoever handles an error of the call
        except Interrupt:
            self.count += 1
            return False, None
        return True, value


_ROUNDS = 400
_TIME = 1.5
"""Seconds after which the rounds end, on a slow machine, if there were enough interruptions."""
ENOUGH = 20
"""Interruptions, without more of which the rounds prove nothing."""


def _interrupted_size(n: int) -> int:
    return (10, 3_000, 300_000)[n % 3]


def interrupted_send(line: Line, url: str, settings: dict[str, Any]) -> int:
    """Send with interruptions while a thread receives; check what it received; return how many there were."""
    interrupter = Interrupter()
    got: list[int] = []
    torn: list[int] = []

    def receive() -> None:
        for n, data in channel:
            (got if data == pattern(_interrupted_size(n), n) else torn).append(n)
            time.sleep(0.0005)  # slow enough for the channel to be full now and then

    with ipcbus.open(url, capacity=4, **settings) as channel:
        thread = _ReportingThread(receive)
        returned = []
        until = time.monotonic() + _TIME
        for n in range(_ROUNDS):
            if time.monotonic() > until and interrupter.count > ENOUGH:
                break
            done, _ = interrupter.call(channel.send, (n, pattern(_interrupted_size(n), n)), PATIENCE)
            if done:
                returned.append(n)
        channel.send((_ROUNDS, pattern(_interrupted_size(_ROUNDS), _ROUNDS)), timeout=PATIENCE)
        channel.shutdown()
        thread.finish()
    returned.append(_ROUNDS)
    assert not torn, f"messages {torn[:9]} arrived torn"
    assert got == sorted(set(got)), "messages arrived twice or out of order"
    lost = sorted(set(returned) - set(got))
    assert not lost, f"send returned for {lost[:9]}, and they never arrived"
    return interrupter.count


def interrupted_recv(line: Line, url: str, settings: dict[str, Any]) -> int:
    """Receive with interruptions while a thread sends; check what was received; return how many there were."""
    interrupter = Interrupter()
    got: list[int] = []
    sent: list[int] = []

    def send() -> None:
        until = time.monotonic() + _TIME
        for n in range(_ROUNDS):
            if time.monotonic() > until and interrupter.count > ENOUGH:
                break
            try:
                channel.send((n, pattern(_interrupted_size(n), n)), timeout=PATIENCE)
            except ChannelFull as error:
                raise AssertionError("no room though somebody receives: interrupted receives take room with them") from error
            sent.append(n)
            time.sleep(0.0005)  # slow enough for the channel to be empty now and then
        channel.shutdown()

    with ipcbus.open(url, capacity=4, **settings) as channel:
        thread = _ReportingThread(send)
        try:
            while not thread.failed:
                done, message = interrupter.call(channel.recv, PATIENCE)
                if done:
                    n, data = message
                    assert data == pattern(_interrupted_size(n), n), f"message {n} arrived torn"
                    got.append(n)
        except EndOfChannel:
            pass
        thread.finish()
    assert got == sorted(set(got)), "messages arrived twice or out of order"
    lost = len(sent) - len(got)
    assert lost <= interrupter.count, f"{lost} messages were lost by {interrupter.count} interruptions"
    return interrupter.count


class _ReportingThread:
    """A thread whose error is raised by :meth:`finish`."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._error is not None

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  raised again in finish
            self._error = error

    def finish(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the other thread is stuck"
        if self._error is not None:
            raise self._error
