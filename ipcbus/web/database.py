"""Database: SQLAlchemy as the processes of a server use it, each with connections of its own and all under one ceiling.

A :class:`Database` is a value: it pickles, and opens itself in whichever process uses it. No connection ever crosses a
fork: a child that inherited one opens its own, and a transaction that was open at the fork is refused in the child.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ipcbus.errors import ConfigError, IpcbusError
from ipcbus.plumbing import forks
from ipcbus.plumbing.clock import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection, Engine, MetaData
    from sqlalchemy.orm import Session

__all__ = ["Database", "DatabaseConfig", "divide"]

P = ParamSpec("P")
R = TypeVar("R")

_READ_ONLY = "ipcbus_read_only"
_CREATING = 0x6970636275733A31
"""The number of the lock that PostgreSQL keeps for us while tables are made."""
_SECONDS_TO_KEEP = 1800
"""After so many seconds a connection is replaced: firewalls forget those that are idle for long."""


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """The table ``[database]``."""

    url: str = "sqlite:///ipcbus.db"
    """As SQLAlchemy writes it: ``sqlite:///file.db``, ``postgresql+psycopg://user@host/name``. A relative file is beside the
    configuration file. ``$NAME`` is the environment variable, so that a password need not be in a file."""
    connections: int = 20
    """Connections of all service processes together, at most."""
    timeout: float = 5.0
    """Seconds that a transaction waits for one of them, and with SQLite for another process's transaction to end."""

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: a number is out of range.
        """
        if self.connections < 1:
            raise ConfigError(f"database: connections must be at least 1, not {self.connections}")
        if self.timeout <= 0:
            raise ConfigError(f"database: timeout must be more than 0 seconds, not {self.timeout:g}")

    def beside(self, folder: str | os.PathLike[str]) -> DatabaseConfig:
        """Return the same with a relative SQLite file in this folder."""
        if self.url.startswith("$"):
            return self
        url = _parse(self.url)
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            return self
        uri = "file:" if url.database.startswith("file:") else ""
        found = url.set(database=uri + os.fspath(Path(folder).resolve() / url.database.removeprefix(uri)))
        return replace(self, url=found.render_as_string(hide_password=False))


def divide(total: int, processes: int) -> list[int]:
    """Divide a ceiling of connections among processes, as evenly as it goes.

    Raises:
        ConfigError: there are fewer connections than processes.
    """
    if total < processes:
        raise ConfigError(f"database: connections = {total} are fewer than the {processes} service processes; give each one")
    share, rest = divmod(total, processes)
    return [share + (number < rest) for number in range(processes)]


class Database:
    """A database, and this process's share of the connections to it.

    Args:
        config: where it is.
        connections: how many this process may have; None: all that the configuration allows.

    Raises:
        ConfigError: the URL makes no sense or its driver is not installed, or it is a SQLite database in memory, of which each
            process would have its own.
    """

    def __init__(self, config: DatabaseConfig, connections: int | None = None) -> None:
        url = _url(config.url)
        _find_driver(url)  # so that a mistake is told here, and not by each process that uses it
        # Read now: the environment of the processes that it is passed to may be that of a fork server which began long ago.
        self._config = replace(config, url=url.render_as_string(hide_password=False))
        self._connections = config.connections if connections is None else connections
        self._own: _Own | None = None
        _hook()
        in_memory = not url.database or ":memory:" in url.database or url.query.get("mode") == "memory"
        if url.get_backend_name() == "sqlite" and in_memory:
            raise ConfigError("database: each process would have a SQLite database in memory for itself; name a file")

    @classmethod
    def shares(cls, config: DatabaseConfig, processes: int) -> list[Database]:
        """Return one for each of several processes, that share the configured ceiling; raises ``ConfigError``."""
        return [cls(config, share) for share in divide(config.connections, processes)]

    @contextmanager
    def begin(self, *, read_only: bool = False) -> Iterator[Session]:
        """Have a transaction inside: committed at its end, rolled back when an exception leaves it. From any thread.

        Waits while all connections of this process are in use; in a coroutine use ``run``, which does not keep the event
        loop from running.

        Args:
            read_only: the transaction only reads; with SQLite it then waits for nobody.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: as the statements do; ``TimeoutError`` if no connection becomes free in time.
            IpcbusError: this process was forked inside the transaction, and it is the parent's.
        """
        from sqlalchemy.orm import Session

        pid = os.getpid()
        session = Session(self.engine, expire_on_commit=False)
        try:
            options = {"postgresql_readonly": True} if read_only else {}
            session.connection(execution_options={_READ_ONLY: read_only, **options})
            yield session
            _refuse_forked(pid)
            session.commit()
        finally:
            if os.getpid() == pid:
                session.close()  # which rolls back what was not committed
            else:
                _inherited.append(session)  # closing it would speak on the parent's connection

    async def run(
        self,
        function: Callable[Concatenate[Session, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call ``function(session, ...)`` in a transaction, in a thread, and return what it returns.

        The event loop goes on meanwhile. If the call is cancelled, a transaction that has begun runs to its end nevertheless.

        Raises:
            Exception: what the function raises, after a rollback; and what ``begin`` raises.
        """
        return await self._in_thread(lambda session: function(session, *args, **kwargs), read_only=False)

    async def read(
        self,
        function: Callable[Concatenate[Session, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Do as ``run``, in a transaction that only reads."""
        return await self._in_thread(lambda session: function(session, *args, **kwargs), read_only=True)

    def create_all(self, metadata: MetaData) -> None:
        """Make the tables that do not exist yet. Several processes may do that at the same time."""
        with self.begin() as session:
            connection = session.connection()
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATING})")
            metadata.create_all(connection)

    @property
    def engine(self) -> Engine:
        """This process's engine, for what :meth:`begin` does not do. Made at first use, anew in each process."""
        return self._mine().engine

    @property
    def connections(self) -> int:
        """How many connections this process has at most."""
        return self._connections

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones. Wait for transactions that ``run`` has begun."""
        with _lock:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Database, (self._config, self._connections)

    def __repr__(self) -> str:
        url = _parse(self._config.url).render_as_string(hide_password=True)
        return f"<ipcbus.web.Database {url}, at most {self._connections} connections>"

    async def _in_thread(self, function: Callable[[Session], R], *, read_only: bool) -> R:
        def work() -> R:
            with self.begin(read_only=read_only) as session:
                return function(session)

        begun = self._mine().threads().submit(work)
        done = asyncio.wrap_future(begun)
        try:
            await asyncio.wait((done,), timeout=self._config.timeout)
        except asyncio.CancelledError:
            done.cancel()  # it does not begin then, if it has not
            raise
        if begun.cancel():
            from sqlalchemy.exc import TimeoutError as NoneFree

            raise NoneFree(
                f"none of this process's {self._connections} connections became free within {self._config.timeout:g} seconds; "
                "make transactions shorter, or 'connections' in [database] more"
            )
        return await done

    def _mine(self) -> _Own:
        own = self._own
        if own is not None and own.pid == os.getpid():
            return own
        with _lock:
            own = self._own
            if own is None or own.pid != os.getpid():
                if own is not None:
                    own.close()
                own = self._own = _Own(self._config, self._connections)
            return own


class _Own:
    """What one process has open."""

    def __init__(self, config: DatabaseConfig, connections: int) -> None:
        self.pid = os.getpid()
        self.engine = _engine(config, connections)
        self._connections = connections
        self._threads: ThreadPoolExecutor | None = None

    def threads(self) -> ThreadPoolExecutor:
        """Return threads for transactions, as many as there are connections."""
        with _lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._connections, thread_name_prefix="ipcbus-database")
            return self._threads

    def close(self) -> None:
        """Let go of everything."""
        if self.pid != os.getpid():
            _inherited.append(self)  # its connections are the parent's: closing them here would close them there
            return
        if self._threads is not None:
            self._threads.shutdown()
        self.engine.dispose()


_lock = threading.Lock()
_inherited: list[Any] = []
"""What a forked process must neither use nor collect."""


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  another thread of the parent may have held it
    _lock = threading.Lock()


@functools.cache
def _hook() -> None:
    """Have forks noticed from here on; importing this has no effect."""
    forks.in_child(_after_fork)


def _refuse_forked(pid: int) -> None:
    if os.getpid() != pid:
        raise IpcbusError(
            f"this transaction was begun by process {pid}, of which this one is a fork, and its connection is that one's; "
            "begin one here"
        )


# ---------------------------------------------------------------------- engines


def _parse(url: str) -> URL:
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise ConfigError("a database needs SQLAlchemy; run: pip install 'ipcbus[db]'") from error
    try:
        return make_url(url)
    except ArgumentError as error:
        raise ConfigError("database: url cannot be read; write sqlite:///file.db or postgresql+psycopg://host/name") from error


def _url(text: str) -> URL:
    if not text.startswith("$"):
        return _parse(text)
    found = os.environ.get(text[1:])
    if not found:
        raise ConfigError(f"database: url = {text!r} names an environment variable that is not set")
    return _parse(found)


def _find_driver(url: URL) -> None:
    """Make sure that there is what speaks to such a database; raises ``ConfigError``."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        create_engine(url, poolclass=NullPool)  # which opens nothing
    except NoSuchModuleError as error:
        raise ConfigError(f"database: no SQLAlchemy dialect is called {url.drivername!r}") from error
    except ImportError as error:
        raise ConfigError(f"database: {url.drivername} needs a driver that is not installed: {error}") from error


def _engine(config: DatabaseConfig, connections: int) -> Engine:
    url = _parse(config.url)
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import QueuePool

    is_sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=config.timeout,
        pool_recycle=-1 if is_sqlite else _SECONDS_TO_KEEP,
        pool_pre_ping=not is_sqlite,  # a server may have been started again
        connect_args={"timeout": config.timeout, "check_same_thread": False} if is_sqlite else {},
    )
    event.listen(engine, "connect", _connected)
    event.listen(engine, "before_cursor_execute", _before)
    if is_sqlite:
        event.listen(engine, "connect", functools.partial(_set_up_sqlite, config.timeout))
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connected(_: Any, record: Any) -> None:
    record.info["pid"] = os.getpid()


def _before(connection: Connection, *_: Any) -> None:
    _refuse_forked(connection.info["pid"])


def _set_up_sqlite(timeout: float, connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the module would begin transactions by rules of its own; _begin_sqlite does
    _use_wal(connection, Deadline(timeout))
    for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any, deadline: Deadline) -> None:
    """Switch the file to WAL. SQLite waits for nobody there: of several processes that begin, all but one are refused."""
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if deadline.expired:
                raise
            connection.execute("BEGIN IMMEDIATE")  # but here it does
            connection.execute("ROLLBACK")
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """Begin so that a transaction that writes waits for the one before it, and cannot fail for having read first."""
    read_only = bool(connection.get_execution_options().get(_READ_ONLY))
    if connection.info.get(_READ_ONLY, False) != read_only:
        connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only)}")
        connection.info[_READ_ONLY] = read_only
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
