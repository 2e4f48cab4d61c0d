"""A model of a channel: a bounded queue. Hypothesis drives a real one and the model side by side and compares them."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import ipcbus
from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull, DecodeError, EncodeError, EndOfChannel, MessageTooLarge
from ipcbus.testing.children import Poison, pattern
from ipcbus.testing.subject import LATE, PATIENCE, Subject, raises

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ChannelModel", "model_of"]

MAX_MESSAGE = 1 << 20
_POISON = object()

_SMALL: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, b"", "", 0, False, [], {}]),
    st.integers(),
    st.text(max_size=20),
    st.binary(max_size=300),
    st.dictionaries(st.text(max_size=3), st.lists(st.floats(allow_nan=False), max_size=3), max_size=3),
)
_RARELY = st.integers(0, 11).map(lambda number: number == 7)
"""True one time in twelve: a rule that ends everything must be rare, or no run ever gets anywhere."""


class ChannelModel(RuleBasedStateMachine):
    """Sends, receives and ends a channel of one process, in any order; subclassed per URL by :func:`model_of`."""

    url: str | Callable[[], str]
    capacity = 3

    def __init__(self) -> None:
        super().__init__()
        self.subject = Subject(self.url)
        self.channel = self.subject.open(capacity=self.capacity, max_message=MAX_MESSAGE)
        self.waiting: deque[Any] = deque()
        self.shut = self.closed = False
        self.sent = self.received = 0

    @rule(value=_SMALL)
    def send(self, value: Any) -> None:
        """Send something small: it is accepted exactly when there is room."""
        self._send(value, value)

    @rule()
    def send_nothing(self) -> None:
        """Send no bytes at all: it is a message as any other."""
        self._send(b"", b"")

    @rule(n=st.integers(0, 1000))
    def send_poison(self, n: int) -> None:
        """Send what cannot be rebuilt."""
        self._send(Poison(n), _POISON)

    def _send(self, value: Any, expected: Any) -> None:
        if self.closed or self.shut:
            raises(ChannelClosed, self.channel.send, value, timeout=0)
        elif len(self.waiting) == self.capacity:
            raises(ChannelFull, self.channel.send, value, timeout=0)
        else:
            self.channel.send(value, timeout=LATE)
            self.waiting.append(expected)
            self.sent += 1

    @precondition(lambda self: not self.closed and not self.shut)
    @rule(size=st.sampled_from([5_000, 70_000, 140_000, 900_000]), seed=st.integers(0, 200))
    def send_large(self, size: int, seed: int) -> None:
        """Send something large: where nobody receives, the medium may have no room though the channel has."""
        message = pattern(size, seed)
        try:
            self.channel.send(message, timeout=0.02)
        except ChannelFull:
            return
        assert len(self.waiting) < self.capacity, "a full channel accepted a large message"
        self.waiting.append(message)
        self.sent += 1

    @precondition(lambda self: not self.closed)
    @rule()
    def send_unencodable(self) -> None:
        """Send what cannot be encoded: nothing changes."""
        raises(EncodeError, self.channel.send, [lambda: None], timeout=0)

    @precondition(lambda self: not self.closed)
    @rule()
    def send_too_large(self) -> None:
        """Send what is too large: nothing changes."""
        raises(MessageTooLarge, self.channel.send, bytes(MAX_MESSAGE + 1), timeout=0)

    @rule()
    def recv(self) -> None:
        """Receive: what was sent first, or the reason why there is nothing."""
        if self.closed:
            raises(ChannelClosed, self.channel.recv, timeout=0)
        elif not self.waiting:
            if self.shut:
                # Some transports must listen for a moment before they know that no more can come.
                raises(EndOfChannel, self.channel.recv, timeout=PATIENCE, most=PATIENCE)
            else:
                raises(ChannelEmpty, self.channel.recv, timeout=0)
        else:
            expected = self.waiting.popleft()
            self.received += 1
            if expected is _POISON:
                raises(DecodeError, self.channel.recv, timeout=PATIENCE)
                return
            got = self.channel.recv(timeout=PATIENCE)
            assert (got, type(got)) == (expected, type(expected)), f"{expected!r:.60} arrived as {got!r:.60}"

    @precondition(lambda self: not self.closed)
    @rule()
    def wait(self) -> None:
        """Wait: the channel is ready exactly when there is something, and its sending side when there is room."""
        if self.waiting or self.shut:
            assert ipcbus.wait([self.channel], timeout=PATIENCE) == [self.channel], "something is there and nothing is ready"
        else:
            assert ipcbus.wait([self.channel], timeout=0) == [], "nothing is there and the channel is ready"
        if len(self.waiting) == self.capacity and not self.shut:
            assert ipcbus.wait([self.channel.sender], timeout=0) == [], "there is no room and the sending side is ready"

    @precondition(lambda self: not self.closed and not self.shut)
    @rule(really=_RARELY)
    def shutdown(self, really: bool) -> None:  # noqa: FBT001  hypothesis passes it by name
        """End the stream."""
        if really:
            self.channel.shutdown()
            self.shut = True

    @rule(really=_RARELY)
    def close(self, really: bool) -> None:  # noqa: FBT001  the same
        """Close."""
        # With messages waiting, a transport may spend LINGER seconds on handing them over: that is a check of its own.
        if really and not self.waiting:
            started = time.monotonic()
            self.channel.close()
            assert time.monotonic() - started < PATIENCE, "close took too long"
            self.closed = True

    @invariant()
    def counts(self) -> None:
        """The counters say what was done."""
        if not self.closed:
            stats = self.channel.stats()
            assert (stats.sent, stats.received, stats.dropped) == (self.sent, self.received, 0), f"counted as {stats}"
            assert stats.depth in (None, len(self.waiting)), f"{len(self.waiting)} messages wait, stats() says {stats.depth}"

    def teardown(self) -> None:
        """Free everything, once nothing waits."""
        try:
            while self.waiting and not self.closed:
                self.recv()
        finally:
            self.subject.close()


def model_of(model_url: str | Callable[[], str]) -> type[ChannelModel]:
    """Return the machine for a URL, for ``hypothesis.stateful.run_state_machine_as_test``."""

    class Model(ChannelModel):
        url = model_url if isinstance(model_url, str) else staticmethod(model_url)

    return Model
