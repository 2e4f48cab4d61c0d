"""Questions: what a process asks another one by the address of its inbox, for the value of a future or to call a callback."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ipcbus import frame as wire
from ipcbus.errors import ChannelBroken, ChannelError, ChannelFull
from ipcbus.requests import route
from ipcbus.requests.inbox import inbox

if TYPE_CHECKING:
    from ipcbus.requests.future import Future

__all__ = ["ask", "ask_for", "tell"]


def ask(address: bytes, body: tuple[Any, ...], future: Future[Any], timeout: float | None = None) -> None:
    """Ask the process behind an address; the future gets the answer, or the error if nobody can be asked.

    Args:
        address: its inbox.
        body: what is asked.
        future: a new one, or one that waits already and has nobody to answer it yet.
        timeout: seconds that the question waits for room, fewer than it has otherwise.

    Raises:
        EncodeError: the question cannot travel.
    """
    try:
        _put(address, body, future, route.PATIENCE if timeout is None else min(timeout, route.PATIENCE))
    except ChannelError as error:
        future.abort(error)
    except BaseException:
        future.abort(ChannelBroken("the question was not sent"))
        raise


def _put(address: bytes, body: tuple[Any, ...], future: Future[Any], timeout: float) -> None:
    way = route.route(address)
    box = inbox(way.end)
    if future.asked:
        box.entrust(future, way.pid)
    else:
        future.enter(box, way.pid)
    frame = way.end.codec.encode_routed(body, box.route, future.number)
    (way.end.tx or way.end.open_sender()).send(frame, timeout)


def tell(address: bytes, body: tuple[Any, ...]) -> None:
    """Ask the process behind an address for something, and want no answer; raises what ``Route.send`` raises."""
    way = route.route(address)
    way.check()  # what is sent to a process that has ended may seem to have arrived
    frame = way.end.codec.encode_routed(body, wire.Routed(address), 0)
    (way.end.tx or way.end.open_sender()).send(frame, route.PATIENCE)


def ask_for(future: Future[Any], address: bytes, export: int) -> None:
    """Ask for the value of a future of another process, if nobody has asked."""
    box, question = inbox(), ("future", export)
    with box.seeking:
        if future.asked:
            return
        try:
            future.enter(box, None)
            # That process may be stopped, and who wants the value may have a deadline, or an event loop to go on with.
            if not (route.is_near(address) and _is_put(address, question, future)):
                threading.Thread(target=ask, args=(address, question, future), name="ipcbus-asks", daemon=True).start()
        except ChannelError as error:
            future.abort(error)
        except BaseException:
            future.abort(ChannelBroken("the question was not sent: it was interrupted, or there was no thread for it"))
            raise


def _is_put(address: bytes, body: tuple[Any, ...], future: Future[Any]) -> bool:
    """Ask at once; false if the process takes nothing in just now."""
    try:
        _put(address, body, future, 0)
    except ChannelFull:
        return False
    return True
