"""A service registers a bound method of another process, and calls it for every event."""

import pickle
import threading

import pytest


def test_it_is_called_where_it_lives(tell, many_url, start_method):
    assert tell("callbacks.py", many_url, start_method) == ["tea for 3", "cake for 4", "sold: 7"]


def test_a_pickled_method_takes_its_object_along_or_fails():
    """What people try first: the method of a copy is called, or nothing is, since what it belongs to cannot travel."""
    seen = []
    pickle.loads(pickle.dumps(seen.append))("event")
    assert seen == []
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(threading.Event().set)
