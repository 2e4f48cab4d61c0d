"""Wait for what a worker sends and for the worker itself."""

import os
import signal
from multiprocessing import Process

import ipcbus


def work(results: ipcbus.Channel) -> None:
    results.send("one result")
    signal.pause()  # it would go on for ever


def main() -> None:
    with ipcbus.open("pipe:") as results:
        worker = Process(target=work, args=(results.sender,))
        worker.start()
        while True:
            ready = ipcbus.wait([results, worker.sentinel])
            if results in ready:
                print("received", results.recv(timeout=0))
                os.kill(worker.pid or 0, signal.SIGKILL)
            if worker.sentinel in ready:
                worker.join()
                print("the worker died with", worker.exitcode)
                break


if __name__ == "__main__":
    main()
