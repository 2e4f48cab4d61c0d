"""The reply that never came: a queue.Queue in a forked child is a copy, and so the parent waits for ever."""

import queue
from multiprocessing import get_context


def listen(replies):
    replies.put("a reply")


def main():
    replies = queue.Queue()
    child = get_context("fork").Process(target=listen, args=(replies,))
    child.start()
    child.join()
    try:
        print("received", replies.get(timeout=1))
    except queue.Empty:
        print("nothing, although the child ended with", child.exitcode)


if __name__ == "__main__":
    main()
