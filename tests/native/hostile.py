"""Hostile memory behind the real ends: what hostile.c does below Python, with the checks of sender.c and receiver.c.

    python hostile.py [--seconds S] [--count N] [--seed X]

Every call returns a message, or raises one of the library's errors. The rounds run in a child, whose seed is printed if it
ends in any other way; in every other round, another process changes the memory while the calls run.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import mmap
import os
import random
import signal
import struct
import time

from ipcbus.errors import ChannelBroken, ChannelEmpty, ChannelFull
from ipcbus.transport import ChannelSpec
from ipcbus_shm import Shm, ShmOptions

RING = 16384
EXTENTS_AT, ENTRY, RING_AT = 8192, 32, 8192 + 32 * 1024
TAIL, HEAD = 64, 128
WORDS = [0, 8, 16, TAIL, TAIL + 8, HEAD, HEAD + 8, 192, 256]
"""Offsets in the header; not the insides of locks, which the C library trusts."""
ODD = [0, 1, 7, 8, 64, 65, 4096, RING, RING_AT + RING, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
LARGEST = 1 << 20
SLOW = 20
MESSAGES = [bytes(size) for size in (0, 1, 100, 4000, 5000, 70_000)]


def change(memory: mmap.mmap, chance: random.Random) -> None:
    """Change one word: of the header, of an extent in use, of the oldest records, or any of the ring."""
    at = chance.choice(
        [
            chance.choice(WORDS),
            EXTENTS_AT + chance.randrange(4) * ENTRY + chance.randrange(3) * 8,
            RING_AT + (struct.unpack_from("=I", memory, HEAD)[0] + chance.randrange(8)) * 8 % RING,
            RING_AT + chance.randrange(RING // 8) * 8,
        ]
    )
    (value,) = struct.unpack_from("=Q", memory, at)
    value = chance.choice(
        [
            value ^ 1 << chance.randrange(64),
            value + chance.randrange(-16, 17),
            value + (chance.randrange(-16, 17) << 32),
            chance.choice(ODD) + chance.choice((0, 0, -8, 8)),
            chance.randrange(7) << 56 | chance.randrange(2) * 999 << 32 | chance.randrange(8),
            chance.randrange(65) << 32 | chance.randrange(2) << 48 | chance.randrange(6000),
            chance.randrange(40) * 4096,
        ]
    )
    struct.pack_into("=Q", memory, at, value & 2**64 - 1)


def meddle(memory: mmap.mmap, seed: int) -> int:
    """Start a process that changes words until it is killed; return its pid."""
    pid = os.fork()
    if not pid:
        chance = random.Random(seed)
        while os.getppid() != 1:
            change(memory, chance)
    return pid


def call(sender, receiver, chance: random.Random) -> None:  # type: ignore[no-untyped-def]  # ends as the plugin makes them
    """Make one call, and check what it says."""
    what = chance.randrange(6)
    if what == 0:
        sender.send([chance.choice(MESSAGES) for _ in range(chance.randrange(1, 6))], 0)
    elif what == 1:
        sender.discard_oldest()
    elif what == 2:
        assert 0 <= receiver.depth() <= 20
        sender.ready()
        receiver.ready()
    else:
        frame = receiver.recv(0)
        assert 1 <= len(frame) <= 64
        assert sum(len(part) for part in frame) <= LARGEST
        assert all(bytes(part[:1]) + bytes(part[-1:]) is not None for part in frame)  # they can be read from end to end


def play(seed: int, chance: random.Random, until: float) -> None:
    """Use one channel until its time is over or its memory makes no sense to anybody any more."""
    handle = Shm.create(ChannelSpec("0" * 32, "", 20, "many", max_message=LARGEST, drops_old=True), ShmOptions(ring_bytes=RING))
    sender, receiver = handle.open_sender(), handle.open_receiver()
    memory = mmap.mmap(handle.segment.fds[0], 0)
    before = memory[:4096], memory[EXTENTS_AT : RING_AT + RING]
    pid = meddle(memory, seed) if seed % 2 else 0
    try:
        for _ in range(100):
            memory[:4096] = before[0]
            memory[EXTENTS_AT : RING_AT + RING] = before[1]
            cursor = chance.choice([chance.randrange(2**64), 2**64 - 6])
            for at in (TAIL, TAIL + 8, HEAD, HEAD + 8):
                struct.pack_into("=Q", memory, at, cursor)
            for n in range(chance.randrange(1, 12)):
                with contextlib.suppress(ChannelFull, ChannelEmpty, ChannelBroken):
                    if n == 3:
                        for _ in range(chance.randrange(5)):
                            change(memory, chance)
                    if n < 3:
                        sender.send([chance.choice(MESSAGES) for _ in range(chance.randrange(1, 3))], 0)
                    else:
                        call(sender, receiver, chance)
            if time.monotonic() > until:
                break
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        memory.close()
        receiver.close()
        sender.close()
        handle.release()


def main() -> None:
    """Play rounds in a child, and see that it ends well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1e6)
    parser.add_argument("--count", type=int, default=2**62, help="channels, each of a hundred rounds")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    until = time.monotonic() + asked.seconds
    progress = mmap.mmap(-1, 4096)
    pid = os.fork()
    if not pid:
        faulthandler.enable()
        for seed in range(asked.seed, asked.seed + asked.count):
            if time.monotonic() > until:
                break
            struct.pack_into("=Q", progress, 0, seed)
            signal.alarm(SLOW)  # ends the process: the calls do not have to come back to Python
            play(seed, random.Random(seed), until)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    (seed,) = struct.unpack_from("=Q", progress)
    if status:
        code = os.waitstatus_to_exitcode(status)
        end = "the round does not end" if code == -signal.SIGALRM else f"it ended with {code}"
        raise SystemExit(f"FAILED: {end}; again with --count 1 --seed {seed} (odd seeds: more than once)")
    print(f"{seed - asked.seed + 1} channels with hostile memory")


if __name__ == "__main__":
    main()
