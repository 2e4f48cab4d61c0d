"""What is known of a channel of a bus, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["ChannelFacts"]


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """One channel of a bus at one moment; see :meth:`ipcbus.Bus.channels`."""

    name: str
    url: str
    """Without its options."""
    transport: str
    """The scheme."""
    capacity: int
    users: tuple[int, ...]
    """The processes that have it open, by pid."""
    taps: tuple[int, ...]
    """The processes that have copies sent to them."""
    depth: int | None
    """Messages sent and not received; None once a receiver was killed that may have taken some with it."""
    sent: int
    """Messages, by all processes so far, those that have ended included."""
    received: int
    """The same."""
    moment: float
    """When this was so, in seconds of the machine's monotonic clock."""
    sent_per_second: float | None = None
    """Between two moments; None if it was looked at once."""
    received_per_second: float | None = None
    """The same."""

    def since(self, earlier: ChannelFacts) -> ChannelFacts:
        """Return the same with the rates since an earlier moment."""
        seconds = self.moment - earlier.moment
        if seconds <= 0:
            return self
        return replace(
            self,
            sent_per_second=max(0, self.sent - earlier.sent) / seconds,
            received_per_second=max(0, self.received - earlier.received) / seconds,
        )
