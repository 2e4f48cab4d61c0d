"""The process that asks, that answers, or that a callback belongs to is killed at a random instant: nobody hangs."""

import random
import time

import pytest

import ipcbus
from ipcbus.requests.inbox import inbox
from ipcbus.testing import answerers
from ipcbus.testing.faults import kills
from ipcbus.testing.subject import Subject

TRIALS = kills()
SOON = 1.0
"""Seconds within which a death must show; on a machine with nothing else to do it takes some milliseconds."""
PATIENCE = 10


def _schemes():
    for scheme in ipcbus.transports:
        try:
            capabilities = ipcbus.transports.get(scheme).capabilities
        except ipcbus.TransportUnavailable as error:
            yield pytest.param(scheme, marks=pytest.mark.skip(reason=str(error)))
        else:
            # A user of the others may be killed at an instant after which nobody can use the channel.
            if capabilities.crosses_processes and capabilities.survives_kill and not capabilities.addressable:
                yield scheme


@pytest.fixture(params=_schemes())
def subject(request):
    with Subject(f"{request.param}:", "forkserver") as made:
        yield made


def _trials():
    for seed in range(TRIALS):
        yield random.Random(seed)


def _soon(future, error, since):
    """The future ends by a death, or had its reply before."""
    try:
        value = future.result(PATIENCE)
    except error:
        assert time.monotonic() - since < SOON, "the death was told late"
        return False
    assert value == 2
    return True


def test_answerer_killed_with_requests_in_its_hands_and_in_its_buffers(subject):
    told = 0
    for moments in _trials():
        with subject.open() as questions:
            late = moments.random() < 0.5
            futures = [questions.submit(("double", 1)) for _ in range(20)] if late else []
            answerer = subject.start(answerers.serve, questions)
            futures += [questions.submit(("double", 1)) for _ in range(60)]
            assert futures[0].result(PATIENCE) == 2  # before it receives, what is sent waits for whoever will
            hanging = questions.submit(("hang",))
            futures += [questions.submit(("double", 1)) for _ in range(20)]
            time.sleep(moments.uniform(0, 0.003))  # the random instant
            answerer.kill()
            since = time.monotonic()
            answered = [_soon(future, ipcbus.PeerDied, since) for future in futures]
            assert answered == sorted(answered, reverse=True), "a later request was answered before an earlier one"
            with pytest.raises(ipcbus.PeerDied):
                hanging.result(SOON)
            told += not all(answered)
    assert told == TRIALS, "no request that came behind the hanging one can have been answered"


def test_answerer_killed_while_a_thread_waits(subject):
    for moments in _trials():
        with subject.open() as questions:
            answerer = subject.start(answerers.serve, questions)
            assert questions.request(("double", 1), PATIENCE) == 2
            asking = [subject.thread(questions.request, ("hang",), PATIENCE) for _ in range(3)]
            until = time.monotonic() + PATIENCE
            box = inbox(questions._end)
            while len(box._waiting) - len(box._spare) < len(asking) and time.monotonic() < until:
                time.sleep(0.001)  # until all have asked: on a busy machine a thread may begin late
            time.sleep(moments.uniform(0, 0.01))  # the random instant
            assert all(task.running for task in asking)
            answerer.kill()
            since = time.monotonic()
            for task in asking:
                # One that asked only now waits for a later receiver, as any message does.
                with pytest.raises((ipcbus.PeerDied, ipcbus.ChannelBroken)):
                    task.result(PATIENCE)
            assert time.monotonic() - since < SOON


def test_asker_killed(subject):
    questions = subject.open()
    answerer = subject.start(answerers.serve, questions)
    answerer.hear()
    for moments in _trials():
        asker = subject.start(answerers.ask_for_ever, questions)
        asker.hear()
        time.sleep(moments.uniform(0, 0.02))  # the random instant
        asker.kill()
        since = time.monotonic()
        assert questions.request(("double", 21), PATIENCE) == 42
        assert time.monotonic() - since < SOON, "who answers was held up by the death of who asked"
    questions.shutdown()
    answerer.result()


def test_owner_of_a_callback_killed(subject):
    lent = subject.open()
    for moments in _trials():
        owner = subject.start(answerers.lend, lent, "function")
        callback = lent.recv(timeout=PATIENCE)
        pid = owner.hear()
        calls = [callback.submit("here") for _ in range(10)]
        hanging = callback.submit("hang")
        time.sleep(moments.uniform(0, 0.005))  # the random instant
        owner.kill()
        since = time.monotonic()
        for call in calls:
            try:
                assert call.result(PATIENCE) == ("called", "here", pid)
            except ipcbus.PeerDied:
                pass
        for late in (hanging.result, lambda callback=callback: callback("late")):
            with pytest.raises(ipcbus.PeerDied):
                late()
        assert time.monotonic() - since < SOON
        with pytest.raises(ipcbus.PeerDied):
            callback.post("late")
