"""A server with many channels on several transports waits for all of them at once: ``python idle.py CHANNELS URL...``.

It prints "waiting", and "idle" when nothing has come for a while. A line on the standard input lets it go on; at the end it
prints what it has received, one message for each URL.
"""

import multiprocessing
import resource
import sys

import ipcbus


def send(channels):
    """Send one message into each channel."""
    for channel in channels:
        channel.send(channel.url)


def main(count, urls):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    channels = [ipcbus.open(urls[number % len(urls)]) for number in range(count)]
    for channel in channels:
        assert not channel.ready()
    print("waiting", flush=True)
    # Nothing comes for a while, and then one message on each transport.
    assert ipcbus.wait(channels, timeout=float(sys.argv[1])) == []
    print("idle", flush=True)
    sys.stdin.readline()
    sender = multiprocessing.Process(target=send, args=(channels[-len(urls) :],))
    sender.start()
    got = []
    while len(got) < len(urls):
        got += [channel.recv(timeout=0) for channel in ipcbus.wait(channels, timeout=20)]
    sender.join()
    print(*sorted(got), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[2]), sys.argv[3:])
