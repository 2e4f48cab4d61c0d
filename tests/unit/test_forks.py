from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys

import pytest

import ipcbus
from ipcbus.testing import leaks

SHM = pytest.param("shm:", marks=pytest.mark.skipif(not importlib.util.find_spec("ipcbus_shm"), reason="not installed"))
NUMBERS = """
import os
from ipcbus.plumbing import forks
before = forks.count()
assert forks.count() == before
reading, writing = os.pipe()
if not os.fork():
    os.write(writing, bytes([forks.count()]))
    os._exit(0)
os.wait()
(child,) = os.read(reading, 1)
assert child != before, "the child has its parent's number"
assert forks.count() != before, "a fork did not change the number"
"""
ANY_MOMENT = """
import sys
from ipcbus.plumbing import forks
calls = 0
def interrupt(frame, event, argument):
    # As the garbage collector does: a finalizer runs between two lines of whatever runs.
    global calls
    calls += 1
    forks.count()
    return interrupt
sys.settrace(interrupt)
forks.count()
forks.count()
sys.settrace(None)
assert calls > 4, calls
"""
HALF_CLOSED = """
import ipcbus
from multiprocessing.util import Finalize
channel, carrier = ipcbus.open("queue:"), ipcbus.open("inproc:")
sender = channel.sender
sender.send(b"x")
carrier.send(channel.receiver)
channel.receiver.close()
again = carrier.recv()
def late():
    try:
        sender.send(b"y", 0)
    except ipcbus.ChannelClosed:
        print("closed")
Finalize(None, late, exitpriority=0)
"""
FORKING = """
import os, threading
begin, begun = threading.Event(), threading.Event()
alive, lives = os.pipe()
ended, ends = os.pipe()

def fork():
    begin.wait(10)
    if not os.fork():
        os.close(ends)
        os.write(lives, b"!")
        os.read(ended, 1)
        os._exit(0)

forking = threading.Thread(target=fork)
forking.start()
"""
"""A thread that forks at 'begin'; of the child 'alive' tells that it is there, and it lives as long as its parent."""
FORK_WHILE_OPENING = (
    FORKING
    + """
import importlib, pickle, sys, ipcbus
url, module, name, start = sys.argv[1:]
channel = ipcbus.open(url)
receiver, sender = pickle.dumps(channel.receiver), pickle.dumps(channel.sender)

def open_and_fork(*arguments, **options):
    opened = opener(*arguments, **options)
    if str(arguments[:1]).startswith(start) and not begin.is_set():
        begin.set()
        assert begun.wait(10)
    return opened

os.register_at_fork(before=begun.set)  # called before those of ipcbus: the last comes first
where = importlib.import_module(module)
opener = getattr(where, name)
setattr(where, name, open_and_fork)
channel.receiver.ready()
channel.send(b"first")
assert begin.is_set(), "nothing was opened that way"
forking.join()
os.read(alive, 1)
assert channel.recv(5) == b"first"
channel.sender.close()
sender = pickle.loads(sender)
sender.send(b"second")
assert channel.recv(5) == b"second", "the child kept a sending end"
channel.receiver.close()
receiver = pickle.loads(receiver)
assert not receiver.ready(), "the child kept the receiver's part"
"""
)
FORK_WHILE_TIED = (
    FORKING
    + """
import multiprocessing
from ipcbus.supervisor.line import Line
pipe = os.pipe

def pipe_and_fork():
    opened = pipe()
    begin.set()
    assert begun.wait(10)
    return opened

context = multiprocessing.get_context("fork")
Line(context, os.getpid()).close()  # from the first one on forks wait
os.register_at_fork(before=begun.set)
os.pipe = pipe_and_fork
line = Line(context, os.getpid())
os.pipe = pipe
forking.join()
os.read(alive, 1)
reading = os.dup(line.tether._fd.fileno())
os.set_blocking(reading, False)
line.close()
assert os.read(reading, 1) == b"", "the child holds the tether"
"""
)
THREE_CHANNELS = """
import logging, os, sys, ipcbus
logging.basicConfig(stream=sys.stdout, format="%(message)s")

def refuse():
    raise ValueError("stuck")

channels = [ipcbus.open("inproc:") for _ in range(3)]
for channel in channels:
    channel.send(1)
"""
ABANDONED = (
    THREE_CHANNELS
    + """
    channel._end.tx.abandon = refuse
if not os.fork():
    os._exit(all(channel._end.tx is None for channel in channels))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 1, "some were not let go"
"""
)
UNCLOSED = (
    THREE_CHANNELS
    + """
    channel._end.open_receiver()
    channel._end.tx.close = refuse
from multiprocessing.util import Finalize
Finalize(None, lambda: print([channel._end.rx._closed for channel in channels]), exitpriority=0)
"""
)
FORK_WHILE_STUCK = """
import os, threading, ipcbus
from ipcbus.plumbing import forks
channel = ipcbus.open("pipe:")
channel.receiver.ready()
held, over = threading.Event(), threading.Event()

def hold():
    with forks.opening:
        held.set()
        over.wait(20)

holding = threading.Thread(target=hold)
holding.start()
assert held.wait(10)
child = os.fork()
if not child:
    with ipcbus.open("pipe:") as own:
        own.send(1)
        os._exit(own.recv(5))
over.set()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
holding.join()
"""
LACKING = """
import errno, os, sys, ipcbus

class Lacking:
    def find_spec(self, name, path, target=None):
        if name == "multiprocessing.util":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

sys.meta_path.insert(0, Lacking())
try:
    ipcbus.open("inproc:")
except OSError as error:
    print(type(error).__name__, error)
del sys.meta_path[0]
channel = ipcbus.open("inproc:")
from multiprocessing.util import Finalize

def late():
    try:
        channel.send(1, 0)
    except ipcbus.ChannelClosed:
        print("closed")
Finalize(None, late, exitpriority=0)
"""
KEPT_TO_THE_LAST = """
import sys, types
early = sys.modules["early"] = types.ModuleType("early")
early.itself = early
import ipcbus
from multiprocessing.util import Finalize

def late():
    channel = ipcbus.open(sys.argv[1])
    channel.send(b"x" * 1_000_000)
    early.kept = channel, channel.recv(5), channel.fileno()
    # Modules that somebody keeps lose their names one after the other, the first of them last.
    sys.kept = [module for name, module in sys.modules.items() if name.startswith(("early", "ipcbus"))]
Finalize(None, late, exitpriority=-1000)  # when this process has closed its channels
"""
SHUTDOWN_ELSEWHERE = """
import os, sys, ipcbus
url, first = sys.argv[1:]
channel = ipcbus.open(url)
channel.send(b"x")
if first == "receiver":
    channel.receiver.ready()
alive, lives = os.pipe()
ended, ends = os.pipe()
if not os.fork():
    os.close(ends)
    try:
        channel.receiver.shutdown()
    finally:
        os.write(lives, b"!")
        os.read(ended, 1)
        os._exit(0)
os.read(alive, 1)
assert channel.recv(5) == b"x"
try:
    channel.recv(5)
except ipcbus.EndOfChannel:
    print("ended")
"""


def run(code, *words):
    # Python 3.12 warns of what is tested here: forks beside other threads.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", code, *words]
    done = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout


def test_a_fork_changes_the_number_on_both_sides():
    run(NUMBERS)


def test_a_finalizer_may_call_it_at_any_moment():
    run(ANY_MOMENT)


def test_an_end_whose_other_side_was_closed_and_had_again_is_closed_at_exit():
    assert run(HALF_CLOSED) == "closed\n"


def test_a_first_channel_that_could_not_be_made_does_not_keep_the_next_from_being_closed_at_exit():
    said, closed = run(LACKING).splitlines()
    assert said.startswith("ChannelBroken what this process does at its exit cannot be loaded: Too many open files; close some")
    assert closed == "closed"


def test_a_child_lets_go_of_all_ends_where_one_cannot_be():
    said = run(ABANDONED)
    assert said.count("inproc:: an end that this forked child inherited was not let go\n") == 3
    assert said.count("ValueError: stuck") == 3


NO_THREADS = pytest.mark.skipif(sys.version_info >= (3, 12), reason="at exit no thread can be started, which a queue: sends by")


@pytest.mark.parametrize("url", ["inproc:", "unix:", "pipe:", pytest.param("queue:", marks=NO_THREADS), SHM])
def test_what_is_kept_until_modules_have_lost_their_names_says_nothing(url):
    run(KEPT_TO_THE_LAST, url)


def test_all_ends_are_closed_at_exit_where_one_cannot_be():
    said = run(UNCLOSED)
    assert said.count("inproc:: the sending end was not closed at the exit of this process\n") == 3
    assert said.count("ValueError: stuck") == 3
    assert said.endswith("[True, True, True]\n")


def test_a_fork_while_a_supervisor_ties_a_process_to_itself_leaves_the_child_nothing():
    run(FORK_WHILE_TIED)


def test_a_child_that_was_forked_though_something_took_too_long_to_open_goes_on():
    run(FORK_WHILE_STUCK)


@pytest.mark.parametrize("url", ["unix:", "pipe:", "queue:"])
def test_a_fork_while_a_receiver_opens_leaves_the_child_nothing(url):
    run(FORK_WHILE_OPENING, url, "os", "open", "('/proc/self/fd/")


def test_a_fork_while_a_lane_opens_leaves_the_child_nothing():
    run(FORK_WHILE_OPENING, "pipe:", "multiprocessing.connection", "Pipe", "()")


@pytest.mark.parametrize("first", ["receiver", "shutdown"])
@pytest.mark.parametrize("url", ["unix:", "pipe:", "queue:", SHM])
def test_a_process_that_is_not_the_receiver_shuts_down_through_the_receiving_side(url, first):
    assert run(SHUTDOWN_ELSEWHERE, url, first) == "ended\n"


@pytest.mark.parametrize("url", ["pipe:", "unix:", "queue:", "inproc:", SHM])
def test_ends_that_go_in_a_cycle_of_references_are_closed(url, monkeypatch):
    """As with a task that waits when its event loop ends, or an exception that is kept with its traceback."""
    failed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda said: failed.append(repr(said.exc_value)))
    before = leaks.snapshot()
    channel = ipcbus.open(url)
    channel.send("something", timeout=10)
    assert channel.recv(timeout=10) == "something"
    cycle = [channel]
    cycle.append(cycle)
    del channel, cycle
    gc.collect()
    assert failed == []
    assert leaks.compare(before) == []
