"""Which transport a URL means, and what ``auto:`` means here."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from ipcbus.errors import ConfigError, TransportUnavailable, UnknownTransport, Unsupported
from ipcbus.options import URL, is_scheme, parse_url
from ipcbus.plumbing.fds import loading
from ipcbus.registry import Registry, lacking
from ipcbus.transport import Capabilities, Guarantees, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["best", "select", "transports"]

AUTO = "auto"


def _validate(name: str, thing: object) -> str | None:
    if not (isinstance(thing, type) and issubclass(thing, Transport)):
        return f"{thing!r} is not a Transport class"
    if lacks := lacking(thing, "scheme", "capabilities", "guarantees", "options"):
        return lacks
    if thing.scheme != name:
        return f"its class is for scheme {thing.scheme!r}"
    if name == AUTO or not is_scheme(name):
        return "no URL can name it; a scheme is a small letter, then small letters, digits, '+', '.' and '-', and not 'auto'"
    for attribute, kind in (("capabilities", Capabilities), ("guarantees", Guarantees)):
        if not isinstance(value := getattr(thing, attribute), kind):
            return f"its {attribute} are {value!r}, not an ipcbus.transport.{kind.__name__}"
    options: object = thing.options
    if not (is_dataclass(options) and isinstance(options, type)):
        return f"its options are {options!r}, not a dataclass; where it has none, they are ipcbus.transport.NoOptions"
    return None


transports: Registry[type[Transport]] = Registry(
    "ipcbus.transports", "transport", UnknownTransport, TransportUnavailable, _validate
)
"""Every transport of this process, by scheme."""


def select(url: URL, wishes: Mapping[str, Any]) -> tuple[type[Transport], URL]:
    """Find the transport of a URL.

    Args:
        url: as the user wrote it; ``auto:`` is looked up in the configuration first.
        wishes: options given beside the URL, for choosing a transport that can fulfil them.

    Returns:
        The transport, and the URL with the configuration's scheme, address and options under those of ``url``.

    Raises:
        UnknownTransport: nobody provides the scheme.
        TransportUnavailable: what it needs is not installed.
        Unsupported: ``auto:`` found no transport that can do what is asked.
    """
    if url.scheme != AUTO:
        return transports.get(url.scheme), url
    if url.address:
        raise ConfigError(f"auto: takes no address, but {str(url)!r} has one; name the transport")
    with loading("the configuration"):
        from ipcbus.config import configured_transport, who_configures

    chosen = configured_transport()
    if chosen is not None:
        try:
            given = parse_url(chosen)
            if given.scheme != AUTO:
                return transports.get(given.scheme), URL(given.scheme, given.address, {**given.options, **url.options})
        except (ConfigError, UnknownTransport, TransportUnavailable) as error:  # of a URL that the program does not have
            raise type(error)(f"auto: is {chosen!r}, says {who_configures()}: {error}") from error
        url = URL(AUTO, "", {**given.options, **url.options})
    transport = best({**url.options, **wishes})
    return transport, URL(transport.scheme, "", url.options)


def best(wishes: Mapping[str, Any]) -> type[Transport]:
    """Return the installed transport that ``auto:`` picks when no configuration says which; raises ``Unsupported``."""
    usable = []
    for name in transports:
        try:
            usable.append(transports.get(name))
        except (TransportUnavailable, ConfigError):
            continue  # auto: picks from what works here; asked for by name, what does not says why
    fitting = [
        transport
        for transport in usable
        if transport.preference > 0
        and (wishes.get("receivers") != "many" or transport.capabilities.many_receivers)
        and (wishes.get("overflow") != "drop_old" or transport.capabilities.drops_old)
    ]
    if not fitting:
        raise Unsupported(f"no installed transport can do what is asked of auto: ({dict(wishes)})")
    return max(fitting, key=lambda transport: transport.preference)
