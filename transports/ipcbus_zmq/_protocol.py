"""The rules of the zmq transport: how much a sender may have on its way, and the few messages that say so. Sans-I/O.

A *data* message is one part that neither is empty nor starts with ``MARK``, or a ``PARTS`` control part followed by as
many parts as it announces. Everything else that starts with ``MARK`` is a *control* message: one part of 16 bytes::

    u8 MARK   u8 version   u8 kind   u8 0   u32 pid (PARTS: number of parts)   u64 count        little-endian

Both sides count a sender's data messages from its first one. The sender may be ``capacity`` messages ahead of what the
receiver last said it has consumed. Counts only ever grow, so a control message that is lost, repeated or late does no
harm; and since a sender's messages arrive in order, everything it sent before a ``HELLO`` and that is not there when the
``HELLO`` arrives is lost, which is how both sides agree again after a connection or a receiver died.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipcbus.transport import Buffer

__all__ = ["MARK", "Account", "Control", "Ending", "Kind", "Ledger", "Window", "encode", "parse"]

MARK = 0xBC
"""First byte of a control part; an ipcbus frame starts with another."""
VERSION = 1
_LOOKS = 10
"""Times that a receiver looks and finds nothing before it believes that nothing comes."""
_EXACT = 64
"""Below this capacity every message consumed is told to its sender at once."""
_NEVER = 1 << 64

_LAYOUT = struct.Struct("<BBBBIQ")


class Kind(IntEnum):
    """What a control message says."""

    HELLO = 1
    """Sender: I have sent ``count`` messages; say where you are."""
    SHUTDOWN = 2
    """Sender: the channel is shut down, and ``count`` was my last message."""
    FIN = 3
    """Sender: ``count`` was my last message."""
    PARTS = 4
    """Sender: a data message of so many parts follows, in the same zmq message."""
    ABORT = 5
    """Sender: the message that ends here was interrupted and is void."""
    GRANT = 17
    """Receiver: I have consumed ``count`` of your messages."""
    CLOSED = 18
    """Receiver: the channel is shut down; send no more, and answer FIN."""
    GONE = 19
    """Receiver: this process stops receiving; another may come."""


@dataclass(frozen=True, slots=True)
class Control:
    """A control message."""

    kind: Kind
    number: int
    """The pid of who sent it; of ``PARTS``, the number of parts."""
    count: int


def encode(kind: Kind, number: int = 0, count: int = 0) -> bytes:
    """Make a control part."""
    return _LAYOUT.pack(MARK, VERSION, kind, 0, number, count)


def parse(part: Buffer) -> Control | None:
    """Take a control part apart; None when it is not one that this version knows."""
    if len(part) != _LAYOUT.size:
        return None
    mark, version, kind, zero, number, count = _LAYOUT.unpack(part)
    if mark != MARK or version != VERSION or zero:
        return None
    try:
        return Control(Kind(kind), number, count)
    except ValueError:
        return None


class Window:
    """A sender's view: how many messages it sent, and how many it may have sent at most.

    Args:
        capacity: messages that may be on their way, including those that no receiver exists for yet.
    """

    __slots__ = ("capacity", "limit", "sent")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.sent = 0
        self.limit = capacity

    @property
    def outstanding(self) -> int:
        """Messages sent that no receiver is known to have consumed."""
        return self.sent + self.capacity - self.limit

    def grant(self, consumed: int) -> None:
        """Note how many messages were consumed; what is stale or cannot be is ignored."""
        if consumed <= self.sent:
            self.limit = max(self.limit, consumed + self.capacity)


class Account:
    """A receiver's view of one connected sender.

    Args:
        identity: what zmq calls the connection.
        mark: the value of ``consumed`` at which the ledger must be asked.
    """

    __slots__ = ("consumed", "granted", "greeted", "identity", "mark")

    def __init__(self, identity: bytes, mark: int) -> None:
        self.identity = identity
        self.consumed = 0
        self.granted = 0
        self.greeted = False
        """Whether it said HELLO: before, its messages cannot be numbered, and nothing is granted."""
        self.mark = mark


class Ledger:
    """A receiver's accounts, and what it owes to whom.

    Args:
        capacity: messages that each sender may have on its way.
    """

    __slots__ = ("_capacity", "_owing", "_stopped", "accounts", "batch")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.batch = 1 if capacity < _EXACT else capacity // 4
        self.accounts: dict[bytes, Account] = {}
        self._owing: list[Account] = []
        self._stopped = False

    def open(self, identity: bytes) -> Account:
        """Return the account of a connection, a new one if it has none."""
        account = self.accounts.get(identity)
        if account is None:
            account = self.accounts[identity] = Account(identity, self._capacity + 1 if self._stopped else _NEVER)
        return account

    def close(self, identity: bytes) -> None:
        """Forget a connection."""
        account = self.accounts.pop(identity, None)
        if account in self._owing:
            self._owing.remove(account)

    def hello(self, account: Account, sent: int) -> None:
        """Note that a sender had sent so many messages when it greeted: all of them were received before, or are lost."""
        account.greeted = True
        account.consumed = account.granted = sent
        account.mark = sent + self._capacity + 1 if self._stopped else sent + 1

    def due(self, account: Account) -> bool:
        """Tell whether a grant is due now; to be asked when ``consumed`` has reached ``mark``."""
        if self._stopped or not account.greeted:
            return False
        owed = account.consumed - account.granted
        if owed >= self.batch:
            return True
        self.owe(account)
        account.mark = account.granted + self.batch
        return False

    def owe(self, account: Account) -> None:
        """Note that a grant could not be delivered."""
        if account.identity in self.accounts and account not in self._owing:
            self._owing.append(account)

    def granted(self, account: Account) -> None:
        """Note that a sender has been told how much was consumed."""
        account.granted = account.consumed
        account.mark = account.granted + 1
        if account in self._owing:
            self._owing.remove(account)

    def excessive(self, account: Account) -> bool:
        """Tell whether a message comes from a sender that goes on although it was told that the channel is shut down."""
        return self._stopped and account.consumed >= account.mark

    @property
    def owes(self) -> bool:
        """Whether anything is owed to anybody."""
        return bool(self._owing)

    def owing(self) -> list[Account]:
        """Return the accounts that a grant is owed to."""
        return list(self._owing)

    def stop(self) -> None:
        """Grant nothing any more: the channel is shut down, and each sender may use up what it has."""
        self._stopped = True
        self._owing.clear()
        for account in self.accounts.values():
            account.mark = account.granted + self._capacity + 1 if account.greeted else account.consumed + self._capacity + 1

    def __iter__(self) -> Iterator[Account]:
        return iter(list(self.accounts.values()))


class Ending:
    """Decides when a channel that was shut down is drained.

    It is when nothing is queued here and every sender has said which message was its last. Two things a receiver cannot
    know, and waits for: whether a sender that has sent already is still about to connect, and whether one that stays silent,
    because its program is busy elsewhere, has a message on its way. The time is counted in looks that found nothing: on a
    machine that stands still, or in a process that was stopped, the clock alone goes on, and what is on its way has not come
    closer.

    Args:
        settling: seconds after which who is there has connected, and what was sent has arrived.
    """

    __slots__ = ("_look_at", "_newcomers", "_settling", "_silence", "begun", "over")

    def __init__(self, settling: float) -> None:
        self._settling = settling
        self._look_at = 0.0
        self._newcomers = self._silence = 0
        """Looks until nobody connects any more, and until nothing comes from who is silent."""
        self.begun = False
        self.over = False

    def begin(self, now: float) -> None:
        """Note that the channel was shut down."""
        if not self.begun:
            self.begun = True
            self._look_at = now + self._settling / _LOOKS
            self._newcomers = self._silence = _LOOKS

    def heard(self) -> None:
        """Note that a data message or a sender came."""
        self._silence = _LOOKS

    def empty(self, now: float, *, silent_senders: bool) -> bool:
        """Note that nothing is queued, and tell whether the channel is drained; once it is, it stays so."""
        if self.begun and now >= self._look_at:
            self._look_at = now + self._settling / _LOOKS
            self._newcomers -= 1
            self._silence -= 1
        self.over |= self.begun and self._newcomers <= 0 and (self._silence <= 0 or not silent_senders)
        return self.over

    def remaining(self, now: float) -> float:
        """Return the seconds after which to ask ``empty`` again."""
        return max(0.0, self._look_at - now)
