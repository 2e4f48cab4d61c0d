"""Where the time of a request goes: each step of its way, in one process and one thread, beside bare hops.

    python benchmarks/request_path.py [pipe unix ...] [--count 4000] [--bytecodes]

A request is sent, received as a message, handled and answered, and its reply is waited for; everything is there before it is
looked for, so nobody sleeps and no processor is changed. That makes the figures repeatable where a round trip between
processes is not; take the lowest of each step. With ``--bytecodes`` what Python executes is counted instead, by function: that
is the same in every run.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing as mp
import statistics
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.plumbing.clock import Deadline
from ipcbus.requests import asking, serving
from ipcbus.requests.inbox import inbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Step = Callable[[], object]

MESSAGE = {"id": 12345, "name": "sensor-7", "value": 21.5, "tags": ["a", "b"]}
PATIENCE = 30.0


def request_steps(scheme: str) -> dict[str, Step]:
    """Return the steps of one request; to be called in order."""
    channel = ipcbus.open(f"{scheme}:")
    end = channel._end
    box = inbox(end)
    end.open_receiver()
    now: dict[str, Any] = {}

    def send() -> None:
        now["future"] = asking.send(box, end, MESSAGE, PATIENCE, None)

    def receive() -> None:
        now["message"] = channel.recv_message(PATIENCE)

    def handle() -> None:
        serving.handle(now["message"], lambda message: message.body)

    def wait() -> None:
        box.wait_for(now["future"], Deadline(PATIENCE))
        now["future"].result(0)

    return {"send": send, "receive": receive, "handle": handle, "wait": wait}


def channel_steps(scheme: str) -> dict[str, Step]:
    """Return the steps of two hops over bare channels, there and back."""
    there, back = ipcbus.open(f"{scheme}:"), ipcbus.open(f"{scheme}:")
    return {
        "send": lambda: there.send(MESSAGE),
        "receive": lambda: there.recv(PATIENCE),
        "send back": lambda: back.send(MESSAGE),
        "receive back": lambda: back.recv(PATIENCE),
    }


def pipe_steps() -> dict[str, Step]:
    """Return the steps of two hops over a pair of ``multiprocessing.Pipe`` ends."""
    here, other = mp.Pipe()
    return {
        "send": lambda: here.send(MESSAGE),
        "receive": other.recv,
        "send back": lambda: other.send(MESSAGE),
        "receive back": here.recv,
    }


def measure(name: str, steps: dict[str, Step], count: int) -> None:
    """Print what each step takes."""
    taken: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(count):
        for step, run in steps.items():
            start = perf_counter()
            run()
            taken[step].append(perf_counter() - start)
    low = {step: min(times) * 1e6 for step, times in taken.items()}
    median = sum(statistics.median(times) for times in taken.values()) * 1e6
    parts = "  ".join(f"{step} {value:.1f}" for step, value in low.items())
    print(f"{name:22} lowest {sum(low.values()):6.1f} us   median {median:6.1f} us   {parts}")


def count_bytecodes(name: str, steps: dict[str, Step]) -> None:
    """Print how many bytecodes all steps take, and the functions that they are in."""
    found: collections.Counter[str] = collections.Counter()

    def look(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_globals is not globals():
            found[f"{frame.f_globals['__name__']}:{frame.f_code.co_name}"] += 1
        return look

    for _ in range(50):  # what is opened, chosen and remembered at the first times is not the question
        for run in steps.values():
            run()
    sys.settrace(look)
    try:
        for run in steps.values():
            run()
    finally:
        sys.settrace(None)
    print(f"{name}: {found.total()} bytecodes")
    for function, number in found.most_common():
        print(f"    {number:5} {function}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemes", nargs="*", default=["pipe", "unix"])
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--bytecodes", action="store_true")
    said = parser.parse_args()
    ways = {"two Pipe hops": pipe_steps()}
    for scheme in said.schemes:
        ways |= {f"{scheme}: request": request_steps(scheme), f"{scheme}: two channels": channel_steps(scheme)}
    for name, steps in ways.items():
        if said.bytecodes:
            count_bytecodes(name, steps)
        else:
            measure(name, steps, said.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
