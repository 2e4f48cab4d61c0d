"""The demo's services, in memory: the chat, its tokens and its history, and the ticker."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

import pytest

from ipcbus.demo import history, token
from ipcbus.demo.chat import PATIENCE, Chat
from ipcbus.demo.ticker import SYMBOLS, Ticker
from ipcbus.web import Reject
from ipcbus.web.testing import ServiceTest, TestClient

from .rig import chat, new_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = b"s" * 32


# ---------------------------------------------------------------------- tokens


def test_a_token_says_whose_it_is_until_it_ends() -> None:
    given = token.sign("Zoë 2", 1000.0, SECRET)
    assert token.read(given, SECRET, 999.0) == "Zoë 2"
    assert token.read(given, SECRET, 1000.0) is None
    assert token.offered(["a", *token.offer(given)]) == given
    assert token.offered([token.PROTOCOL]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda given: "",
        lambda given: ".",
        lambda given: given.partition(".")[0],
        lambda given: given.partition(".")[2],
        lambda given: given[:-3],
        lambda given: given[:-3] + "é",
        lambda given: "." + given,
        lambda given: token.sign("Ada", 2000.0, b"t" * 32).partition(".")[0] + "." + given.partition(".")[2],
        lambda given: token.sign("Ada", 1000.0, b"t" * 32),
    ],
)
def test_a_token_that_was_touched_says_nothing(change: Any) -> None:
    assert token.read(change(token.sign("Ada", 1000.0, SECRET)), SECRET, 0.0) is None


def test_a_token_may_stand_in_a_header_and_be_a_subprotocol() -> None:
    for name in ("a", "ab", "abc", "x" * 24, "🎈?"):
        given = token.sign(name, time(), SECRET)
        assert given.replace("-", "").replace("_", "").replace(".", "", 1).isalnum()
        assert given.isascii()


# ---------------------------------------------------------------------- the chat


@pytest.fixture
async def test() -> AsyncIterator[ServiceTest]:
    """The chat, in memory but for its database."""
    service = chat()
    async with ServiceTest(service) as test:
        yield test
    service.database.close()


async def enter(test: ServiceTest, name: str, room: str | None = None, **options: Any) -> TestClient:
    client = await test.connect(**options)
    await client.send({"op": "sign-in", "name": name})
    (welcome,) = client.take()
    assert (welcome["op"], welcome["id"]) == ("welcome", f"{client.id:x}")
    if room is not None:
        await client.send({"op": "join", "room": room})
        client.take()
    return client


def ops(client: TestClient) -> list[str]:
    return [message["op"] for message in client.take()]


def texts(client: TestClient) -> list[str]:
    """Return what a client was told was said, live and from the history."""
    found = []
    for message in client.take():
        found += [entry["text"] for entry in message.get("messages", [message]) if "text" in entry]
    return found


async def test_two_people_talk_and_a_third_elsewhere_hears_nothing(test: ServiceTest) -> None:
    ada, bob, cyd = await enter(test, "Ada"), await enter(test, "Bob", front=1), await enter(test, "Cyd")
    await ada.send({"op": "join", "room": "tea"})
    await cyd.send({"op": "join", "room": "coffee"})
    await bob.send({"op": "join", "room": "tea"})
    nothing = {"op": "history", "room": "tea", "messages": [], "whole": True}
    assert ada.take() == [
        {"op": "users", "room": "tea", "users": ["Ada"]},
        nothing,
        {"op": "joined", "room": "tea", "name": "Bob"},
    ]
    assert bob.take() == [{"op": "users", "room": "tea", "users": ["Ada", "Bob"]}, nothing]
    assert cyd.take()[0] == {"op": "users", "room": "coffee", "users": ["Cyd"]}
    await bob.send({"op": "say", "room": "tea", "text": "hi", "key": "k"})
    (said,) = ada.take()
    assert abs(said.pop("at") - time()) < 5
    assert said == {"op": "said", "room": "tea", "id": 1, "name": "Bob", "text": "hi", "key": "k"}
    assert texts(bob) == ["hi"]
    assert cyd.take() == []
    await cyd.send({"op": "say", "room": "tea", "text": "let me in"})
    assert ada.take() == []
    assert ops(cyd) == ["error"]
    await bob.close()
    assert ada.take() == [{"op": "left", "room": "tea", "name": "Bob"}]
    await ada.send({"op": "users", "room": "tea"})
    assert ada.take() == [{"op": "users", "room": "tea", "users": ["Ada"]}]


async def test_names_are_unique_and_bounded(test: ServiceTest) -> None:
    names = []
    for wanted in ("Eve", " Eve\n", "", "x" * 99, "x" * 99):
        client = await test.connect()
        await client.send({"op": "sign-in", "name": wanted})
        names.append(client.take()[0]["name"])
    assert names == ["Eve", "Eve 2", "guest", "x" * 24, "x" * 20 + " 2"]


async def test_a_token_brings_a_client_back_as_who_it_was(test: ServiceTest) -> None:
    client = await test.connect(protocols=[token.PROTOCOL])
    assert client.subprotocol == token.PROTOCOL
    await client.send({"op": "sign-in", "name": "Ada"})
    given = client.take()[0]["token"]
    await client.close()
    again = await test.connect(protocols=token.offer(given))
    assert [message["name"] for message in again.take()] == ["Ada"]
    await again.send({"op": "sign-in", "name": "Bob"})
    assert ops(again) == ["error"]  # it has a name


async def test_a_forged_token_is_refused(test: ServiceTest) -> None:
    for given in ("nonsense", token.sign("root", time() + 60, SECRET)):
        with pytest.raises(Reject) as refused:
            await test.connect(protocols=token.offer(given))
        assert refused.value.status == 4401


async def test_who_does_not_sign_in_may_do_nothing_and_not_for_long(test: ServiceTest) -> None:
    hasty, idle = await test.connect(), await test.connect()
    await hasty.send({"op": "join", "room": "tea"})
    assert hasty.closed == (4401, "sign in first")
    known = await enter(test, "Ada")
    await test.tick()
    assert idle.closed == (4408, "sign in sooner")  # ServiceTest's connections are as old as the epoch
    assert known.closed is None
    assert PATIENCE > 0


async def test_one_person_with_two_windows_is_here_once(test: ServiceTest) -> None:
    watcher = await enter(test, "Bob", "tea")
    first = await test.connect()
    await first.send({"op": "sign-in", "name": "Ada"})
    second = await test.connect(protocols=token.offer(first.take()[0]["token"]))
    for client in (first, second):
        await client.send({"op": "join", "room": "tea"})
    assert ops(watcher) == ["joined"]
    await first.close()
    assert watcher.take() == []
    await second.send({"op": "leave", "room": "tea"})
    assert ops(watcher) == ["left"]


async def test_who_enters_sees_the_last_fifty_of_that_room(test: ServiceTest) -> None:
    ada = await enter(test, "Ada", "tea")
    await ada.send({"op": "join", "room": "coffee"})
    for number in range(history.SHOWN + 5):
        await ada.send({"op": "say", "room": "tea", "text": str(number)})
    await ada.send({"op": "say", "room": "coffee", "text": "not here"})
    late = await enter(test, "Bob")
    await late.send({"op": "join", "room": "tea"})
    assert texts(late) == [str(number) for number in range(5, history.SHOWN + 5)]


async def test_who_comes_back_gets_what_came_after(test: ServiceTest) -> None:
    ada = await enter(test, "Ada", "tea")
    for text in ("one", "two", "three"):
        await ada.send({"op": "say", "room": "tea", "text": text})
    first = ada.take()[0]["id"]
    await ada.send({"op": "join", "room": "tea", "after": first})
    assert texts(ada) == ["two", "three"]
    for _ in range(history.CAUGHT_UP):
        await ada.send({"op": "say", "room": "tea", "text": "more"})
    ada.take()
    await ada.send({"op": "join", "room": "tea", "after": first})
    _, page = ada.take()
    assert page["whole"] is False
    assert len(page["messages"]) == history.CAUGHT_UP
    assert {entry["text"] for entry in page["messages"]} == {"more"}  # the oldest are those left out
    for nonsense in (1 << 64, -(1 << 64), "1"):
        await ada.send({"op": "join", "room": "tea", "after": nonsense})
        assert len(texts(ada)) == history.SHOWN


async def test_what_is_said_again_by_the_same_key_is_taken_once(test: ServiceTest) -> None:
    ada, bob = await enter(test, "Ada", "tea"), await enter(test, "Bob", "tea")
    bob_and_ada = {"op": "say", "room": "tea", "text": "hi", "key": "k1"}
    ada.take()
    for _ in range(2):
        await ada.send(bob_and_ada)
    first, again = ada.take()
    assert first == again  # she hears that it was taken, and by its number that it is the same
    assert texts(bob) == ["hi"]
    await bob.send(bob_and_ada)  # keys are everybody's own
    assert texts(ada) == ["hi"]


async def test_typing_is_heard_by_the_others(test: ServiceTest) -> None:
    ada, bob = await enter(test, "Ada", "tea"), await enter(test, "Bob", "tea")
    ada.take()
    await ada.send({"op": "typing", "room": "tea"})
    assert (ada.take(), bob.take()) == ([], [{"op": "typing", "room": "tea", "name": "Ada"}])


async def test_a_new_process_knows_people_tokens_and_history(test: ServiceTest) -> None:
    url = new_database()
    before = chat(url)
    async with ServiceTest(before) as test:
        ada = await test.connect()
        await ada.send({"op": "sign-in", "name": "Ada"})
        given = ada.take()[0]["token"]
        await ada.send({"op": "join", "room": "tea"})
        await ada.send({"op": "say", "room": "tea", "text": "hi", "key": "k"})
        ada.take()
        after = chat(url)
        await test.restart(after)
        assert ada.take() == [{"op": "replaced"}]
        await ada.send({"op": "join", "room": "tea", "after": 0})
        assert texts(ada) == ["hi"]
        bob = await test.connect(protocols=token.offer(given))
        assert bob.take()[0]["name"] == "Ada"
    before.database.close()
    after.database.close()


@pytest.mark.parametrize(
    "message",
    [
        7,
        {"op": "join"},
        {"op": "join", "room": ""},
        {"op": "join", "room": "x" * 33},
        {"op": "say", "room": "elsewhere", "text": "hi"},
        {"op": "say", "room": "tea", "text": ""},
        {"op": "say", "room": "tea", "text": "x" * 2001},
        {"op": "typing", "room": "elsewhere"},
        {"op": "leave", "room": "elsewhere"},
    ],
)
async def test_what_cannot_be_done_is_told(test: ServiceTest, message: Any) -> None:
    ada = await enter(test, "Ada", "tea")
    await ada.send(message)
    assert ops(ada) == ["error"]
    assert ada.closed is None


async def test_rooms_are_bounded(test: ServiceTest) -> None:
    ada = await enter(test, "Ada")
    for number in range(Chat.limits.groups or 0):
        await ada.send({"op": "join", "room": f"r{number}"})
    assert "error" not in ops(ada)
    await ada.send({"op": "join", "room": "one more"})
    await ada.send({"op": "join", "room": "r0"})
    assert ops(ada) == ["error", "users", "history"]
    assert ada.closed is None


# ---------------------------------------------------------------------- the ticker


async def test_the_ticker_changes_every_price_while_somebody_looks() -> None:
    service = Ticker()
    async with ServiceTest(service) as test:
        await test.tick()
        client = await test.connect()
        (first,) = client.take()
        assert first["op"] == "prices"
        assert first["rate"] >= 2000
        assert set(first["prices"].values()) == {10_000}  # nothing has changed: nobody was there
        await test.tick()
        await test.tick()
        changes = client.take()
        assert [symbol for symbol, _, _ in changes] == [*SYMBOLS, *SYMBOLS]
        assert [count for _, _, count in changes] == list(range(1, len(changes) + 1))
        assert all(abs(price - 10_000) <= 40 for _, price, _ in changes)
