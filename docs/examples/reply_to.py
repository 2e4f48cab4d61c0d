"""Jobs say where their answer goes; who does them knows nobody."""

import threading
from multiprocessing import Process

import ipcbus


def make(bus: ipcbus.Bus, name: str) -> None:
    """Make the channel for a producer's answers, tell it by name, and end."""
    bus.channel("made").send((name, bus.channel(f"{name}-answers")))


def produce(bus: ipcbus.Bus, name: str, answers: ipcbus.Channel, said: ipcbus.Channel) -> None:
    jobs = bus.channel("jobs")
    for number in (1, 2):
        jobs.send({"number": number, "reply_to": answers.sender})
    said.send(f"{name}: {[answers.recv(timeout=20) for _ in range(2)]}")


def consume(bus: ipcbus.Bus) -> None:
    for job in bus.channel("jobs"):
        job["reply_to"].send(job["number"] * 10)


def main() -> None:
    names = ["ada", "bob", "cyd"]
    with ipcbus.Bus() as bus, bus.channel("said") as said:
        answers = {}
        for name in names:
            helper = Process(target=make, args=(bus, name))
            helper.start()
            found, channel = bus.channel("made").recv(timeout=20)
            helper.join()  # it has gone, and what it made stays
            answers[found] = channel
        consumer = Process(target=consume, args=(bus,))
        consumer.start()
        producers: list[Process | threading.Thread] = [
            *(Process(target=produce, args=(bus, name, answers[name], said)) for name in names[1:]),
            threading.Thread(target=produce, args=(bus, "ada", answers["ada"], said)),  # last: forking with threads is unsafe
        ]
        for producer in producers:
            producer.start()
        print(*sorted(said.recv(timeout=20) for _ in names), sep="\n")
        for producer in producers:
            producer.join()
        bus.channel("jobs").shutdown()
        consumer.join()


if __name__ == "__main__":
    main()
