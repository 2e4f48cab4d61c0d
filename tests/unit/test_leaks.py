"""What a test leaves behind, as the contract and these tests see it."""

import _thread
import os
import shutil
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


def test_a_directory_that_goes_while_it_is_looked_at_ends_no_look(tmp_path, monkeypatch):
    place = tmp_path / "ipcbus-1-goes"
    (place / "within").mkdir(parents=True)
    (place / "home").touch()
    scandir = os.scandir

    def scandir_late(path):
        if str(path) == str(place / "within"):
            monkeypatch.setattr(os, "scandir", scandir)
            shutil.rmtree(place)
        return scandir(path)

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "scandir", scandir_late)
    seen = leaks.snapshot().names
    assert not place.exists(), "it was not looked at"
    assert {str(place), str(place / "home")} <= seen
