"""Several WebSocket clients, each in a process of its own, whose messages are read in another process."""

import subprocess
import sys


def test_every_reply_arrives(tell, url, start_method):
    assert tell("websocket_clients.py", url, start_method) == [
        f"{name}: EUR 1.09, {name}: GBP 1.27, {name}: JPY 0.0067" for name in ("ada", "bob", "cyd")
    ]


def test_none_arrives_through_a_queue_of_threads(programs):
    done = subprocess.run([sys.executable, programs / "plain_queue.py"], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "nothing, although the child ended with 0\n"
