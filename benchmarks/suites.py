"""What the suites measure: every installed transport and every peer that can take part, on every kind of object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ipcbus.bench.channels import ChannelCarrier, able_serializers, installed
from ipcbus.bench.foreign import PEERS
from ipcbus.bench.messages import KINDS, Message, say_bytes
from ipcbus.bench.plan import ALL_SIZES, Wish, make_plan
from ipcbus.bench.report import crowded

if TYPE_CHECKING:
    from _pytest.mark.structures import MarkDecorator

    from ipcbus.bench.carriers import Carrier
    from ipcbus.bench.case import Case

__all__ = ["ALL_SIZES", "KINDS", "Wish", "each", "every_serializer", "group", "name"]


def carriers() -> list[tuple[Carrier, str]]:
    """Return all that is installed, channels first."""
    channels: list[tuple[Carrier, str]] = [(ChannelCarrier(url), "auto") for url in installed()[0]]
    return channels + [(peer, "auto") for peer in PEERS.values() if peer.missing() is None]


def each(*wishes: Wish) -> MarkDecorator:
    """Parametrize a test by the cases of wishes."""
    cases = [case for wish in wishes for case in make_plan(wish, carriers()).cases]
    return pytest.mark.parametrize("case", cases, ids=name)


def every_serializer(kinds: tuple[str, ...], sizes: tuple[int, ...]) -> MarkDecorator:
    """Parametrize a test by every transport and every serializer that brings each kind of object back."""
    cases = []
    for kind in kinds:
        wish = Wish(("one-way",), kind, sizes)
        able = able_serializers(Message(kind, 64).make())
        channels: list[tuple[Carrier, str]] = [(ChannelCarrier(url, each), each) for url in installed()[0] for each in able]
        cases += make_plan(wish, channels).cases
    return pytest.mark.parametrize("case", cases, ids=name)


def name(case: Case) -> str:
    """Return what a case is called in the report of pytest."""
    crowd = f" {case.senders}>{case.receivers}" if case.senders + case.receivers > 2 else ""
    return f"{case.name}{crowd} {case.message.kind} {say_bytes(case.message.size or 0)}"


def group(case: Case) -> str:
    """Return what a case is compared within."""
    return f"{crowded(case)}: {case.message.label}"
