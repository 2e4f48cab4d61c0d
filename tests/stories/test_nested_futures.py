"""An actor's answer is the future of another actor's, three processes deep."""

import concurrent.futures
import pickle

import pytest


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    return request.param


@pytest.fixture
def program_url(url):
    """One that requests can go through, and that the three channels of the program can have at once."""
    if "//" in url:
        pytest.skip("an address is for one channel, and the program opens three by one line of configuration")
    return url


def test_the_innermost_value_arrives(tell, program_url, start_method):
    assert tell("nested_futures.py", program_url, start_method) == [
        "first answered with a future: Future",
        "which brought a future: Future",
        "which brought: ['first', 'second', 'third']",
    ]


def test_a_future_of_the_standard_library_does_not_travel():
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(concurrent.futures.Future())
