"""What the tests of several files have in common."""

import time

PATIENCE = 10
"""Seconds after which what has not happened never will."""


def until(condition):
    """Return when something is so that another thread or process does, and that nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.001)
