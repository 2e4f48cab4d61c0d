"""The gate in front of a service process, against a model: what passes, what is held, in which order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ipcbus.web.gate import HELD_BYTES, HELD_EVENTS, Gate
from ipcbus.web.link import Event


def message(number: int) -> tuple[Any, ...]:
    return Event.MSG, 1, "B", number.to_bytes(4, "big")


def other(number: int) -> tuple[Any, ...]:
    return Event.CLOSE, number, 1000, "", True


class Out(list[Any]):
    def __call__(self, event: tuple[Any, ...], size: int) -> None:
        self.append(event)


def test_while_it_is_shut_only_messages_are_kept() -> None:
    out = Out()
    gate = Gate(out)
    gate.put(other(1))
    gate.put(message(2), 4)
    assert (out, len(gate)) == ([], 1)
    gate.hold()
    gate.put(other(3))
    assert out == []
    gate.open(10)
    assert out == [message(2), other(3)]
    assert gate.credit == 9


def test_without_credit_everything_waits_behind_the_first_message() -> None:
    out = Out()
    gate = Gate(out)
    gate.open(1)
    for event in (other(0), message(1), other(2), message(3), other(4), message(5)):
        gate.put(event, 4)
    assert out == [other(0), message(1), other(2)]
    gate.grant(1)
    assert out[3:] == [message(3), other(4)]
    gate.grant(5)
    assert out[5:] == [message(5)]
    assert gate.credit == 4


def test_what_was_not_sent_comes_first_again() -> None:
    out = Out()
    gate = Gate(out)
    gate.open(2)
    for event in (message(1), message(2), message(3)):
        gate.put(event, 4)
    gate.shut([other(0), message(2)])
    gate.grant(5)  # from who is gone
    assert out == [message(1), message(2)]
    gate.open(9)
    assert out[2:] == [message(2), message(3)]


def test_full_by_number_and_by_bytes() -> None:
    gate = Gate(Out())
    for number in range(HELD_EVENTS):
        assert not gate.full
        gate.put(message(number), 4)
    assert gate.full
    gate = Gate(Out())
    gate.put(message(1), HELD_BYTES)
    assert gate.full
    gate.open(1)
    assert not gate.full


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.booleans()),
        st.tuples(st.just("open"), st.integers(0, 5)),
        st.tuples(st.just("grant"), st.integers(0, 5)),
        st.tuples(st.just("hold"), st.none()),
        st.tuples(st.just("shut"), st.none()),
    ),
    max_size=40,
)


@given(steps)
def test_messages_pass_once_in_order_and_never_without_credit(steps: list[tuple[str, Any]]) -> None:
    out = Out()
    gate = Gate(out)
    credit, is_open, made = 0, False, 0
    for step, value in steps:
        before = len([event for event in out if event[0] == Event.MSG])
        if step == "put":
            made += value
            gate.put(message(made) if value else other(0), 4)
        elif step == "open":
            credit, is_open = value, True
            gate.open(value)
        elif step == "grant":
            credit += value if is_open else 0
            gate.grant(value)
        elif step == "hold":
            if not is_open:
                gate.hold()
        else:
            credit, is_open = 0, False
            gate.shut()
        passed = [event for event in out if event[0] == Event.MSG]
        credit -= len(passed) - before
        assert credit >= 0
        assert credit == gate.credit
        assert passed == [message(number) for number in range(1, len(passed) + 1)]
    gate.open(1000)
    assert [event for event in out if event[0] == Event.MSG] == [message(number) for number in range(1, made + 1)]
    assert len(gate) == 0
