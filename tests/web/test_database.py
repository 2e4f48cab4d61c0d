"""The database: on SQLite, and on a real PostgreSQL where one can be started."""

from __future__ import annotations

import asyncio
import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import exc, text
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

import ipcbus
from ipcbus.errors import ConfigError, IpcbusError
from ipcbus.plumbing.clock import Deadline
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig, load_server_config
from ipcbus.web.database import Database, DatabaseConfig, divide
from ipcbus.web.server import Server

PATIENCE = 30.0
spawn = multiprocessing.get_context("spawn")


# For all tests of this file: the server starts before the first of them looks at what it might leave behind.
pytestmark = pytest.mark.usefixtures("postgresql")


def needs(server: str | None) -> str:
    if server is None:
        pytest.skip("PostgreSQL is not installed: its Debian package is called postgresql")
    return server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: str | None) -> str:
    return f"sqlite:///{tmp_path}/test.db" if request.param == "sqlite" else needs(postgresql)


@pytest.fixture
def code(programs: Any) -> Any:
    return importlib.import_module("database_programs")


@pytest.fixture
def database(url: str, code: Any) -> Iterator[Database]:
    made = Database(DatabaseConfig(url=url, connections=4))
    made.create_all(code.metadata)
    yield made
    with made.begin() as session:
        code.metadata.drop_all(session.connection())
    made.close()


def backends(database: Database) -> int:
    """Return how many connections the server has; this one not among them."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with database.begin() as session:
        return int(session.execute(text(asked)).scalar_one())


# ---------------------------------------------------------------------- transactions


def test_a_transaction_is_committed_or_rolled_back(database: Database, code: Any) -> None:
    with database.begin() as session:
        code.write(session, "kept")
    with pytest.raises(ZeroDivisionError), database.begin() as session:
        code.write(session, 1 / (code.count(session) - 1))
    with database.begin(read_only=True) as session:
        assert code.count(session) == 1


def test_a_transaction_that_only_reads_cannot_write(database: Database, code: Any) -> None:
    with pytest.raises(exc.DBAPIError, match=r"(?i)read-?only"), database.begin(read_only=True) as session:
        code.write(session, "no")
    for _ in range(5):  # and no connection remembers it
        with database.begin() as session:
            code.write(session, "yes")


def test_processes_and_threads_write_at_the_same_time(url: str, code: Any) -> None:
    shares = Database.shares(DatabaseConfig(url=url, connections=3, timeout=20), 2)
    assert [share.connections for share in shares] == [2, 1]
    database = Database(DatabaseConfig(url=url))
    with ipcbus.open("unix:") as report:
        workers = [spawn.Process(target=code.write_many, args=(share, 3, 10, report)) for share in shares]
        for worker in workers:
            worker.start()
        most = 0
        while multiprocessing.active_children():
            most = max(most, backends(database) if database.engine.name == "postgresql" else 0)
            workers[0].join(0.01)
        assert [report.recv(PATIENCE) for _ in workers] == ["done"] * 2
    with database.begin() as session:
        assert code.count(session) == 2 * 3 * 10
        code.metadata.drop_all(session.connection())
    if database.engine.name == "postgresql":
        assert 0 < most <= 3
    database.close()


def test_processes_that_begin_a_file_at_the_same_time(tmp_path: Path, code: Any) -> None:
    """SQLite refuses all but one of those that switch a new file to WAL, without waiting; it takes some tries to see."""
    fork = multiprocessing.get_context("fork")  # nothing to import between the barrier and the file
    for number in range(12):
        database = Database(DatabaseConfig(url=f"sqlite:///{tmp_path}/{number}.db"))
        barrier = fork.Barrier(4)
        workers = [fork.Process(target=code.begin, args=(database, barrier)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
        assert [worker.exitcode for worker in workers] == [0] * 4


def test_no_more_threads_than_connections_get_one(url: str, code: Any) -> None:
    database = Database(DatabaseConfig(url=url, connections=2, timeout=0.2))
    inside, leave = threading.Semaphore(0), threading.Event()

    def stay() -> None:
        with database.begin(read_only=True) as session:
            session.execute(text("SELECT 1"))
            inside.release()
            leave.wait(PATIENCE)

    threads = [threading.Thread(target=stay) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=PATIENCE)
    with pytest.raises(exc.TimeoutError), database.begin(read_only=True):
        pass
    leave.set()
    for thread in threads:
        thread.join()
    database.close()


# ---------------------------------------------------------------------- asyncio


async def test_who_waits_for_a_connection_is_told_when_none_becomes_free(url: str) -> None:
    database = Database(DatabaseConfig(url=url, connections=1, timeout=0.2))
    inside, leave = threading.Event(), threading.Event()
    begun = []

    def stay(_: Any) -> str:
        inside.set()
        assert leave.wait(PATIENCE)
        return "over"

    staying = asyncio.create_task(database.read(stay))
    assert await asyncio.to_thread(inside.wait, PATIENCE)
    given_up = asyncio.create_task(database.read(begun.append))
    await asyncio.sleep(0)  # it waits
    given_up.cancel()
    with pytest.raises(exc.TimeoutError, match="none of this process's 1 connections became free"):
        await database.read(begun.append)
    leave.set()
    assert await staying == "over"
    assert await database.read(lambda _: "free again") == "free again"
    assert begun == []  # neither of those that were given up
    database.close()


async def test_the_event_loop_goes_on(database: Database, code: Any) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(session: Any) -> str:
        code.write(session, "slowly")
        begun.set()
        assert go.wait(PATIENCE)
        return "written"

    task = asyncio.create_task(database.run(slow))
    while not begun.is_set():  # noqa: ASYNC110  the event is a thread's; and what is tested is that this goes on
        await asyncio.sleep(0.001)
    assert not task.done()
    go.set()
    assert await task == "written"
    assert await asyncio.gather(*(database.read(code.count) for _ in range(20))) == [1] * 20
    with pytest.raises(ZeroDivisionError):
        await database.run(lambda session: code.write(session, "no") or 1 / 0)
    assert await database.read(code.count) == 1


# ---------------------------------------------------------------------- forks


def test_a_forked_child_has_connections_of_its_own(database: Database, code: Any) -> None:
    with database.begin() as session:
        code.write(session, "parent")
        asked = "SELECT pg_backend_pid()" if database.engine.name == "postgresql" else "SELECT 0"
        mine = session.execute(text(asked)).scalar_one()
    pool = database.engine.pool
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        outcome: Any = "nothing"
        try:
            with database.begin() as session:
                outcome = code.count(session), session.execute(text(asked)).scalar_one()
                code.write(session, "child")
            outcome = (*outcome, database.engine.pool is pool)
            database.close()
        except BaseException as error:
            outcome = repr(error)
        finally:
            os.write(writing, pickle.dumps(outcome))
            os._exit(0)
    os.waitpid(pid, 0)
    outcome = pickle.loads(os.read(reading, 10_000))
    os.close(reading)
    os.close(writing)
    assert outcome[0] == 1, outcome
    assert outcome[2] is False
    assert database.engine.name == "sqlite" or outcome[1] != mine
    with database.begin() as session:  # on the connection that the child inherited
        assert code.count(session) == 2
        assert session.execute(text(asked)).scalar_one() == mine


def test_closing_in_a_fork_closes_nothing_of_the_parents(database: Database, code: Any) -> None:
    with database.begin() as session:
        code.write(session, "parent")
    del session  # which knows the connections
    gc.collect()
    pid = os.fork()
    if not pid:
        before = len(list(Path("/proc/self/fd").iterdir()))
        database.close()
        gc.collect()
        os._exit(before != len(list(Path("/proc/self/fd").iterdir())))
    assert os.waitpid(pid, 0)[1] == 0
    with database.begin() as session:
        assert code.count(session) == 1


def test_a_transaction_does_not_cross_a_fork(database: Database, code: Any) -> None:
    reading, writing = os.pipe()
    with database.begin() as session:
        code.write(session, "parent")
        pid = os.fork()
        if not pid:
            said = "nothing"
            try:
                code.count(session)
            except IpcbusError as error:
                said = str(error)
            finally:
                os.write(writing, said.encode())
                os._exit(0)
        os.waitpid(pid, 0)
        said = os.read(reading, 10_000).decode()
        assert f"begun by process {os.getpid()}" in said
        assert code.count(session) == 1  # it is alive
    os.close(reading)
    os.close(writing)


def test_leaving_a_transaction_in_a_fork_does_not_end_it(database: Database, code: Any) -> None:
    reading, writing = os.pipe()
    pid = -1
    try:
        with database.begin() as session:
            code.write(session, "parent")
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                assert code.count(session) == 1
    except IpcbusError as error:
        os.write(writing, str(error).encode())
    finally:
        if not pid:
            os._exit(0)
    assert "begin one here" in os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    with database.begin() as session:
        assert code.count(session) == 1


# ---------------------------------------------------------------------- servers that go away


def test_a_server_that_dropped_its_connections(postgresql: str | None, code: Any) -> None:
    config = DatabaseConfig(url=needs(postgresql), connections=1)
    database, other = Database(config), Database(config)
    with database.begin() as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with other.begin() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    while backends(other):
        time.sleep(0.01)
    with database.begin() as session:
        assert session.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid
    database.close()
    other.close()


# ---------------------------------------------------------------------- configuration


@given(st.integers(1, 64), st.integers(0, 1000))
def test_the_ceiling_is_divided_and_none_is_left_over(processes: int, more: int) -> None:
    shares = divide(processes + more, processes)
    assert sum(shares) == processes + more
    assert len(shares) == processes
    assert 1 <= min(shares) <= max(shares) <= min(shares) + 1


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: divide(2, 3), "fewer than the 3 service processes"),
        (lambda: DatabaseConfig(connections=0), "connections must be at least 1"),
        (lambda: DatabaseConfig(timeout=0), "timeout must be more than 0"),
        (lambda: Database(DatabaseConfig(url="sqlite://")), "in memory"),
        (lambda: Database(DatabaseConfig(url="sqlite:///:memory:")), "in memory"),
        (lambda: Database(DatabaseConfig(url="sqlite:///file::memory:?cache=shared&uri=true")), "in memory"),
        (lambda: Database(DatabaseConfig(url="sqlite:///file:name?mode=memory&uri=true")), "in memory"),
        (lambda: Database(DatabaseConfig(url="no url")), "cannot be read"),
        (lambda: Database(DatabaseConfig(url="$IPCBUS_NO_SUCH_VARIABLE")), "is not set"),
        (lambda: Database(DatabaseConfig(url="nosuch://host/name")), "no SQLAlchemy dialect is called 'nosuch'"),
        (lambda: Database(DatabaseConfig(url="mysql+pymysql://host/name")), "needs a driver that is not installed"),
    ],
)
def test_what_is_wrong_is_named(make: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()


def test_a_relative_file_is_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DatabaseConfig().beside(tmp_path).url == f"sqlite:///{tmp_path}/ipcbus.db"
    assert DatabaseConfig(url="sqlite:////srv/x.db").beside(tmp_path).url == "sqlite:////srv/x.db"
    assert DatabaseConfig(url="postgresql://u:p@h/d").beside(tmp_path).url == "postgresql://u:p@h/d"
    assert DatabaseConfig(url="$URL").beside(tmp_path).url == "$URL"
    uri = Database(DatabaseConfig(url="sqlite:///file:x.db?mode=rwc&uri=true").beside(tmp_path))
    with uri.begin():
        assert (tmp_path / "x.db").exists()
    uri.close()
    monkeypatch.setenv("IPCBUS_TEST_URL", "postgresql+psycopg://me:secret@host/name")
    shown = repr(Database(DatabaseConfig(url="$IPCBUS_TEST_URL")))
    assert "host/name" in shown
    assert "secret" not in shown


def test_a_variable_is_read_where_the_database_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where it arrives: what a fork server makes has the environment that this began with."""
    monkeypatch.setenv("IPCBUS_TEST_URL", f"sqlite:///{tmp_path}/one.db")
    sent = pickle.dumps(Database(DatabaseConfig(url="$IPCBUS_TEST_URL")))
    monkeypatch.setenv("IPCBUS_TEST_URL", f"sqlite:///{tmp_path}/another.db")
    arrived = pickle.loads(sent)
    with arrived.begin():
        assert [file.name for file in tmp_path.glob("*.db")] == ["one.db"]
    arrived.close()


def test_a_closed_one_opens_again(database: Database, code: Any) -> None:
    before = database.engine
    database.close()
    database.close()
    with database.begin() as session:
        code.write(session, "again")
    assert database.engine is not before


# ---------------------------------------------------------------------- a whole server


def test_services_have_a_database(tmp_path: Path, programs: Any) -> None:
    config = ServerConfig(
        services={"notes": ServiceConfig("database_programs:Notes")},
        front=FrontConfig(bind="127.0.0.1:0", processes=1),
        transport="pipe:",
        database=DatabaseConfig(url=f"sqlite:///{tmp_path}/notes.db", connections=2),
    )
    with Server(config) as server, connect(f"ws://{server.address}/notes", proxy=None) as ws:
        for number in range(1, 4):
            ws.send("a note")
            assert ws.recv(PATIENCE) == str(number)
        os.kill(server.pids["notes"], signal.SIGKILL)
        assert note(server) >= 4  # what was written before is still there


def note(server: Server) -> int:
    """Write a note, and again until a service is there that answers; return how many there are."""
    deadline = Deadline(PATIENCE)
    while True:
        try:
            with connect(f"ws://{server.address}/notes", proxy=None) as ws:
                ws.send("another")
                return int(ws.recv(2))
        except (WebSocketException, OSError):
            assert not deadline.expired


def test_a_server_needs_a_connection_for_each_service(tmp_path: Path) -> None:
    (tmp_path / "app.toml").write_text(
        '[services.a]\nfactory = "x:A"\n[services.b]\nfactory = "x:B"\n[database]\nurl = "sqlite:///x.db"\nconnections = 1'
    )
    config = load_server_config(tmp_path / "app.toml")
    assert config.database is not None
    assert config.database.url == f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(ConfigError, match="fewer than the 2 service processes"):
        Server(config).start()
