"""One fault at one named point of the C code of shm: run as a program, with a build that has fault points, by test_shm_points.

    python shm_trial.py POINT kill|stop|raise

A victim sends, drops, receives and waits, all the ways that there are, and comes by the point; another process receives
beside it. Then it is seen that the others go on: in time, with whole messages, and with all memory where it belongs.
"""

import multiprocessing
import os
import signal
import struct
import sys
import time

import ipcbus
from ipcbus_shm import _native

CALL = 0.3
LATE = 1.0
LARGE = 40_000
EXTENTS, EXTENTS_AT, ENTRY = 1024, 8192, 32
EMPTY, FREE = 0, 1


class Interruption(Exception):
    pass


def interrupt(*_):
    raise Interruption


def message(n):
    size = LARGE + n * 7919 % 97 * 8192 if n % 2 else n % 100  # of many sizes, so that extents have to be made
    return n, bytes([n % 251]) * size


def check(got):
    n, data = got
    assert data == message(n)[1], f"message {n} of {len(data)} bytes is torn"


def drain(channel, timeout=0.0):
    count = 0
    while True:
        try:
            check(channel.recv(timeout))
        except ipcbus.ChannelEmpty:
            return count
        count += 1


def work(channel, rounds):
    """Come by every point."""
    for n in rounds:
        for k in range(7):
            channel.send(message(n * 7 + k))  # more than fit: the oldest are dropped
        for _ in range(3):
            try:
                check(channel.recv(0))
            except ipcbus.ChannelEmpty:
                break
        drain(channel, 0.001)


def victim(channel, point, number, ready):
    signal.signal(signal.SIGUSR1, interrupt)
    work(channel, range(2))
    _native.plan_fault(point, number, 1 if point == "EXTENT_GROWN" else 2)
    ready.send(None)
    interrupted = 0
    for n in range(2, 2000):
        try:
            work(channel, [n])
            if number == signal.SIGUSR1 and interrupted:
                break
        except Interruption:
            interrupted += 1
        if ready.poll():
            break
    ready.send(interrupted)


def companion(channel, stop):
    """Wait for messages, so that bells are answered."""
    while not stop.poll():
        drain(channel, 0.02)
    channel.close()


def in_time(call, *args):
    started = time.monotonic()
    try:
        return call(*args)
    finally:
        took = time.monotonic() - started
        assert took < CALL + LATE, f"{call.__name__} took {took:.2f} s"


def try_out(channel):
    """Use the channel while somebody is stopped in the middle of something; dropping has no timeout, so not by that."""
    said = set()
    link = channel._end.open_sender()
    for n in range(6):
        try:
            in_time(link.send, channel._end.codec.encode(message(n)), CALL)
        except ipcbus.ChannelFull:
            said.add("full")
        try:
            check(in_time(channel.recv, CALL))
        except ipcbus.ChannelEmpty:
            said.add("empty")
        if said:
            break
    return said


def settle(channel):
    """See that everything works, and that no memory is lost."""
    in_time(drain, channel)
    for n in range(40):
        in_time(channel.send, message(n), CALL)
        got = in_time(channel.recv, CALL)
        check(got)
        assert got[0] == n, f"{got[0]} came for {n}"
    # Larger than any that is free, so that what the dead had is looked for.
    channel.send((0, bytes(50 * LARGE)))
    in_time(channel.recv, CALL)
    memory = channel._end.handle.segment.fds[0]
    table = os.pread(memory, EXTENTS * ENTRY, EXTENTS_AT)
    kinds = [state >> 56 for state, *_ in struct.iter_unpack("=QQQQ", table)]
    lost = [kind for kind in kinds if kind not in (EMPTY, FREE)]
    assert not lost, f"extents that nobody has are not free: states {lost}"
    assert channel.stats().depth == 0


def main(point, action):
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR1}[action]
    context = multiprocessing.get_context("fork")
    channel = ipcbus.open("shm:?ring_bytes=65536", capacity=4, receivers="many", overflow="drop_old")
    patient = ipcbus.open("shm:", capacity=4)  # opened to see that two channels do not meet
    here, there = context.Pipe()
    stop, stopped = context.Pipe()
    other = context.Process(target=companion, args=(channel, stopped))
    other.start()
    process = context.Process(target=victim, args=(channel, point, number, there))
    process.start()
    there.close()
    assert here.poll(10)
    here.recv()
    if action == "kill":
        process.join(20)
        assert process.exitcode == -signal.SIGKILL, f"the victim did not come by {point}: {process.exitcode}"
    elif action == "stop":
        pid, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"the victim did not come by {point}"
        try_out(channel)
        os.kill(pid, signal.SIGCONT)
        here.send(None)
        assert here.poll(20), "the victim did not go on"
        here.recv()
        process.join(10)
    else:
        assert here.poll(20), "the victim is stuck"
        assert here.recv() == 1, f"the victim did not come by {point}"
        process.join(10)
    stop.send(None)
    other.join(10)
    assert other.exitcode == 0
    settle(channel)
    patient.send(1, 0)
    assert patient.recv(0) == 1


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(*_native.fault_points())
    else:
        main(*sys.argv[1:])
