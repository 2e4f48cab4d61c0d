"""Serving: what becomes of a request on the side that receives it."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelError, ContentRefused, DecodeError, EncodeError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.channel import Channel
    from ipcbus.message import Message

__all__ = ["handle", "serve"]

logger = logging.getLogger("ipcbus.requests")


def serve(channel: Channel, handler: Callable[[Message], Any]) -> None:
    """Receive until the end of a channel, and answer each request with what a function returns for it."""
    if inspect.iscoroutinefunction(handler):
        raise Unsupported(
            f"serve() calls plain functions, and would await nothing of {handler!r}: in a coroutine, take messages with "
            "aio.recv_message() and answer each with message.reply(value) or message.fail(error)"
        )
    while True:
        try:
            message = channel.recv_message()
        except EOFError:
            return
        except (DecodeError, ContentRefused) as error:
            logger.warning("%s: %s", channel.url, error)
            continue
        handle(message, handler)
        del message  # a large one would be kept for as long as no other comes


def handle(message: Message, handler: Callable[[Message], Any]) -> None:
    """Answer one message with what a function returns, or raises, for it."""
    answer = message.reply_to
    try:
        value = handler(message)
    except Exception as error:
        if answer is None:
            logger.exception("handling a message failed, and nobody asked for an answer")
        elif answer.answered:
            logger.exception("handling a request failed after it was answered")
        else:
            answer.fail_quietly(error)  # also if the handle was sent on: perhaps it was that which failed
        return
    except BaseException as error:  # an exit or an interrupt; whether this process ends of it is not known here
        if answer is not None and not answer.answered:
            answer.fail_quietly(error)
        raise
    if answer is None or answer.answered or (answer.given and value is None):
        return  # the handler did it, or sent the handle on; what it returns all the same says that this came to nothing
    try:
        answer.send(value)
    except EncodeError as error:
        logger.warning("what a handler returned cannot travel, as who asked was told: %s", error)
    except ChannelError as error:
        logger.warning("a reply was not delivered: %s", error)
        answer.give_up()
    except BaseException as error:  # an interrupt, as above
        answer.fail_quietly(error)
        raise
