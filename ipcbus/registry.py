"""Registries: things found by name, through entry points, only when asked for."""

from __future__ import annotations

import json
import os
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import unquote, urlsplit

from ipcbus.errors import ConfigError, IpcbusError
from ipcbus.options import nearest
from ipcbus.plumbing.fds import exhausted, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.metadata import Distribution, EntryPoint

__all__ = ["Registry", "lacking"]

T = TypeVar("T")


def lacking(cls: type, *attributes: str) -> str | None:
    """Return what a plugin's class lacks of these attributes and of the methods that it has to have; None if nothing."""
    missing = [name for name in attributes if not hasattr(cls, name)] + sorted(getattr(cls, "__abstractmethods__", ()))
    return f"its class lacks {', '.join(missing)}" if missing else None


class Registry(Generic[T]):
    """Names to things: what was registered here, and what installed distributions offer.

    Distributions are scanned once, at the first look-up of a name that was not registered. Nothing is overwritten
    silently.

    Args:
        group: the entry-point group.
        noun: what one entry is, for error messages (``"transport"``).
        unknown: the error for a name nobody provides.
        unavailable: the error for a name whose module cannot be imported because something is missing.
        validate: called with the name and the thing before it is accepted; returns what is wrong, or None.
    """

    def __init__(
        self,
        group: str,
        noun: str,
        unknown: type[IpcbusError],
        unavailable: type[IpcbusError],
        validate: Callable[[str, object], str | None],
    ) -> None:
        self._group = group
        self._noun = noun
        self._unknown = unknown
        self._unavailable = unavailable
        self._validate = validate
        self._things: dict[str, T] = {}
        self._found: dict[str, list[EntryPoint]] | None = None
        self._lock = threading.RLock()  # which a signal handler that opens a channel may have

    def get(self, name: str) -> T:
        """Return the thing of this name.

        Raises:
            UnknownTransport: (or UnknownSerializer) nobody provides it; the message says what is close.
            TransportUnavailable: (or SerializerUnavailable) it needs something that is not installed.
            ConfigError: the plugin is not what it claims to be, or two distributions claim the name.
            ChannelBroken: the system refused what it takes to look, or to load it: a descriptor, say.
        """
        thing = self._things.get(name)
        return self._load(name) if thing is None else thing

    def register(self, name: str, thing: T, *, replace: bool = False) -> None:
        """Add a thing under a name in this process.

        Args:
            name: what ``get`` will find it by.
            thing: must pass the registry's validation.
            replace: whether a name that is taken may be given to another thing.

        Raises:
            ConfigError: the name is taken, or the thing is not valid.
        """
        if wrong := self._validate(name, thing):
            raise ConfigError(f"{self._noun} {name!r}: {wrong}")
        with self._lock:
            taken = self._things.get(name)
            if taken is not None and taken is not thing and not replace:
                raise ConfigError(f"{self._noun} {name!r} is registered already, as {taken!r}; pass replace=True to replace it")
            self._things[name] = thing

    def names(self) -> list[str]:
        """Return every known name, sorted, whether or not it can be loaded."""
        return sorted({*self._things, *self._entry_points()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _load(self, name: str) -> T:
        entries = self._entry_points().get(name)
        if entries is None:
            raise self._unknown(f"no {self._noun} {name!r} is installed; {nearest(name, self.names())}")
        if len(entries) > 1:
            claims = " and ".join(f"{entry.dist.name if entry.dist else '?'} ({entry.value})" for entry in entries)
            raise ConfigError(
                f"{self._noun} {name!r} is offered by {claims}; uninstall one of them, or register the one you mean"
            )
        (entry,) = entries
        try:
            thing: T = entry.load()
        except ImportError as error:
            raise self._unavailable(f"{self._noun} {name!r} cannot be used: {error}{self._hint(name, entry)}") from error
        except Exception as error:
            if isinstance(error, OSError) and exhausted(error):
                raise refused(f"{self._noun} {name!r} cannot be loaded", error) from error
            # An import runs the plugin's own code, which may raise anything.
            raise ConfigError(
                f"{self._noun} {name!r}: its entry point {entry.value!r} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if wrong := self._validate(name, thing):
            raise ConfigError(f"{self._noun} {name!r} ({entry.value}): {wrong}")
        with self._lock:
            return self._things.setdefault(name, thing)

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        if self._found is None:
            try:
                from importlib.metadata import entry_points

                # To that, a folder for which there is no descriptor is an empty one, and remains so.
                os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
                entries = entry_points(group=self._group)
            except OSError as error:
                raise refused("what is installed cannot be looked through", error) from error
            found: dict[str, list[EntryPoint]] = {}
            for entry in entries:
                others = found.setdefault(entry.name, [])
                # One distribution can be seen twice, through two entries of the path: the same value is the same thing.
                if all(other.value != entry.value for other in others):
                    others.append(entry)
            self._found = found
        return self._found

    def _hint(self, name: str, entry: EntryPoint) -> str:
        """Say which pip command installs what is missing: by convention an extra has the name of what it enables."""
        distribution = entry.dist
        if distribution is None:
            return ""
        if (folder := _beside(distribution, entry.module)) is not None:
            return f"; try: pip install {shlex.quote(str(folder))}"
        extras = distribution.metadata.get_all("Provides-Extra") or []
        extra = next((extra for extra in (name, name.split("+", maxsplit=1)[0]) if extra in extras), None)
        return f"; try: pip install '{distribution.name}[{extra}]'" if extra else ""


def _beside(distribution: Distribution, module: str) -> Path | None:
    """Return the folder in which a module's own distribution lies in the checkout that this one was installed from.

    pip notes where that is; a registry of packages need not have what lies there.
    """
    said = distribution.read_text("direct_url.json")
    origin = json.loads(said) if said else {}
    if "dir_info" not in origin:
        return None
    checkout = Path(unquote(urlsplit(origin["url"]).path))
    return next((found.parent for found in checkout.glob(f"*/{module}/pyproject.toml")), None)
