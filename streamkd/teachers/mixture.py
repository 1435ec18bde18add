"""The selector ``auto``: Σ_k w_k p_k over student, average and teachers, weighed by what has come true.

weights of ``streamkd.learning.mixture`` ─► the parts that can be served, those that hardly count left out ─► Served
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.hookspecs import Kind, hookimpl
from streamkd.students.networks import Student
from streamkd.teachers.served import Candidates, Model, Served
from streamkd.teachers.teacher import Part

ENSEMBLE = "ensemble"  # average and analytic teacher together, one of the sources that are weighed
LEAST = 0.02  # a part with less of an answer does not pay for its forward pass


class MixtureSelector:
    """Everybody who can be served, as much as fixed share gives him; before there are weights the average."""

    def choose(self, candidates: Candidates) -> Model:
        students: dict[str, Student | Part] = {"student": candidates.student}
        if candidates.average is not None:
            students["average"] = candidates.average
        every = {**students, **candidates.teachers}
        weights = {name: candidates.weights.get(name, 0.0) for name in every}
        pair = candidates.pair if candidates.pair and set(candidates.pair) <= set(every) else ()
        both = candidates.weights.get(ENSEMBLE, 0.0) if pair else 0.0
        for name in pair:  # they have to be there, whatever they count alone
            weights[name] += both / 2
        total = sum(weights.values())
        kept = {name: weight for name, weight in weights.items() if weight >= LEAST * total > 0}
        first = max(students, key=lambda name: (weights[name], name == "average"))  # whoever reads one student finds it
        if not set(kept) - {first}:
            return students[first]  # type: ignore[return-value]
        names = [first, *(name for name in kept if name != first)]
        shares = [kept.get(name, 0.0) - both / 2 * (name in pair and name in kept) for name in names]
        together = [names.index(name) for name in pair] if set(pair) <= set(names) else []
        total = sum(shares) + (both if together else 0.0)
        how = {"weights": [share / total for share in shares], "together": together}
        return Served({name: every[name] for name in names}, self.combine, how)

    def combine(
        self,
        logits: Float[Tensor, "batch parts classes"],
        known: Bool[Tensor, "parts classes"],
        how: Mapping[str, Any],
    ) -> Float[Tensor, "batch classes"]:
        student = torch.softmax(logits[:, :1], 2)
        mine = torch.softmax(logits.masked_fill(~known, -torch.inf), 2)
        whole = torch.where(known, mine * (1 - (student * ~known).sum(2, keepdim=True)), student)
        weights = torch.tensor(how["weights"], dtype=logits.dtype, device=logits.device)
        mixed = torch.einsum("p,bpc->bc", weights, whole)
        if how.get("together"):
            first, second = how["together"]
            both = (whole[:, first] * whole[:, second]).sqrt()
            mixed = mixed + (1 - weights.sum()) * both / both.sum(1, keepdim=True).clamp_min(1e-30)
        return (mixed + 1e-9).log()


@hookimpl
def streamkd_selectors() -> Iterable[Kind]:
    """The mixture."""
    yield Kind("auto", lambda options: MixtureSelector(), summary="everybody, weighed by what has come true")
