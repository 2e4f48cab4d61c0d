"""What a receiver tells its senders: how far it is, that the channel was shut down, that it goes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import zmq

from ipcbus_zmq._post import NOBLOCK
from ipcbus_zmq._protocol import Kind, encode

if TYPE_CHECKING:
    from zmq.backend import Socket

    from ipcbus_zmq._protocol import Account, Ledger

__all__ = ["Telling"]

_MORE = NOBLOCK | int(zmq.SNDMORE)


class Telling:
    """Writes to the senders of a ledger. The lock of the socket is held at every call.

    Args:
        socket: a ROUTER that says when one is gone.
        ledger: the senders.
    """

    def __init__(self, socket: Socket, ledger: Ledger) -> None:
        self._send = socket.send
        self._ledger = ledger

    def tell(self, account: Account, kind: Kind, count: int = 0) -> bool:
        """Send a control message, and say whether it went; a sender that is gone is forgotten."""
        send = self._send
        try:
            send(account.identity, _MORE)
            send(encode(kind, os.getpid(), count), NOBLOCK)
        except zmq.Again:
            return False  # it has not read for long; counts only grow, so a later one says it all
        except zmq.ZMQError:
            self._ledger.close(account.identity)
            return False
        except BaseException:
            # Interrupted, perhaps behind the first part: end the message, with nothing in it that could be understood.
            try:
                send(b"", NOBLOCK)
            except zmq.ZMQError:
                pass  # it had not begun
            raise
        return True

    def tell_all(self, kind: Kind) -> None:
        """Send everybody the same, with what each was granted last."""
        for account in self._ledger:
            self.tell(account, kind, account.granted)

    def grant(self, account: Account) -> None:
        """Give a sender the room back for what was received of it, or note that it is owed."""
        if self.tell(account, Kind.GRANT, account.consumed):
            self._ledger.granted(account)
        else:
            self._ledger.owe(account)

    def grant_all(self) -> None:
        """Grant what is owed."""
        for account in self._ledger.owing():
            self.grant(account)
