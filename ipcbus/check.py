"""Whether an object can be sent, and rebuilt by a process that knows nothing yet: the engine of ``ipcbus check``.

What pickles here may still be impossible to unpickle there: a class of ``__main__``, a class made at run time, an
exception whose ``__init__`` wants more than it keeps. Only a fresh interpreter can tell, so one is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ConfigError
from ipcbus.explain import Culprit, explain, lines
from ipcbus.options import nearest
from ipcbus.remedies import rebuilding, say, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Report", "check", "locate"]

# Inside a function, so that __main__ over there stays as empty as another program's. What the decoded object's modules
# print while they are imported goes to stderr: stdout carries the verdict.
_ELSEWHERE = """
def main():
    import os, sys
    verdict = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import importlib, json
    request = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    sys.path[:] = request["path"]
    try:
        if request["authkey"]:
            from multiprocessing.process import current_process
            current_process().authkey = bytes.fromhex(request["authkey"])
        module, _, name = request["decode"].partition(":")
        decode = importlib.import_module(module)
        for part in name.split("."):
            decode = getattr(decode, part)
        decode(data)
        result = None
    except BaseException as error:
        try:
            text = str(error)
        except Exception:
            text = ""
        result = [type(error).__name__, text]
    json.dump(result, verdict)
    verdict.flush()
    os._exit(0)
main()
"""

_ROOT = re.compile(r"\Aobj\b")
_OTHERWISE = "make its __setstate__ or __reduce__ work in a process in which nothing has been set up yet"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one object: ``ok`` when it was encoded here and decoded in a fresh interpreter.

    ``size`` is that of the encoded object in bytes, ``None`` if it could not be encoded. ``equal`` says whether what
    was decoded compares equal to the original, ``None`` where ``==`` only compares identity or gives no plain answer;
    it does not decide over ``ok``.
    """

    target: str
    type_name: str
    size: int | None = None
    culprits: tuple[Culprit, ...] = ()
    decode_error: str | None = None
    remedy: str = ""
    equal: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether the object arrives."""
        return not self.culprits and self.decode_error is None

    def __str__(self) -> str:
        if self.culprits:
            return "\n".join([f"{self.target} ({self.type_name}) cannot travel:", *lines(self.culprits)])
        head = f"{self.target} ({self.type_name}), {self.size} bytes"
        if self.decode_error is not None:
            return f"{head}, cannot be rebuilt in another process: {self.decode_error} -> {self.remedy}"
        return f"{head}, travels" + (", but what arrives is not equal to it" if self.equal is False else "")


def check(
    target: str,
    *,
    timeout: float = 30.0,
    encode: Callable[[object], bytes] | None = None,
    decode: str = "pickle:loads",
) -> Report:
    """Import an object, encode it, and decode it in a fresh interpreter.

    The interpreter gets this process's ``sys.path``, environment and working directory, nothing of its ``__main__``.

    Args:
        target: ``module:object``; the object may be dotted. A function or a method that needs no arguments is taken
            as a factory: it is called and its result is checked. Classes, coroutine functions and other callables are
            checked themselves.
        timeout: seconds the fresh interpreter may take.
        encode: makes the bytes; pickle protocol 5 unless given. If it raises an error with ``culprits``, those
            are reported, else those that :func:`~ipcbus.explain.explain` finds.
        decode: ``module:function`` that turns the bytes back into the object.

    Raises:
        ConfigError: ``target`` cannot be imported, or its factory failed.
    """
    obj, path = _load(target)
    kind = type_name(type(obj))
    encode = encode or _pickled
    try:
        data = encode(obj)
    except SystemExit as error:  # which would end this process, too, and perhaps as if all were well
        reason = f"exits when it is encoded ({say(error)})"
        remedy = "have its __reduce__ or __getstate__, or those of what is in it, raise an error instead"
        return Report(target, kind, culprits=(Culprit(path, kind, reason, remedy),), remedy=remedy)
    except Exception as error:  # noqa: BLE001  the verdict is made of whatever is raised
        culprits = tuple(_culprits(obj, path, error))
        return Report(target, kind, culprits=culprits, remedy=culprits[0].remedy)
    failure = _decode_elsewhere(data, decode, timeout)
    if failure is not None:
        return Report(target, kind, len(data), decode_error=failure[0], remedy=failure[1])
    return Report(target, kind, len(data), equal=_compare(obj, encode, decode))


def _pickled(obj: object) -> bytes:
    return pickle.dumps(obj, 5)


def _culprits(obj: object, path: str, error: Exception) -> Sequence[Culprit]:
    # A channel does not know what is called how here: to it, the root is "obj".
    told = [replace(culprit, path=_ROOT.sub(lambda _: path, culprit.path)) for culprit in getattr(error, "culprits", ())]
    found = told or explain(obj, name=path).culprits
    # An encoder may know rules that pickle does not have.
    return found or [Culprit(path, type_name(type(obj)), say(error), "send something this encoder accepts")]


def locate(target: str) -> tuple[Any, str]:
    """Import what ``module:object`` names and return it with the part behind the colon; raises ``ConfigError``."""
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise ConfigError(f"{target!r} must read module:object, for example 'shop.jobs:example'")
    try:
        obj: Any = importlib.import_module(module_name)
    except SystemExit as error:  # as above
        advice = "put what it does when it is run under: if __name__ == '__main__'"
        raise ConfigError(f"{target!r}: {module_name!r} exits when it is imported ({say(error)}); {advice}") from error
    except Exception as error:
        raise ConfigError(f"{target!r}: cannot import {module_name!r}: {say(error)}") from error
    for part in path.split("."):
        try:
            obj = getattr(obj, part)
        except AttributeError as error:
            names = [name for name in dir(obj) if not name.startswith("__")]
            raise ConfigError(f"{target!r}: there is no {part!r}; {nearest(part, names)}") from error
    return obj, path


def _load(target: str) -> tuple[Any, str]:
    obj, path = locate(target)
    if not _is_factory(obj):
        return obj, path
    try:
        return obj(), f"{path}()"
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{target!r}: calling it failed: {say(error)}") from error


def _is_factory(obj: object) -> bool:
    if not inspect.isroutine(obj) or inspect.iscoroutinefunction(obj):
        return False
    try:
        parameters = inspect.signature(obj).parameters.values()
    except (TypeError, ValueError):
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in optional for p in parameters)


def _decode_elsewhere(data: bytes, decode: str, timeout: float) -> tuple[str, str] | None:
    """Return what failed there and the remedy, or ``None``."""
    asked = {"path": [str(entry) for entry in sys.path], "decode": decode, "authkey": _authkey()}
    request = json.dumps(asked).encode() + b"\n"
    # -P: the working directory must not shadow the modules that the script itself imports.
    process = subprocess.Popen(  # noqa: S603  our own interpreter and our own script
        [sys.executable, "-P", "-c", _ELSEWHERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            answer, noise = process.communicate(request + data, timeout)
        except BaseException as error:
            # The whole session: a process it started would hold the pipes open, and with them this call.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return f"not decoded after {timeout:g} s", "look for what its import or __setstate__ waits for"
            raise
    try:
        failure = json.loads(answer)
    except ValueError:
        return _death(process.returncode, noise), _OTHERWISE
    if failure is None:
        return None
    text = ": ".join(part for part in failure if part)
    return text, rebuilding(text) or _OTHERWISE


def _authkey() -> str:
    """Return what a child of this process would inherit: without it, descriptors are not handed over."""
    process = sys.modules.get("multiprocessing.process")
    return process.current_process().authkey.hex() if process else ""


def _death(code: int, noise: bytes) -> str:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = noise.decode(errors="replace").strip().rpartition("\n")[2]
    return f"the fresh interpreter died ({how}){last and ': ' + last}"


def _compare(obj: Any, encode: Callable[[object], bytes], decode: str) -> bool | None:
    own: object = type(obj).__eq__
    if own is object.__eq__:
        return None
    module, _, path = decode.partition(":")
    try:
        # Encoded once more: a message with descriptors in it can be decoded once.
        answer = obj == operator.attrgetter(path)(importlib.import_module(module))(encode(obj))
    except Exception:  # noqa: BLE001  an __eq__ that raises gives no answer, and this is only information
        return None
    return answer if isinstance(answer, bool) else None
