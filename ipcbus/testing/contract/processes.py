"""Rules 1, 12, 13, 16 and 17 between processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import select
import signal
import time
from typing import TYPE_CHECKING, Any

import ipcbus
from ipcbus.errors import ChannelBusy, ChannelEmpty, ChannelFull, EndOfChannel, PeerDied
from ipcbus.testing import children, leaks
from ipcbus.testing.contract.registry import check
from ipcbus.testing.subject import LATE, PATIENCE, Subject, pattern, raises

if TYPE_CHECKING:
    from collections.abc import Iterator


@check(2, 12, 16, scope="start method", largest=4 << 20)
def check_child(subject: Subject) -> None:
    """A child that got channels as arguments receives and sends; messages of every size come back whole."""
    there, back = subject.open(capacity=4), subject.open(capacity=4)
    child = subject.start(children.echo, there, back)
    child.hear()
    values: list[Any] = [None, b"", "text", {"a": [1, 2.5]}, *(pattern(n, n) for n in (1, 4096, 65_537, 3 << 20))]

    def send() -> None:
        for value in values:
            there.send(value, timeout=PATIENCE)
        there.shutdown()

    sending = subject.thread(send)
    for n, value in enumerate(values):
        assert back.recv(timeout=PATIENCE) == value, f"value {n} of {len(values)} came back changed"
    raises(EndOfChannel, back.recv, timeout=PATIENCE, most=PATIENCE)
    sending.result()
    child.result()


@check(1, 2, 3, 16, scope="start method", largest=80_000)
def check_child_fifo(subject: Subject) -> None:
    """Three sending children: each one's messages arrive once, whole, in its order, though it ends right after the last."""
    channel = subject.open(capacity=32)
    count = 150
    sending = [subject.start(children.send_numbered, channel, number, count) for number in range(3)]
    order: dict[int, list[int]] = {number: [] for number in range(3)}
    for _ in range(3 * count):
        number, n, data = channel.recv(timeout=2 * PATIENCE)
        assert data == pattern(children.sized(n), n), f"message {n} of sender {number} arrived torn"
        order[number].append(n)
    for number, arrived in order.items():
        assert arrived == list(range(count)), f"the messages of sender {number} arrived out of order or not once each"
    for child in sending:
        child.result()
    raises(ChannelEmpty, channel.recv, timeout=0)


@check(16, scope="process")
def check_inherited(subject: Subject) -> None:
    """A forked child uses channels that it merely inherited, opened and used before the fork; the parent's go on."""
    to_parent, to_child = subject.open(capacity=4), subject.open(capacity=4)
    to_parent.send("before", timeout=PATIENCE)
    assert to_parent.recv(timeout=PATIENCE) == "before", "the channel does not work before the fork"
    to_child.send("first", timeout=PATIENCE)
    ipcbus.wait([to_parent], timeout=0)
    children.inherited[:] = [to_child, to_parent]
    try:
        child = subject.start(children.use_inherited, start_method="fork")
        to_child.send("second", timeout=PATIENCE)
        assert to_parent.recv(timeout=PATIENCE) == ["first", "second"], (
            "the child did not receive what was sent around the fork"
        )
        child.result()
        to_parent.send("after", timeout=PATIENCE)
        assert to_parent.recv(timeout=PATIENCE) == "after", "the parent's end does not work after the child has ended"
        to_child.send("third", timeout=PATIENCE)
    finally:
        children.inherited.clear()


@check(16, 17, scope="process")
def check_inherited_half_closed(subject: Subject) -> None:
    """A receiving end stays its parent's after a fork also where the parent closed the sending end and had it again."""
    channel = subject.open(capacity=4)
    sender = pickle.dumps(channel.sender)
    channel.receiver.ready()
    channel.sender.close()
    again: ipcbus.Channel = pickle.loads(sender)
    with contextlib.closing(again):
        children.inherited[:] = [channel.receiver]
        try:
            child = subject.start(children.recv_inherited, start_method="fork")
            assert child.result() == "ChannelBusy", "the child received through its parent's end"
        finally:
            children.inherited.clear()
        again.send("kept", timeout=PATIENCE)
        assert channel.recv(timeout=PATIENCE) == "kept", "the parent's end does not work after the child has ended"


@check(16, scope="start method")
def check_used_before_start(subject: Subject) -> None:
    """A channel that the parent has opened and used goes to a child as an argument, and both use it."""
    channel = subject.open(capacity=4)
    channel.send(0, timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == 0, "the channel does not work before the child is started"
    child = subject.start(children.send_on_demand, channel)
    for n in range(3):
        child.say(n)
        assert child.hear() == "None", "the child could not send"
        channel.send(-n, timeout=PATIENCE)
        assert sorted(channel.recv(timeout=PATIENCE) for _ in range(2)) == [-n, n], "not what parent and child sent arrived"
    child.say(None)
    child.result()


@check(17, scope="process")
def check_one_receiver(subject: Subject) -> None:
    """A second receiving process gets ChannelBusy and takes nothing; when the first has closed, another can."""
    channel = subject.open(capacity=8)
    child = subject.start(children.recv_on_demand, channel)
    channel.send("one", timeout=PATIENCE)
    child.say(PATIENCE)
    assert child.hear() == repr("one"), "the child did not receive"
    channel.send("two", timeout=PATIENCE)
    raises(ChannelBusy, channel.recv, timeout=0)
    error = raises(ChannelBusy, channel.recv, timeout=PATIENCE)
    assert error.pid in (None, child.pid), f"the error names process {error.pid}, the receiver is {child.pid}"
    before = leaks.snapshot()
    raises(ChannelBusy, ipcbus.wait, [channel], timeout=0)
    left = leaks.compare(before)
    assert not left, "what was opened before it was known that another process receives is left behind:\n" + "\n".join(left)
    told = channel._end.open_sender().receiver()  # noqa: SLF001  by it who asks learns that who should answer has died
    assert told in (None, child.pid), f"the sending end says that process {told} receives; it is {child.pid}"
    other = subject.start(children.recv_on_demand, channel)
    other.say(0)
    assert other.hear() == "ChannelBusy", "a third process was not told that there is a receiver"
    child.say(PATIENCE)
    assert child.hear() == repr("two"), "the second message did not go to the one receiver"
    child.say(None)
    child.result()
    channel.send("three", timeout=PATIENCE)
    other.say(PATIENCE)
    heard = other.hear()
    assert heard == repr("three"), f"when the receiver has closed, another process cannot take over: {heard}"
    other.say(None)
    other.result()


@check(3, 12, 17, scope="process", applies=lambda can: can.many_receivers)
def check_competing_receivers(subject: Subject) -> None:
    """With ``receivers="many"`` each message goes to one process, and all see the end."""
    channel = subject.open(capacity=16, receivers="many")
    receiving = [subject.start(children.compete, channel) for _ in range(2)]
    for n in range(2):
        channel.send(n, timeout=PATIENCE)
    sent = 2
    for child in receiving:
        child.hear()
    for child in receiving:
        child.say()  # not before both have one: the first to go on could take what the other waits for
    for _ in range(300):
        channel.send(sent, timeout=PATIENCE)
        sent += 1
    channel.shutdown()
    parts = [child.result(2 * PATIENCE) for child in receiving]
    assert sorted(parts[0] + parts[1]) == list(range(sent)), "a message went to two processes, or to none"
    for part in parts:
        assert part == sorted(part), "messages arrived out of order"


@check(19, scope="process")
def check_capacity_of_senders(subject: Subject) -> None:
    """The capacity bounds all sending processes together, or each, as capacity_scope says."""
    channel = subject.open(capacity=3)
    sending = [subject.start(children.send_until_full, channel) for _ in range(2)]
    accepted = [child.hear() for child in sending]
    if subject.capabilities.capacity_scope == "channel":
        assert sum(accepted) == 3, f"a channel of capacity 3 accepted {accepted} of two senders"
    else:
        assert accepted == [3, 3], f"a channel of capacity 3 per sender accepted {accepted} of two senders"
    for _ in range(sum(accepted)):
        channel.recv(timeout=PATIENCE)
    raises(ChannelEmpty, channel.recv, timeout=0.05)
    for child in sending:
        child.say()
        child.result()


@check(12, scope="start method")
def check_shutdown_reaches_senders(subject: Subject) -> None:
    """A shutdown by the receiver ends the sends of another process, and all that were accepted arrive."""
    channel = subject.open(capacity=8)
    child = subject.start(children.send_until_closed, channel)
    child.hear()
    got = [channel.recv(timeout=PATIENCE) for _ in range(20)]
    channel.shutdown()
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            got.append(channel.recv(timeout=PATIENCE))
        except EndOfChannel:
            break
    accepted = child.result()
    assert got == list(range(len(got))), "messages around the shutdown arrived out of order or twice"
    assert accepted <= len(got) <= accepted + 1, f"{accepted} sends returned and {len(got)} messages arrived"


@check(12, scope="start method")
def check_shutdown_reaches_receiver(subject: Subject) -> None:
    """A shutdown by a sender lets the receiver of another process drain, and then gives it EndOfChannel for ever."""
    channel = subject.open(capacity=8)
    child = subject.start(children.recv_until_end, channel)
    child.hear()
    for n in range(30):
        channel.send(n, timeout=PATIENCE)
    channel.shutdown()
    assert child.result() == list(range(30)), "the receiver did not get everything before the end"


@check(12, scope="process", largest=200_000)
def check_shutdown_of_many(subject: Subject) -> None:
    """The end comes behind what every sending process had accepted, and not only behind what the one sent that shuts down."""
    for padding in (b"", bytes(150_000)):
        channel = subject.open(capacity=8)
        channel.receiver.ready()
        child = subject.start(children.send_until_full, channel, padding)
        accepted = child.hear()
        with contextlib.suppress(ChannelFull):
            for _ in range(4):
                channel.send("own", timeout=0.2)
        channel.shutdown()
        got: list[Any] = []
        with contextlib.suppress(EndOfChannel):
            while True:
                got.append(channel.recv(timeout=PATIENCE))
        others = [value[0] for value in got if value != "own"]
        assert others == list(range(accepted)), f"of {accepted} messages that another process had sent, {others} arrived"
        child.say()
        child.result()


@check(10, scope="process", largest=4 << 20)
def check_stopped_sender(subject: Subject) -> None:
    """A process that is stopped amid a send holds up nobody beyond a deadline; what it sends arrives once it goes on."""
    for message in ("small", pattern(4 << 20, 1)):
        channel = subject.open(capacity=4)
        child = subject.start(children.send_on_demand, channel)
        child.say("first")  # so that what comes of the child from here on is the message
        assert channel.recv(timeout=PATIENCE) == "first", "the first message did not arrive"
        assert child.hear() == "None", "the child could not send"
        begun = select.poll()
        begun.register(channel.fileno(), select.POLLIN)
        raises(ChannelEmpty, channel.recv, timeout=0)
        child.say(message)
        assert begun.poll(PATIENCE * 1000), "nothing of what the child sends arrived"
        os.kill(child.pid, signal.SIGSTOP)
        got: list[Any] = []
        try:
            for timeout in (0, 0.1):
                with contextlib.suppress(ChannelEmpty):
                    got.append(subject.thread(channel.recv, timeout=timeout).result(timeout + LATE))
            if not got:
                got += _received_when_ready(channel)
            said = subject.thread(children.outcome, lambda to=channel: to.send("another's", timeout=0.1)).result(2 * LATE)
            assert said in ("None", "ChannelFull"), f"beside a sender that is stopped, another's send ended in {said}"
        finally:
            os.kill(child.pid, signal.SIGCONT)
        wanted = [message, "another's"] if said == "None" else [message]
        while len(got) < len(wanted):
            got.append(channel.recv(timeout=PATIENCE))
        assert all(value in wanted for value in got), "not what was sent arrived once the stopped process went on"
        assert child.hear() == "None", "the send of the process that was stopped did not return"
        child.say(None)
        child.result()


@check(20, scope="start method")
def check_roles_travel(subject: Subject) -> None:
    """A channel handed out for one role has that role in the child."""
    out, back = subject.open(), subject.open()
    out.send("from the parent", timeout=PATIENCE)
    child = subject.start(children.use_roles, back.sender, out.receiver)
    assert back.recv(timeout=PATIENCE) == "from the child", "the child's message did not arrive"
    assert child.result() == ["Unsupported", "Unsupported", repr("from the parent")], "a role does not hold in the child"


@check(13, scope="process", largest=40_000)
def check_close_elsewhere(subject: Subject) -> None:
    """What a child accepted and closed arrives, and the channel lives on for the others."""
    channel = subject.open(capacity=64)
    values = [*range(50), pattern(30_000, 1)]
    child = subject.start(children.send_and_close, channel, values)
    # Received while the child closes: a transport may keep what it accepted in the sender, and hand it over then.
    assert [channel.recv(timeout=PATIENCE) for _ in values] == values, "what the child sent before it ended did not arrive"
    assert child.result() == "ChannelClosed", "a closed channel took a message in the child"
    channel.send("alive", timeout=PATIENCE)
    assert channel.recv(timeout=PATIENCE) == "alive", "the channel ended with the child"


@check(16, scope="process")
def check_channel_in_message(subject: Subject) -> None:
    """A channel travels inside a message to a process that was started before it was made."""
    requests = subject.open()
    child = subject.start(children.answer, requests)
    child.hear()
    reply_to = subject.open()
    requests.send({"value": 21, "reply_to": reply_to}, timeout=PATIENCE)
    assert reply_to.recv(timeout=PATIENCE) == 42, "the answer did not come through the channel in the message"
    child.result()


@check(18, scope="process", applies=lambda can: can.survives_kill, largest=300_000)
def check_sender_killed(subject: Subject) -> None:
    """A sender killed while it sends: what arrives is whole and in order, and others send on."""
    channel = subject.open(capacity=16)
    last: dict[int, int] = {}
    for attempt in range(4):
        child = subject.start(children.send_for_ever, channel, attempt)
        child.hear()
        while last.get(attempt, -1) < 5 * attempt:
            _note_numbered(channel.recv(timeout=PATIENCE), last)
        child.kill()
        sending = subject.thread(channel.send, "others go on", timeout=PATIENCE)
        while (message := channel.recv(timeout=PATIENCE)) != "others go on":
            _note_numbered(message, last)
        sending.result()
    with contextlib.suppress(ChannelEmpty):
        while True:  # what was on its way when its sender was killed may come behind what another one sends
            _note_numbered(channel.recv(timeout=0.1), last)
    _assert_room(channel, 16, "senders")


@check(18, scope="process", applies=lambda can: can.survives_kill, largest=300_000)
def check_receiver_killed(subject: Subject) -> None:
    """A receiver killed while it receives: no send is stuck, and a successor receives whole messages, and none again."""
    channel = subject.open(capacity=8)
    numbers = itertools.count()
    for _ in range(3):
        child = subject.start(children.recv_for_ever, channel)
        for n in itertools.islice(numbers, 40):
            channel.send((n, pattern((20, 8_000, 200_000)[n % 3], n)), timeout=PATIENCE)
        first = child.hear()
        child.kill()
        started = time.monotonic()
        said = children.outcome(lambda: _send_until_full(channel, numbers))
        took = time.monotonic() - started
        assert said in ("ChannelFull", "PeerDied", "ChannelBroken"), f"a send to a dead receiver ended in {said}"
        assert took < 3 * LATE, f"sends to a dead receiver took {took:.1f} s"
        successor = subject.start(children.recv_marked, channel)
        assert successor.hear() == "ready", "the successor did not start"
        _send_after_death(channel, ("mark", b""))
        got = successor.result()
        assert got == sorted(set(got)), f"messages arrived at the successor twice, or out of order: {got}"
        assert first not in got, f"the successor received message {first}, which the one that was killed had received"
    _assert_room(channel, 8, "receivers")


@check(18, scope="process", applies=lambda can: can.detects_dead_receiver, largest=4 << 20)
def check_dead_receiver(subject: Subject) -> None:
    """A sender that waits for room gets PeerDied within a second when the receiver that should make it dies."""
    for message in ("small", pattern(3 << 20, 1)):
        channel = subject.open(capacity=2)
        channel.send("taken", timeout=PATIENCE)
        child = subject.start(children.recv_one_and_hold, channel)
        assert child.hear() == "taken", "the child did not receive"
        for n in range(2):
            channel.send(n, timeout=PATIENCE)
        sending = subject.thread(channel.send, message)
        time.sleep(0.02)  # so that the send is likely to wait already; it must be told either way
        child.kill()
        error = raises(PeerDied, sending.result, LATE)
        assert error.pid in (None, child.pid), f"the error names process {error.pid}; {child.pid} died"


def _received_when_ready(channel: ipcbus.Channel) -> list[Any]:
    """Wait a moment for a message that may not be there before its sender goes on; return it if it is."""
    cpu = time.thread_time()
    ready = ipcbus.wait([channel], timeout=0.2)
    cpu = time.thread_time() - cpu
    assert cpu < 0.1, f"a wait of 0.2 s for the rest of a message used {cpu:.2f} s of processor time: it polls"
    try:
        return [channel.recv(timeout=0)] if ready else []
    except ChannelEmpty as error:
        raise AssertionError("a channel is ready, and a message has only begun to arrive") from error


def _note_numbered(message: Any, last: dict[int, int]) -> None:
    """Look at a message of ``send_for_ever``, and note it as the last one of its sender."""
    number, n, data = message
    before = last.get(number, -1)
    assert n == before + 1, f"message {n} of sender {number} arrived after message {before}"
    assert data == pattern((20, 8_000, 200_000)[n % 3], n), f"message {n} of sender {number} arrived torn"
    last[number] = n


def _assert_room(channel: ipcbus.Channel, capacity: int, whose: str) -> None:
    """See to it that nothing waits and that as much is accepted as ever, after some processes were killed."""
    for n in range(capacity):
        said = children.outcome(lambda n=n: channel.send(n, timeout=LATE))  # type: ignore[misc]  # a default in a lambda
        assert said == "None", f"{whose} were killed, and room went with them: send {n + 1} of {capacity} ended in {said}"


def _send_after_death(channel: ipcbus.Channel, message: Any) -> None:
    """Send, after a receiver has died: the first sends may still tell of that."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            channel.send(message, timeout=PATIENCE)
        except PeerDied:
            assert time.monotonic() < until, "sends tell of a dead receiver for ever, though it has a successor"
            ipcbus.wait([channel.sender], timeout=0.05)
        except ChannelFull as error:
            raise AssertionError("there is no room for a send to the successor of a dead receiver") from error
        else:
            return


def _send_until_full(channel: ipcbus.Channel, numbers: Iterator[int]) -> None:
    for n in itertools.islice(numbers, 1000):
        channel.send((n, pattern((20, 8_000, 200_000)[n % 3], n)), timeout=0.3)
