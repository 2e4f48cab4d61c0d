"""A process runs already; then it is given a queue, and another to answer through."""

from multiprocessing import Process, current_process

import ipcbus


def serve(bus: ipcbus.Bus) -> None:
    """Do whatever jobs come, and answer each through the channel that came with it."""
    with bus.channel("jobs") as jobs:
        for job in jobs:
            with job["reply_to"] as replies:
                replies.send({"said": job["text"].upper(), "by": current_process().name})


def main() -> None:
    with ipcbus.Bus({"channels": {"jobs": "auto:"}}) as bus:
        server = Process(target=serve, args=(bus,), name="server")
        server.start()  # no queue was made yet
        with bus.channel("jobs") as jobs, ipcbus.open("auto:") as replies:
            for text in ("one", "two"):
                jobs.send({"text": text, "reply_to": replies.sender})
            for _ in range(2):
                answer = replies.recv(timeout=30)
                print(answer["said"], "by the", answer["by"])
            jobs.shutdown()
        server.join()


if __name__ == "__main__":
    main()
