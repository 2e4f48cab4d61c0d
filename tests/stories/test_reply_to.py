"""Several producers put their questions on one queue; the consumer answers each, knowing none of them."""

import multiprocessing
import queue

import pytest


def test_each_producer_gets_its_own_answers(tell, many_url, start_method):
    assert tell("reply_to.py", many_url, start_method) == [f"{name}: [10, 20]" for name in ("ada", "bob", "cyd")]


def test_a_queue_does_not_go_through_a_queue(capfd):
    """What people try first: put() returns, and the message is lost."""
    jobs, answers = multiprocessing.Queue(), multiprocessing.Queue()
    jobs.put({"number": 1, "reply_to": answers})
    with pytest.raises(queue.Empty):
        jobs.get(timeout=0.5)
    for each in (jobs, answers):
        each.close()
        each.join_thread()
    assert "should only be shared between processes through inheritance" in capfd.readouterr().err
