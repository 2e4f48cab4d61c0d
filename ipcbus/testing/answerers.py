"""What the processes of the checks of requests run; as in :mod:`ipcbus.testing.children`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.testing.children import PATIENCE

if TYPE_CHECKING:
    from ipcbus.requests.future import Future
    from ipcbus.testing.children import Line


def handle(message: ipcbus.Message) -> Any:
    """Answer by what the request says to do."""
    what, *rest = message.body if isinstance(message.body, tuple) else (message.body,)
    if what == "double":
        return rest[0] * 2
    if what == "raise":
        raise ValueError(rest[0])
    if what == "die":
        os._exit(7)
    if what == "cannot travel":
        return threading.Lock()
    if what == "pid":
        return os.getpid()
    if what == "deadline":
        return message.remaining()
    if what == "headers":
        return dict(message.headers)
    if what == "call":
        callback, *arguments = rest
        return callback(*arguments)
    if what == "post":
        callback, *arguments = rest
        for argument in arguments:
            callback.post(argument)
        return None
    if what == "value of":
        return rest[0].result(PATIENCE)
    raise AssertionError(f"an unknown request: {message.body!r}")


def serve(line: Line, questions: ipcbus.Channel) -> None:
    """Answer requests until the channel ends."""
    line.say(os.getpid())
    questions.serve(handle)


def take_and_wait(line: Line, questions: ipcbus.Channel) -> None:
    """Take requests, say so for each, and answer none before the check says how."""
    line.say(os.getpid())
    held = []
    while True:
        try:
            held.append(questions.recv_message(timeout=PATIENCE))
        except ipcbus.ChannelError:
            return
        line.say(len(held))
        if line.hear() == "answer":
            for message in held:
                if message.reply_to is not None:
                    message.reply(message.body)
            held.clear()


def ask(line: Line, questions: ipcbus.Channel, number: int) -> list[Any]:
    """Ask many times, and return the answers."""
    line.say(os.getpid())
    return [questions.request(("double", (number, n)), timeout=PATIENCE) for n in range(50)]


def ask_for_ever(line: Line, questions: ipcbus.Channel) -> None:
    """Ask until killed."""
    line.say(os.getpid())
    while True:
        questions.request(("double", 1), timeout=PATIENCE)


def forward(line: Line, questions: ipcbus.Channel, others: ipcbus.Channel) -> None:
    """Hand the requests that come on to another process, with what answers them."""
    line.say(os.getpid())
    while True:
        try:
            message = questions.recv_message(timeout=PATIENCE)
        except ipcbus.ChannelError:
            return
        others.send((message.body, message.reply_to), timeout=PATIENCE)


def answer_forwarded(line: Line, others: ipcbus.Channel) -> None:
    """Answer requests of which another process was asked."""
    line.say(os.getpid())
    for body, reply_to in others:
        if body == "die":
            os._exit(7)
        reply_to.send((os.getpid(), body))


def chain(line: Line, questions: ipcbus.Channel, onward: ipcbus.Channel | None) -> None:
    """An actor: answers with the future of the next actor's answer, the last one with a value."""
    line.say(os.getpid())

    def answer(message: ipcbus.Message) -> Any:
        future: Future[Any] | int = message.body + 1 if onward is None else onward.submit(message.body + 1)
        return future

    questions.serve(answer)


def register(line: Line, questions: ipcbus.Channel) -> None:
    """Send a callback to who serves, let it be called, and stay until the check says so."""
    seen: list[Any] = []
    arrived = threading.Event()

    def note(value: Any) -> int:
        seen.append(value)
        arrived.set()
        return len(seen)

    with ipcbus.callback(note) as callback:
        assert questions.request(("call", callback, "first"), timeout=PATIENCE) == 1
        arrived.clear()
        questions.request(("post", callback, "second"), timeout=PATIENCE)
        assert arrived.wait(PATIENCE), "what was posted did not come"
        line.say(seen)


def lend(line: Line, to: ipcbus.Channel, shape: str) -> None:
    """Send a callback away and stay until told to go."""
    stay = threading.Event()

    def call(value: Any) -> Any:
        if value == "hang":
            stay.wait(PATIENCE)
        return ("called", value, os.getpid())

    callback = ipcbus.callback(Owner().method if shape == "method" else call)
    to.send(callback, timeout=PATIENCE)
    line.say(os.getpid())
    line.hear(3 * PATIENCE)


class Owner:
    """Has a method that is lent."""

    def method(self, value: Any) -> Any:
        """Say who was called."""
        return ("called", value, os.getpid())
