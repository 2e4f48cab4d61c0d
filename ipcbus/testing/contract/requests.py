"""Requests and replies, futures, callbacks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.testing import answerers
from ipcbus.testing.children import PATIENCE
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import LATE, Subject, raises

if TYPE_CHECKING:
    from ipcbus.transport import Capabilities


def _private(can: Capabilities) -> bool:
    """Tell whether what belongs to this machine can go through such a channel."""
    return not (can.crosses_hosts or can.addressable)


@check(16, scope="start method")
def check_request(subject: Subject) -> None:
    """A request brings its own reply back, whatever the other side raises is raised here, and the channel goes on."""
    questions, child = _serving(subject)
    assert questions.request(("double", 21), timeout=PATIENCE) == 42
    error = raises(ipcbus.RemoteError, questions.request, ("raise", "no such order"), timeout=PATIENCE)
    assert error.type_name == "ValueError", error.type_name
    assert "no such order" in str(error), error
    assert "handle" in error.remote_traceback, error.remote_traceback
    error = raises(ipcbus.RemoteError, questions.request, ("cannot travel",), timeout=PATIENCE)
    assert "EncodeError" in error.type_name, error.type_name
    assert questions.request(("headers",), timeout=PATIENCE, headers={"user": "me"}) == {"user": "me"}
    left = questions.request(("deadline",), timeout=5)
    assert 0 < left <= 5, f"the handler saw {left} s of 5"
    assert questions.request(("deadline",)) is None
    questions.shutdown()
    child.result()


@check(15)
def check_request_between_threads(subject: Subject) -> None:
    """Threads of one process ask each other."""
    questions = subject.open()
    serving = subject.thread(questions.serve, answerers.handle)
    asking = [subject.thread(_double_many, questions, n) for n in range(4)]
    for n, task in enumerate(asking):
        assert task.result() == [2 * (100 * n + k) for k in range(50)]
    questions.shutdown()
    serving.result()


@check(16, scope="process")
def check_many_askers(subject: Subject) -> None:
    """Several processes ask through one channel; each gets its own replies, in the order in which it asked."""
    questions, child = _serving(subject)
    asking = [subject.start(answerers.ask, questions, number) for number in range(3)]
    for task in asking:
        task.hear()
    for number, task in enumerate(asking):
        assert task.result() == [(number, n, number, n) for n in range(50)]
    questions.shutdown()
    child.result()


@check(10, scope="process")
def check_late_reply(subject: Subject) -> None:
    """A request ends with its timeout; the reply that comes later is nobody's, and the next request gets its own."""
    questions = _open(subject)
    child = subject.start(answerers.take_and_wait, questions)
    child.hear()
    raises(ipcbus.ChannelEmpty, questions.request, "first", timeout=0.2, least=0.2, most=0.2 + LATE)
    assert child.hear() == 1
    child.say("answer")
    future = questions.submit("second")
    assert child.hear() == 1
    raises(ipcbus.ChannelEmpty, future.result, timeout=0)
    child.say("answer")
    assert future.result(PATIENCE) == "second"
    questions.shutdown()
    child.result()


@check(16, scope="process")
def check_many_outstanding(subject: Subject) -> None:
    """Thousands of requests wait at once, and each gets its own reply."""
    questions, child = _serving(subject, capacity=256)
    futures = [questions.submit(("double", n), timeout=PATIENCE) for n in range(3000)]
    for n, future in enumerate(futures):
        assert future.result(PATIENCE) == 2 * n
    questions.shutdown()
    child.result()


@check(16, scope="process")
def check_aio_request(subject: Subject) -> None:
    """Coroutines ask at the same time; one that is cancelled gives its request up."""
    questions, child = _serving(subject)

    async def ask() -> None:
        channel = questions.aio
        replies = await asyncio.gather(*(channel.request(("double", n), timeout=PATIENCE) for n in range(20)))
        assert replies == [2 * n for n in range(20)], replies
        future = questions.submit(("double", 4))
        assert await future == 8
        failed = await asyncio.gather(channel.request(("raise", "no"), timeout=PATIENCE), return_exceptions=True)
        assert isinstance(failed[0], ipcbus.RemoteError), failed

    asyncio.run(ask())
    questions.shutdown()
    child.result()


@check(18, scope="process")
def check_answerer_dies(subject: Subject) -> None:
    """The death of the process that has a request is told to who asked at once."""
    questions, child = _serving(subject)
    assert questions.request(("double", 1), timeout=PATIENCE) == 2
    started = time.monotonic()
    error = raises(ipcbus.PeerDied, questions.request, ("die",), timeout=PATIENCE)
    assert time.monotonic() - started < 1, "the death was told late"
    assert error.pid == child.pid, error.pid


@check(16, scope="process", applies=_private)
def check_forwarded_request(subject: Subject) -> None:
    """A process hands a request on with what answers it; the one that has it answers, or dies with it."""
    questions, others = _open(subject), _open(subject)
    front, back = subject.start(answerers.forward, questions, others), subject.start(answerers.answer_forwarded, others)
    front.hear()
    pid = back.hear()
    for n in range(3):
        assert questions.request(n, timeout=PATIENCE) == (pid, n)
    raises(ipcbus.PeerDied, questions.request, "die", timeout=PATIENCE, most=PATIENCE / 2)
    questions.shutdown()
    front.result()


@check(16, scope="process", applies=_private)
def check_nested_futures(subject: Subject) -> None:
    """An actor answers with the future of another actor, which answers with a third's."""
    first, second, third = (_open(subject) for _ in range(3))
    actors = [
        subject.start(answerers.chain, third, None),
        subject.start(answerers.chain, second, third),
        subject.start(answerers.chain, first, second),
    ]
    for actor in actors:
        actor.hear()
    value: Any = first.submit(0, timeout=PATIENCE)
    for _ in range(3):
        value = value.result(PATIENCE)
    assert value == 3, value
    for channel in (first, second, third):
        channel.shutdown()
    for actor in actors:
        actor.result()


@check(16, scope="process", applies=_private)
def check_future_travels(subject: Subject) -> None:
    """A future in a message, pending or done, brings its value where it arrives."""
    questions, child = _serving(subject)
    slow = _open(subject)
    holder = subject.start(answerers.take_and_wait, slow)
    holder.hear()
    pending = slow.submit("later", timeout=PATIENCE)
    assert holder.hear() == 1
    asked = questions.submit(("value of", pending), timeout=PATIENCE)
    raises(ipcbus.ChannelEmpty, asked.result, timeout=0)
    holder.say("answer")
    assert asked.result(PATIENCE) == "later"
    assert questions.request(("value of", pending), timeout=PATIENCE) == "later"
    assert ipcbus.wait([asked, pending], 0) == [asked, pending]
    for channel in (questions, slow):
        channel.shutdown()
    child.result()
    holder.result()


@check(16, scope="process", applies=_private)
def check_callback(subject: Subject) -> None:
    """A function of one process is called by another: and waited for, and not waited for."""
    questions, child = _serving(subject)
    owner = subject.start(answerers.register, questions)
    assert owner.hear() == ["first", "second"]
    owner.result()
    questions.shutdown()
    child.result()


@check(18, scope="process", applies=_private)
def check_callback_owner_dies(subject: Subject) -> None:
    """A callback whose process dies fails at once: while it runs, and when it is called later."""
    lent = subject.open()
    for shape in ("function", "method"):
        owner = subject.start(answerers.lend, lent, shape)
        callback = lent.recv(timeout=PATIENCE)
        pid = owner.hear()
        assert callback("here") == ("called", "here", pid)
        running = callback.submit("hang") if shape == "function" else None
        owner.kill()
        if running is not None:
            raises(ipcbus.PeerDied, running.result, PATIENCE, most=1)
        raises(ipcbus.PeerDied, callback, "late", most=1)


@check(20, applies=lambda can: can.crosses_hosts or can.addressable)
def check_callback_stays(subject: Subject) -> None:
    """A callback does not go where strangers could call it."""
    channel = subject.open()
    error = raises(ipcbus.EncodeError, channel.send, ipcbus.callback(print))
    assert "callback" in str(error), error


def _open(subject: Subject, **options: Any) -> ipcbus.Channel:
    return subject.open(**options)


def _serving(subject: Subject, **options: Any) -> tuple[ipcbus.Channel, Any]:
    questions = subject.open(**options)
    child = subject.start(answerers.serve, questions)
    assert child.hear() == child.pid
    return questions, child


def _double_many(questions: ipcbus.Channel, n: int) -> list[int]:
    return [questions.request(("double", 100 * n + k), timeout=PATIENCE) for k in range(50)]
