"""Snapshots that survive their writers, and the metrics made of them."""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

import ipcbus
from ipcbus.errors import ConfigError
from ipcbus.plumbing.clock import Deadline
from ipcbus.web.health import health
from ipcbus.web.metrics import Metrics, MetricsConfig, Source, families
from ipcbus.web.reporter import Reporter, added, counted, reporting
from ipcbus.web.server import Server
from ipcbus.web.snapshots import HALF, Slot, Snapshots

from .rig import chat_config

PATIENCE = 20.0
spawn = multiprocessing.get_context("spawn")


@contextmanager
def snapshots(*names: str) -> Iterator[Snapshots]:
    page = Snapshots(names)
    try:
        yield page
    finally:
        page.close()


# ---------------------------------------------------------------------- the page


def test_each_process_has_its_own_slot() -> None:
    with snapshots("a", "b") as page:
        page.slot("a").write({"x": 1})
        page.slot("b").write({"x": {"y": [2, "grün"]}})
        assert page.read() == {"a": {"x": 1}, "b": {"x": {"y": [2, "grün"]}}}
        page.slot("a").write({})
        assert page.read()["a"] == {}
    page.slot("b").write({"x": 3})  # what is mapped outlives the descriptor
    assert page.read()["b"] == {"x": 3}


def test_what_does_not_fit_is_refused_and_the_last_one_stays() -> None:
    with snapshots("a") as page:
        page.slot("a").write({"x": 1})
        with pytest.raises(ValueError, match="does not fit"):
            page.slot("a").write({"x": "y" * HALF})
        assert page.read()["a"] == {"x": 1}


def test_a_writer_killed_half_way_leaves_the_last_one() -> None:
    with snapshots("a") as page:
        slot = page.slot("a")
        slot.write({"x": 1})
        slot.write({"x": 2})
        turns = slot._turns[0]
        slot._halves[(turns + 1) % 2][:100] = b"\xff" * 100  # as far as it came
        assert page.read()["a"] == {"x": 2}
        slot.write({"x": 3})
        assert page.read()["a"] == {"x": 3}


def write_for_ever(slot: Slot, ready: ipcbus.Channel) -> None:
    number = 0
    while True:
        slot.write({"number": number, "same": number, "pad": "x" * (number % 3000)})
        number += 1
        if number == 1000:
            ready.send("going")


def test_no_reader_sees_half_of_anything_and_no_kill_leaves_it() -> None:
    with snapshots("a", "b") as page, ipcbus.open("unix:") as ready:
        for _ in range(2):
            writer = spawn.Process(target=write_for_ever, args=(page.slot("b"), ready))
            writer.start()
            ready.recv(PATIENCE)
            reads, numbers, deadline = 0, set(), Deadline(PATIENCE)
            while reads < 800 or len(numbers) < 10:  # a busy machine may not let the writer write while this reads
                seen = page.read()["b"]
                assert seen["number"] == seen["same"]
                assert len(seen["pad"]) == seen["number"] % 3000
                reads += 1
                numbers.add(seen["number"])
                assert not deadline.expired, "the writer stands still"
            writer.kill()
            writer.join()
            assert page.read()["b"]["number"] >= 999


# ---------------------------------------------------------------------- reports


@dataclass
class Counts:
    opened: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    name: str = "not a number"


def test_counters_go_on_after_a_restart_and_gauges_do_not() -> None:
    with snapshots("front-0") as page:
        counts = Counts(opened=3, refused=Counter(origin=2))
        Reporter(page.slot("front-0"), lambda: counted(counts), lambda: {"connections": 3}).write()
        again = Counts(opened=1, refused=Counter(origin=1, full=5))
        reporter = Reporter(page.slot("front-0"), lambda: counted(again), lambda: {"connections": 1})
        for _ in range(2):
            reporter.write()
            seen = page.read()["front-0"]
            assert seen["counters"] == {"opened": 4, "refused": {"origin": 3, "full": 5}}
            assert (seen["gauges"], seen["starts"], seen["pid"]) == ({"connections": 1}, 2, os.getpid())


async def test_the_last_report_is_made_at_the_end() -> None:
    with snapshots("a") as page:
        counts = Counts()
        async with reporting(page.slot("a"), lambda: counted(counts)):
            counts.opened = 7
        assert page.read()["a"]["counters"]["opened"] == 7
        async with reporting(None, lambda: counted(counts)):
            pass


async def test_a_report_that_fails_is_logged_once_and_the_next_ones_are_made(caplog: pytest.LogCaptureFixture) -> None:
    too_much: dict[str, Any] = {"codes": {"x" * HALF: 1}}
    reports = iter([too_much, too_much, {"opened": 1}, too_much, {"opened": 2}])
    done = asyncio.Event()

    def counters() -> dict[str, Any]:
        following = next(reports, None)
        if following is None:
            done.set()
        return following or {"opened": 3}

    with snapshots("a") as page:
        task = asyncio.create_task(Reporter(page.slot("a"), counters).run(interval=0.001))
        await asyncio.wait_for(done.wait(), PATIENCE)
        task.cancel()
        assert page.read()["a"]["counters"] == {"opened": 3}
    assert caplog.text.count("cannot be reported") == 2  # as often as it began


async def test_a_report_says_how_late_the_event_loop_was() -> None:
    reports = asyncio.Semaphore(0)
    with snapshots("a") as page:
        reporter = Reporter(page.slot("a"), dict, lambda: reports.release() or {})
        task = asyncio.create_task(reporter.run(interval=0.3))
        await asyncio.wait_for(reports.acquire(), PATIENCE)
        assert page.read()["a"]["lag"] == 0
        time.sleep(0.5)  # noqa: ASYNC251  a handler that blocks is what this is about
        await asyncio.wait_for(reports.acquire(), PATIENCE)
        assert page.read()["a"]["lag"] >= 0.15
        task.cancel()


async def test_a_last_report_that_fails_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with snapshots("a") as page:
        async with reporting(page.slot("a"), lambda: {"codes": {"x" * HALF: 1}}):
            pass
        assert page.read()["a"] == {}
    assert "cannot be reported" in caplog.text


TABLES = st.dictionaries(st.sampled_from("abc"), st.integers(0, 100))


@given(TABLES, TABLES, TABLES)
def test_adding_up_is_as_for_numbers(first: dict[str, int], second: dict[str, int], third: dict[str, int]) -> None:
    nested = [{**table, "table": table} for table in (first, second, third)]
    assert added(added(nested[0], nested[1]), nested[2]) == added(nested[0], added(nested[1], nested[2]))
    assert added(first, second) == {key: first.get(key, 0) + second.get(key, 0) for key in {*first, *second}}


# ---------------------------------------------------------------------- metrics

SOURCES = [Source("front-0", "front"), Source("front-1", "front"), Source("chat", "service", "chat")]


def values(text: str) -> dict[tuple[str, str], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))] = sample.value
    return found


def made(snapshot: dict[str, Any], pids: dict[str, int]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in families(SOURCES, snapshot, pids)
        for sample in family.samples
    }


def test_front_ends_are_added_up_and_services_are_told_apart() -> None:
    me = os.getpid()
    said = {
        "front-0": {"pid": me, "starts": 1, "counters": {"opened": 3, "reasons": {"origin": 1}}, "gauges": {"connections": 3}},
        "front-1": {"pid": me, "starts": 2, "counters": {"opened": 4, "reasons": {"full": 2}}, "gauges": {"connections": 1}},
        "chat": {"pid": me, "starts": 1, "counters": {"messages": 9}, "gauges": {"connections": 4}, "lag": 0.25},
    }
    found = made(said, dict.fromkeys(said, me))
    assert found["ipcbus_front_opened_total", ""] == 7
    assert found["ipcbus_front_reasons_total", "reason=origin"] == 1
    assert found["ipcbus_front_reasons_total", "reason=full"] == 2
    assert found["ipcbus_front_connections", ""] == 4
    assert found["ipcbus_service_messages_total", "service=chat"] == 9
    assert found["ipcbus_process_up", "process=front-1"] == 1
    assert found["ipcbus_process_starts_total", "process=front-1"] == 2
    assert found["ipcbus_process_resident_memory_bytes", "process=chat"] > 1 << 20
    assert found["ipcbus_process_loop_lag_seconds", "process=chat"] == 0.25


def test_of_a_dead_process_what_it_had_does_not_count_and_what_it_did_does() -> None:
    me = os.getpid()
    said = {
        "front-0": {"pid": me, "counters": {"opened": 3}, "gauges": {"connections": 3}},
        "front-1": {"pid": 1, "counters": {"opened": 4}, "gauges": {"connections": 2}},  # of a start that is over
        "chat": {},
    }
    found = made(said, {"front-0": me, "front-1": me})
    assert found["ipcbus_front_opened_total", ""] == 7
    assert found["ipcbus_front_connections", ""] == 3
    assert found["ipcbus_process_up", "process=chat"] == 0
    assert ("ipcbus_process_cpu_seconds_total", "process=chat") not in found


def fetch(url: str) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return values(answer.read().decode())


def blocked(thread: threading.Thread) -> set[int]:
    """Return the signals that a thread does not take."""
    (line,) = (line for line in Path(f"/proc/self/task/{thread.native_id}/status").read_text().splitlines() if "SigBlk" in line)
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_they_are_served_and_the_port_is_free_again() -> None:
    with snapshots("front-0", "front-1", "chat") as page:
        page.slot("chat").write({"counters": {"messages": 5}})
        for _ in range(2):
            metrics = Metrics(MetricsConfig(bind="127.0.0.1:0"), SOURCES, page.read, dict)
            try:
                assert fetch(metrics.url)["ipcbus_service_messages_total", "service=chat"] == 5
                (thread,) = (thread for thread in threading.enumerate() if "serve_forever" in thread.name)
                assert signal.SIGTERM in blocked(thread)  # it is for the main thread
                assert signal.SIGTERM not in blocked(threading.main_thread())
                taken = metrics.url.split("/")[2]
                with pytest.raises(ConfigError, match="cannot listen at"):
                    Metrics(MetricsConfig(bind=taken), SOURCES, page.read, dict)
            finally:
                metrics.close()
                metrics.close()
    assert not [thread for thread in threading.enumerate() if "serve_forever" in thread.name]


@pytest.mark.parametrize("bind", ["9464", ":9464", "127.0.0.1:x", "127.0.0.1:99999"])
def test_a_wrong_address_is_named(bind: str) -> None:
    with pytest.raises(ConfigError, match="must read host:port"):
        MetricsConfig(bind=bind).address()


# ---------------------------------------------------------------------- a whole server


def test_a_server_is_measured_and_a_kill_costs_nothing_that_was_told() -> None:
    config = dataclasses.replace(chat_config("unix:", bind="127.0.0.1:0"), metrics=MetricsConfig(bind="127.0.0.1:0"))
    with Server(config) as server:
        assert server.metrics_url is not None
        with connect(f"ws://{server.address}/chat", proxy=None) as ws:
            ws.send('{"op": "sign-in", "name": "Ada"}')
            ws.recv(PATIENCE)
            opened = [("ipcbus_service_opened_total", "service=chat"), ("ipcbus_front_opened_total", "")]
            found = until(server, lambda found: all(found.get(one) == 1 for one in opened))
            assert found["ipcbus_front_connections", ""] == 1
            assert found["ipcbus_process_up", "process=front-1"] == 1
        until(server, lambda found: found["ipcbus_front_connections", ""] == 0)
        for name in ("front-0", "front-1"):
            os.kill(server.pids[name], signal.SIGKILL)
        starts = [("ipcbus_process_starts_total", f"process=front-{number}") for number in (0, 1)]
        found = until(server, lambda found: all(found[start] == 2 for start in starts))
        assert found["ipcbus_front_opened_total", ""] == 1
        deadline = Deadline(PATIENCE)
        while not all(answers(f"{server.url}readyz") for _ in range(10)):  # either of them; services may take them in later
            assert not deadline.expired
        assert answers(f"{server.url}healthz")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return bool(answer.read() == b"ok\n")
    except HTTPError as error:
        error.close()
        return False


def until(server: Server, wanted: Callable[[dict[tuple[str, str], float]], bool]) -> dict[tuple[str, str], float]:
    assert server.metrics_url is not None
    deadline = Deadline(PATIENCE)
    while not wanted(found := fetch(server.metrics_url)):
        assert not deadline.expired, found
        server.wait(0.05)
    return found


# ---------------------------------------------------------------------- health


def test_health() -> None:
    assert health("/healthz", ["chat"], draining=True) == (200, "ok")
    assert health("/readyz", []) == (200, "ok")
    assert health("/readyz", ["chat", "ticker"]) == (503, "waiting for: chat, ticker")
    assert health("/readyz", [], draining=True) == (503, "stopping")
    assert health("/", []) is None
