"""Rules of what clients may do, without I/O: time is an argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcbus.web.limits import Bucket, Doorman, Limits, client_address, networks, plain_address


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(10, 3, 0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(0.0) == pytest.approx(0.1)
    assert bucket.take(0.0) == pytest.approx(0.2)
    assert bucket.take(0.3) == 0.0  # both debts are paid, and one more token is there
    assert bucket.take(100.0, 3) == 0.0  # never more than its burst
    assert bucket.take(100.0) > 0


def test_a_bucket_makes_up_for_a_time_in_which_nothing_could_be_taken() -> None:
    bucket = Bucket(10, 3, 0.0)
    assert bucket.take(0.0, 5) == pytest.approx(0.2)
    assert bucket.make_up(1.2) == 0.0  # ten are there, more than its burst
    assert bucket.take(1.2, 10) == 0.0
    assert bucket.take(1.2) == pytest.approx(0.1)
    assert bucket.make_up(1.0) == 0.0
    assert bucket.take(100.0, 9) == 0.0  # they are kept, and nothing is added to them
    assert bucket.take(100.0) == pytest.approx(0.1)


def test_a_rate_of_zero_is_no_limit() -> None:
    bucket = Bucket(0, 1, 0.0)
    assert all(bucket.take(0.0, 1e9) == bucket.make_up(1.0) == 0.0 for _ in range(10))


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), min_size=1, max_size=50))
def test_who_waits_as_told_keeps_to_the_rate(steps: list[tuple[float, int]]) -> None:
    bucket, now, taken = Bucket(10, 5, 0.0), 0.0, 0
    for pause, tokens in steps:
        now += pause
        taken += tokens
        now += bucket.take(now, tokens)
        assert taken <= 5 + 10 * now + 1e-6


def doorman(**changed: Any) -> Doorman:
    rules: dict[str, Any] = {"total": 10, "half_open": 4, "per_address": 3, "exempt": ("127.0.0.0/8",), "rate": 0, "burst": 1}
    return Doorman(**{**rules, **changed}, now=0.0)


def test_half_open_connections_are_counted_until_they_open_or_end() -> None:
    door = doorman()
    assert [door.knock("127.0.0.1", 0.0) for _ in range(5)] == [None] * 4 + ["half-open"]
    door.opened()
    assert door.knock("127.0.0.1", 0.0) is None
    door.leave("127.0.0.1", half_open=True)
    assert door.knock("127.0.0.1", 0.0) is None
    door.leave("127.0.0.1", half_open=False)
    assert door.knock("127.0.0.1", 0.0) == "half-open"
    assert (door.inside, door.half_open) == (4, 4)


def test_one_address_cannot_have_all_of_it_and_exempt_ones_can() -> None:
    door = doorman(half_open=100)
    assert [door.knock("192.0.2.1", 0.0) for _ in range(4)] == [None, None, None, "address"]
    assert door.knock("192.0.2.2", 0.0) is None
    assert [door.knock("127.0.0.9", 0.0) for _ in range(6)] == [None] * 6
    assert door.knock("192.0.2.3", 0.0) == "full"
    door.leave("192.0.2.1", half_open=True)
    assert door.knock("192.0.2.1", 0.0) is None


def test_a_connection_counts_for_whom_its_proxy_names() -> None:
    door = doorman(total=100, half_open=100)
    for _ in range(3):
        assert door.knock("127.0.0.1", 0.0) is None
        assert door.move("127.0.0.1", "192.0.2.1") is None
    assert door.knock("127.0.0.1", 0.0) is None
    assert door.move("127.0.0.1", "192.0.2.1") == "address"
    door.leave("192.0.2.1", half_open=True)
    assert door.move("127.0.0.1", "192.0.2.1") is None
    assert door.move("192.0.2.1", "192.0.2.1") is None  # it is at its limit, and stays


def test_accepting_has_a_rate_that_the_refused_do_not_use_up() -> None:
    door = doorman(total=1000, half_open=1000, rate=10, burst=2)
    assert [door.knock("127.0.0.1", 0.0) for _ in range(4)] == [None, None, "rate", "rate"]
    assert [door.knock("127.0.0.1", 0.1) for _ in range(2)] == [None, "rate"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.9", ["198.51.100.7"], "192.0.2.9"),  # a stranger says so
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.7"], "198.51.100.7"),  # what the client itself claims is not read
        ("10.0.0.1", ["6.6.6.6", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.7, ::ffff:10.0.0.2"], "198.51.100.7"),
    ],
)
def test_the_address_behind_proxies(peer: str, forwarded: list[str], client: str) -> None:
    assert client_address(peer, forwarded, networks(["10.0.0.0/8"])) == client
    assert client_address(peer, forwarded, ()) == peer


def test_an_address_of_the_older_kind_is_one_whichever_socket_it_came_to() -> None:
    assert plain_address("::ffff:192.0.2.1") == plain_address("::FFFF:C000:201") == plain_address("192.0.2.1") == "192.0.2.1"
    for other in ("2001:db8::1", "fe80::1%eth0", "", "nonsense"):
        assert plain_address(other) == other


def test_limits_say_only_what_was_given() -> None:
    assert Limits(rate=0, groups=3).given() == {"rate": 0, "groups": 3}
    assert Limits().given() == {}
    Limits(message=1, rate=0.5, burst=0, bytes=1.5, groups=0).check()


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"rate": "fast"}, "rate must be a number, not 'fast'"),
        ({"message": 1.5}, "message must be a whole number, not 1.5"),
        ({"groups": True}, "groups must be a whole number"),
        ({"bytes": -1}, "bytes must be at least 0, not -1"),
        ({"rate": float("nan")}, "rate must be at least 0, not nan"),
    ],
)
def test_limits_that_are_none_are_named(limits: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Limits(**limits).check()
