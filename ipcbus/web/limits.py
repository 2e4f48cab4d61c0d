"""Limits: how much a client may ask of a server. Rules without I/O; the time is an argument everywhere."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Bucket", "Doorman", "Limits", "client_address", "networks", "plain_address", "within"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may do. None is what the server's configuration says; 0 for a rate is no limit."""

    message: int | None = None
    """Bytes of a message; a larger one closes with 1009. Never more than the configuration's ``max_size``."""
    rate: float | None = None
    """Messages a second, on average. A client that sends faster is read more slowly, and closed with 4429 if it goes on."""
    burst: int | None = None
    """Messages that may come at once."""
    bytes: int | None = None
    """Bytes a second, on average; as much may come at once."""
    groups: int | None = None
    """Rooms that a connection may be in; one more closes it with 1008."""

    def check(self) -> None:
        """Raise ``ValueError`` if one is no number that is at least 0, or no whole one where something is counted."""
        for name, value in self.given().items():
            kinds = (int, float) if name in ("rate", "bytes") else (int,)
            if type(value) not in kinds:
                raise ValueError(f"{name} must be a{' whole' * (len(kinds) == 1)} number, not {value!r}")
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value!r}")

    def given(self) -> dict[str, float]:
        """Return those that are not None, by name."""
        return {name: value for name in self.__dataclass_fields__ if (value := getattr(self, name)) is not None}


class Bucket:
    """A token bucket that can be overdrawn: holds ``burst`` tokens and gets ``rate`` a second.

    Args:
        rate: tokens a second; 0 means that there is no limit.
        burst: how many it holds; it begins full.
        now: seconds of any clock that never goes back.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = self._level = burst
        self._at = now

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take tokens, and return the seconds until there would have been enough; 0.0 if there were."""
        if not self._rate:
            return 0.0
        level = self._level
        self._level = min(max(level, self._burst), level + (now - self._at) * self._rate) - tokens
        self._at = now
        return self._wait()

    def make_up(self, seconds: float) -> float:
        """Add what so many seconds since the last ``take`` bring, beyond ``burst`` if need be, and return what that would now.

        It is for a time in which nothing could be taken: what has come meanwhile is not too much for being there all at once.
        """
        self._level += seconds * self._rate
        self._at += seconds
        return self._wait()

    def _wait(self) -> float:
        return 0.0 if self._level >= 0 or not self._rate else -self._level / self._rate


class Doorman:
    """Decides who may come in, from the first byte of a connection on.

    Args:
        total: connections there may be, half-open ones included.
        half_open: connections that may be in their opening handshake.
        per_address: connections of one address; 0 is no limit.
        exempt: networks whose addresses are not counted.
        rate: connections accepted a second, on average; 0 is no limit.
        burst: connections that may come at once.
        now: seconds of any clock that never goes back.
    """

    def __init__(
        self, *, total: int, half_open: int, per_address: int, exempt: Iterable[str], rate: float, burst: int, now: float
    ) -> None:
        self._total = total
        self._most_half_open = half_open
        self._per_address = per_address
        self._exempt = networks(exempt)
        self._bucket = Bucket(rate, burst, now)
        self._addresses: Counter[str] = Counter()
        self.inside = 0
        """Connections that there are."""
        self.half_open = 0
        """Those of them that are in their opening handshake."""

    def knock(self, address: str, now: float, *, proxied: bool = False) -> str | None:
        """Let a connection begin, or return the reason why not; what was let in has to ``leave``.

        Args:
            address: where it comes from.
            now: the time.
            proxied: whether that is a proxy, which has still to say who is behind it.
        """
        if self.inside >= self._total:
            return "full"
        if self.half_open >= self._most_half_open:
            return "half-open"
        if not proxied and not self._counts(address):
            return "address"
        if self._bucket.take(now) > 0:
            self._bucket.take(now, -1.0)  # who is turned away does not make the next one wait
            return "rate"
        self.inside += 1
        self.half_open += 1
        self._addresses[address] += 1
        return None

    def move(self, before: str, after: str) -> str | None:
        """Count a connection for another address: the one that a trusted proxy names. Return the reason if it may not."""
        if not self._counts(after, itself=before == after):
            return "address"
        self._addresses[after] += 1
        self._release(before)
        return None

    def opened(self) -> None:
        """Note that a handshake is over."""
        self.half_open -= 1

    def leave(self, address: str, *, half_open: bool) -> None:
        """Note that a connection has ended."""
        self.inside -= 1
        self.half_open -= half_open
        self._release(address)

    def _counts(self, address: str, *, itself: bool = False) -> bool:
        others = self._addresses[address] - itself
        return not self._per_address or others < self._per_address or within(address, self._exempt)

    def _release(self, address: str) -> None:
        self._addresses[address] -= 1
        if self._addresses[address] <= 0:
            del self._addresses[address]


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return networks given as ``10.0.0.0/8`` or as single addresses; raises ``ValueError`` for what is neither."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def plain_address(address: str) -> str:
    """Return an address, as IPv4 if that is what it stands for: a socket for both kinds says ``::ffff:192.0.2.1``."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None
    return address if mapped is None else str(mapped)


def client_address(peer: str, forwarded: Sequence[str], trusted: tuple[Network, ...]) -> str:
    """Return the address of the client behind proxies.

    Args:
        peer: who is connected.
        forwarded: the values of X-Forwarded-For. Each proxy appends who was connected to it, so they are read from the end,
            and only for as long as a trusted proxy wrote them.
        trusted: networks of the proxies that are believed.
    """
    if not within(peer, trusted):
        return peer
    hops = [plain_address(hop.strip()) for value in forwarded for hop in value.split(",")]
    for hop in reversed(hops):
        if not _is_address(hop):
            break
        peer = hop
        if not within(hop, trusted):
            break
    return peer


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def within(address: str, nets: tuple[Network, ...]) -> bool:
    """Tell whether an address belongs to one of some networks."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(parsed in net for net in nets)
