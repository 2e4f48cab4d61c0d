"""Peers that must be installed: pyzmq, and with the extra ``bench`` faster-fifo, iceoryx2 and pynng.

Each is used as its documentation shows it, and told the same capacity as a channel where it can be told. What is not bytes
is pickled for those that know bytes alone, as their users have to.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import pickle
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ipcbus.bench.carriers import Carrier, Ends, Room
from ipcbus.bench.peers import Copy, ManagerQueue, Peer, Pipe, PipeBytes, Proxy, Queue, SimpleQueue

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ICEORYX_PREFIX", "PEERS", "bare_of"]

_PATIENCE = 3600.0
"""Seconds for calls that must be told some; the measurement as a whole has a limit of its own."""
_NUMBERS = itertools.count()
_NNG_MOST = 8192
"""Messages that nng can be told to keep."""


class _Zmq(Peer):
    """A PUSH and a PULL socket over ``ipc://``.

    Senders live to the end of the measurement: when one goes, libzmq drops what its receiver has not read.
    """

    distribution = "pyzmq"
    module = "zmq"
    extra = "zmq"

    def _functions(self, socket: Any) -> tuple[Callable[[Any], object], Callable[[], Any]]:
        raise NotImplementedError

    def connect(self, room: Room) -> Ends:
        """Think of an address; the sockets are made in the processes that use them."""
        address = f"ipc://{room.place}/{next(_NUMBERS)}"

        def open_socket(kind: str) -> Any:
            zmq: Any = import_module("zmq")
            socket = zmq.Context.instance().socket(getattr(zmq, kind))
            socket.set_hwm(room.capacity)
            return socket

        def sender() -> Callable[[Any], object]:
            socket = open_socket("PUSH")
            socket.connect(address)
            return self._functions(socket)[0]

        def receiver() -> Callable[[], Any]:
            socket = open_socket("PULL")
            socket.bind(address)
            return self._functions(socket)[1]

        return Ends(sender, receiver)


class ZmqBytes(_Zmq):
    """pyzmq with ``send`` and ``recv``."""

    name = "pyzmq send"
    bytes_only = True

    def _functions(self, socket: Any) -> tuple[Callable[[Any], object], Callable[[], Any]]:
        return socket.send, socket.recv


class ZmqObjects(_Zmq):
    """pyzmq with ``send_pyobj`` and ``recv_pyobj``."""

    name = "pyzmq send_pyobj"

    def _functions(self, socket: Any) -> tuple[Callable[[Any], object], Callable[[], Any]]:
        return (lambda obj: socket.send_pyobj(obj, protocol=5)), socket.recv_pyobj


class FasterFifo(Peer):
    """faster-fifo with ``put`` and ``get``."""

    name = "faster-fifo"
    distribution = "faster-fifo"
    module = "faster_fifo"
    many_receivers = True

    def connect(self, room: Room) -> Ends:
        """Make a queue of a megabyte, which is its default, or of room for three large messages."""
        queue = import_module("faster_fifo").Queue(max_size_bytes=max(1_000_000, 3 * room.most))
        return Ends(lambda: lambda obj: queue.put(obj, timeout=_PATIENCE), lambda: self._getter(queue))

    def _getter(self, queue: Any) -> Callable[[], Any]:
        return lambda: queue.get(timeout=_PATIENCE)


class FasterFifoMany(FasterFifo):
    """faster-fifo with ``put`` and ``get_many``, which takes all that is there for the price of one."""

    name = "faster-fifo get_many"
    many_receivers = False  # one takes what is meant for the others, and the end could not be told

    def _getter(self, queue: Any) -> Callable[[], Any]:
        taken: list[Any] = []

        def get() -> Any:
            if not taken:
                taken.extend(queue.get_many(timeout=_PATIENCE))
                taken.reverse()
            return taken.pop()

        return get


class Nng(Peer):
    """pynng, a Push0 and a Pull0 socket over ``ipc://``."""

    name = "pynng"
    distribution = "pynng"
    module = "pynng"

    def connect(self, room: Room) -> Ends:
        """Think of an address; the sockets are made in the processes that use them."""
        address, depth = f"ipc://{room.place}/{next(_NUMBERS)}", min(room.capacity, _NNG_MOST)

        def sender() -> Callable[[Any], object]:
            socket = import_module("pynng").Push0(send_buffer_size=depth)
            socket.dial(address, block=False)
            return _pickling(socket.send, room)

        def receiver() -> Callable[[], Any]:
            socket = import_module("pynng").Pull0(recv_buffer_size=depth, recv_max_size=0)
            socket.listen(address)
            return _unpickling(socket.recv, room)

        return Ends(sender, receiver)


class Iceoryx(Peer):
    """iceoryx2, publish and subscribe of slices of bytes, lossless like the others.

    Its subscriber has no call that waits for a sample, so it asks again and again, and yields the processor in between.
    """

    name = "iceoryx2"
    distribution = "iceoryx2"
    module = "iceoryx2"

    def connect(self, room: Room) -> Ends:
        """Think of a name; the ports are made in the processes that use them."""
        name, depth = f"{room.place.name}-{next(_NUMBERS)}", min(64, room.capacity)

        def service() -> tuple[Any, Any, Any]:
            iox = import_module("iceoryx2")

            iox.set_log_level(iox.LogLevel.Fatal)
            config = iox.config.default()
            config.global_cfg.prefix = iox.FileName.new(ICEORYX_PREFIX.format(os.getsid(0)))
            config.global_cfg.root_path = iox.Path.new(str(room.place))
            node = iox.NodeBuilder.new().config(config).create(iox.ServiceType.Ipc)
            builder = node.service_builder(iox.ServiceName.new(name)).publish_subscribe(iox.Slice[ctypes.c_uint8])
            builder = builder.enable_safe_overflow(False).subscriber_max_buffer_size(depth)  # noqa: FBT003  its signature
            return iox, node, builder.max_publishers(room.senders).max_nodes(64).open_or_create()

        def sender() -> Callable[[Any], object]:
            iox, node, made = service()
            keep: list[Any] = [node]

            def open_port(first: int) -> Any:
                builder = made.publisher_builder().initial_max_slice_len(first)
                builder = builder.allocation_strategy(iox.AllocationStrategy.PowerOfTwo)
                port = builder.backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create()
                keep.append(port)
                return port

            def send(data: bytes) -> None:
                port = keep[1] if len(keep) > 1 else open_port(len(data))
                loan = port.loan_slice_uninit(len(data))
                ctypes.memmove(loan.payload_ptr, data, len(data))
                loan.assume_init().send()

            return _pickling(send, room)

        def receiver() -> Callable[[], Any]:
            _, node, made = service()
            keep = (node, made.subscriber_builder().buffer_size(depth).create())

            def recv() -> bytes:
                port = keep[1]
                while (sample := port.receive()) is None:
                    os.sched_yield()
                payload = sample.payload()
                data = ctypes.string_at(payload.data_ptr, payload.number_of_elements)
                sample.delete()
                return data

            return _unpickling(recv, room)

        return Ends(sender, receiver)


ICEORYX_PREFIX = "ipcbus_bench_{}_"
"""How iceoryx2 is to name what it makes in shared memory during a measurement; the number is the arena's session."""


def _pickling(send: Callable[[bytes], object], room: Room) -> Callable[[Any], object]:
    return send if room.raw else lambda obj: send(pickle.dumps(obj, 5))


def _unpickling(recv: Callable[[], bytes], room: Room) -> Callable[[], Any]:
    return recv if room.raw else lambda: pickle.loads(recv())


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Queue(), SimpleQueue(), Pipe(), PipeBytes(), ZmqBytes(), ZmqObjects(), FasterFifo(), FasterFifoMany(), Nng(), Iceoryx(),
        Copy(), ManagerQueue(), Proxy(),
    )
}  # fmt: skip
"""All of them, by name."""

_BARE = {"pipe": "multiprocessing.Pipe", "zmq": "pyzmq send_pyobj", "zmq+tcp": "pyzmq send_pyobj"}


def bare_of(carrier: Carrier) -> str:
    """Return the name of the peer that a channel is made of, or that it stands in for."""
    return _BARE.get(getattr(carrier, "scheme", ""), "multiprocessing.Queue")
