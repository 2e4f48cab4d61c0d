"""An actor's answer is the future of another actor's, three processes deep."""

import concurrent.futures
import pickle

import pytest


def test_the_innermost_value_arrives(tell, many_url, start_method):
    assert tell("nested_futures.py", many_url, start_method) == [
        "first answered with a future: Future",
        "which brought a future: Future",
        "which brought: ['first', 'second', 'third']",
    ]


def test_a_future_of_the_standard_library_does_not_travel():
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(concurrent.futures.Future())
