"""A ring: places for remembered samples, which a policy fills, and what is kept with each.

    offered rows ─► Policy.places ─► take ─► tables by place ─► Remembered: some rows, and what is kept of them

Each sample carries the logits that the student gave at insertion and those of frozen teachers (float16), so that a
frozen teacher is never asked twice about it. All rows lie in tensors of their own, which grow as they fill: a ring
never holds on to a batch that it saw. Called by the ``memory``, which has two.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamkd.errors import PluginError
from streamkd.hookspecs import Stateful
from streamkd.replay.policy import Accounting, Contents, Offered, Policy, Yielding
from streamkd.replay.table import StoredRows, Table

ACCOUNT_BYTES = 8  # of the class-balanced policy for each place


class Remembered:
    """Samples drawn from memory: x [n, *shape] in the stream's element type, y [n] int64, and what was cached of them.

    ``slots`` [n] are their places. The caches are gathered when they are asked for: most steps need few of them, and
    none after the memory has changed.
    """

    def __init__(self, ring: "Ring", slots: Tensor) -> None:
        assert ring.x is not None
        self._ring, self.slots = ring, slots
        self.x = ring.x.index_select(0, slots)
        self.y = ring.y.index_select(0, slots)

    def logits(self) -> Tensor:
        """[n, classes] float16: the student at insertion."""
        return self._ring.logits.index_select(0, self.slots)

    def width(self) -> Tensor:
        """[n] int64: classes that the student knew at insertion."""
        return self._ring.width.index_select(0, self.slots)

    def met(self) -> Tensor:
        """[n] int64: how often each was learned before: as it came, and whenever it was sampled earlier."""
        return self._ring.met.index_select(0, self.slots).long()

    @property
    def learned(self) -> bool:
        """Whether they are replayed, and not held out."""
        return self._ring.replayed

    def frozen(self, slot: int) -> tuple[Tensor, Tensor]:
        """A teacher slot's answers [n, classes] float16, and by which ticket each was given [n]; 0: there is none."""
        answers, asked = self._ring.frozen[:, slot], self._ring.asked[:, slot]
        return answers.index_select(0, self.slots), asked.index_select(0, self.slots)

    def answer(self, slot: int, which: Tensor, answers: Tensor, ticket: int) -> None:
        """Keep the answers [m, classes] to ``which`` [n] of them, given by a ticket."""
        self._ring.answer(self.slots[which], slot, answers, ticket)


class Ring:
    """``capacity`` places filled by a policy; ``offer`` decides, ``take`` writes the rows."""

    def __init__(self, capacity: int, policy: Policy, teacher_slots: int, replayed: bool = True) -> None:
        self.capacity, self.policy, self.teacher_slots = capacity, policy, teacher_slots
        self.replayed = replayed
        self.filled = 0
        self.offered = 0
        self.slots = 0
        """Teachers for whose answers there is room."""
        self._tables: dict[str, Table] = {}

    def __len__(self) -> int:
        return self.filled

    @property
    def x(self) -> Tensor | None:
        """Inputs [places, *shape]; ``None`` before the first row is offered. Rows from ``filled`` on are none."""
        return self._column("taken", "x") if self._tables else None

    @property
    def y(self) -> Tensor:
        """Columns of the labels [places] int64."""
        return self._column("taken", "y")

    @property
    def task(self) -> Tensor:
        """[places] int64."""
        return self._column("taken", "task")

    @property
    def mark(self) -> Tensor:
        """What held-out rows are known by [places] int64."""
        return self._column("taken", "mark")

    @property
    def logits(self) -> Tensor:
        """The student's when a row was taken [places, classes] float16; it knew the first ``width`` classes."""
        return self._column("taken", "logits")

    @property
    def width(self) -> Tensor:
        """[places] int64."""
        return self._column("taken", "width")

    @property
    def since(self) -> Tensor:
        """How many rows had been offered then [places] int64."""
        return self._column("taken", "since")

    @property
    def frozen(self) -> Tensor:
        """Teachers' answers [places, slots, classes] float16."""
        return self._column("answers", "frozen")

    @property
    def asked(self) -> Tensor:
        """By which ticket each was given [places, slots] int32; 0: there is none."""
        return self._column("answers", "asked")

    @property
    def met(self) -> Tensor:
        """How often a row was replayed [places] int32."""
        return self._column("noted", "met")

    @property
    def contradicted(self) -> Tensor:
        """What newer records contradict [places] bool (``streamkd.learning.contradiction``)."""
        return self._column("noted", "contradicted")

    @property
    def numbers(self) -> Tensor:
        """The policy's own [places, columns] float64."""
        return self._column("noted", "numbers")

    def _column(self, table: str, name: str) -> Tensor:
        return self._tables[table].columns[name]

    def allocate(self, x: Tensor, classes: int) -> None:
        """Be for rows like x [n, *shape]; there are no places yet.

        Three tables: what a row is as it was ``taken``, what teachers say of it (``answers``), and what is ``noted`` of
        it, which changes at every step.
        """

        def none(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((0, *shape), dtype=dtype, device=x.device)

        whole = none(torch.int64)
        inputs, logits = none(x.dtype, *x.shape[1:]), none(torch.float16, classes)
        frozen, numbers = none(torch.float16, self.slots, classes), none(torch.float64, self.policy.columns)
        self._tables = {
            "taken": Table(x=inputs, y=whole, task=whole, mark=whole, logits=logits, width=whole, since=whole),
            "answers": Table(frozen=frozen, asked=none(torch.int32, self.slots)),
            "noted": Table(met=none(torch.int32), contradicted=none(torch.bool), numbers=numbers),
        }

    def row_bytes(self, classes: int, slots: int) -> int:
        """What a record takes over so many classes and with room for the answers of so many teachers."""
        now, then = ((2 * c * (1 + s) + 4 * s) for c, s in ((self.logits.shape[1], self.slots), (classes, slots)))
        return ACCOUNT_BYTES + sum(table.row_bytes for table in self._tables.values()) + then - now

    def grow(self, classes: int) -> None:
        """Widen the cached answers to ``classes`` columns."""
        if self._tables and (more := classes - self.logits.shape[1]) > 0:
            self._tables["taken"].widen("logits", more)
            self._tables["answers"].widen("frozen", more)

    def open(self, slots: int) -> None:
        """Have room for the answers of so many teachers."""
        if self._tables and slots > self.slots:
            self._tables["answers"].widen("frozen", 0, slots - self.slots)
            self._tables["answers"].widen("asked", slots - self.slots)
        self.slots = max(self.slots, slots)

    def resize(self, capacity: int, draws: Callable[[int], Sequence[float]]) -> None:
        """Have so many places from now on; whoever has none then goes by the policy's choice, of so many draws."""
        if self.filled > capacity:
            self._remove(map(self._leaving, draws(self.filled - capacity)))
        self.capacity = capacity
        for table in self._tables.values():
            table.cut(capacity)

    def _leaving(self, draw: float) -> int:
        return self.policy.leaving(draw) if isinstance(self.policy, Yielding) else int(draw * self.filled)

    def offer(self, x: Tensor, labels: Sequence[int], draws: Sequence[tuple[float, float]]) -> dict[int, int]:
        """Which of the rows x [n, *shape] goes to which place: {place: row}; ``draws`` are two uniform numbers per row.

        Raises:
            PluginError: the policy gives a place that there is not.
        """
        if self.x is None:
            self.allocate(x, 0)
        for table in self._tables.values():
            table.reserve(min(self.filled + len(labels), self.capacity), self.capacity)
        chosen: dict[int, int] = {}
        places = self.policy.places(Offered(x, labels, draws), self._contents())
        for row, place in zip(range(len(labels)), places, strict=True):
            if place is None:
                continue
            if not 0 <= place < min(self.filled + 1, self.capacity):
                raise PluginError(
                    f"needed a place of the {self.filled} filled ones, or the next of {self.capacity}, got {place}",
                    where=f"memory.policy {type(self.policy).__name__}",
                )
            self.filled = max(self.filled, place + 1)
            chosen[place] = row
        self.offered += len(labels)
        return chosen

    def _contents(self) -> Contents:
        assert self.x is not None
        held = slice(self.filled)
        return Contents(
            self.capacity,
            self.offered,
            self.x[held],
            self.y[held],
            self.since[held],
            self.numbers,
            self.contradicted[held],
        )

    def take(self, places: Tensor, x: Tensor, y: Tensor, task: int, logits: Tensor, mark: Tensor | None = None) -> None:
        """Write rows into places; their cached teacher answers are forgotten. ``mark`` is what they are known by."""
        assert self._tables, "rows are offered before they are taken"
        self.grow(logits.shape[1])
        columns = self._tables["taken"].columns
        columns["x"][places], columns["y"][places], columns["task"][places] = x, y, task
        columns["mark"][places] = 0 if mark is None else mark.to(x.device)
        columns["logits"][places] = logits.half()
        columns["width"][places] = logits.shape[1]
        columns["since"][places] = self.offered
        self._tables["taken"].changed(places)
        self.met[places] = 0
        self.contradicted[places] = False
        if self.slots:
            self.asked[places] = 0
            self._tables["answers"].changed(places)

    def copied(self, places: Tensor) -> dict[str, Tensor]:
        """All that is kept of the samples in these places, by column, but for what is ``noted`` of them here."""
        return {
            name: column[places]
            for table in ("taken", "answers")
            for name, column in self._tables[table].columns.items()
        }

    def receive(self, places: Tensor, samples: Mapping[str, Tensor]) -> None:
        """Write samples that another ring of this memory had, with what was said of them there."""
        self.grow(samples["logits"].shape[1])
        here = {"since": torch.tensor(self.offered), "mark": torch.tensor(0)}
        for table in ("taken", "answers"):
            for name, column in self._tables[table].columns.items():
                column[places] = here.get(name, samples[name]).to(column.device)
            self._tables[table].changed(places)
        self.met[places] = 0
        self.contradicted[places] = False

    def answer(self, places: Tensor, slot: int, answers: Tensor, ticket: int) -> None:
        """Keep what a teacher says of the rows in places: [n, classes], given by a ticket."""
        self.frozen[places, slot] = answers.half()
        self.asked[places, slot] = ticket
        self._tables["answers"].changed(places)

    def marks(self) -> list[int]:
        """What its rows are known by."""
        return [] if self.x is None else self.mark[: self.filled].tolist()

    def drop(self, places: Iterable[int]) -> None:
        """Empty some places; the last rows move up into them."""
        self._remove(sorted(places, reverse=True))

    def _remove(self, places: Iterable[int]) -> None:
        """Empty one place after the other, of those that are filled then."""
        moved: dict[int, int] = {}  # into a place, from where
        for place in places:
            self.filled -= 1
            if isinstance(self.policy, Accounting):
                self.policy.dropped(place, self.filled)
            source = moved.pop(self.filled, self.filled)
            if place < self.filled:
                moved[place] = source
        if moved and self.x is not None:
            into, sources = (torch.tensor([*side], device=self.x.device) for side in (moved, moved.values()))
            for table in self._tables.values():
                table.move(into, sources)

    def places(self, most: int, turn: int = 0) -> Tensor:
        """Of the filled places all, or ``most`` at even distances, other ones at every turn."""
        device = None if self.x is None else self.x.device
        if self.filled <= most:
            return torch.arange(self.filled, device=device)
        return (torch.arange(most, device=device) * self.filled // most + turn) % self.filled

    def state_dict(self) -> dict[str, Any]:
        tables: dict[str, Any] = {name: table.rows(self.filled) for name, table in self._tables.items()}
        if tables:
            tables["noted"] = dict(tables["noted"].columns)  # other ones at each step: there is nothing to follow
        policy = self.policy.state_dict() if isinstance(self.policy, Stateful) else {}
        return {"filled": self.filled, "offered": self.offered, "slots": self.slots, "policy": policy, **tables}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore; with another number of teacher slots, cached answers that have no place any more are dropped."""
        self.filled = state["filled"]
        # older checkpoints have what a policy keeps beside the rows
        self.offered = state["offered"] if "offered" in state else sum(count for _, count in state["seen"])
        if isinstance(self.policy, Stateful):
            self.policy.load_state_dict(state.get("policy", state))
        if "x" in state:
            state = _as_tables(state)
        self.slots = min(self.teacher_slots, state.get("slots", 0))
        if "taken" in state:
            taken = _stored(state["taken"]).columns
            self.allocate(taken["x"][:0].to(device), taken["logits"].shape[1])
            for name, table in self._tables.items():
                table.load(_stored(state[name]), max(self.filled, self.capacity))


def whole(ring: Ring) -> Remembered | None:
    """All samples of a ring that nothing contradicts, in the order of their places."""
    return Remembered(ring, torch.nonzero(~ring.contradicted[: ring.filled]).flatten()) if ring.x is not None else None


def _stored(rows: StoredRows | Mapping[str, Tensor]) -> StoredRows:
    return rows if isinstance(rows, StoredRows) else StoredRows(rows)


def _as_tables(state: dict[str, Any]) -> dict[str, Any]:
    """The rows of an older checkpoint, which has a tensor for each column, and not all of them."""
    taken = ("x", "y", "task", "mark", "logits", "width", "since")
    parts: dict[str, dict[str, Tensor]] = {
        "taken": {name: state[name] for name in taken if name in state},
        "answers": {"frozen": state["frozen"], "asked": state["answered"].int()},  # by the first ticket
        "noted": {name: state[name] for name in ("met", "contradicted", "numbers") if name in state},
    }
    slots = state["answered"].shape[1]
    return {
        **state,
        "slots": slots,
        "taken": StoredRows(parts["taken"]),
        "answers": StoredRows(parts["answers"]),
        "noted": parts["noted"],
    }
