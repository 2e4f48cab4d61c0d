"""Errors as replies: what travels of one, and what is made of that."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

from ipcbus.errors import RemoteError

__all__ = ["describe", "remote_error"]


def describe(error: BaseException) -> tuple[str, str, str, bytes | None]:
    """Return what an error is when it travels: type, text, traceback, and itself if it pickles."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception as failed:  # noqa: BLE001  an error may do anything; who asked is to be told in any case
        text = f"(its text cannot be had: {type(failed).__name__})"
    try:
        itself = pickle.dumps(error)
    except Exception:  # noqa: BLE001  as above; its text travels
        itself = None
    return name, text, "".join(traceback.format_exception(error)), itself


def remote_error(said: Any) -> Exception:
    """Make the error that a reply brings. Its ``__cause__`` is the one that was raised, if its class is known here."""
    name, text, trace, itself = said
    error = RemoteError(f"{name}: {text}" if text else name, name, trace)
    if itself is not None:
        try:
            error.__cause__ = pickle.loads(itself)
        except Exception:  # noqa: BLE001  its class may not exist here; what it says is in the text
            error.__cause__ = None
    return error
