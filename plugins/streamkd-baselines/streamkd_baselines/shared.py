"""SharedWeights: gates that keep one learned number per source, or per source and class, the same for every sample.

    scalar      w ∝ exp(a[source])
    per-class   w ∝ exp(a[source, y])

A source is the hard label or a teacher by its key. The table of numbers grows in place, in rows as teachers come and in
columns as labels do, so that an optimiser of the parameter can follow (``streamkd.students.optimizers.follow``).

Of what was learned on one stream, another has the hard label and the teachers of the configuration, not its labels nor
who joined its pool on the way. So ``begin_stream`` leaves each of those sources one number, its mean over the classes:
every class of the next stream is new, and begins there.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.api import GateInputs, Kind, Options, at_labels, hookimpl, share, weights_of


class SharedOptions(Options):
    """Learned numbers, begun at zero: every source alike."""

    floor: float = Field(default=0.3, ge=0, le=1, description="least weight of the hard label")


class SharedWeights(nn.Module):
    """w_0 = floor + (1 - floor)·σ_0, teachers share the rest by σ, the softmax over hard label and teachers heard.

    ``table`` [1 + teachers, columns]: row 0 is the hard label, row 1 + k the teacher ``names[k]``. A new teacher begins
    at the mean of the others, a new class at each source's mean over the classes so far; the first at 0. A teacher that
    has left the pool keeps its row until a newcomer takes it, so that there are never more than the pool ever held at
    once. On a row without label a teacher stands as it would on average under its own answer.

    An earlier step has fewer classes, and may have teachers whose rows others hold now. It is looked at in
    evaluation mode, where the table does not follow: a teacher without row stands at the mean of the others.
    """

    def __init__(self, options: SharedOptions, by_class: bool) -> None:
        super().__init__()
        self.floor, self.by_class = options.floor, by_class
        self.names: list[str] = []
        self.table = nn.Parameter(torch.zeros(1, 1))

    def forward(self, evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        columns = evidence.logits.shape[1] if self.by_class else 1
        self._widen(columns)
        if self.training:
            self._seat(evidence.teachers)
        scores, heard = self._scores(self._rows(evidence.teachers)[:, :columns], evidence), evidence.heard
        masked = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(~heard, -torch.inf)], dim=1)
        first = self.floor + (1 - self.floor) * torch.softmax(masked, dim=1)[:, 0]
        return weights_of(first, share(scores[:, 1:], heard), heard, evidence.labelled)

    def _scores(self, table: Float[Tensor, "sources columns"], evidence: GateInputs) -> Float[Tensor, "batch sources"]:
        rows = len(evidence.labels)
        if not self.by_class:
            return table.T.expand(rows, -1)
        hard = table[0][evidence.labels.clamp_min(0)].unsqueeze(1)
        return torch.cat([hard, at_labels(table[1:].expand(rows, -1, -1), evidence)], dim=1)

    def _rows(self, teachers: tuple[str, ...]) -> Float[Tensor, "sources columns"]:
        """The numbers of the hard label and of these teachers."""
        places = {name: 1 + place for place, name in enumerate(self.names)}
        if all(name in places for name in teachers):
            return self.table[[0, *(places[name] for name in teachers)]]
        mean = self._mean([places[name] for name in teachers if name in places])
        return torch.stack([self.table[0], *(self.table[places[n]] if n in places else mean for n in teachers)])

    @torch.no_grad()
    def _mean(self, rows: list[int]) -> Float[Tensor, "columns"]:
        return self.table[rows].mean(0) if rows else torch.zeros_like(self.table[0])

    @torch.no_grad()
    def begin_stream(self, teachers: Collection[str]) -> None:
        """Keep of the hard label and of these teachers, if they are known, their mean over the classes alone."""
        kept = [place for place, name in enumerate(self.names) if name in teachers]
        self.names = [self.names[place] for place in kept]
        self.table.data = self.table[[0, *(1 + place for place in kept)]].mean(1, keepdim=True)
        self.table.grad = None

    @torch.no_grad()
    def _widen(self, columns: int) -> None:
        """Columns for new classes."""
        if (more := columns - self.table.shape[1]) > 0:
            mean = self.table.mean(1, keepdim=True)
            self.table.data = torch.cat([self.table, mean.expand(-1, more)], 1)
            self.table.grad = None

    @torch.no_grad()
    def _seat(self, teachers: tuple[str, ...]) -> None:
        """Rows for newcomers, in place of those who left or at the end."""
        new = [name for name in teachers if name not in self.names]
        if not new:
            return
        row = self._mean([1 + place for place, name in enumerate(self.names) if name in teachers])
        free = [place for place, name in enumerate(self.names) if name not in teachers]
        for name in new:
            if free:
                place = free.pop(0)
                self.names[place], self.table.data[1 + place] = name, row
            else:
                self.names.append(name)
                self.table.data = torch.cat([self.table.data, row.unsqueeze(0)])
        self.table.grad = None

    def get_extra_state(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.names = list(state["names"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A table of any size is taken: it has grown since this gate was made."""
        if (saved := state_dict.get(f"{prefix}table")) is not None:
            self.table.data = self.table.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ScalarGate(SharedWeights):
    """One number per source."""

    def __init__(self, options: SharedOptions) -> None:
        super().__init__(options, by_class=False)


class PerClassGate(SharedWeights):
    """One number per source and class."""

    def __init__(self, options: SharedOptions) -> None:
        super().__init__(options, by_class=True)


@hookimpl
def streamkd_gates() -> Iterable[Kind]:
    """The gates that learn one number per source."""
    yield Kind("scalar", ScalarGate, SharedOptions, "one learned number per source, meta-adapted")
    yield Kind("per-class", PerClassGate, SharedOptions, "one learned number per source and class, meta-adapted")
