"""Requests and futures: what goes wrong is told to who asked, and nobody waits for what cannot come."""

import asyncio
import contextlib
import copy
import errno
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest

import ipcbus
from ipcbus.directory import client, place
from ipcbus.frame import Routed
from ipcbus.plumbing.clock import Deadline
from ipcbus.requests import asking, exports, outage, route, serving
from ipcbus.requests.future import Future
from ipcbus.requests.inbox import Inbox, inbox
from ipcbus.requests.turns import Turns
from ipcbus.testing import answerers
from ipcbus.testing.children import Interrupter
from ipcbus.testing.subject import LATE, Subject, raises

from .rig import in_thread, until

PATIENCE = 10


@pytest.fixture
def questions(subject, askers):
    channel = subject.open()
    child = subject.start(askers.serve, channel)
    child.hear()
    yield channel
    channel.shutdown()
    child.result()


@pytest.fixture
def unanswered(subject):
    """A channel of this process that nobody serves."""
    return subject.open()


def test_a_reply_counts_whatever_becomes_of_its_sender(subject, askers, unanswered):
    """Also when the news of its end comes first, as it does where the reply has to wait for a thread."""
    child = subject.start(askers.answer_once, unanswered)
    child.hear()
    box = inbox(unanswered._end)
    future = asking.send(box, unanswered._end, "still here", PATIENCE, None)
    child.result()
    until = time.monotonic() + PATIENCE
    while box._directory.guests() and time.monotonic() < until:
        time.sleep(0.01)
    assert not box._directory.guests(), "the end of the process was not noticed"
    assert future.result(PATIENCE) == "still here"


@pytest.mark.parametrize("url", ["pipe:", "zmq:"])
def test_who_has_answered_before_and_dies_with_what_was_sent_before_it_opened_the_channel(askers, url):
    """It has the way to who asks already, so it asks for nothing by which it would be known as the receiver."""
    with Subject(url, "forkserver") as subject:
        first, second = subject.open(), subject.open()
        child = subject.start(askers.answer_here_and_open_there, first, second)
        assert first.request("known", PATIENCE) == "here"
        futures = [second.submit(number) for number in range(10)]
        child.say()
        assert child.hear() == "open"
        until = time.monotonic() + PATIENCE
        while futures[-1].addressee != child.pid and time.monotonic() < until:
            time.sleep(0.01)
        child.kill()
        for future in futures:
            with pytest.raises(ipcbus.PeerDied):
                future.result(1)
        assert not any(isinstance(key, str) for key in _box(second)._addressees.watched), "it looks on though it knows"


def test_a_death_is_known_though_there_was_no_descriptor_to_see_it_by_for_a_moment(subject, askers, monkeypatch, caplog):
    def refuse(_):
        raise OSError(errno.EMFILE, "Too many open files")

    first, second = subject.open(), subject.open()
    child = subject.start(askers.answer_here_and_open_there, first, second)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", refuse)
        child.say()
        assert first.request("known", PATIENCE) == "here"
        assert child.hear() == "open"
        future = second.submit("never taken")
        assert "would not be known" in caplog.text
    child.kill()
    with pytest.raises(ipcbus.PeerDied):
        future.result(PATIENCE)


@pytest.mark.parametrize("timeout", [3e6, 1e10, float("inf")])
def test_a_timeout_that_is_longer_than_the_system_can_wait_is_none(questions, unanswered, subject, timeout):
    future = questions.submit(("echo", 1), timeout)
    assert future.result(timeout) == 1
    assert questions.request(("echo", 2), timeout) == 2
    assert asyncio.run(questions.aio.request(("echo", 3), timeout)) == 3
    waiting = subject.thread(ipcbus.wait, [unanswered], timeout)
    unanswered.send("here")
    assert waiting.result() == [unanswered]


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("what", "name", "text"),
    [
        ("lock in it", "ValueError", "no"),
        ("strange", "askers.Strange", "1 2"),
        ("unknown class", "no.such.module.Nowhere", "lost"),
        ("mute", "askers.Mute", "its text cannot be had"),
    ],
)
def test_an_exception_that_cannot_travel_is_told_in_words(questions, what, name, text):
    with pytest.raises(ipcbus.RemoteError) as caught:
        questions.request((what,), PATIENCE)
    assert caught.value.type_name == name
    assert text in str(caught.value)
    assert "in handle" in caught.value.remote_traceback
    assert what == "mute" or caught.value.__cause__ is None  # that one can be rebuilt here


def test_a_reply_that_is_too_large_is_told(subject, askers, monkeypatch):
    channel = subject.open()
    serving = subject.thread(channel.serve, askers.handle)
    box = _box(channel)
    monkeypatch.setattr(box._end.codec, "max_message", 20_000)
    with pytest.raises(ipcbus.RemoteError, match="MessageTooLarge"):
        channel.request(("huge", 100_000), PATIENCE)
    with pytest.raises(ipcbus.RemoteError, match="ValueError: xxx") as caught:
        channel.request(("huge error", 100_000), PATIENCE)
    assert len(str(caught.value)) < 2000
    channel.shutdown()
    serving.result()


def test_a_handler_that_exits_tells_who_asked(subject, askers):
    channel = subject.open()
    child = subject.start(askers.serve_and_survive, channel)
    child.hear()
    with pytest.raises(ipcbus.RemoteError, match="SystemExit: 5"):
        channel.request(("exit",), PATIENCE)
    child.say()
    child.result()


def test_a_coroutine_function_is_refused_before_a_message_is_lost_to_it(unanswered):
    async def handle(message):
        return message.body

    unanswered.send("not lost", PATIENCE)
    with pytest.raises(ipcbus.Unsupported, match=r"handle.*aio\.recv_message"):
        unanswered.serve(handle)
    assert unanswered.recv(PATIENCE) == "not lost"


def test_a_request_whose_forwarding_failed_is_told(subject, askers):
    channel, other = subject.open(), subject.open()
    serving = subject.thread(channel.serve, askers.handle)
    with pytest.raises(ipcbus.RemoteError, match="EncodeError"):
        channel.request(("forward badly", other), PATIENCE)
    channel.shutdown()
    serving.result()


def test_what_is_returned_when_the_handle_could_not_be_sent_on_is_the_reply(subject):
    channel, full = subject.open(), subject.open(capacity=1)
    full.send("no room behind this", PATIENCE)

    def handle(message):
        try:
            full.send(message.reply_to, timeout=0)
        except ipcbus.ChannelFull:
            return "busy"
        return None

    serving = subject.thread(channel.serve, handle)
    assert channel.request("anything", PATIENCE) == "busy"
    channel.shutdown()
    serving.result()


@pytest.mark.parametrize("how", ["no room", "cannot be encoded", "too large"])
def test_a_request_that_was_not_sent_on_is_still_this_ones(subject, how):
    channel, full = subject.open(), subject.open(capacity=1, max_message=4096)
    full.send("no room behind this", PATIENCE)
    more = {"no room": None, "cannot be encoded": lambda: 1, "too large": "x" * 4096}[how]

    def handle(message):
        with contextlib.suppress(ipcbus.ChannelError, ipcbus.EncodeError):
            full.send([message.reply_to, more], timeout=0)

    serving = subject.thread(channel.serve, handle)
    assert channel.request("anything", PATIENCE) is None  # and not what waits for its timeout
    channel.shutdown()
    serving.result()


def test_a_request_that_was_sent_on_before_stays_given(unanswered, subject):
    other = subject.open(capacity=1)
    asked = subject.thread(unanswered.request, "anything", PATIENCE)
    message = unanswered.recv_message(PATIENCE)
    other.send(message.reply_to, PATIENCE)
    with pytest.raises(ipcbus.ChannelFull):
        other.send(message.reply_to, timeout=0)
    assert message.reply_to.given == 1
    other.recv(PATIENCE).send("by the other")
    assert asked.result() == "by the other"


def test_to_look_at_a_request_gives_it_to_nobody(subject):
    channel = subject.open()

    def handle(message):
        handle = message.reply_to
        assert ipcbus.explain(handle).travels
        assert not ipcbus.explain([handle, lambda: 1]).travels
        assert copy.copy(handle) is copy.deepcopy(handle) is handle
        assert not handle.given

    serving = subject.thread(channel.serve, handle)
    assert channel.request("anything", PATIENCE) is None
    channel.shutdown()
    serving.result()


def test_only_the_first_answer_counts(subject, askers):
    channel, said = subject.open(), []
    answered = subject.thread(channel.request, ("twice", "by reference"), PATIENCE)
    message = channel.recv_message(PATIENCE)
    message.reply(1)
    with pytest.raises(ipcbus.Unsupported, match="answered before"):
        message.reply(2)
    with pytest.raises(ValueError, match="was answered"):
        pickle.dumps(message.reply_to)
    assert answered.result() == 1
    assert not said
    assert askers


def test_who_asked_is_told_when_the_request_is_let_go_of_without_an_answer(subject, askers, unanswered):
    future = unanswered.submit("a thread of this process")
    unanswered.recv_message(PATIENCE)
    with pytest.raises(ipcbus.RemoteError, match="has let go of it"):
        future.result(PATIENCE)
    questions = subject.open()
    child = subject.start(askers.let_go, questions)
    assert child.hear() == "ready"
    future = questions.submit("first")
    assert questions.request("second", PATIENCE) == "second"
    assert not future.done()
    child.say()
    with pytest.raises(ipcbus.RemoteError, match="has let go of it"):
        future.result(PATIENCE)
    child.say()
    child.result()


def test_a_handle_that_was_sent_on_twice_is_let_go_of_by_one_and_answered_by_the_other(subject, askers):
    """Who took it last has it."""
    channel = subject.open()
    future = channel.submit("anybody?")
    message = channel.recv_message(PATIENCE)
    children = []
    for _ in range(2):
        way = subject.open()
        children.append(subject.start(askers.take_a_handle, way))
        assert children[-1].hear() == "ready"
        way.send(message.reply_to)
        assert children[-1].hear() == "taken"
    del message
    for child, what in zip(children, ("let go of it", "answer"), strict=True):
        assert not future.done()
        child.say(what)
        assert child.hear() == "done"
    assert future.result(PATIENCE) == "by the other"
    for child in children:
        child.say()
        child.result()


def test_a_request_is_answered_by_a_forked_child_after_its_parent_has_let_go_of_it(subject, askers):
    channel = subject.open()
    child = subject.start(askers.answer_in_a_child, channel)
    assert child.hear() == "ready"
    assert channel.request("anything", PATIENCE) == "the child's"
    child.say()
    child.result()


def test_recv_refuses_at_once_and_so_does_what_cannot_be_rebuilt(unanswered, subject):
    from ipcbus.testing.children import Poison

    asked = subject.thread(unanswered.request, "anybody?")
    assert unanswered.recv(PATIENCE) == "anybody?"
    with pytest.raises(ipcbus.RemoteError, match="serve"):
        asked.result()
    asked = subject.thread(unanswered.request, Poison(3))
    with pytest.raises(ipcbus.DecodeError):
        unanswered.recv_message(PATIENCE)
    with pytest.raises(ipcbus.RemoteError, match="number 3 cannot be rebuilt"):
        asked.result()


@pytest.mark.parametrize(
    "address", [b"", b"x", bytes(16), bytes(16) + b"\xff\xfe", bytes(16) + b"/nowhere", bytes(16) + b"a\0b"]
)
def test_an_address_that_leads_nowhere_fails_the_reply_and_not_the_receiving(unanswered, address):
    codec = unanswered._end.codec
    unanswered._end.open_sender().send(codec.encode_routed("hello", Routed(address or b"y"), 1 << 32), 1)
    message = unanswered.recv_message(PATIENCE)
    assert message.body == "hello"
    with pytest.raises(ipcbus.PeerDied, match="cannot be reached"):
        message.reply(1)


@pytest.mark.parametrize(
    "ask", [lambda ch: ch.request(1, 0.02), lambda ch: asyncio.run(ch.aio.request(1, 0.02))], ids=["request", "aio"]
)
def test_a_request_without_an_answer_says_where_it_went_and_how_long_it_waited(unanswered, ask):
    with pytest.raises(ipcbus.ChannelEmpty, match=f"through {re.escape(unanswered.url)} came within 0.02 s"):
        ask(unanswered)


def test_who_asked_is_told_of_an_interrupt_amid_the_reply(unanswered, monkeypatch):
    future = unanswered.submit("anything")
    message = unanswered.recv_message(PATIENCE)

    def interrupt(*_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(route.Route, "send", interrupt)
    with pytest.raises(KeyboardInterrupt):
        serving.handle(message, lambda _: "value")
    with pytest.raises(ipcbus.RemoteError, match="KeyboardInterrupt"):
        future.result(PATIENCE)


def test_replies_that_come_late_are_counted(unanswered):
    with pytest.raises(ipcbus.ChannelEmpty):
        unanswered.request("late", 0)
    unanswered.recv_message(PATIENCE).reply("too late")
    future = unanswered.submit("in time")
    unanswered.recv_message(PATIENCE).reply("here")
    assert future.result(PATIENCE) == "here"
    assert unanswered.stats().late == 1


def test_who_does_not_read_delays_an_answerer_once(subject, askers, monkeypatch):
    monkeypatch.setattr(route, "PATIENCE", 2.0)  # far more than what a busy machine needs for copying the answer
    channel = subject.open()
    asker = subject.start(askers.ask_without_reading, channel)
    messages = [channel.recv_message(PATIENCE) for _ in range(3)]
    asker.hear()
    os.kill(asker.pid, signal.SIGSTOP)
    try:
        took = []
        for message in messages:
            started = time.monotonic()
            with contextlib.suppress(ipcbus.ChannelFull):
                message.reply(bytes(8_000_000))
            took.append(time.monotonic() - started)
    finally:
        os.kill(asker.pid, signal.SIGCONT)
    assert sum(1 for seconds in took if seconds > 1.9) <= 1, took
    asker.kill()


def test_what_is_not_delivered_to_who_does_not_read_fails_there(subject, askers, monkeypatch):
    monkeypatch.setattr(route, "PATIENCE", 0.3)
    channel = subject.open()
    asker = subject.start(askers.ask_and_dawdle, channel)
    serving = subject.thread(channel.serve, askers.handle)
    lost, others, later = asker.hear(2 * PATIENCE)
    assert "the reply was lost" in lost
    assert set(others) == {0, "ChannelBroken"}
    assert later == 1
    asker.result()
    channel.shutdown()
    serving.result()


@pytest.fixture
def stopped_asker(subject, askers, unanswered, monkeypatch):
    """A process that was stopped after its first request, and the request, whose taker waited for it in vain."""
    monkeypatch.setattr(place, "PATIENCE", 1.2)
    asker = subject.start(askers.ask_twice, unanswered)
    assert asker.hear() == "asked"
    _stop(asker)
    return asker, unanswered.recv_message(PATIENCE)


def test_an_asker_that_was_stopped_is_told_that_its_reply_was_lost(stopped_asker, unanswered):
    asker, message = stopped_asker
    with pytest.raises(ipcbus.PeerDied, match="cannot be reached"):
        message.reply("in vain")
    os.kill(asker.pid, signal.SIGCONT)
    assert asker.hear() == "ChannelBroken"
    unanswered.recv_message(PATIENCE).reply("it is there again")
    assert asker.hear() == "it is there again"
    asker.result()


def test_an_asker_that_was_stopped_and_went_on_is_answered(stopped_asker, unanswered):
    asker, message = stopped_asker
    os.kill(asker.pid, signal.SIGCONT)
    ((knocked, _),) = route.here.missed.values()
    assert select.select([knocked], [], [], PATIENCE)[0]
    message.reply("first")
    assert asker.hear() == "first"
    unanswered.recv_message(PATIENCE).reply("second")
    assert asker.hear() == "second"
    asker.result()


def test_what_could_not_be_sent_can_be_sent_again_and_fails_if_it_is_not(subject, askers, unanswered, monkeypatch):
    def refuse(*_):
        raise ipcbus.ChannelBroken("no descriptors")

    asker = subject.start(askers.ask_twice, unanswered)
    assert asker.hear() == "asked"
    message = unanswered.recv_message(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(route.Route, "send", refuse)
        with pytest.raises(ipcbus.ChannelBroken, match="no descriptors"):
            message.reply("first")
    message.reply("first")
    assert asker.hear() == "first"
    message = unanswered.recv_message(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(route.Route, "send", refuse)
        serving.handle(message, lambda _: "second")
    assert asker.hear() == "ChannelBroken"
    asker.result()


def test_who_asked_is_answered_though_the_connection_to_it_was_lost_and_another_one_asks(subject, askers, unanswered):
    two = []
    messages = []
    for _ in range(2):
        two.append(subject.start(askers.ask_twice, unanswered))
        assert two[-1].hear() == "asked"
        messages.append(unanswered.recv_message(PATIENCE))
        client.place(messages[-1].reply_to._way.home).close()  # as an interrupted call does
    for asker, message in zip(two, messages, strict=True):
        message.reply("first")
        assert asker.hear() == "first"
        unanswered.recv_message(PATIENCE).reply("second")
        assert asker.hear() == "second"
        unanswered.recv_message(PATIENCE)  # its last one, for which it does not wait
        asker.result()


def test_who_was_handed_a_request_and_lost_its_connection_before_the_sender_looked_is_watched(subject, askers, monkeypatch):
    asked, others = subject.open(), subject.open()
    front, back = subject.start(answerers.forward, asked, others), subject.start(askers.hold_what_is_handed_on, others)
    front.hear()
    pid = back.hear()
    assert asked.request("known", PATIENCE) == pid
    box = _box(asked)
    expect = box.expect

    def expect_late(future, end):
        until = time.monotonic() + PATIENCE
        while any(guest.pid == pid for guest in box._directory.guests()):
            assert time.monotonic() < until
            time.sleep(0.001)
        dealt_with = threading.Event()
        box._directory.later(0, dealt_with.set)
        assert dealt_with.wait(PATIENCE)
        expect(future, end)

    monkeypatch.setattr(box, "expect", expect_late)
    future = asked.submit("lose the connection")
    back.kill()
    with pytest.raises(ipcbus.PeerDied):
        future.result(PATIENCE)
    asked.shutdown()
    front.result()


def test_an_answerer_whose_connection_was_lost_is_watched_again(askers):
    """Where several may receive, only what was noted in the table tells who has a request."""
    with Subject("queue:", "fork") as subject:
        channel = subject.open(receivers="many")
        child = subject.start(askers.serve, channel)
        child.hear()
        assert channel.request(("lose the connection",), PATIENCE) is None, "who lost a connection passed for dead"
        lost = channel.submit(("lose the connection", "no answer"))
        assert ipcbus.wait([lost], 0.2) == []
        assert channel.request(("echo", 1), PATIENCE) == 1
        hanging = channel.submit(("hang",))
        assert ipcbus.wait([hanging], 0.2) == []
        child.kill()
        for future in (lost, hanging):
            with pytest.raises(ipcbus.PeerDied):
                future.result(1)


# --------------------------------------------------------------------------- many


def test_ten_thousand_outstanding_cost_memory_in_proportion_and_no_threads(subject):
    channel = subject.open(capacity=20_000)
    draining = threading.Event()
    channel.submit("warm up").cancel()
    box = _box(channel)
    tracemalloc.start()
    try:
        sizes = []
        for count in (2_000, 8_000):
            before, threads = tracemalloc.get_traced_memory()[0], threading.active_count()
            futures = [box.enter() for _ in range(count)]
            sizes.append((tracemalloc.get_traced_memory()[0] - before) / count)
            assert threading.active_count() == threads
            if count == 2_000:
                kept = futures
    finally:
        tracemalloc.stop()
    assert all(size < 1500 for size in sizes), f"bytes for each request: {sizes}"
    assert sizes[1] < 1.5 * sizes[0]
    for future in (*kept, *futures):
        assert future.cancel()
    assert not box._waiting
    draining.set()


def test_many_threads_take_turns(questions, subject):
    """Hundreds of rounds in which leaders leave, are late, and give up."""

    def ask(seed):
        for n in range(150):
            timeout = (PATIENCE, PATIENCE, 0.0005)[(n + seed) % 3]
            try:
                assert questions.request(("echo", (seed, n)), timeout) == (seed, n)
            except (ipcbus.ChannelEmpty, ipcbus.ChannelFull):
                assert timeout < 1, "a reply was lost, or nobody received it"

    for task in [subject.thread(ask, seed) for seed in range(8)]:
        task.result(4 * PATIENCE)


def test_turns_lose_no_wake_up(subject):
    """Without any transport: whoever leads may leave at any time, and the others still get what is theirs."""
    inbox, bell = [], threading.Condition()

    def lead(future, deadline):
        while not future.is_done:
            with bell:
                if not inbox and not bell.wait_for(lambda: inbox or future.is_done, deadline.remaining()):
                    return
                if not inbox:
                    return
                done = inbox.pop()
            done.settle(1, None)

    turns = Turns(lead)

    def wait(seed):
        for n in range(300):
            future = Future()
            if (n + seed) % 3 == 0:
                turns.wait_for(future, Deadline(0.0002))  # gives up, perhaps just when it is promoted
            with bell:
                inbox.append(future)
                bell.notify()
            turns.wait_for(future, Deadline(PATIENCE))
            assert future.is_done, "a wake-up was lost"

    for task in [subject.thread(wait, seed) for seed in range(6)]:
        task.result(3 * PATIENCE)
    assert not turns._followers
    assert not turns.led


async def _result_of(future):
    return await future


async def test_who_gives_up_awaiting_leaves_nothing_behind(unanswered):
    future = unanswered.submit("nothing", PATIENCE)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await future
    assert not future.callbacks
    awaiting = asyncio.create_task(_result_of(future))
    await asyncio.sleep(0)
    unanswered.recv_message(PATIENCE).reply("yet")
    assert await awaiting == "yet"
    assert not future.callbacks


@pytest.mark.timeout(30)
def test_a_signal_handler_may_ask_amid_the_first_request(questions, monkeypatch):
    """It makes the inbox, and the directory, that the other was about to make."""
    amid, asked = [], []

    def before(function):
        def call(*args):
            if function not in amid:
                amid.append(function)
                asked.append(questions.request(("echo", len(amid)), PATIENCE))
            return function(*args)

        return call

    monkeypatch.setattr(route, "publish", before(route.publish))
    monkeypatch.setattr(client, "Directory", before(client.Directory))
    assert questions.request(("echo", 0), PATIENCE) == 0
    assert asked == [2, 1]
    assert inbox(questions._end) is _box(questions)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("ipcbus-directory") == 1, "one that was made in vain goes on"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("others", [0, 2])
def test_a_signal_handler_may_ask_amid_a_request(questions, subject, others):
    """Whether the thread that it interrupts receives for all, waits for one that does, or is on the way between the two."""
    over, inside, answers = threading.Event(), [], []

    def handle(_number, _frame):
        if not inside:
            inside.append(None)
            answers.append(questions.request(("echo", "handler"), PATIENCE))
            inside.clear()

    def ask_on():
        while not over.is_set():
            assert questions.request(("echo", "thread"), PATIENCE) == "thread"

    questions.request(("echo", 0), PATIENCE)
    asking = [subject.thread(ask_on) for _ in range(others)]
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        while len(answers) < 500:
            assert questions.request(("echo", "main"), PATIENCE) == "main"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        over.set()
    for task in asking:
        task.result(PATIENCE)
    assert set(answers) == {"handler"}
    assert not _box(questions)._turns._followers


def test_an_interrupt_at_any_instant_leaves_the_inbox_usable(questions, subject):
    stop = threading.Event()
    # Opening is another matter: an interrupt between making a descriptor and noting it leaves that behind.
    assert questions.request(("echo", 0), PATIENCE) == 0

    def ask():
        lost = count = 0
        while not stop.is_set():
            count += 1
            try:
                assert questions.request(("echo", count), 0.5) == count
            except (ipcbus.ChannelEmpty, ipcbus.ChannelBroken):
                lost += 1
        return lost

    before = signal.getsignal(signal.SIGALRM)
    others = [subject.thread(ask) for _ in range(2)]
    interrupter = Interrupter()
    try:
        until = time.monotonic() + 2
        n = 0
        while time.monotonic() < until:
            n += 1
            done, value = interrupter.call(questions.request, ("echo", n), PATIENCE)
            assert not done or value == n
        assert questions.request(("echo", "after"), PATIENCE) == "after"
    finally:
        signal.signal(signal.SIGALRM, before)
        stop.set()
    assert interrupter.count > 20
    # What the interrupted call had in its hand was perhaps theirs; no more than that.
    assert sum(task.result(PATIENCE) for task in others) <= interrupter.count / 4


# --------------------------------------------------------------------------- futures


def test_who_wants_to_be_called_when_it_is_being_done_is_called_once():
    """A future has no lock: whoever comes while it is done finds it done, or is found by who does it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            future, calls = Future(), []
            start = threading.Barrier(3)

            def add(future=future, calls=calls, start=start):
                start.wait(PATIENCE)
                future.add_done_callback(lambda done: calls.append(done.result(0)))

            def finish(future=future, start=start):
                start.wait(PATIENCE)
                future.finish(7, None)

            threads = [threading.Thread(target=target) for target in (add, add, finish)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert calls == [7, 7]
    finally:
        sys.setswitchinterval(before)


def test_what_a_future_calls_may_raise_and_ask_and_wait(questions):
    seen, ended = [], threading.Event()
    future = questions.submit(("echo", 1))

    def fail(_):
        raise ValueError("this one fails")

    def ask(done):
        seen.append((done.result(0), questions.request(("echo", 2), PATIENCE)))
        ended.set()

    future.add_done_callback(fail)
    future.add_done_callback(ask)
    assert future.result(PATIENCE) == 1
    assert ended.wait(PATIENCE), "a request in what a future calls was not answered"
    assert seen == [(1, 2)]
    future.add_done_callback(seen.append)
    assert seen[-1] is future


def test_what_a_future_calls_may_exit_and_does_not_end_the_thread_that_receives(questions, askers):
    def leave(_):
        called.set()
        sys.exit(3)

    for _ in range(2):
        called = threading.Event()
        future, send = askers.prepared(questions, ("echo", 1))
        future.add_done_callback(leave)  # before it is sent: if it were done by now, this thread would exit
        send()
        assert called.wait(PATIENCE)


def test_a_thread_that_could_not_be_had_is_had_later(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    box = Inbox("pipe:")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ipcbus.ChannelBroken, match="ulimit -u"):
                box.attend()
        box.attend()
        assert box._steward.is_alive()
    finally:
        box.close()


@pytest.mark.parametrize(
    "ask", [lambda ch: ch.submit(1), lambda ch: asyncio.run(ch.aio.request(1, PATIENCE))], ids=["submit", "aio"]
)
def test_what_no_thread_could_be_had_for_was_not_asked(unanswered, monkeypatch, ask):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    box = _box(unanswered)
    monkeypatch.setattr(box, "_steward", None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ipcbus.ChannelBroken, match="ulimit -u"):
        ask(unanswered)
    monkeypatch.undo()
    assert not box._waiting
    with pytest.raises(ipcbus.ChannelEmpty):
        unanswered.recv(0)


def test_what_a_done_future_calls_may_raise_too(caplog):
    future, seen = Future(), []
    future.finish(7, None)

    def fail(_):
        raise ValueError("this one fails")

    future.add_done_callback(fail)
    future.add_done_callback(seen.append)
    assert seen == [future]
    assert "this one fails" in caplog.text


def test_it_is_cancelled_once(unanswered):
    future = unanswered.submit("nobody answers")
    assert future.cancel()
    assert not future.cancel()
    with pytest.raises(ipcbus.ChannelClosed, match="cancelled"):
        future.result(PATIENCE)


def test_done_becomes_true_while_nobody_waits(questions):
    future = questions.submit(("echo", 3))
    until = time.monotonic() + PATIENCE
    assert ipcbus.wait([future], PATIENCE) == [future]
    assert future.done()
    assert time.monotonic() < until


def test_it_is_awaited_in_two_loops(questions, unanswered, subject):
    future = unanswered.submit("for both")

    async def wait():
        return await future

    tasks = [subject.thread(asyncio.run, wait()) for _ in range(2)]
    unanswered.recv_message(PATIENCE).reply("to both")
    assert [task.result() for task in tasks] == ["to both"] * 2
    assert questions.request(("echo", 1), PATIENCE) == 1


def test_futures_travel_pending_twice_done_and_failed(questions, unanswered):
    pending = unanswered.submit("x")
    copies = [pickle.loads(pickle.dumps(pending)) for _ in range(2)]
    assert not any(copy.done() for copy in copies)
    assert ipcbus.wait([*copies, pending], 0) == []
    unanswered.recv_message(PATIENCE).reply("value")
    assert [copy.result(PATIENCE) for copy in copies] == ["value"] * 2
    assert pickle.loads(pickle.dumps(pending)).result(0) == "value"


def test_futures_that_wait_do_not_displace_those_that_are_done(unanswered, monkeypatch):
    monkeypatch.setattr(exports, "_MOST", 2)
    futures = [unanswered.submit(number) for number in range(5)]
    sent = [pickle.dumps(future) for future in futures[:4]]
    messages = [unanswered.recv_message(PATIENCE) for _ in futures]
    for number in (0, 1):
        messages[number].reply(number)
        assert futures[number].result(PATIENCE) == number
    pickle.dumps(futures[4])
    assert [pickle.loads(pickled).result(PATIENCE) for pickled in sent[:2]] == [0, 1]
    messages[2].reply(2)
    assert futures[2].result(PATIENCE) == 2
    with pytest.raises(ipcbus.RemoteError, match="not kept any more"):
        pickle.loads(sent[0]).result(PATIENCE)
    assert [pickle.loads(pickled).result(PATIENCE) for pickled in sent[1:3]] == [1, 2]


def test_a_future_of_a_thread_of_this_process_travels_to_another_one(subject, askers):
    """Though nobody else can reach the inbox of the threads."""
    with ipcbus.open("inproc:") as near:
        pending = near.submit("x")
        lent = subject.open()
        child = subject.start(askers.wait_for_what_comes, lent)
        lent.send(pending)
        copy = pickle.loads(pickle.dumps(pending))
        assert child.hear() == "it came"
        near.recv_message(PATIENCE).reply("value")
        assert [future.result(PATIENCE) for future in (pending, copy)] == ["value"] * 2
        assert child.hear() == "value"
        child.result()


async def _wait_briefly(future):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future.arrival(), 0.1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda future, _: future.done(),
        lambda future, _: raises(ipcbus.ChannelEmpty, future.result, 0.1),
        lambda future, _: ipcbus.wait([future], 0.1),
        lambda future, _: asyncio.run(_wait_briefly(future)),
        lambda _, callback: raises(ipcbus.ChannelEmpty, callback, "abc"),
    ],
    ids=["done", "result", "wait", "await", "callback"],
)
def test_nobody_waits_longer_than_was_said_for_a_process_that_is_stopped(subject, askers, unanswered, wait):
    """Though it would have to be asked for the way to it first, and may answer for longer than that."""
    lent = subject.open()
    owner = subject.start(askers.lend_pending, lent, unanswered)
    future, callback = lent.recv(PATIENCE)
    _stop(owner)
    started = time.monotonic()
    wait(future, callback)
    assert time.monotonic() - started < 1 + LATE < place.PATIENCE
    os.kill(owner.pid, signal.SIGCONT)
    unanswered.recv_message(PATIENCE).reply("here")
    assert future.result(PATIENCE) == "here"
    callback.timeout = PATIENCE
    assert callback("abc") == 3


def test_nor_where_it_takes_in_nothing_more(subject, askers, unanswered):
    lent = subject.open()
    owner = subject.start(askers.lend_pending, lent, unanswered)
    future, callback = lent.recv(PATIENCE)
    callback.timeout = PATIENCE
    assert callback("abc") == 3
    _stop(owner)
    way = route.here.routes[callback._origin[0]].end
    with contextlib.suppress(ipcbus.ChannelFull):
        for _ in range(100_000):
            way.tx.send(way.codec.encode(None), 0)
    started = time.monotonic()
    raises(ipcbus.ChannelEmpty, future.result, 0.1)
    assert time.monotonic() - started < LATE < route.PATIENCE
    os.kill(owner.pid, signal.SIGCONT)
    unanswered.recv_message(PATIENCE).reply("here")
    assert future.result(PATIENCE) == "here"


def _stop(child):
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)  # until then some of its threads may run on


def test_a_failed_future_travels(questions):
    failed = questions.submit(("strange",))
    before = pickle.loads(pickle.dumps(failed))
    for future in (failed, before, pickle.loads(pickle.dumps(failed))):
        assert isinstance(future.exception(PATIENCE), ipcbus.RemoteError)
        with pytest.raises(ipcbus.RemoteError):
            future.result(PATIENCE)


# --------------------------------------------------------------------------- forks, closing, exits


def test_a_forked_child_asks_for_itself_and_is_told_what_is_not_its_own(questions, unanswered, subject, askers):
    pending = unanswered.submit("goes on in the parent")
    with ipcbus.callback(os.getpid) as callback:
        child = subject.start(askers.ask_inherited, questions, pending, callback)
        assert "from which this one was forked" in child.hear()
        assert isinstance(child.hear(), int)
        assert child.hear() == os.getpid(), "a callback that a forked child inherited ran in the child"
        child.result()
    unanswered.recv_message(PATIENCE).reply("here")
    assert pending.result(PATIENCE) == "here"


def test_what_waits_fails_where_nothing_can_be_received_for_long(monkeypatch):
    def receive(_):
        raise ipcbus.ChannelBroken("worn out")

    monkeypatch.setattr(outage, "PATIENCE", 0.2)
    box, future, done = Inbox("pipe:"), Future(), threading.Event()
    try:
        monkeypatch.setattr(box, "_receive", receive)
        future.enter(box, None)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(PATIENCE)
        with pytest.raises(ipcbus.ChannelBroken, match="worn out"):
            future.result(0)
    finally:
        box.close()


def test_who_waits_is_woken_though_there_was_no_descriptor_to_wake_it_by_for_a_moment(unanswered, monkeypatch):
    class Lacking:
        def send(self, *_):
            monkeypatch.undo()
            raise ipcbus.ChannelBroken("Too many open files")

    box = _box(unanswered)
    future = asking.send(box, unanswered._end, "anything", PATIENCE, None)
    leading = in_thread(future.exception)
    until(lambda: box._turns.led)
    monkeypatch.setattr(box, "_channel", Lacking())
    box._fail([future.number], ipcbus.PeerDied("died"))
    try:
        assert isinstance(leading(), ipcbus.PeerDied)
    finally:
        box._nudge()  # it is not to wait for ever where this fails


def test_who_is_to_be_called_is_called_though_there_was_no_thread_for_it_for_a_moment(unanswered, monkeypatch):
    def refuse(_):
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    box, called, error = _box(unanswered), threading.Event(), ipcbus.PeerDied("died")
    futures = [unanswered.submit(number) for number in range(2)]
    futures[0].add_done_callback(lambda _: called.set())
    leading = in_thread(futures[1].exception, PATIENCE / 2)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    box._directory.later(0, lambda: box._fail([future.number for future in futures], error))
    assert leading() is error
    assert called.wait(PATIENCE)


def test_closing_while_threads_ask_ends_them_all(subject):
    from ipcbus.requests import inbox

    channel = subject.open(capacity=10_000)
    started = threading.Barrier(9)

    def ask():
        started.wait(PATIENCE)
        with pytest.raises((ipcbus.ChannelClosed, ipcbus.ChannelEmpty)):
            channel.request("nobody answers", 3)

    tasks = [subject.thread(ask) for _ in range(8)]
    started.wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    box = _box(channel)
    while len(box._waiting) - len(box._spare) < 8:
        assert time.monotonic() < until
        threading.Event().wait(0.001)
    inbox.settle()
    for task in tasks:
        task.result(PATIENCE)


_EXIT = """
import threading, ipcbus
channel = ipcbus.open("pipe:")
running = threading.Event()
def hang():
    running.set()
    threading.Event().wait()
callback = ipcbus.callback(hang)
futures = [channel.submit(n) for n in range(10)] + [callback.submit() for _ in range(3)]
threading.Thread(target=channel.request, args=("never",), daemon=True).start()
futures[0].add_done_callback(print)
running.wait(10)
import ipcbus.requests.callback as module
module.PATIENCE = 0.2
"""


def test_a_process_with_pending_futures_and_a_hanging_callback_exits():
    done = subprocess.run([sys.executable, "-c", _EXIT], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "failed: ChannelClosed" in done.stdout


def _box(channel):
    from ipcbus.requests import inbox

    return inbox.inbox(channel._end)
