"""Authorize: ask a service whether a client may connect, and say its answer in the words of the link."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from ipcbus.web.failures import FAILURES, pass_on_cancellation
from ipcbus.web.headers import is_header
from ipcbus.web.link import Command
from ipcbus.web.service import Accept, Reject, Request
from ipcbus.web.state import encode_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.web.service import Service

__all__ = ["authorize"]

logger = logging.getLogger("ipcbus.web")


async def authorize(service: Service, cid: int, question: dict[str, Any], failed: Callable[[], None]) -> tuple[Any, ...]:
    """Return the command that answers an AUTH.

    Args:
        service: is asked.
        cid: the connection's number.
        question: what is told of the client.
        failed: called if the service raised something that is no answer.
    """
    try:
        answer: Any = service.authorize(Request(question))
        if inspect.isawaitable(answer):
            answer = await answer
        if not isinstance(answer, Accept):
            answer = Accept(answer or {})
        if answer.subprotocol is not None and answer.subprotocol not in question["protocols"]:
            raise ValueError(f"subprotocol {answer.subprotocol!r} was not offered by the client")
        headers = dict(answer.headers)
        if not all(isinstance(text, str) for header in headers.items() for text in header):
            raise TypeError(f"Accept: headers are texts by name, not {headers!r}")
        for name, value in headers.items():
            if not is_header(name, value):
                raise ValueError(
                    f"Accept: {name!r} cannot be sent with the value {value!r}; escape it, for example as a URL does"
                )
        return Command.ACCEPT, cid, encode_state(answer.state), answer.subprotocol, headers
    except Reject as no:
        return Command.REJECT, cid, int(no.status), str(no.reason)
    except FAILURES as error:
        pass_on_cancellation(error)
        failed()
        logger.exception("%s: authorize failed, so a client is refused", type(service).__qualname__)
        return Command.REJECT, cid, 500, "internal error"
