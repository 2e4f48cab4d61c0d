"""A queue for a process that is already running: a multiprocessing.Queue goes to a child at its start, or never."""

import multiprocessing
import re

import pytest


def test_it_is_opened_by_name_and_another_comes_in_a_message(tell, many_url, start_method):
    assert tell("running_process.py", many_url, start_method) == ["ONE by the server", "TWO by the server"]


def test_a_queue_refuses():
    with pytest.raises(RuntimeError, match=re.escape("should only be shared between processes through inheritance")):
        multiprocessing.get_context("spawn").Queue().__getstate__()
