"""Which nested parts of an object cannot travel, and what to do about each.

::

    >>> print(explain(job, name="job"))
    job.client.stream: open file 'x.log' cannot travel -> send the path and open it on the other side

Paths read as Python would write them: ``.attribute``, ``['key']``, ``[0]``. Two places have no expression in Python and
are written in braces: ``tags{member <X>}`` is a member of a set, ``table{key <X>}`` is a key of a dict. A part that an
object only produces while it is pickled is written as the call that produces it: ``obj.__getstate__()['x']``,
``obj.__reduce_ex__(5)[1][0]``, ``reduce_it(obj)[1][0]``.

The graph is walked breadth first by the rules of pickle protocol 5, with a queue in place of recursion: what is reached
by two ways is reported once, by its shortest path, and an object may be nested as deep as it likes.
"""

from __future__ import annotations

import copyreg
import io
import operator
import pickle
import sys
from collections import deque
from dataclasses import dataclass
from itertools import islice
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from ipcbus.paths import GETSTATE, REDUCE_EX, Call, Link, Step, ancestry, path_of
from ipcbus.plumbing.fds import packing
from ipcbus.remedies import Advice, advise, advise_name, peek, say, short_repr, swallows, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from types import FrameType

__all__ = ["Culprit", "Explanation", "explain", "lines"]

_PROTOCOL = 5
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, type(...), type(NotImplemented)})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_MOST_LINES = 25
_MOST_MADE = 1 << 14
"""Objects that came out of others' reductions and are taken apart themselves: what makes another of its kind has no end."""
_NEAR = 32
"""Links above an object in which it is looked for such a reduction."""

# Bound once: the walk names them for every object.
_ITEM, _ATTRIBUTE, _KEY, _MEMBER, _PART = Step.ITEM, Step.ATTRIBUTE, Step.KEY, Step.MEMBER, Step.PART


@dataclass(frozen=True, slots=True)
class Culprit:
    """One part that cannot travel: where it is, what it is, why it cannot, and what to do."""

    path: str
    type_name: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} -> {self.remedy}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every part of an object that cannot travel; iterates over its culprits.

    It has no truth value, which would be read both ways: ask ``travels``.
    """

    culprits: tuple[Culprit, ...] = ()
    name: str = "obj"

    @property
    def travels(self) -> bool:
        """Whether the object can be sent."""
        return not self.culprits

    def __bool__(self) -> bool:
        raise TypeError("an Explanation is neither true nor false; ask .travels or .culprits")

    def __iter__(self) -> Iterator[Culprit]:
        return iter(self.culprits)

    def __len__(self) -> int:
        return len(self.culprits)

    def __str__(self) -> str:
        if not self.culprits:
            return f"{self.name} can travel"
        if len(self.culprits) == 1:
            return str(self.culprits[0])
        return "\n".join([f"{self.name} cannot travel because of {len(self.culprits)} of its parts:", *lines(self.culprits)])


def lines(culprits: Sequence[Culprit]) -> list[str]:
    """Return a line for each culprit, and one for those that are too many to read."""
    shown = [f"  {culprit}" for culprit in culprits[:_MOST_LINES]]
    return [*shown, *([f"  ... and {len(culprits) - _MOST_LINES} more"] if len(culprits) > _MOST_LINES else [])]


def explain(obj: object, *, reducers: Mapping[type, Callable[[Any], Any]] | None = None, name: str = "obj") -> Explanation:
    """Find every part of an object that cannot be pickled, with its path, the reason and a remedy.

    Pickling runs code of the objects pickled (``__reduce_ex__``, ``__getstate__``); an object that travels is pickled
    once, and one that does not is asked a second time, part by part. Buffers are never copied, nothing is kept, no
    descriptor is handed over and no request given away.

    A ``multiprocessing`` Connection counts as a culprit although plain pickle accepts it: what arrives is a bare number
    that means nothing in another process.

    Args:
        obj: what is to be sent.
        reducers: how the channel's pickler reduces an object of exactly this type; one that raises makes its object a
            culprit, and the error's text the reason.
        name: what the paths begin with.

    Returns:
        The explanation. No error is raised for any object, however strange.
    """
    known = {**_refusals(), **(reducers or {})}
    walk = _Walk(obj, known, name)
    with packing():  # else descriptors would be duplicated and requests given away, and nobody receives them
        refusal = _trial(obj, known)
        if refusal is None:
            return Explanation((), name)
        walk.run()
    if refusal.too_deep and not walk.recursed:
        walk.blame_depth()
    if not walk.culprits:
        walk.blame(walk.root, advise(obj, refusal.text))
    return Explanation(tuple(walk.culprits), name)


def _refusals() -> dict[type, Callable[[Any], Any]]:
    # Nothing is imported for this: without the module there is no object of it to refuse.
    connection = getattr(sys.modules.get("multiprocessing.connection"), "Connection", None)
    return {} if connection is None else {connection: _refuse_connection}


def _refuse_connection(_connection: Any) -> Any:
    raise pickle.PicklingError("a file descriptor's number means nothing in another process")


class _Sink(io.RawIOBase):
    """Where a trial pickle goes: nowhere, so that a large object is not held twice."""

    def write(self, data: Any) -> int:
        return len(data)


class _Trial(pickle.Pickler):
    """The C pickler, writing to nowhere, with reducers that win over pickling by name."""

    def __init__(self, reducers: Mapping[type, Callable[[Any], Any]]) -> None:
        super().__init__(_Sink(), _PROTOCOL, buffer_callback=_out_of_band)
        self.dispatch_table = {**copyreg.dispatch_table, **reducers}


class _TrialByValue(_Trial):
    """Pickle never asks its dispatch table about functions and classes, only this hook."""

    def __init__(self, reducers: Mapping[type, Callable[[Any], Any]]) -> None:
        super().__init__(reducers)
        self._reducers = reducers

    def reducer_override(self, obj: Any) -> Any:
        reducer = self._reducers.get(type(obj))
        return NotImplemented if reducer is None else reducer(obj)


class _TrialByName(_Trial):
    """Pickles one object by a given name, the way a ``__reduce__`` that returned this text would have it."""

    def __init__(self, obj: object, name: str) -> None:
        super().__init__({})
        self._obj = obj
        self._name = name

    def reducer_override(self, obj: Any) -> Any:
        return self._name if obj is self._obj else NotImplemented


def _out_of_band(_buffer: pickle.PickleBuffer) -> None:
    """Take a buffer and drop it: ``None`` keeps it out of the pickle."""


class _Refusal(NamedTuple):
    """What is left of an error: the error itself would keep frames, and with them the object, alive in a cycle."""

    text: str
    too_deep: bool


def _trial(obj: object, reducers: Mapping[type, Callable[[Any], Any]]) -> _Refusal | None:
    by_value = FunctionType in reducers or type in reducers
    return _attempt(_TrialByValue(reducers) if by_value else _Trial(reducers), obj)


def _attempt(pickler: pickle.Pickler, obj: object) -> _Refusal | None:
    try:
        pickler.dump(obj)
    except Exception as error:  # noqa: BLE001  whatever the objects' own code raises is the answer
        return _Refusal(say(error), isinstance(error, RecursionError))
    return None


def _raiser(error: BaseException) -> FrameType | None:
    traceback = error.__traceback__ and error.__traceback__.tb_next
    return traceback and traceback.tb_frame


class _Walk:
    """One walk over the graph, in the order of distance from the root."""

    def __init__(self, obj: object, reducers: Mapping[type, Callable[[Any], Any]], name: str) -> None:
        self.reducers = reducers
        self.root: Link = (None, obj, Step.ROOT, name)
        self.culprits: list[Culprit] = []
        self.recursed = False
        self._made = 0
        self._endless: Link | None = None
        """What was not taken apart any more."""
        # Objects are kept as well as their ids: an id is only good while its object lives.
        self._seen: dict[int, object] = {id(obj): obj}
        self._queue: deque[Link] = deque([self.root])
        self._last = self.root
        self._kinds: dict[type, tuple[bool, bool]] = {}

    def run(self) -> None:
        queue = self._queue
        while queue:
            link = self._last = queue.popleft()
            try:
                self._visit(link, link[1])
            except Exception as error:  # noqa: BLE001  a metaclass may make even hashing a type raise; pickle stumbles too
                self.blame(link, advise(link[1], say(error)))

    def blame(self, link: Link, advice: Advice) -> None:
        self.culprits.append(Culprit(path_of(link), type_name(type(link[1])), advice.reason, advice.remedy))

    def blame_depth(self) -> None:
        if self._endless is not None:
            maker = next(link[0] for link in reversed([*ancestry(self._endless)]) if link[2] is _PART)
            reason = (
                f"pickling it has no end: of what comes out of it {_MOST_MADE} objects were taken apart, and there were more"
            )
            remedy = "correct the __getstate__ or __reduce__ that makes a new object each time it is asked"
            self.blame(maker, Advice(reason, remedy))
            return
        # Breadth first, the last object visited is one of the deepest.
        depth = sum(1 for _ in ancestry(self._last)) - 1
        reason = f"nested {depth} levels deep, which is more than pickle can follow"
        self.blame(self._last, Advice(reason, "send the parts as a flat list, linked by their index in it"))

    def _push(self, parent: Link, obj: Any, step: Step, key: Any) -> None:
        if type(obj) not in _ATOMS and id(obj) not in self._seen:
            self._seen[id(obj)] = obj
            self._queue.append((parent, obj, step, key))

    def _visit(self, link: Link, obj: Any) -> None:
        cls = type(obj)
        if cls in _CONTAINERS:
            self._contents(link, obj)
        elif (reducer := self.reducers.get(cls)) is not None:
            self._registered(link, obj, reducer)
        elif cls is FunctionType or cls is type:
            self._named(link, obj, None)
        elif (reducer := copyreg.dispatch_table.get(cls)) is not None:
            self._registered(link, obj, reducer)
        elif issubclass(cls, type):
            self._named(link, obj, None)
        elif cls is pickle.PickleBuffer:
            self._leaf(link, obj)
        else:
            self._reduced(link, obj)

    def _contents(self, link: Link, obj: Any, single: Step = _ITEM) -> None:
        if type(obj) is dict:
            # A copy, because another thread may be changing it.
            self._pairs(link, list(obj.items()), _ITEM)
            return
        step = _MEMBER if type(obj) in (set, frozenset) else single
        seen, queue = self._seen, self._queue
        for index, item in enumerate(tuple(obj)):
            # Written out rather than pushed: most of a large graph goes through these four lines.
            if type(item) not in _ATOMS and id(item) not in seen:
                seen[id(item)] = item
                queue.append((link, item, step, index))

    def _pairs(self, link: Link, pairs: list[tuple[Any, Any]], step: Step) -> None:
        seen, queue = self._seen, self._queue
        for key, value in pairs:
            if type(key) is not str:
                self._push(link, key, _KEY, None)
            if type(value) not in _ATOMS and id(value) not in seen:
                seen[id(value)] = value
                queue.append((link, value, step, key))

    def _named(self, link: Link, obj: Any, name: str | None) -> None:
        refusal = _attempt(_Trial({}) if name is None else _TrialByName(obj, name), obj)
        if refusal is not None:
            self.blame(link, advise_name(obj, name, refusal.text))

    def _leaf(self, link: Link, obj: Any) -> None:
        refusal = _attempt(_Trial({}), obj)
        if refusal is not None:
            self.blame(link, advise(obj, refusal.text))

    def _registered(self, link: Link, obj: Any, reducer: Callable[[Any], Any]) -> None:
        try:
            value = reducer(obj)
        except Exception as error:  # noqa: BLE001  what a reducer raises is why its object stays here
            advice = advise(obj, say(error))
            if reducer is not _refuse_connection and self.reducers.get(type(obj)) is reducer:
                advice = Advice(say(error), advice.remedy)
            self._raised(link, error, advice)
            return
        self._reduction(link, obj, value, Call(f"{peek(reducer, '__name__', 'reducer')}(", ")"))

    def _reduced(self, link: Link, obj: Any) -> None:
        cls = type(obj)
        if cls not in self._kinds:
            plain = _reduces_plainly(cls) and _inherits(cls, "__getstate__")
            self._kinds[cls] = plain, plain and swallows(cls)
        plain, whole = self._kinds[cls]
        if whole:
            refusal = _trial(obj, self.reducers)
            if refusal is not None:
                self.blame(link, advise(obj, refusal.text))
            return
        try:
            value = obj.__reduce_ex__(_PROTOCOL)
        except Exception as error:  # noqa: BLE001  what an object's own code raises is why it cannot travel
            self._raised(link, error)
            return
        if plain and len(value[1]) == 1 and value[3] is value[4] is None:
            # By far the most common object: copyreg.__newobj__(cls), then its attributes.
            self._push(link, cls, _ATTRIBUTE, "__class__")
            self._state(link, obj, value[2], None)
        else:
            self._reduction(link, obj, value, None if plain else REDUCE_EX)

    def _reduction(self, link: Link, obj: Any, value: Any, call: Call | None) -> None:
        """Follow what a reduction holds; ``call`` is ``None`` for what :class:`object` itself produces."""
        if isinstance(value, str):
            self._named(link, obj, value)
            return
        if any(step is _PART for _, _, step, _ in islice(ancestry(link), _NEAR)):
            self._made += 1
            if self._made > _MOST_MADE:
                self._endless = self._endless or link
                return
        problem = None if call is None else _malformed(value)
        if problem is not None:
            self.blame(link, Advice(f"its reduction is not one pickle knows: {problem}", "correct its __reduce__"))
            return
        func, args, state, items, pairs, setter = (*value, None, None, None, None)[:6]
        try:
            listed = () if items is None else list(items)
            paired = [] if pairs is None else [(key, item) for key, item in pairs]
        except Exception as error:  # noqa: BLE001  iterating is the object's own code again
            self._raised(link, error)
            return
        self._built(link, obj, func, args, call)
        self._contents(link, listed)
        self._pairs(link, paired, _ITEM)
        self._state(link, obj, state, call)
        self._push(link, setter, _PART, (call, 5))

    def _built(self, link: Link, obj: Any, func: Any, args: tuple[Any, ...], call: Call | None) -> None:
        """Follow the function and the arguments that make the bare object."""
        cls = type(obj)
        self._push(link, func, _PART, (call, 0))
        for argument in args:
            # A set's or a Counter's constructor takes a plain copy of its contents, better shown as its own.
            if issubclass(cls, dict) and type(argument) is dict and _same(dict.values(obj), argument.values()):
                self._contents(link, argument)
            elif issubclass(cls, (set, frozenset)) and type(argument) is list and _same(_members(obj), argument):
                self._contents(link, argument, _MEMBER)
        self._push(link, args, _PART, (call, 1))

    def _state(self, link: Link, obj: Any, state: Any, call: Call | None) -> None:
        if call is None:
            # The instance dict, or a pair of it and the values of the slots.
            for part in state if type(state) is tuple else (state,):
                if type(part) is dict:
                    self._pairs(link, list(part.items()), _ATTRIBUTE)
                elif part is not None:
                    self._push(link, part, _ATTRIBUTE, "__dict__")
        elif call is REDUCE_EX and _reduces_plainly(type(obj)):
            self._push(link, state, _PART, (GETSTATE, None))
        else:
            self._push(link, state, _PART, (call, 2))

    def _raised(self, link: Link, error: Exception, advice: Advice | None = None) -> None:
        self.recursed = self.recursed or isinstance(error, RecursionError)
        self.blame(link, advice or advise(link[1], say(error), _raiser(error)))


def _same(own: Collection[object], others: Collection[object]) -> bool:
    return len(own) == len(others) and all(map(operator.is_, own, others))


def _members(obj: Any) -> list[object]:
    # Not list(obj): a subclass may have an __iter__ of its own.
    return list((set if issubclass(type(obj), set) else frozenset).__iter__(obj))


def _reduces_plainly(cls: type) -> bool:
    return _inherits(cls, "__reduce_ex__") and _inherits(cls, "__reduce__")


def _inherits(cls: type, method: str) -> bool:
    return getattr(cls, method) is getattr(object, method)


def _malformed(value: Any) -> str | None:
    if isinstance(value, str):
        return None
    if not isinstance(value, tuple) or not 2 <= len(value) <= 6:
        return f"a text or a tuple of 2 to 6 is wanted, not {short_repr(value)}"
    if not callable(value[0]):
        return f"{short_repr(value[0])} cannot be called"
    if not isinstance(value[1], tuple):
        return f"the arguments must be a tuple, not {short_repr(value[1])}"
    return None
