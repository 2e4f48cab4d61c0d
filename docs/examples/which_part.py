"""An object deep inside a message cannot travel: the sender is told which, and the channel goes on."""

from multiprocessing import Process
from pathlib import Path

import ipcbus


class Client:
    def __init__(self, trace: object) -> None:
        self.name = "ada"
        self.trace = trace


def work(jobs: ipcbus.Channel) -> None:
    for job in jobs:
        print("received:", job["client"].name)


def main() -> None:
    with ipcbus.open("auto:") as jobs, Path(__file__).open() as trace:
        worker = Process(target=work, args=(jobs.receiver,))
        worker.start()
        try:
            jobs.send({"number": 1, "client": Client(trace)})
        except ipcbus.EncodeError as error:
            for culprit in error.culprits:
                print("not sent, because of", culprit.path)
        jobs.send({"number": 2, "client": Client(trace.name)})
        jobs.shutdown()
        worker.join()


if __name__ == "__main__":
    main()
