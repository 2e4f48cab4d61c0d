"""Metrics: what all processes of a server have counted, added up, for Prometheus to fetch from a port of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ipcbus.errors import ConfigError
from ipcbus.plumbing.deaf import deaf_threads
from ipcbus.web.reporter import added

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["Metrics", "MetricsConfig", "Source", "families", "registry"]

Kind = Literal["front", "service"]

LABELS = {"reasons": "reason", "codes": "code"}
"""What the entries of a table of counters are told apart by; ``kind`` for any other."""

HELP = {
    "opened": "Connections opened",
    "closed": "Connections closed",
    "received": "Messages received from clients",
    "sent": "Messages written to clients",
    "refused": "Connections and opening handshakes refused",
    "reasons": "Connections and opening handshakes refused, by reason",
    "codes": "Connections closed, by close code",
    "slow": "Connections cut because too much waited for them",
    "messages": "Messages handled",
    "published": "Messages published to rooms",
    "handler_failures": "Handlers that raised an exception",
    "bad_messages": "Messages that the codec could not read",
    "nonsense": "Batches of a link, and what is in them, that made no sense",
    "connections": "Connections open now",
    "waiting_bytes": "Bytes that wait in front ends for clients that read slowly",
    "waiting_events": "Events that wait for service processes, or there for their handlers",
    "waiting_commands": "Commands of service processes that wait for front ends",
}
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The table ``[metrics]``."""

    bind: str = "127.0.0.1:9464"
    """``host:port`` where Prometheus fetches them; port 0 picks a free one."""

    def address(self) -> tuple[str, int]:
        """Return host and port; raises ``ConfigError``."""
        host, colon, port = self.bind.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"metrics: bind = {self.bind!r} must read host:port, with a port below 65536")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Source:
    """One process of a server."""

    name: str
    kind: Kind
    service: str = ""
    """Which service; several processes of one are added up."""


def families(
    sources: Iterable[Source], snapshots: Mapping[str, Mapping[str, Any]], pids: Mapping[str, int]
) -> Iterator[Metric]:
    """Make metrics of what the processes said last.

    Args:
        sources: the processes.
        snapshots: what each of them said, by name; see :mod:`ipcbus.web.reporter`.
        pids: those that run now, by name. What a process has *now* counts only while it runs.
    """
    from prometheus_client.core import GaugeMetricFamily

    sources = list(sources)
    for kind, labels in (("front", []), ("service", ["service"])):
        group: dict[str, dict[str, dict[str, Any]]] = {"counters": {}, "gauges": {}}
        for source in sources:
            if source.kind != kind:
                continue
            snapshot = snapshots.get(source.name, {})
            alive = source.name in pids and snapshot.get("pid") == pids[source.name]
            for what in ("counters", "gauges") if alive else ("counters",):
                sums = group[what]
                sums[source.service] = added(sums.get(source.service, {}), snapshot.get(what, {}))
        yield from _family(f"ipcbus_{kind}", labels, group["counters"], total=True)
        yield from _family(f"ipcbus_{kind}", labels, group["gauges"], total=False)
    up = GaugeMetricFamily("ipcbus_process_up", "Whether the process runs", labels=["process"])
    for source in sources:
        up.add_metric([source.name], float(source.name in pids))
    yield up
    yield from _processes(sources, snapshots, pids)


def _family(prefix: str, labels: list[str], sums: dict[str, dict[str, Any]], *, total: bool) -> Iterator[Metric]:
    """Make a metric of each name: one number for each service, or for each entry of a table."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    names = {name: value for values in sums.values() for name, value in values.items()}
    for name, example in sorted(names.items()):
        text = HELP.get(name, name.replace("_", " ").capitalize())
        table = isinstance(example, Mapping)
        family = (CounterMetricFamily if total else GaugeMetricFamily)(
            f"{prefix}_{name}", text, labels=[*labels, *([LABELS.get(name, "kind")] if table else [])]
        )
        for service, values in sums.items():
            own = [service] * len(labels)
            found = values.get(name, {} if table else 0)
            for key, number in sorted(found.items()) if table else [("", found)]:
                family.add_metric([*own, str(key)] if table else own, number)
        yield family


def _processes(sources: list[Source], snapshots: Mapping[str, Mapping[str, Any]], pids: Mapping[str, int]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    lag = GaugeMetricFamily(
        "ipcbus_process_loop_lag_seconds", "How late its event loop was when last looked at", labels=["process"]
    )
    starts = CounterMetricFamily("ipcbus_process_starts", "How often the process was started", labels=["process"])
    cpu = CounterMetricFamily("ipcbus_process_cpu_seconds", "Processor time of the running process", labels=["process"])
    memory = GaugeMetricFamily("ipcbus_process_resident_memory_bytes", "Memory of the running process", labels=["process"])
    for source in sources:
        starts.add_metric([source.name], snapshots.get(source.name, {}).get("starts", 0))
        try:
            stat = Path(f"/proc/{pids[source.name]}/stat").read_text().rpartition(")")[2].split()
        except (KeyError, OSError):
            continue  # it does not run
        cpu.add_metric([source.name], (int(stat[11]) + int(stat[12])) / _TICKS)
        memory.add_metric([source.name], int(stat[21]) * _PAGE)
        lag.add_metric([source.name], snapshots.get(source.name, {}).get("lag", 0.0))
    yield from (starts, cpu, memory, lag)


def registry(collect: Callable[[], Iterator[Metric]]) -> CollectorRegistry:
    """Make a registry that collects anew each time it is asked.

    Raises:
        ConfigError: prometheus-client is not installed.
    """
    try:
        from prometheus_client.registry import Collector, CollectorRegistry
    except ImportError as error:
        raise ConfigError("[metrics] needs prometheus-client; run: pip install 'ipcbus[web]'") from error

    class Ours(Collector):
        def collect(self) -> Iterator[Metric]:
            return collect()

        def describe(self) -> list[Metric]:
            return []  # or it would be collected now, to learn the names

    made = CollectorRegistry()
    made.register(Ours())
    return made


class Metrics:
    """Serves the metrics over HTTP from a thread of this process, until closed.

    Args:
        config: where.
        sources: the processes of the server.
        snapshots: returns what each of them said last.
        pids: returns those that run now.

    Raises:
        ConfigError: the address makes no sense or is taken.

    Attributes:
        url: where they are.
    """

    def __init__(
        self,
        config: MetricsConfig,
        sources: Iterable[Source],
        snapshots: Callable[[], Mapping[str, Mapping[str, Any]]],
        pids: Callable[[], Mapping[str, int]],
    ) -> None:
        known = list(sources)
        host, port = config.address()
        collected = registry(lambda: families(known, snapshots(), pids()))
        from prometheus_client import start_http_server

        try:
            with deaf_threads():
                self._server, self._thread = start_http_server(port, host, collected)
        except OSError as error:
            raise ConfigError(f"metrics: cannot listen at {config.bind}: {error.strerror or error}") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
