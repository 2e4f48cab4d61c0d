"""The rules of zmq: windows, ledgers, the few control messages, and when a channel that was shut down is drained."""

import pytest

from ipcbus_zmq._protocol import MARK, Control, Ending, Kind, Ledger, Window, encode, parse


@pytest.mark.parametrize("kind", Kind)
def test_control_messages_come_back(kind):
    part = encode(kind, 4_000_000_000, 1 << 63)
    assert part[0] == MARK
    assert parse(part) == Control(kind, 4_000_000_000, 1 << 63)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        bytes([MARK]),
        encode(Kind.FIN)[:-1],
        encode(Kind.FIN) + b"\0",
        bytes([MARK, 2]) + encode(Kind.FIN)[2:],  # another version
        bytes([MARK, 1, 99]) + encode(Kind.FIN)[3:],  # an unknown kind
        bytes([MARK, 1, 3, 1]) + encode(Kind.FIN)[4:],  # something in the reserved byte
        b"\xb5" + encode(Kind.FIN)[1:],
    ],
)
def test_what_is_no_control_message_is_none(part):
    assert parse(part) is None


def test_a_window_opens_by_what_was_consumed():
    window = Window(3)
    window.sent = 3
    assert window.outstanding == 3
    window.grant(1)
    assert (window.limit, window.outstanding) == (4, 2)
    window.grant(1)  # repeated
    window.grant(0)  # late
    assert window.limit == 4


def test_a_window_ignores_more_than_was_sent():
    window = Window(3)
    window.sent = 2
    window.grant(3)
    window.grant(1 << 60)
    assert window.limit == 3


def consume(ledger, account, number):
    """Consume messages one by one; return after which of them a grant was due, and make it."""
    due = []
    for n in range(1, number + 1):
        account.consumed += 1
        if account.consumed >= account.mark and ledger.due(account):
            due.append(n)
            ledger.granted(account)
    return due


def greeted(ledger, name=b"a", sent=0):
    account = ledger.open(name)
    ledger.hello(account, sent)
    return account


@pytest.mark.parametrize("capacity", [1, 2, 10, 63])
def test_small_channels_grant_every_message(capacity):
    ledger = Ledger(capacity)
    assert consume(ledger, greeted(ledger), 5) == [1, 2, 3, 4, 5]
    assert ledger.owing() == []


def test_large_channels_grant_in_batches_and_remember_the_rest():
    ledger = Ledger(64)
    account = greeted(ledger)
    assert consume(ledger, account, 35) == [16, 32]
    assert ledger.owing() == [account]
    ledger.granted(account)
    assert ledger.owing() == []
    assert account.granted == 35


def test_nothing_is_granted_to_who_did_not_greet():
    ledger = Ledger(2)
    account = ledger.open(b"a")
    assert consume(ledger, account, 5) == []
    assert ledger.owing() == []


def test_a_greeting_settles_what_was_lost():
    ledger = Ledger(4)
    account = ledger.open(b"a")
    consume(ledger, account, 2)  # of 10 that were sent, to a receiver before this one or to this
    ledger.hello(account, 10)
    assert (account.consumed, account.granted) == (10, 10)
    assert consume(ledger, account, 1) == [1]


def test_a_grant_that_could_not_be_delivered_is_owed():
    ledger = Ledger(1)
    account = greeted(ledger)
    account.consumed += 1
    assert ledger.due(account)
    ledger.owe(account)
    ledger.owe(account)
    assert ledger.owing() == [account]
    ledger.close(b"a")
    assert ledger.owing() == []
    ledger.owe(account)
    assert ledger.owing() == [], "owed to somebody who is gone"


def test_after_a_shutdown_nothing_is_granted_and_each_may_use_up_what_it_has():
    ledger = Ledger(3)
    account, silent = greeted(ledger), ledger.open(b"b")
    consume(ledger, account, 2)
    ledger.stop()
    late = ledger.open(b"c")
    for who in (account, silent, late):
        assert consume(ledger, who, 3) == []
        assert not ledger.excessive(who)
        consume(ledger, who, 1)
        assert ledger.excessive(who)


def test_a_channel_that_was_not_shut_down_never_ends():
    ending = Ending(1)
    assert not ending.empty(1000, silent_senders=False)


def looks(ending: Ending, begin: float, *, silent_senders: bool) -> float:
    """Look for messages in vain whenever it says to; return the seconds until it was over."""
    now = begin
    while not ending.empty(now, silent_senders=silent_senders):
        now += ending.remaining(now) + 1e-9
        assert now < begin + 10, "it never ends"
    return now - begin


def test_it_ends_when_nothing_came_for_a_while():
    ending = Ending(1)
    ending.begin(10)
    assert looks(ending, 10, silent_senders=True) == pytest.approx(1)
    assert ending.empty(0, silent_senders=True), "an end is for ever"


def test_what_comes_prolongs_it():
    ending = Ending(1)
    ending.begin(10)
    for eighth in range(8):
        assert not ending.empty(10.05 + eighth / 10, silent_senders=True)
    ending.heard()
    assert looks(ending, 10.85, silent_senders=True) > 0.9


def test_a_machine_that_stood_still_is_no_reason_to_believe_that_nothing_comes():
    ending = Ending(1)
    ending.begin(10)
    assert not ending.empty(1000, silent_senders=True)
    assert looks(ending, 1000, silent_senders=True) == pytest.approx(0.9)


def test_it_waits_for_senders_that_are_still_connecting():
    ending = Ending(1)
    ending.begin(10)
    assert looks(ending, 10, silent_senders=False) == pytest.approx(1)


def test_it_ends_at_once_when_every_sender_has_said_so_and_no_other_can_come():
    ending = Ending(1)
    ending.begin(10)
    for tenth in range(1, 10):
        assert not ending.empty(10 + tenth / 10 + 0.001, silent_senders=True)
    ending.heard()
    assert ending.empty(11.01, silent_senders=False)


def test_beginning_twice_does_not_prolong_it():
    ending = Ending(1)
    ending.begin(1)
    ending.begin(1.9)
    assert looks(ending, 1, silent_senders=True) == pytest.approx(1)
