"""Serving: what becomes of a request on the side that receives it."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ChannelError, ContentRefused, DecodeError, EncodeError
from ipcbus.requests import reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.channel import Channel
    from ipcbus.endpoint import Endpoint
    from ipcbus.message import Message

__all__ = ["accept", "handle", "refuse", "serve"]

logger = logging.getLogger("ipcbus.requests")


def serve(channel: Channel, handler: Callable[[Message], Any]) -> None:
    """Receive until the end of a channel, and answer each request with what a function returns for it."""
    while True:
        try:
            message = channel.recv_message()
        except EOFError:
            return
        except (DecodeError, ContentRefused) as error:
            logger.warning("%s: %s", channel.url, error)
            continue
        handle(message, handler)


def accept(message: Message, end: Endpoint) -> Message:
    """Return a request with what answers it, and tell who asked that this process has it. Never fails: answering may."""
    assert message.route is not None
    if not end.codec.trusted:
        return message  # a stranger does not make this process connect to anything
    return dataclasses.replace(message, reply_to=reply.ReplyTo(*message.route))


def refuse(message: Message) -> None:
    """Tell who asked that its request was taken by ``recv``, which cannot answer."""
    assert message.route is not None
    reply.refuse(*message.route, "the request was received with recv(), which cannot answer it; receive it with recv_message()")


def handle(message: Message, handler: Callable[[Message], Any]) -> None:
    """Answer one message with what a function returns, or raises, for it."""
    answer = message.reply_to
    try:
        value = handler(message)
    except Exception as error:
        if answer is None:
            logger.exception("handling a message failed, and nobody asked for an answer")
            return
        report = error
    else:
        if answer is None or answer.answered:
            return  # the handler did it, or sent the handle on
        try:
            answer.send(value)
        except EncodeError as error:
            logger.warning("what a handler returned cannot travel, as who asked was told: %s", error)
        except ChannelError as error:
            logger.warning("a reply was not delivered: %s", error)
        return
    if not answer.answered:
        try:
            answer.fail(report)
        except ChannelError as error:
            logger.warning("an error was not delivered: %s", error)
