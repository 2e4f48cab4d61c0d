"""A multiprocessing.Queue takes what cannot travel and loses it; a channel refuses it where it is sent."""

import multiprocessing
import queue
from multiprocessing import Process

import ipcbus


def work(messages: ipcbus.Channel) -> None:
    for message in messages:
        print("received:", message)


def main() -> None:
    plain: multiprocessing.Queue[object] = multiprocessing.Queue()
    plain.put(lambda: 1)
    print("multiprocessing.Queue: put() returned")
    try:
        plain.get(timeout=1)
    except queue.Empty:
        print("multiprocessing.Queue: nothing ever came")

    with ipcbus.open("auto:") as messages:
        worker = Process(target=work, args=(messages.receiver,))
        worker.start()
        try:
            messages.send(lambda: 1)
        except ipcbus.EncodeError as error:
            print("ipcbus: send() raised", type(error).__name__)
        messages.send("the next message")
        messages.shutdown()
        worker.join()


if __name__ == "__main__":
    main()
