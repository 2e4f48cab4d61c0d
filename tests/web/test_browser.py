"""The chat's page in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from ipcbus import endpoints
from ipcbus.plumbing.ports import free_port
from ipcbus.testing import leaks
from ipcbus.web.server import Server

from .rig import chat_config, until_replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 20_000
"""Milliseconds, as the browser's driver wants them."""
sync_api.expect.set_options(timeout=PATIENCE)


@pytest.fixture(autouse=True)
def _no_leaks() -> None:
    """Leave it to the whole module: a browser starts processes as it goes and keeps them for the next page."""


@pytest.fixture(scope="module", autouse=True)
def _no_leaks_of_all(_own_runtime_directory: None) -> Iterator[None]:
    before = leaks.snapshot()
    yield
    endpoints.destroy_closed()
    left = leaks.compare(before, grace=5)
    assert [line for line in left if "pytest_timeout" not in line] == []  # its thread ends after the last test's teardown


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(chat_config("unix:", bind="127.0.0.1:0", ticker=True)) as server:
        yield server
        server.events.close()  # the module's fixtures keep the server, and this its descriptor


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server: Server, browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page as somebody, in a browser profile of their own; what the page complains about fails the test."""
    contexts, complaints, asked = [], [], set()

    def enter(name: str, room: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(server.url)
        sign_in(page, name, room)
        return page

    yield enter
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith("data:")} == {server.url}  # nothing is loaded from anywhere else


def sign_in(page: Any, name: str, room: str) -> None:
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Room", exact=True).fill(room)
    page.get_by_role("button", name="Join", exact=True).click()
    sync_api.expect(people(page).first).to_be_visible()


def people(page: Any) -> Any:
    return page.get_by_role("complementary", name="People in this room").get_by_role("listitem")


def messages(page: Any) -> Any:
    return page.get_by_role("log").locator("p")


def notes(page: Any) -> Any:
    return page.get_by_role("log").locator(".note")


def say(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_two_browsers_see_each_other_and_a_third_elsewhere_does_not(visit: Callable[..., Any]) -> None:
    ada, bob, cyd = visit("Ada", "tea"), visit("Bob", "tea"), visit("Cyd", "coffee")
    sync_api.expect(people(ada)).to_have_count(2)
    sync_api.expect(people(bob)).to_contain_text(["Ada", "Bob (you)"])
    sync_api.expect(notes(ada)).to_have_text(["Bob joined"])
    say(ada, "hello")
    sync_api.expect(messages(bob)).to_have_text(["hello"])
    say(bob, "<img src=x onerror=alert(1)> & é")
    for page in (ada, bob):
        sync_api.expect(messages(page)).to_have_text(["hello", "<img src=x onerror=alert(1)> & é"])
    say(cyd, "anybody?")
    sync_api.expect(messages(cyd)).to_have_text(["anybody?"])  # its own came back, so nothing is on its way to it
    sync_api.expect(people(cyd)).to_have_count(1)
    sync_api.expect(messages(ada)).to_have_count(2)
    bob.close()
    sync_api.expect(notes(ada)).to_have_text(["Bob joined", "Bob left"])
    sync_api.expect(people(ada)).to_have_count(1)


def test_several_rooms_at_once(visit: Callable[..., Any]) -> None:
    dee, eve = visit("Dee", "hall"), visit("Eve", "hall")
    eve.get_by_label("Name of another room").fill("attic")
    eve.get_by_role("button", name="Join this room").click()
    sync_api.expect(eve.get_by_role("heading", level=1)).to_have_text("# attic")
    sync_api.expect(people(eve)).to_have_count(1)
    say(dee, "you there?")
    hall = eve.get_by_role("navigation").get_by_role("button", name="hall 1 unread")
    hall.click()
    sync_api.expect(messages(eve)).to_have_text(["you there?"])
    eve.get_by_role("button", name="Leave").click()
    sync_api.expect(eve.get_by_role("heading", level=1)).to_have_text("# attic")
    sync_api.expect(notes(dee).last).to_have_text("Eve left")


def test_signing_in(visit: Callable[..., Any]) -> None:
    first = visit("Max", "door")
    second = visit("Max", "door")
    sync_api.expect(people(second)).to_have_text(["MAMax", "MAMax 2 (you)"])  # a name is one person's
    second.reload()
    sync_api.expect(people(second)).to_have_text(["MAMax", "MAMax 2 (you)"])  # by its token, without being asked again
    # A token that this server has not signed: the page signs in anew.
    second.evaluate("""() => {
        const kept = JSON.parse(sessionStorage.getItem("chat"));
        kept.token = btoa('["root", 99999999999]').replaceAll("=", "") + ".AAAA";
        sessionStorage.setItem("chat", JSON.stringify(kept));
    }""")
    second.reload()
    sync_api.expect(people(second)).to_have_text(["MAMax", "MAMax 2 (you)"])
    second.get_by_role("button", name="Sign out").click()
    sync_api.expect(second.get_by_label("Your name")).to_be_visible()
    sync_api.expect(people(first)).to_have_count(1)


def test_history_is_shown_to_who_comes_late(visit: Callable[..., Any]) -> None:
    pam = visit("Pam", "archive")
    pam.evaluate("() => { for (let number = 0; number < 52; number++) say(`line ${number}`); }")
    sync_api.expect(messages(pam)).to_have_count(52)
    sync_api.expect(pam.locator(".pending")).to_have_count(0)
    quinn = visit("Quinn", "archive")
    sync_api.expect(messages(quinn)).to_have_text([f"line {number}" for number in range(2, 52)])
    say(quinn, "line 52")
    sync_api.expect(messages(quinn)).to_have_text([f"line {number}" for number in range(2, 53)])


def test_who_types_is_shown_to_the_others(visit: Callable[..., Any]) -> None:
    ron, sue = visit("Ron", "desk"), visit("Sue", "desk")
    sync_api.expect(people(ron)).to_have_count(2)
    ron.get_by_label("Message", exact=True).press_sequentially("hm")
    sync_api.expect(sue.get_by_text("Ron is typing…")).to_be_visible()
    sync_api.expect(ron.get_by_text("is typing…")).to_have_count(0)
    ron.keyboard.press("Enter")
    sync_api.expect(messages(sue)).to_have_text(["hm"])
    sync_api.expect(sue.get_by_text("is typing…")).to_have_count(0)


def test_a_killed_service_loses_nothing_and_repeats_nothing(visit: Callable[..., Any], server: Server) -> None:
    fay, gil = visit("Fay", "cellar"), visit("Gil", "cellar")
    sync_api.expect(people(fay)).to_have_count(2)
    for page in (fay, gil):
        page.evaluate("""() => {
            window.closes = 0;
            ws.addEventListener("close", () => window.closes++);
        }""")
    # They talk while the service is killed twice: what it had in its hands is said again by the pages, and taken once.
    spoken = []
    killed = server.pids["chat"]
    for number in range(40):
        if number == 10:
            os.kill(killed, signal.SIGKILL)
        if number == 25:
            until_replaced(server, killed)
            os.kill(server.pids["chat"], signal.SIGKILL)
        page, name = ((fay, "fay"), (gil, "gil"))[number % 2]
        page.evaluate("text => say(text)", f"{name} {number}")
        spoken.append(f"{name} {number}")
    for page in (fay, gil):
        sync_api.expect(messages(page)).to_have_count(40)
        sync_api.expect(page.locator(".pending")).to_have_count(0)
        heard = messages(page).all_text_contents()
        assert sorted(heard) == sorted(spoken)
        assert page.evaluate("window.closes") == 0
    assert messages(fay).all_text_contents() == messages(gil).all_text_contents()
    sync_api.expect(people(fay)).to_have_count(2)


def test_both_front_ends_are_killed_and_nothing_is_shown_twice(visit: Callable[..., Any], server: Server) -> None:
    nora, ora = visit("Nora", "bridge"), visit("Ora", "bridge")
    sync_api.expect(people(nora)).to_have_count(2)
    say(nora, "before")
    sync_api.expect(messages(ora)).to_have_text(["before"])
    for page in (nora, ora):
        page.evaluate("""() => {
            window.closes = 0;
            ws.addEventListener("close", () => window.closes++);
        }""")
    for name in ("front-0", "front-1"):
        os.kill(server.pids[name], signal.SIGKILL)
    for number in range(10):  # said while there is nobody to say it to
        (nora, ora)[number % 2].evaluate("text => say(text)", f"line {number}")
    for page in (nora, ora):
        sync_api.expect(messages(page)).to_have_count(11)
        sync_api.expect(page.locator(".pending")).to_have_count(0)
        sync_api.expect(people(page)).to_have_count(2)
        sync_api.expect(page.get_by_role("alert")).to_be_hidden()
        assert sorted(messages(page).all_text_contents()) == sorted(["before", *(f"line {number}" for number in range(10))])
        assert page.evaluate("window.closes") == 1
    assert messages(nora).all_text_contents() == messages(ora).all_text_contents()


def test_a_lost_connection_loses_nothing_and_repeats_nothing(visit: Callable[..., Any]) -> None:
    tim, uma = visit("Tim", "tunnel"), visit("Uma", "tunnel")
    sync_api.expect(people(tim)).to_have_count(2)
    say(tim, "before")
    sync_api.expect(messages(uma)).to_have_text(["before"])
    # The network of one fails, and for a while there is no other; both go on talking.
    uma.evaluate("""() => {
        window.real = connect;
        connect = () => {};
        ws.close();
    }""")
    sync_api.expect(uma.get_by_role("alert")).to_have_text("Connection lost. Reconnecting…")
    sync_api.expect(people(tim)).to_have_count(1)
    say(tim, "meanwhile")
    say(uma, "into the dark")
    sync_api.expect(uma.locator(".pending")).to_contain_text(["is sent when you are connected"])
    uma.evaluate("""() => {
        connect = window.real;
        connect();
    }""")
    for page in (tim, uma):
        sync_api.expect(messages(page)).to_have_text(["before", "meanwhile", "into the dark"])
        sync_api.expect(people(page)).to_have_count(2)
    sync_api.expect(uma.locator(".pending")).to_have_count(0)
    sync_api.expect(uma.get_by_role("alert")).to_be_hidden()


def test_a_connection_that_only_looks_open_is_made_anew(visit: Callable[..., Any], server: Server) -> None:
    xia, yan = visit("Xia", "lift"), visit("Yan", "lift")
    sync_api.expect(people(xia)).to_have_count(2)
    fronts = [pid for name, pid in server.pids.items() if name.startswith("front-")]
    try:
        for pid in fronts:
            os.kill(pid, signal.SIGSTOP)  # as if the network were gone: nothing comes, not even an end
        xia.evaluate("window.before = ws")
        say(xia, "anybody?")
        xia.evaluate("asked -= PATIENCE")  # it is long ago
        sync_api.expect(xia.get_by_role("alert")).to_have_text("Connection lost. Reconnecting…")
    finally:
        for pid in fronts:
            os.kill(pid, signal.SIGCONT)
    xia.wait_for_function("() => isOpen() && ws !== window.before")
    for page in (xia, yan):
        sync_api.expect(messages(page)).to_have_text(["anybody?"])
        sync_api.expect(page.locator(".pending")).to_have_count(0)
    # A page that comes back into sight asks at once whether there is still somebody.
    yan.evaluate("document.onvisibilitychange()")
    yan.wait_for_function("() => !asked")


def test_the_ticker_runs_beside_the_chat(visit: Callable[..., Any]) -> None:
    vic, wes = visit("Vic", "market"), visit("Wes", "market")
    vic.get_by_role("button", name="Prices", exact=True).click()
    prices = vic.get_by_role("region", name="Prices")
    sync_api.expect(prices.get_by_role("row")).to_have_count(20)
    sync_api.expect(prices.get_by_text("updates a second")).to_be_visible()
    vic.evaluate("async () => { while (ticker.newest < 200) await new Promise(done => setTimeout(done, 20)); }")
    say(wes, "still quick?")
    sync_api.expect(messages(vic)).to_have_text(["still quick?"])
    prices.get_by_role("button", name="Close the prices").click()
    sync_api.expect(prices).to_be_hidden()
    assert vic.evaluate("ticker.ws") is None


def test_the_page_says_that_the_connection_is_lost(browser: Any) -> None:
    context = browser.new_context()
    with Server(chat_config("pipe:", bind="127.0.0.1:0", processes=1)) as server:
        page = context.new_page()
        page.goto(server.url)
        sign_in(page, "Ida", "lobby")
    sync_api.expect(page.get_by_role("alert")).to_have_text("Connection lost. Reconnecting…")
    context.close()


def test_a_server_that_begins_anew_is_talked_to_by_pages_that_are_open(browser: Any) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    ada, bob = (context.new_page() for context in contexts)
    with Server(chat_config("pipe:", bind=f"127.0.0.1:{free_port()}", processes=1)) as server:
        for page, name in ((ada, "Ada"), (bob, "Bob")):
            page.goto(server.url)
            sign_in(page, name, "lobby")
        say(ada, "one")
        say(ada, "two")
        sync_api.expect(messages(bob)).to_have_text(["one", "two"])
        port = server.port
    sync_api.expect(bob.get_by_role("alert")).to_be_visible()
    say(bob, "three")
    with Server(chat_config("pipe:", bind=f"127.0.0.1:{port}", processes=1)):  # whose numbers begin with 1 again
        for page in (ada, bob):
            sync_api.expect(people(page)).to_have_count(2, timeout=PATIENCE)
        say(ada, "four")
        for page in (ada, bob):
            sync_api.expect(messages(page)).to_have_text(["three", "four"])
            sync_api.expect(page.locator(".pending")).to_have_count(0)
    for context in contexts:
        context.close()


def test_one_room_too_many_is_entered_once_another_one_was_left(visit: Callable[..., Any]) -> None:
    page = visit("Lea", "lobby")
    for number in range(2, 18):
        page.get_by_label("Name of another room").fill(f"room {number}")
        page.keyboard.press("Enter")
    sync_api.expect(notes(page)).to_have_text(
        "You are in 16 rooms, and more are not possible: leave one, then choose this one again."
    )
    field = page.get_by_label("Message", exact=True)
    sync_api.expect(field).to_be_disabled()
    page.get_by_role("navigation").get_by_role("button", name="lobby").click()
    page.get_by_role("button", name="Leave").click()
    page.get_by_role("navigation").get_by_role("button", name="room 17").click()
    sync_api.expect(field).to_be_enabled()
    sync_api.expect(people(page)).to_have_count(1)
    say(page, "hello")
    sync_api.expect(messages(page)).to_have_text(["hello"])
    sync_api.expect(page.locator(".pending")).to_have_count(0)


def test_the_page_fits_a_phone(visit: Callable[..., Any]) -> None:
    page = visit("Hal with a rather long name", "a room with quite a long name", viewport={"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    say(page, "x" * 500)
    sync_api.expect(messages(page)).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.get_by_role("button", name="Send").bounding_box()
    assert box["x"] + box["width"] <= 360
    assert box["y"] + box["height"] <= 640
    out = page.get_by_role("button", name="Sign out").bounding_box()
    assert out["x"] + out["width"] <= 360
    for number in range(8):
        say(page, f"message {number} " + "x" * 100)
    sync_api.expect(messages(page)).to_have_count(9)
    page.get_by_role("button", name="Prices").click()
    sync_api.expect(page.get_by_role("row")).not_to_have_count(0)
    sync_api.expect(messages(page).last).to_be_in_viewport(ratio=0.9)  # the prices take room from the oldest
    room, new = page.locator("#rooms").bounding_box(), page.locator("#add").bounding_box()
    assert room["width"] > 150
    assert new["x"] + new["width"] <= 360


def test_a_message_that_was_begun_stays_in_its_room(visit: Callable[..., Any]) -> None:
    page = visit("Ivo", "lobby")
    field = page.get_by_label("Message", exact=True)
    field.fill("for the lobby al")
    page.get_by_role("navigation").get_by_role("button", name="random").click()
    sync_api.expect(field).to_have_value("")
    field.fill("for random")
    page.get_by_role("navigation").get_by_role("button", name="lobby").click()
    sync_api.expect(field).to_have_value("for the lobby al")
    page.get_by_role("button", name="Leave").click()  # what was begun there goes with it
    sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("# random")
    sync_api.expect(field).to_have_value("for random")
    page.get_by_role("button", name="Leave").click()
    sync_api.expect(field).to_have_value("")


def test_the_room_one_is_in_stays_in_sight_on_a_phone(visit: Callable[..., Any]) -> None:
    page, friend = visit("Jan", "lobby", viewport={"width": 390, "height": 844}), visit("Kay", "lobby")
    for name in ("a room of our own", "another room with a name"):
        page.get_by_label("Name of another room").fill(name)
        page.keyboard.press("Enter")
    here = page.locator("#rooms [aria-current=true]")
    sync_api.expect(here).to_have_text("another room with a name")
    sync_api.expect(here).to_be_in_viewport(ratio=0.9)
    say(friend, "hello")
    sync_api.expect(page.locator("#rooms .badge")).to_have_text("1 unread")
    sync_api.expect(here).to_be_in_viewport(ratio=0.5)  # the number beside another room takes some of it


def test_long_names_end_in_dots(visit: Callable[..., Any]) -> None:
    page = visit("W" * 24, "M" * 32, viewport={"width": 1280, "height": 800})
    for name in (people(page).locator("span").last, page.locator("#rooms [aria-current=true] .name")):
        assert name.evaluate("it => it.scrollWidth > it.clientWidth && getComputedStyle(it).textOverflow === 'ellipsis'")
        box = name.evaluate("it => [it.getBoundingClientRect().right, it.closest('aside, nav').getBoundingClientRect().right]")
        assert box[0] <= box[1]


def test_messages_take_the_focus_from_nobody_who_has_only_a_keyboard(visit: Callable[..., Any]) -> None:
    one, other = visit("Kim", "desk"), visit("Lee", "desk")
    one.get_by_label("Name of another room").fill("window")
    one.get_by_role("button", name="Join this room").press("Enter")
    desk = one.get_by_role("navigation").get_by_role("button", name="desk")
    desk.focus()
    say(other, "you there?")
    sync_api.expect(one.get_by_role("navigation").get_by_role("button", name="desk 1 unread")).to_be_focused()
    one.get_by_role("button", name="Prices", exact=True).press("Enter")
    one.get_by_role("button", name="Close the prices").press("Enter")
    sync_api.expect(one.get_by_role("button", name="Prices", exact=True)).to_be_focused()
    for _ in range(2):
        one.get_by_role("button", name="Leave").press("Enter")
    sync_api.expect(one.get_by_label("Name of another room")).to_be_focused()


def test_what_people_write_has_the_direction_of_its_script(visit: Callable[..., Any]) -> None:
    page = visit("שלום", "script")
    for text, direction in (("مرحبا, world!", "rtl"), ("hello, עולם!", "ltr")):
        say(page, text)
        sync_api.expect(messages(page).last).to_have_text(text)
        sync_api.expect(messages(page).last).to_have_css("direction", direction)
    sync_api.expect(people(page).locator("span").last).to_have_css("direction", "rtl")
