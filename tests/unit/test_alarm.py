import select
import time

import pytest

from ipcbus.plumbing.alarm import Alarm


@pytest.fixture
def alarm():
    made = Alarm()
    yield made
    made.close()


def rings(alarm, seconds):
    poller = select.poll()
    poller.register(alarm.fileno(), select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def test_goes_off_when_it_is_time_and_not_before(alarm):
    started = time.monotonic()
    alarm.set(0.05)
    assert rings(alarm, 10)
    assert time.monotonic() - started >= 0.049
    assert rings(alarm, 0), "it does not stay on"


def test_setting_it_again_forgets_the_past(alarm):
    alarm.set(0)
    assert rings(alarm, 10)
    alarm.set(100)
    assert not rings(alarm, 0)


def test_closing_twice_is_harmless(alarm):
    alarm.close()
    alarm.close()
    assert alarm.fileno() == -1
