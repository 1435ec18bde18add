"""The state of a learner under further input columns: what it has learned of the others stays as it is.

    remembered rows      the fill in the new elements
    student, averages    weights of 0 where the new elements come in, so that answers stay; moments of the optimiser too
    normalisation        what was counted of the others; of new amounts that the fill is the mean
    teachers that learn by themselves, and see the new columns    begin anew, and are taught the remembered rows

Which axis of a weight the inputs come in by is told by a fresh student of either width. Called by ``streamkd migrate``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamkd.errors import StateConflict
from streamkd.records import RecordSchema
from streamkd.replay.table import StoredRows
from streamkd.students.columns import Amounts
from streamkd.students.networks import Student, torch_dtype

RINGS = ("replayed", "holdout")
_APART = "let teachers alone read them (stream.records.student: the others), or begin elsewhere with --state DIR"
COUNT, MOMENTS = "normalise.count", "normalise.moments"


def places(before: RecordSchema, after: RecordSchema) -> Tensor:
    """[elements before]: where each element of a record stands now."""
    starts, at = {}, 0
    for column in after.inputs:
        starts[column.name], at = at, at + column.width
    return torch.cat([starts[column.name] + torch.arange(column.width) for column in before.inputs])


def wider(old: Tensor, axis: int, size: int, places: Tensor) -> Tensor:
    """The tensor with so many places along an axis: its own at ``places``, 0 at the others."""
    shape = list(old.shape)
    shape[axis] = size
    return torch.zeros(shape, dtype=old.dtype).index_copy_(axis, places, old)


@dataclass(frozen=True)
class Widening:
    """From ``before`` to ``after``, both whole schemas; ``fill`` [elements after] is a record of the new columns alone.

    ``old`` and ``new`` are fresh students of either.
    """

    before: RecordSchema
    after: RecordSchema
    fill: Tensor
    old: Student
    new: Student
    _axes: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Find where the inputs come in.

        Raises:
            StateConflict: a weight of the student fits in no other way, or a new column wants what is gone.
        """
        theirs = self.new.body.state_dict()
        for name, ours in self.old.body.state_dict().items():
            axes = [axis for axis, (n, m) in enumerate(zip(ours.shape, theirs[name].shape, strict=True)) if n != m]
            if [(ours.shape[axis], theirs[name].shape[axis]) for axis in axes] not in ([], [self._widths]):
                said = f"{name} is {list(ours.shape)}, and would be {list(theirs[name].shape)}"
                raise StateConflict(f"this student cannot read further columns: {said}", where="student", fix=_APART)
            self._axes.update({f"body.{name}": axis for axis in axes})
        fit, known = self.old.normalise.fit, {column.name for column in self.before.inputs}
        for column in self.new.normalise.columns.schema.inputs:
            if column.name not in known and fit and column.fit and not (column.follow and column.fit <= fit):
                said = f"the new column {column.name!r} cannot be fitted on the first records, which are gone"
                fix = f"follow: true, with fit: {fit} at most; or its mean and std"
                raise StateConflict(said, where="stream.records.inputs", fix=fix)

    @property
    def widens_student(self) -> bool:
        """Whether the student reads any of the new columns."""
        before, after = self._widths
        return before < after

    @property
    def _widths(self) -> tuple[int, int]:
        """Elements that the student reads, before and after."""
        before, after = (math.prod(s.normalise.columns.schema.shape) for s in (self.old, self.new))
        return before, after

    @property
    def _seen(self) -> Tensor:
        """``places`` among what the student reads."""
        return places(self.old.normalise.columns.schema, self.new.normalise.columns.schema)

    def tree(self, tree: Mapping[str, Any], anew: Sequence[str]) -> dict[str, Any]:
        """The state that a learner of ``after`` goes on from; teachers of the keys ``anew`` know nothing in it yet."""
        tree = {**tree, "schema": self.after.model_dump(mode="json")}
        return tree if tree["learned"] is None else {**tree, "learned": self._learned(tree["learned"], anew)}

    def rows(self, x: Tensor) -> Tensor:
        """Remembered rows [n, *shape]."""
        into = self.fill.to(torch_dtype[str(self.after.dtype)]).repeat(len(x), 1)
        into[:, places(self.before, self.after)] = x.flatten(1).to(into.dtype)
        return into.reshape(len(x), *self.after.shape)

    def _learned(self, learned: Mapping[str, Any], anew: Sequence[str]) -> dict[str, Any]:
        pool, memory = learned["pool"], {**learned["memory"]}
        memory |= {name: self._ring(memory[name]) for name in RINGS}
        memory.pop("recognition", None)  # rows are known by their bytes; those that are remembered still are
        teachers = {key: self._teacher(state) for key, state in pool["teachers"].items() if key not in anew}
        versions = {key: version for key, version in pool.get("versions", {}).items() if key not in anew}
        copies = [] if anew else pool.get("copies", [])
        found = {
            **learned,
            "student": self.student(learned["student"]),
            "optimizer": self._moments(learned["optimizer"]),
            "memory": memory,
            "pool": {**pool, "teachers": teachers, "versions": versions, "copies": copies},
            "adapter": {**learned["adapter"], "trail": {"steps": []}},
        }
        if recent := found.get("recent", {}).get("rows"):
            found["recent"] = {"rows": [self.rows(recent[0]), recent[1]]}
        return found

    def _ring(self, ring: Mapping[str, Any]) -> dict[str, Any]:
        if "taken" not in ring:
            return {**ring}
        columns = ring["taken"].columns
        return {**ring, "taken": StoredRows({**columns, "x": self.rows(columns["x"])})}

    def _teacher(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Averages and snapshots are students."""
        is_student = COUNT in state.get("student", ())
        return {**state, "student": self.student(state["student"])} if is_student else state

    def student(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of a student, or of a copy of it."""
        inner = {name: tensor for name, tensor in state.items() if not name.startswith("normalise.")}
        return {**self._normalise(state), **{name: self._weight(name, tensor) for name, tensor in inner.items()}}

    def _weight(self, name: str, tensor: Tensor) -> Tensor:
        axis = self._axes.get(name)
        return tensor if axis is None else wider(tensor, axis, self._widths[1], self._seen)

    def _moments(self, state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those of the student's parameters, by their number."""
        names = [name for name, _ in self.old.named_parameters()]
        found = {number: dict(moments) for number, moments in state.items()}
        for number, moments in found.items():
            name = names[int(number)] if int(number) < len(names) else ""
            if name in self._axes:
                moments |= {k: self._weight(name, m) for k, m in moments.items() if m.dim()}
        return found

    def _normalise(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was counted of the others; new amounts begin where the fill is 0."""
        found = {f"normalise.{name}": buffer.clone() for name, buffer in self.new.normalise.named_buffers()}
        if not self.widens_student:
            return {name: state[name] for name in found}
        shape, seen = self.old.normalise.columns.schema.shape, self._seen
        for name in [name for name in found if name in state and name not in (COUNT, MOMENTS)]:
            found[name][seen] = state[name].expand(shape).flatten()
        if state[MOMENTS].numel():
            found[MOMENTS][:, seen] = state[MOMENTS].flatten(1)
        found[COUNT] = state[COUNT].clone()
        if count := int(found[COUNT]):
            self._begin(found, count)
        return found

    def _begin(self, found: Mapping[str, Tensor], count: int) -> None:
        """Of new amounts that are fitted: nothing has been seen where the fill is a gap, else the fill alone."""
        columns = self.new.normalise.columns
        amounts = Amounts(columns.schema.inputs)
        parts = [(torch.full((c.width,), bool(c.fit)), torch.full((c.width,), c.scale)) for c in columns.schema.inputs]
        fitted, scale = (torch.cat(part) for part in zip(*parts, strict=True))
        fill = columns(self.fill.unsqueeze(0)).flatten().float().double()
        fresh, gone = (fitted & amounts.all).index_fill_(0, self._seen, False), torch.zeros_like(fitted)
        gone[amounts.missing] = fill[amounts.told_by] > 0
        if (fresh & gone).any():
            found["normalise.absent"][fresh & gone] = count
        told = fresh & ~gone
        found["normalise.gain"][told] = scale[told]
        found[MOMENTS][0, told] = (fill * scale)[told]
        found["normalise.bias"][told] = -(fill * scale)[told].float()
