"""What a test leaves behind, as the contract and these tests see it."""

import _thread
import threading

from ipcbus.testing import leaks

PATIENCE = 10


def test_a_thread_that_threading_has_only_met_is_gone_when_it_has_ended():
    met, over = threading.Event(), threading.Event()

    def meet():
        threading.current_thread()
        met.set()
        over.wait(PATIENCE)

    before = leaks.snapshot()
    _thread.start_new_thread(meet, ())
    assert met.wait(PATIENCE)
    (left,) = leaks.compare(before, grace=0)
    assert left.startswith("thread ")
    over.set()
    assert leaks.compare(before, grace=PATIENCE) == []
