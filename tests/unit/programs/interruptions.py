"""Interrupts calls at every instant at which Python lets a signal handler raise, one after the other: nothing is left to luck.

``python interruptions.py SCENARIO URL [SIZE]``; prints how many instants there were.
"""

import contextlib
import dis
import functools
import gc
import pickle
import sys
import threading
import time

import ipcbus
from ipcbus.errors import ChannelClosed, ChannelEmpty, ChannelFull
from ipcbus.testing.children import pattern

PATIENCE = 5
LATE = 0.01
"""Seconds after which a message comes that is waited for."""
SOON = 1.0
"""Seconds in which an end closes that has nothing to hand over; zmq would take two more for one that it cannot end."""
LONG = 2.5
"""Seconds that a wait lasts which nothing ends."""
CHECKED = {code for name, code in dis.opmap.items() if name.startswith("CALL") or name in ("RESUME", "JUMP_BACKWARD")}
"""The instructions behind which the interpreter runs signal handlers."""


class Interruption(BaseException):
    pass


class Instants:
    """Interrupts a call at the n-th instant in our own code; a call that is over before that is not interrupted."""

    def __init__(self, number):
        self.left = number
        self.behind = {}

    def call(self, function, *arguments):
        before = sys.gettrace()
        gc.disable()  # Python 3.11 may crash when what traces raises in a finalizer that the collector runs
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it when tracing begins
        sys.settrace(self.enter)
        try:
            function(*arguments)
        except Interruption:
            return True
        finally:
            sys.settrace(before)
            sys._getframe().f_trace_opcodes = False
            gc.enable()
            self.behind.clear()
        return False

    def enter(self, frame, event, argument):
        if not frame.f_globals.get("__name__", "").startswith("ipcbus"):
            return None
        frame.f_trace = self.step  # before the next line: Python 3.13 wants it so
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame, event, argument):
        if event in ("return", "exception"):  # handlers do not run behind a call that raised
            self.behind.pop(id(frame), None)
        elif event == "opcode":
            behind = self.behind.get(id(frame))
            self.behind[id(frame)] = frame.f_lasti
            if behind is not None and is_instant(frame.f_code, behind, frame.f_lasti):
                self.left -= 1
                if self.left == 0:
                    self.strike()
        return self.step

    def strike(self):
        raise Interruption


class Handler(Instants):
    """Has a function called at the n-th instant, as a signal handler that does not raise."""

    def __init__(self, number, function):
        super().__init__(number)
        self.function = function

    def strike(self):
        tracing = sys.gettrace()
        sys.settrace(None)
        try:
            self.function()
        finally:
            sys.settrace(tracing)


@functools.cache
def is_instant(code, behind, at):
    """Tell whether a signal handler may raise behind an instruction.

    What it raises there is raised by that instruction, and here by the one that follows it. Where that is no longer in the
    same block, as behind the last call in a ``with``, it would be raised in a place where it cannot be.
    """
    return code.co_code[behind] in CHECKED and handler(code, behind) == handler(code, at)


def handler(code, at):
    """Return where what an instruction raises is dealt with."""
    return next((entry.target for entry in dis._parse_exception_table(code) if entry.start <= at < entry.end), None)


def every_instant(attempt, step=1):
    """Call ``attempt(instants)`` for every instant of what it calls until it says that nothing was interrupted any more."""
    number = 1
    while True:
        try:
            if not attempt(Instants(number)):
                print(number)
                return
        except BaseException as error:
            error.add_note(f"the call before was interrupted at its instant {number}")
            raise
        number += step


def open_channel(url, capacity=2):
    return ipcbus.open(url, capacity=capacity, serializer="json" if url.startswith("zmq+tcp") else "auto")


def send(channel, value):
    """Send, and where an interruption left the two sides counting differently let the receiver hear the question."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            channel.send(value, timeout=0.2)
        except ChannelFull:
            assert time.monotonic() < until, "there was no room for long"
            try:
                channel.recv(timeout=0)
            except ChannelEmpty:
                pass
        else:
            return


def receive(channel, value):
    """Receive this; what was interrupted may come before."""
    while channel.recv(timeout=PATIENCE) != value:
        pass


def first_receive(url):
    """Until an end has opened it owns nothing, and one that is dropped half open is not a receiver that died."""

    def attempt(instants):
        with open_channel(url) as channel:
            channel.send("first", timeout=PATIENCE)
            interrupted = instants.call(channel.recv, PATIENCE)
            channel.send("second", timeout=PATIENCE)
            try:
                channel.send("third", timeout=0)
            except ChannelFull:
                pass
            receive(channel, "second")
            return interrupted

    every_instant(attempt)


def first_parked(url):
    """What senders left before there was a receiver is lost by one that is interrupted no more than any message in hand."""

    def attempt(instants):
        with open_channel(url, capacity=4) as channel:
            sender = pickle.dumps(channel.sender)
            for numbers in ((0, 1), (2, 3)):
                with contextlib.closing(pickle.loads(sender)) as sending:
                    for number in numbers:
                        sending.send(number, PATIENCE)
            got = []
            interrupted = instants.call(lambda: got.append(channel.recv(PATIENCE)))
            while not got or got[-1] != 3:
                got.append(channel.recv(PATIENCE))
            assert got in ([0, 1, 2, 3], [1, 2, 3]), f"of what was left arrived {got}"
            return interrupted

    every_instant(attempt)


def first_send(url):
    """A sender that was interrupted as it opened opens again."""

    def attempt(instants):
        with open_channel(url) as channel:
            interrupted = instants.call(channel.send, "first", PATIENCE)
            send(channel, "second")
            receive(channel, "second")
            return interrupted

    every_instant(attempt)


def first_look(url):
    """A receiver that was interrupted as it opened, before anything came, closes as quickly as any."""

    def look(channel):
        try:
            channel.recv(timeout=0.001)
        except ChannelEmpty:
            pass

    def attempt(instants):
        channel = open_channel(url)
        interrupted = instants.call(look, channel)
        send(channel, "second")
        receive(channel, "second")
        started = time.monotonic()
        channel.close()
        took = time.monotonic() - started
        assert took < SOON, f"closing took {took:.1f} s"
        return interrupted

    every_instant(attempt)


def closing(url):
    """A receiving end whose close was interrupted is closed by the next, and leaves what waits to whoever follows it."""

    def attempt(instants):
        with open_channel(url, capacity=4) as channel:
            passed_on = pickle.dumps(channel.receiver)
            receiver = channel.receiver
            for number in range(4):
                channel.send(number, PATIENCE)
            assert receiver.recv(PATIENCE) == 0
            interrupted = instants.call(receiver.close)
            receiver.close()
            with contextlib.closing(pickle.loads(passed_on)) as successor:
                assert [successor.recv(PATIENCE) for _ in range(3)] == [1, 2, 3]
            return interrupted

    every_instant(attempt)


def leaving(url, received):
    """A sending end whose close was interrupted is closed by the next, and what it accepted arrives, once."""

    def attempt(instants):
        with open_channel(url, capacity=4) as channel:
            sender = channel.sender
            for number in range(4):
                sender.send(number, PATIENCE)
            got = [channel.recv(PATIENCE) for _ in range(received)]
            interrupted = instants.call(sender.close)
            sender.close()
            got += [channel.recv(PATIENCE) for _ in range(received, 4)]
            with contextlib.suppress(ChannelEmpty):
                got.append(channel.recv(0))
            assert got == [0, 1, 2, 3], f"of what was sent arrived {got}"
            return interrupted

    every_instant(attempt)


def left(url):
    """While there is a receiver."""
    leaving(url, 1)


def left_to_nobody(url):
    """Where no receiver has come yet."""
    leaving(url, 0)


def replacing(url):
    """A receiving end whose close was interrupted is closed by the next, and another can receive what is sent from then on."""

    def attempt(instants):
        with open_channel(url) as channel:
            passed_on = pickle.dumps(channel.receiver)
            channel.send("first", PATIENCE)
            receiver = channel.receiver
            assert receiver.recv(PATIENCE) == "first"
            interrupted = instants.call(receiver.close)
            receiver.close()
            with contextlib.closing(pickle.loads(passed_on)) as successor:
                successor.fileno()
                until = time.monotonic() + PATIENCE
                while not ipcbus.wait([successor], timeout=0.1):  # what is sent while a receiver ends may be lost with it
                    assert time.monotonic() < until, "nobody can receive any more"
                    channel.send("second", PATIENCE)
                assert successor.recv(PATIENCE) == "second"
            return interrupted

    every_instant(attempt)


def later(url, way, size):
    """At most the message in hand is lost; what follows is whole and in order."""
    with open_channel(url) as channel:
        send(channel, "opened")
        receive(channel, "opened")

        def attempt(instants):
            if way == "send":
                interrupted = instants.call(channel.send, pattern(size, 1), PATIENCE)
            elif way == "wait":
                late = threading.Timer(LATE, channel.send, (pattern(size, 1), PATIENCE))
                late.start()
                interrupted = instants.call(channel.recv, PATIENCE)
                late.join()
            else:
                send(channel, pattern(size, 1))
                interrupted = instants.call(channel.recv, PATIENCE)
            for seed in range(2, 6):
                send(channel, pattern(size, seed))
                got = channel.recv(timeout=PATIENCE)
                if seed == 2 and got == pattern(size, 1):
                    got = channel.recv(timeout=PATIENCE)
                assert got == pattern(size, seed), f"message {seed} did not arrive, or torn"
            return interrupted

        every_instant(attempt)


def half_written(url, way, size):
    """What a signal handler has begun to write, and the pipe did not take, is ended before the interrupted send writes."""
    with open_channel(url, capacity=64) as channel:
        message = pattern(size, 1)

        def send_amid(got, sent):
            send_what_fits(channel, [pattern(20_000, 3)], sent)
            for _ in range(8):  # from here on there is room in the pipe
                try:
                    got.append(channel.recv(timeout=0))
                except ChannelEmpty:
                    break

        def attempt(instants):
            got, sent, mine = [], [], []
            send_what_fits(channel, [pattern(3_900, 2)] * 14, sent)
            handler = Handler(instants.left, lambda: send_amid(got, sent))
            if way == "many":
                handler.call(lambda: mine.extend([message] * channel.send_many([message] * 3, timeout=0)))
            else:
                handler.call(send_what_fits, channel, [message], mine)
            while len(got) < len(sent) + len(mine):
                got.append(channel.recv(timeout=PATIENCE))
            assert sorted(got) == sorted(sent + mine), "messages arrived torn"
            return handler.left <= 0

        every_instant(attempt)


def amid(url, way, size):
    """A signal handler that sends amid a send takes room of its own: no more is accepted than the channel has room for."""
    capacity = 4
    with open_channel(url, capacity) as channel:
        kind, before = way.split("_")
        message = pattern(size, 1) if kind == "bytes" else [pattern(size, 1)]
        send_what_fits(channel, [message], [])
        channel.recv(timeout=PATIENCE)

        def attempt(instants):
            got, sent = [], []
            for _ in range(int(before)):
                send_what_fits(channel, [pattern(10, 2)], sent)
            handler = Handler(instants.left, lambda: send_what_fits(channel, [pattern(10, 3)] * 2, sent))
            handler.call(send_what_fits, channel, [message], sent)
            send_what_fits(channel, [pattern(10, 4)] * capacity, sent)
            assert len(sent) == capacity, f"{len(sent)} messages were accepted"
            got = [channel.recv(timeout=PATIENCE) for _ in sent]
            assert sorted(got, key=repr) == sorted(sent, key=repr), "messages arrived torn"
            return handler.left <= 0

        every_instant(attempt)


def taken(url, size):
    """A signal handler that receives amid a receive takes messages of its own, and their room comes back once."""
    capacity = 4
    with open_channel(url, capacity) as channel:
        send(channel, "opened")
        receive(channel, "opened")
        every_instant(lambda instants: take_amid(channel, instants, pattern(size, 1), PATIENCE))
        fitting = []
        send_what_fits(channel, [b""] * 3 * capacity, fitting)
        assert len(fitting) <= capacity, f"{len(fitting)} messages were accepted"


def first_taken(url):
    """One that receives amid the opening does so too, or is told that it may not."""

    def attempt(instants):
        with open_channel(url, capacity=4) as channel:
            return take_amid(channel, instants, b"", 0)

    every_instant(attempt)


def take_amid(channel, instants, message, timeout):
    got = []

    def take(timeout):
        try:
            got.append(channel.recv(timeout))
        except ChannelEmpty:
            pass

    for number in range(2):
        channel.send((number, message), PATIENCE)
    if channel.url.startswith(("queue:", "zmq:")) and timeout:  # which move messages in threads of theirs
        ipcbus.wait([channel], PATIENCE)
    handler = Handler(instants.left, lambda: take(0))
    handler.call(take, timeout)
    while len(got) < 2:
        got.append(channel.recv(PATIENCE))
    assert sorted(got) == [(0, message), (1, message)], f"{[number for number, _ in got]} arrived"
    return handler.left <= 0


def regained(url):
    """What is given back while a signal handler looks amid a send is not forgotten."""
    capacity = 2
    with open_channel(url, capacity) as channel:
        send_what_fits(channel, [0], [])
        channel.recv(PATIENCE)

        def look():
            channel.recv(PATIENCE)
            ipcbus.wait([channel.sender], 0)

        def attempt(instants):
            sent = []
            for _ in range(capacity):
                channel.send("before", PATIENCE)
            channel.recv(PATIENCE)
            handler = Handler(instants.left, look)
            handler.call(send_what_fits, channel, ["interrupted"], sent)
            for _ in range(capacity - 1 + len(sent) - (handler.left <= 0)):
                channel.recv(PATIENCE)
            for number in range(capacity):
                channel.send(number, PATIENCE)
            assert [channel.recv(PATIENCE) for _ in range(capacity)] == [*range(capacity)]
            return handler.left <= 0

        every_instant(attempt)


def woken(url):
    """What a signal handler makes possible and looks at, amid a call that is about to wait for it, ends the wait."""

    def attempt(instants, sends):
        with open_channel(url) as channel:
            came, outcome = [], []

            def make_and_look():
                came.append(time.monotonic())
                if sends:
                    channel.recv(PATIENCE)
                else:
                    channel.send("awaited", PATIENCE)
                ipcbus.wait([channel.sender if sends else channel.receiver], 0)

            def wait():
                try:
                    outcome.append(channel.send("more", LONG) if sends else channel.recv(LONG))
                except (ChannelEmpty, ChannelFull) as error:
                    outcome.append(error)

            send(channel, "before")
            if sends:
                send(channel, "before")
            else:
                receive(channel, "before")
            began = time.monotonic()
            Handler(instants.left, make_and_look).call(wait)
            if not came or came[0] - began > LONG / 2:
                return False  # this one struck when the wait was over
            assert outcome in (["awaited"], [None]), f"it waited on, and then {outcome[0]!r}"
            assert time.monotonic() - began < LONG, "it saw that only when its time was over"
            return True

    for sends in (True, False):
        every_instant(functools.partial(attempt, sends=sends))


def ended(url):
    """A call whose channel a signal handler closes, also amid its first, says so, and leaves no end open."""

    size = 10 if url.startswith("queue:") else 300_000  # whose close waits for a receiver of what its pipe cannot hold

    def attempt(instants, call, before):
        with open_channel(url) as channel:
            for _ in range(before):
                channel.send(pattern(size, 1), PATIENCE)
            handler = Handler(instants.left, channel.close)
            try:
                handler.call(call, channel)
            except (ChannelClosed, ChannelEmpty, ChannelFull):
                pass
            if handler.left > 0:
                return False
            try:
                channel.send("after", 0)
            except ChannelClosed:
                return True
            raise AssertionError("it could be sent to after it was closed")

    def put(channel):
        channel.send("last", 0.001)

    def take(channel):
        channel.recv(0.001)

    for call, before in ((put, 0), (put, 2), (take, 0), (take, 1)):
        every_instant(functools.partial(attempt, call=call, before=before))


def send_what_fits(channel, messages, sent):
    for message in messages:
        try:
            channel.send(message, timeout=0)
        except ChannelFull:
            return
        sent.append(message)


if __name__ == "__main__":
    scenario, url, *size = sys.argv[1:]
    if scenario.startswith("amid_"):
        amid(url, scenario.removeprefix("amid_"), int(*size))
    elif scenario.startswith("half_"):
        half_written(url, scenario.removeprefix("half_"), int(*size))
    elif scenario == "taken":
        taken(url, int(*size))
    elif size:
        later(url, scenario, int(*size))
    else:
        others = (first_receive, first_parked, first_send, first_look, closing, replacing, left, left_to_nobody)
        others += (first_taken, regained, woken, ended)
        {other.__name__: other for other in others}[scenario](url)
