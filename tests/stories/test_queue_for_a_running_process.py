"""A queue for a process that is already running: a multiprocessing.Queue goes to a child at its start, or never."""

import multiprocessing
import re

import pytest


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    return request.param


def test_it_is_opened_by_name_and_another_comes_in_a_message(tell, program_url, start_method):
    assert tell("running_process.py", program_url, start_method) == ["ONE by the server", "TWO by the server"]


def test_a_queue_refuses():
    with pytest.raises(RuntimeError, match=re.escape("should only be shared between processes through inheritance")):
        multiprocessing.get_context("spawn").Queue().__getstate__()


@pytest.fixture
def program_url(url):
    """One that the two channels of the program can have at once."""
    if "//" in url:
        pytest.skip("an address is for one channel, and the program opens two by one line of configuration")
    return url
