"""Configuration: TOML files, environment variables and mappings become frozen dataclasses.

What ``auto:`` means is, in this order: ``IPCBUS_TRANSPORT``; ``transport`` in the file named by ``IPCBUS_CONFIG``;
``transport`` in ``ipcbus.toml`` of the working directory; the best installed transport.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ipcbus.errors import ConfigError
from ipcbus.options import build

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Config", "configured", "configured_transport", "load", "load_file", "who_configures"]

T = TypeVar("T")

TRANSPORT_VARIABLE = "IPCBUS_TRANSPORT"
CONFIG_VARIABLE = "IPCBUS_CONFIG"
DEFAULT_FILE = "ipcbus.toml"


@dataclass(frozen=True, slots=True)
class BusConfig:
    """The table ``[bus]``."""

    address: str | None = None
    """The directory by which other processes find it; None is a new one."""
    strict: bool = False
    """Whether only the channels that the configuration names can be opened by name."""


@dataclass(frozen=True, slots=True)
class Config:
    """What ``ipcbus.toml`` may say for every program. Tables of the web server are read by :mod:`ipcbus.web`."""

    transport: str | None = None
    """The URL that ``auto:`` stands for."""
    bus: BusConfig = BusConfig()
    """How processes find each other."""
    channels: dict[str, Any] = field(default_factory=dict)
    """By name: the URL of a channel, or a table of ``url`` and what :func:`ipcbus.open` takes; ``"*"`` is every other name."""
    topics: dict[str, Any] = field(default_factory=dict)
    """By name or pattern: how the channels of subscribers are made, as for ``channels``; ``"*"`` is every other topic."""
    front: dict[str, Any] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)
    database: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


def load(cls: type[T], values: Mapping[str, Any], where: str = "configuration") -> T:
    """Make a configuration dataclass of a mapping.

    Raises:
        ConfigError: a key is unknown or a value is of the wrong type; names the key and the nearest right one.
    """
    return build(cls, values, where)


def load_file(cls: type[T], path: str | os.PathLike[str]) -> T:
    """Make a configuration dataclass of a TOML file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or says something wrong.
    """
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError; too deeply nested
        raise ConfigError(f"{os.fspath(path)}: is not valid TOML: {error}") from error
    return build(cls, values, os.fspath(path))


def configured_transport() -> str | None:
    """Return the URL that the environment or a configuration file gives for ``auto:``, or None.

    Raises:
        ConfigError: the file that is named or found is wrong.
    """
    if said := os.environ.get(TRANSPORT_VARIABLE):
        return said
    found = configured()
    return None if found is None else found.transport


def who_configures() -> str:
    """Return the name of the variable or of the file by which ``auto:`` is configured, where it is."""
    return TRANSPORT_VARIABLE if os.environ.get(TRANSPORT_VARIABLE) else os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE


def configured() -> Config | None:
    """Return the configuration of the file that ``IPCBUS_CONFIG`` names, else of ``ipcbus.toml`` here, None without one.

    Raises:
        ConfigError: the file that is named or found is wrong.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named or DEFAULT_FILE)
    there = os.path.lexists(path)
    if not there and not named:
        return None
    # A FIFO might never be written to, nor be there for the next channel, which looks again.
    if there and not os.path.isfile(path) and named != os.devnull:  # noqa: PTH113  that of a Path raises where this is a link to what may not be looked at
        advice = f"have {CONFIG_VARIABLE} name one" if named else f"remove it, or have {CONFIG_VARIABLE} name another"
        raise ConfigError(f"{path}: is no file that can be read; {advice}")
    return load_file(Config, path)
