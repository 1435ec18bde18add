"""A River model as numbers and words, and back, bit for bit; no pickle.

    model ─► its objects in the order in which they are met ─► of each a record: kind, how many words, the words
             words [n] int64, bytes [k] uint8, strings ─► the same objects, each of them once

What an object is made of it says itself, as for pickle (``__reduce_ex__``, which covers what is compiled). On the way
back nothing is called but what stands here: the classes of those parts of River that classifiers are made of, the
constructors that Cython made for them, containers, random generators and numpy arrays.

Generators of distributions without a seed are left out: they only serve to draw samples, which no classifier does.
"""

import copyreg
import random
import struct
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from river.proba.base import Distribution
from river.utils.math import minkowski_distance

from streamkd.api import StateError

CONSTANT, INTEGER, FLOAT, STRING, BYTES, NAME, FROZEN, FILLED, MAPPING, ARRAY, RANDOM, OBJECT = range(12)
CONSTANTS = (None, False, True)
# fmt: off
PARTS = frozenset((
    "base", "compose", "drift", "ensemble", "forest", "linear_model", "metrics", "multiclass", "naive_bayes",
    "neighbors", "optim", "preprocessing", "proba", "stats", "tree", "utils",
))
# fmt: on
CONSTRUCTOR = "__pyx_unpickle_"
NAMED: dict[str, Any] = {
    f"{thing.__module__}.{thing.__qualname__}": thing
    for thing in (bool, int, float, str, list, dict, set, frozenset, tuple, Counter, OrderedDict, defaultdict, deque)
} | {"functools.partial": partial, "river.utils.math.minkowski_distance": minkowski_distance}
NAMES = {thing: name for name, thing in NAMED.items()}


def encode(model: Any) -> dict[str, Any]:
    """The state of a model: tensors and a list of strings.

    Raises:
        StateError: an object of a kind that could not be brought back; it is named.
    """
    writer = _Writer()
    writer.place(model)
    for thing in writer.found():
        writer.write(thing)
    return {
        "words": torch.from_numpy(np.frombuffer(writer.words, dtype=np.int64).copy()),
        "bytes": torch.from_numpy(np.frombuffer(writer.bytes, dtype=np.uint8).copy()),
        "strings": list(writer.strings),
    }


def decode(state: Mapping[str, Any]) -> Any:
    """The model of a state.

    Raises:
        StateError: the state names what no model is made of, or is broken.
    """
    try:
        return _Reader(state).model()
    except Exception as fault:  # what is compiled refuses a state in ways of its own
        raise StateError(f"a River model cannot be read: {fault}") from fault


class _Writer:
    """Records of objects; ``place`` gives each the number of its record."""

    def __init__(self) -> None:
        self.words, self.bytes, self.strings = array("q"), bytearray(), dict[str, int]()
        self._places: dict[Any, int] = {}
        self._things: list[Any] = []  # also keeps alive what an object made for this look alone: ids stay its own

    def found(self) -> Iterator[Any]:
        """All objects, those that are found on the way too."""
        place = 0
        while place < len(self._things):
            yield self._things[place]
            place += 1

    def place(self, thing: Any) -> int:
        of = type(thing)
        key: Any = id(thing)
        if of in (bool, int, str, bytes) or thing is None:
            key = (of, thing)
        elif of is float:
            key = struct.pack("d", thing)  # 0.0 and -0.0 are two, and NaN is itself
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = len(self._things)
            self._things.append(thing)
        return found

    def write(self, thing: Any) -> None:
        kind, words = self._record(thing)
        self.words.extend((kind, len(words)))
        self.words.extend(words)

    def _record(self, thing: Any) -> tuple[int, Sequence[int]]:
        of = type(thing)
        if thing is None or of is bool:
            return CONSTANT, (CONSTANTS.index(thing),)
        if of is int:
            if not -(2**63) <= thing < 2**63:
                raise StateError(f"needed integers of 64 bits, got {thing}")
            return INTEGER, (thing,)
        if of is float:
            return FLOAT, struct.unpack("q", struct.pack("d", thing))
        if of is str:
            return STRING, (self._string(thing),)
        if of is bytes:
            return BYTES, self._stretch(thing)
        if of in (tuple, frozenset):
            return FROZEN, [self.place(of), *map(self.place, thing)]
        if of in (list, set, deque):
            limit = self.place(thing.maxlen if of is deque else None)
            return FILLED, [self.place(of), limit, *map(self.place, thing)]
        if of in (dict, OrderedDict, Counter, defaultdict):
            factory = self.place(thing.default_factory if of is defaultdict else None)
            pairs = [self.place(part) for pair in thing.items() for part in pair]
            return MAPPING, [self.place(of), factory, *pairs]
        if of is random.Random:
            _, numbers, gauss = thing.getstate()
            return RANDOM, [self.place(gauss), *numbers]
        if isinstance(thing, np.ndarray | np.generic):
            return ARRAY, self._array(thing)
        if (name := _name_of(thing)) is not None:
            return NAME, (self._string(name),)
        return OBJECT, self._object(thing)

    def _object(self, thing: Any) -> list[int]:
        """Who makes it, its arguments, and its state."""
        try:
            reduced = thing.__reduce_ex__(2)
        except TypeError as fault:
            raise StateError(f"{type(thing).__qualname__} does not say what it is made of: {fault}") from fault
        if isinstance(reduced, str) or any(part is not None for part in reduced[3:]):
            raise StateError(f"{type(thing).__qualname__} is more than its attributes")
        make, arguments, state = reduced[0], reduced[1], reduced[2] if len(reduced) > 2 else None
        if make is copyreg.__newobj__:  # type: ignore[attr-defined] # which every protocol since 2 names
            make, arguments = arguments[0], arguments[1:]
        if _name_of(make) is None:
            raise StateError(f"{type(thing).__module__}.{type(thing).__qualname__} is no part of a River classifier")
        if isinstance(thing, Distribution) and thing.seed is None and state is not None:
            state = {name: value for name, value in state.items() if name != "_rng"}
        return [self.place(make), self.place(arguments), self.place(state)]

    def _array(self, thing: Any) -> list[int]:
        if thing.dtype.kind not in "biuf":
            raise StateError(f"needed an array of numbers, got one of {thing.dtype}")
        scalar = int(isinstance(thing, np.generic))
        return [self._string(thing.dtype.str), scalar, *self._stretch(thing.tobytes()), *thing.shape]

    def _string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def _stretch(self, content: bytes) -> tuple[int, int]:
        self.bytes.extend(content)
        return len(self.bytes) - len(content), len(self.bytes)


class _Reader:
    """Objects of records: first all of them empty, then the containers are filled, then what has a state gets it."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._bytes, self._strings = state["bytes"].numpy().tobytes(), state["strings"]
        self._words: list[int] = state["words"].tolist()
        self._starts, at = list[int](), 0
        while at < len(self._words):
            self._starts.append(at)
            at += 2 + self._words[at + 1]
        self._made: dict[int, Any] = {}
        self._samples = random.Random()  # of distributions, which have no other

    def model(self) -> Any:
        kinds = [self._words[start] for start in self._starts]
        for place in range(len(kinds)):
            self._thing(place)
        for place, kind in enumerate(kinds):
            if kind in (FILLED, MAPPING):
                self._fill(self._made[place], *self._record(place))
        for place, kind in enumerate(kinds):
            if kind == OBJECT:
                self._give(self._made[place], self._thing(self._record(place)[1][2]))
            elif kind == MAPPING and isinstance(self._made[place], defaultdict):
                self._made[place].default_factory = self._thing(self._record(place)[1][1])
        return self._made[0]

    def _record(self, place: int) -> tuple[int, list[int]]:
        start = self._starts[place]
        kind, count = self._words[start : start + 2]
        return kind, self._words[start + 2 : start + 2 + count]

    def _thing(self, place: int) -> Any:
        """The object of that place, which may be empty as yet."""
        if place not in self._made:
            self._made[place] = self._make(*self._record(place))
        return self._made[place]

    def _make(self, kind: int, words: list[int]) -> Any:
        if kind == CONSTANT:
            return CONSTANTS[words[0]]
        if kind == INTEGER:
            return words[0]
        if kind == FLOAT:
            return struct.unpack("d", struct.pack("q", words[0]))[0]
        if kind == STRING:
            return self._strings[words[0]]
        if kind == BYTES:
            return self._bytes[words[0] : words[1]]
        if kind == NAME:
            return _named(self._strings[words[0]])
        if kind == FROZEN:
            return self._class(words[0], tuple, frozenset)(map(self._thing, words[1:]))
        if kind == FILLED:
            of = self._class(words[0], list, set, deque)
            return deque(maxlen=self._thing(words[1])) if of is deque else of()
        if kind == MAPPING:
            return self._class(words[0], dict, OrderedDict, Counter, defaultdict)()
        if kind == ARRAY:
            return self._array(*words)
        if kind == RANDOM:
            generator = random.Random()
            generator.setstate((3, tuple(words[1:]), self._thing(words[0])))
            return generator
        return self._object(self._thing(words[0]), self._thing(words[1]))

    def _class(self, place: int, *known: type) -> Any:
        of = self._thing(place)
        if of not in known:
            raise ValueError(f"{of!r} is not among {known}")
        return of

    def _array(self, dtype: int, scalar: int, start: int, end: int, *shape: int) -> Any:
        of = np.dtype(self._strings[dtype])
        if of.kind not in "biuf":
            raise ValueError(f"an array of {of}")
        numbers = np.frombuffer(self._bytes[start:end], dtype=of).reshape(shape).copy()
        return numbers[()] if scalar else numbers

    @staticmethod
    def _object(make: Any, arguments: tuple[Any, ...]) -> Any:
        """Of a class, without its constructor; by whoever makes it, else."""
        if isinstance(make, type) and make is not partial:
            return make.__new__(make, *arguments)
        if make is partial or make.__name__.startswith(CONSTRUCTOR):
            return make(*arguments)
        raise ValueError(f"{make!r} makes nothing")

    def _fill(self, thing: Any, kind: int, words: list[int]) -> None:
        parts = [self._thing(place) for place in words[2:]]
        if kind == MAPPING:
            for key, value in zip(parts[::2], parts[1::2], strict=True):
                thing[key] = value
        elif isinstance(thing, set):
            thing.update(parts)
        else:
            thing.extend(parts)

    def _give(self, thing: Any, state: Any) -> None:
        if hasattr(thing, "__setstate__"):
            if state is not None:
                thing.__setstate__(state)
        else:
            attributes, slots = state if isinstance(state, tuple) else (state, None)
            if attributes:
                vars(thing).update(attributes)
            for name, value in (slots or {}).items():
                setattr(thing, name, value)
        if isinstance(thing, Distribution) and thing.seed is None:
            thing._rng = self._samples


def _name_of(thing: Any) -> str | None:
    """Of a class or function that may be named; ``None``: it is none of these."""
    if not callable(thing) or not hasattr(thing, "__qualname__"):
        return None
    if isinstance(thing, type) and thing in NAMES:
        return NAMES[thing]
    name = f"{thing.__module__}.{thing.__qualname__}"
    try:
        return name if _named(name) is thing else None
    except (AttributeError, ImportError, ValueError):
        return None


def _named(name: str) -> Any:
    """The class or constructor of that name.

    Raises:
        ValueError: it is no part of a classifier.
    """
    if name in NAMED:
        return NAMED[name]
    module, _, last = name.rpartition(".")
    package, _, part = module.partition(".")
    if package == "river" and part.partition(".")[0] in PARTS:
        thing = getattr(import_module(module), last)
        if (isinstance(thing, type) or last.startswith(CONSTRUCTOR)) and thing.__module__ == module:
            return thing
    raise ValueError(f"{name} is no part of a River classifier")
