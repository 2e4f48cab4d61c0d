"""Several producers put their questions on one queue; the consumer answers each, knowing none of them."""

import multiprocessing
import queue

import pytest


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    return request.param


@pytest.fixture
def program_url(url):
    """One that the many channels of the program can have at once."""
    if "//" in url:
        pytest.skip("an address is for one channel, and the program opens several by one line of configuration")
    return url


def test_each_producer_gets_its_own_answers(tell, program_url, start_method):
    assert tell("reply_to.py", program_url, start_method) == [f"{name}: [10, 20]" for name in ("ada", "bob", "cyd")]


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
