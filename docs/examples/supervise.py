"""Keep a function running, and see what happens to it."""

import os

import ipcbus
from ipcbus import Life, Program, Supervisor


def work(life: Life, results: ipcbus.Channel) -> None:
    life.ready()
    if life.incarnation == 0:
        os.abort()  # as a C library does that has lost its way
    results.send("one result")


def main() -> None:
    with ipcbus.open("pipe:") as results:
        with Supervisor([Program("worker", work, (results.sender,), restart="on-failure")]) as supervisor:
            print("received", results.recv())
            supervisor.wait()
        for event in supervisor.events:
            print(event.name, event.what, event.exitcode, event.signal)


if __name__ == "__main__":
    main()
