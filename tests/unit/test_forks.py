from __future__ import annotations

import subprocess
import sys

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


def run(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=10, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout


def test_a_fork_changes_the_number_on_both_sides():
    run(NUMBERS)


def test_a_finalizer_may_call_it_at_any_moment():
    run(ANY_MOMENT)


def test_an_end_whose_other_side_was_closed_and_had_again_is_closed_at_exit():
    assert run(HALF_CLOSED) == "closed\n"
