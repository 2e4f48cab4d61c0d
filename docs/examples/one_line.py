"""Workers count words; which transport carries the counts is not the program's business."""

from collections import Counter
from multiprocessing import Process

import ipcbus

SHARES = ("the cat and the dog", "the dog and the bird", "a bird a cat")


def count(share: str, counts: ipcbus.Channel) -> None:
    counts.send(dict(Counter(share.split())))


def main() -> None:
    with ipcbus.open("auto:") as counts:
        workers = [Process(target=count, args=(share, counts.sender)) for share in SHARES]
        for worker in workers:
            worker.start()
        total: Counter[str] = Counter()
        for _ in workers:
            total.update(counts.recv(timeout=30))
        for worker in workers:
            worker.join()
    for word, times in sorted(total.items()):
        print(word, times)


if __name__ == "__main__":
    main()
