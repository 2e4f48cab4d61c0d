"""What cannot travel and what to do instead: the table behind :mod:`ipcbus.explain`.

Types are recognised by the names along their MRO, so nothing has to be imported to know about it. Only what pickle has
already refused is looked up here; a type that is missing from the table still gets pickle's own words.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Advice", "advise", "advise_name", "peek", "rebuilding", "say", "short_repr", "swallows", "type_name"]

_LONGEST_REPR = 60


class Advice(NamedTuple):
    """Why something cannot travel, and what to do about it."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """``whole``: the parts of such an object are nobody's business, it is the culprit itself."""

    what: str
    remedy: str
    whole: bool = False
    describe: Callable[[Any], str] | None = None

    def advice(self, obj: object) -> Advice:
        detail = self.describe(obj) if self.describe is not None else ""
        return Advice(f"{self.what}{detail and ' ' + detail} cannot travel", self.remedy)


def peek(obj: object, attribute: str, default: Any = None) -> Any:
    """Read an attribute of an object that may be hostile; ``default`` when it has none or raises."""
    try:
        return getattr(obj, attribute, default)
    except Exception:  # noqa: BLE001  an explanation must not fail because of a property that does
        return default


def short_repr(obj: object) -> str:
    """Say what an object is in at most 60 characters, even if its ``repr`` raises."""
    try:
        text = repr(obj)
    except Exception:  # noqa: BLE001  the repr of somebody else's object may do anything
        text = f"<{type_name(type(obj))}>"
    return text if len(text) <= _LONGEST_REPR else text[: _LONGEST_REPR - 3] + "..."


def type_name(cls: type) -> str:
    """Name a type as ``module.qualname``, without ``builtins.``."""
    module, name = peek(cls, "__module__"), peek(cls, "__qualname__", "?")
    return str(name) if module in (None, "builtins") else f"{module}.{name}"


def _file(obj: object) -> str:
    name = peek(obj, "name")
    return short_repr(name) if isinstance(name, (str, bytes, int)) else ""


def _name(obj: object) -> str:
    name = peek(obj, "name")
    return short_repr(name) if isinstance(name, str) else ""


def _module(obj: object) -> str:
    return short_repr(peek(obj, "__name__"))


def _short_type(obj: object) -> str:
    return str(peek(type(obj), "__qualname__", ""))


def _own_type(obj: object) -> str:
    return type_name(type(obj))


_KEEP_OUT = "leave it out in __getstate__ and make a new one in __setstate__"
_IN_CHILD = "start it in the process that uses it, and send it work over a channel"
_BY_CHANNEL = "use an ipcbus Channel, which travels, or hand it to the child through Process(args=...)"
_FUTURE = "wait for it here and send its result"
_AS_LIST = "send list(...) of it"
_PATH = "send the path and open it on the other side"
_FILE = _PATH + ", or send ipcbus.OpenFile(file) over a private channel"
_SHARED = (
    "multiprocessing.synchronize.SemLock multiprocessing.synchronize.Condition multiprocessing.synchronize.Event "
    "multiprocessing.synchronize.Barrier multiprocessing.sharedctypes.SynchronizedBase multiprocessing.heap.Arena"
)
_DATABASE = "send what is needed to connect (the URL) and connect on the other side, after the process has started"

_TABLE: tuple[tuple[str, _Rule], ...] = (
    ("_io.BytesIO _io.StringIO", _Rule("closed in-memory file", "send its getvalue() before closing it")),
    ("_io._IOBase tempfile._TemporaryFileWrapper", _Rule("open file", _FILE, whole=True, describe=_file)),
    ("mmap.mmap", _Rule("memory map", "send the file's path and map it on the other side")),
    ("posix.DirEntry posix.ScandirIterator", _Rule("directory entry", "send its .path")),
    (
        "socket.socket _socket.socket",
        _Rule("socket", "send the address and connect on the other side, or send the socket over a private channel"),
    ),
    (
        "multiprocessing.connection._ConnectionBase multiprocessing.connection.Listener",
        _Rule("multiprocessing Connection", "send it over a private channel of this machine, or send a Channel instead"),
    ),
    ("_thread.lock _thread.LockType _thread.RLock threading._RLock", _Rule("thread lock", _KEEP_OUT, whole=True)),
    (
        "threading.Condition threading.Event threading.Semaphore threading.Barrier _thread._local",
        _Rule("threading", _KEEP_OUT, whole=True, describe=_short_type),
    ),
    ("threading.Thread", _Rule("thread", _IN_CHILD, whole=True, describe=_name)),
    ("queue.Queue _queue.SimpleQueue", _Rule("thread queue", "use an ipcbus Channel, which travels", whole=True)),
    ("builtins.generator", _Rule("generator", _AS_LIST + ", or send the items one by one with send_many()")),
    (
        "builtins.coroutine builtins.async_generator_asend builtins.coroutine_wrapper",
        _Rule("coroutine", "await it here and send the result", describe=_name),
    ),
    ("builtins.async_generator", _Rule("async generator", "send the items one by one, or [x async for x in it]")),
    ("builtins.frame builtins.traceback", _Rule("live stack", "send traceback.format_exc(), which is a text")),
    ("builtins.code", _Rule("code object", "send the function's name, or choose serializer='cloudpickle'")),
    ("builtins.module", _Rule("module", "send its __name__ and import it on the other side", describe=_module)),
    (
        "weakref.ReferenceType weakref.ProxyType weakref.CallableProxyType",
        _Rule("weak reference", "send the object itself, or a key to look it up by", whole=True),
    ),
    (
        "weakref.WeakValueDictionary weakref.WeakKeyDictionary",
        _Rule("mapping of weak references", "send dict(...) of it", whole=True),
    ),
    ("builtins.memoryview", _Rule("memoryview", "send bytes(view), or pickle.PickleBuffer(view) to avoid the copy")),
    ("builtins.mappingproxy", _Rule("read-only mapping", "send dict(...) of it")),
    ("builtins.dict_keys builtins.dict_values builtins.dict_items", _Rule("dict view", _AS_LIST)),
    ("_contextvars.Context", _Rule("context", "send dict(context) with the variables' names as keys")),
    ("_contextvars.ContextVar", _Rule("context variable", "send the value of get()")),
    (
        "builtins.property builtins.staticmethod builtins.classmethod builtins.super",
        _Rule("part of a class", "leave it out in __getstate__"),
    ),
    (
        "logging.Handler",
        _Rule("logging handler", "configure logging on the other side; loggers travel, by name", whole=True),
    ),
    (
        "logging.Logger",
        _Rule("logger", "make it with logging.getLogger(name), then it travels by name", describe=_name),
    ),
    (
        "multiprocessing.queues.Queue multiprocessing.queues.SimpleQueue",
        _Rule("multiprocessing queue", _BY_CHANNEL, whole=True),
    ),
    (
        _SHARED,
        _Rule(
            "multiprocessing",
            "hand it to the child through Process(args=...)",
            whole=True,
            describe=_short_type,
        ),
    ),
    (
        "multiprocessing.pool.Pool multiprocessing.process.BaseProcess multiprocessing.managers.BaseManager",
        _Rule("process handle", "send its pid, or a channel to talk to it", whole=True, describe=_own_type),
    ),
    (
        "multiprocessing.process.AuthenticationString",
        _Rule("authentication key", "it is a secret: let each side read its own"),
    ),
    (
        "_asyncio.Task _asyncio.Future asyncio.tasks.Task asyncio.futures.Future concurrent.futures._base.Future",
        _Rule("future", _FUTURE, whole=True, describe=_own_type),
    ),
    (
        "asyncio.base_events.BaseEventLoop uvloop.loop.Loop",
        _Rule("event loop", "call asyncio.get_running_loop() on the other side", whole=True),
    ),
    (
        "asyncio.streams.StreamReader asyncio.streams.StreamWriter asyncio.transports.BaseTransport",
        _Rule("asyncio stream", "send the address and connect on the other side", whole=True),
    ),
    (
        "concurrent.futures.thread.ThreadPoolExecutor concurrent.futures.process.ProcessPoolExecutor",
        _Rule("executor", _IN_CHILD, whole=True, describe=_own_type),
    ),
    ("subprocess.Popen", _Rule("running subprocess", "send its pid", whole=True)),
    (
        "_ctypes._CData ctypes.CDLL",
        _Rule("C pointer", "send the data it points to: an address means nothing there", whole=True),
    ),
    ("re.Match", _Rule("regular expression match", "send match.groups() or match.groupdict()")),
    (
        "_ssl._SSLContext ssl.SSLContext",
        _Rule("TLS context", "send the certificates' paths and make it on the other side"),
    ),
    (
        "_tkinter.tkapp tkinter.Misc",
        _Rule("tkinter widget", "send the values it shows", whole=True, describe=_own_type),
    ),
    ("_hashlib.HASH _hashlib.HMAC", _Rule("running hash", "send its digest()")),
    ("sqlite3.Connection sqlite3.Cursor sqlite3.Blob", _Rule("database connection", _DATABASE, describe=_own_type)),
)
_RULES = {name: rule for names, rule in _TABLE for name in names.split()}

_DATABASE_PACKAGES = frozenset(
    {"MySQLdb", "aiosqlite", "asyncpg", "duckdb", "oracledb", "psycopg", "psycopg2", "psycopg_pool", "pymongo"}
    | {"pymysql", "pyodbc", "redis", "sqlalchemy"}
)
_DATABASE_WORDS = ("Connection", "Cursor", "Engine", "Session", "Pool", "Client", "Redis", "cursor", "connection")
_BY_PACKAGE = {
    **dict.fromkeys(_DATABASE_PACKAGES, _Rule("database connection", _DATABASE, whole=True, describe=_own_type)),
    "zmq": _Rule("ZeroMQ object", "send the endpoint and connect on the other side", whole=True, describe=_own_type),
}


def _find(cls: type) -> tuple[type, _Rule] | None:
    for base in cls.__mro__[:-1]:
        module, name = peek(base, "__module__"), peek(base, "__qualname__")
        rule = _RULES.get(f"{module}.{name}")
        if rule is None and isinstance(module, str) and isinstance(name, str):
            package = module.partition(".")[0]
            if package in _DATABASE_PACKAGES and not any(word in name for word in _DATABASE_WORDS):
                continue
            if package == "google" and ("Repeated" in name or name.endswith("Map")):
                rule = _Rule("protobuf container", "send the message it belongs to, or list(...) or dict(...) of it")
            else:
                rule = _BY_PACKAGE.get(package)
        if rule is not None:
            return base, rule
    return None


def swallows(cls: type) -> bool:
    """Tell whether an object of this type that cannot travel is one culprit, whatever is inside it."""
    found = _find(cls)
    return found is not None and found[1].whole


def advise(obj: object, text: str, raiser: FrameType | None = None) -> Advice:
    """Say why ``obj`` was refused and what to do.

    Args:
        obj: what pickle refused.
        text: the error's type and text, as from :func:`say`.
        raiser: the outermost frame of the object's own code in the error's traceback, if it got that far.
    """
    found = _find(type(obj))
    if found is not None and (raiser is None or _package(raiser.f_globals.get("__name__")) == _package(found[0].__module__)):
        return found[1].advice(obj)
    if raiser is not None:
        where = raiser.f_code.co_qualname
        return Advice(f"its own {where}() raised {text}", f"correct {where}(), or leave this part out in __getstate__")
    return Advice(
        f"{type_name(type(obj))} cannot travel ({text})", "leave it out in __getstate__, or give its class a __reduce__"
    )


def advise_name(obj: object, name: str | None, text: str) -> Advice:
    """Say why a function, a class or another thing pickled by its name cannot be found under that name."""
    qualified = str(name or peek(obj, "__qualname__") or peek(obj, "__name__") or "?")
    function = isinstance(obj, FunctionType)
    kind = "function" if function else "class" if issubclass(type(obj), type) else type_name(type(obj))
    if function and qualified.endswith("<lambda>"):
        return Advice(
            "a lambda cannot travel: it has no name to find it by",
            "write a def at module level, or use serializer='cloudpickle'",
        )
    if "<locals>" in qualified:
        return Advice(
            f"local {kind} {qualified!r} cannot travel",
            f"move the {kind} to module level, or choose serializer='cloudpickle'",
        )
    module = peek(obj, "__module__")
    where = f"{module}.{qualified}"
    if not isinstance(module, str) or module not in sys.modules:
        return Advice(f"{kind} {where} cannot travel: {text}", "define it in a module that can be imported")
    other: Any = sys.modules[module]
    for part in qualified.split("."):
        other = peek(other, part, _NOWHERE)
    if other is _NOWHERE:
        return Advice(
            f"{kind} {where} cannot travel: there is no such name",
            "bind it to that name, or correct its __module__ and __qualname__",
        )
    if other is not obj:
        return Advice(
            f"{kind} {where} cannot travel: that name is another object, {short_repr(other)}",
            "give each its own name; what replaces it (a decorator, a reload) hides it from the other side",
        )
    return Advice(f"{kind} {where} cannot travel: {text}", "send something it can be looked up by")


_NOWHERE = object()


# Looked for in "Type: text", first match wins. The texts are CPython's; where one changes, the last remedy still holds.
_DECODE_REMEDIES = (
    (("__main__",), "move it out of the script into a module that both sides import"),
    (("ModuleNotFoundError",), "install the module on the other side, or put it on PYTHONPATH there"),
    (
        ("AttributeError: Can't get attribute", "ImportError", "AttributeError: module"),
        "define it at the top level of its module: what is made at run time does not exist in a fresh process",
    ),
    (
        ("TypeError",),
        "give it a __reduce__ with the arguments its constructor wants (an exception: pass all to super().__init__())",
    ),
    (("RecursionError",), "send the parts as a flat list, linked by their index in it"),
)


def rebuilding(text: str) -> str:
    """Say what to do about an object that was pickled and cannot be rebuilt elsewhere; nothing where that is not known.

    Args:
        text: the error's type and text, as from :func:`say`.
    """
    return next((remedy for words, remedy in _DECODE_REMEDIES if any(word in text for word in words)), "")


def _package(module: object) -> str:
    return str(module).partition(".")[0]


def say(error: BaseException) -> str:
    """Name an error's type and its text, even if its ``__str__`` raises."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  an exception's own __str__ may raise
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
