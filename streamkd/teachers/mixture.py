"""The selector ``auto``: Σ_k w_k p_k^{a_k} over student, average and teachers, weighed by what has come true.

weights and exponents of ``streamkd.learning.mixture`` ─► the parts that count for something ─► Served
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from streamkd.gates.spread import LEAST as EVEN
from streamkd.hookspecs import Kind, hookimpl
from streamkd.students.networks import Student
from streamkd.teachers.served import Candidates, Model, Served
from streamkd.teachers.teacher import Part

LEAST = 0.02  # a part with less of an answer does not pay for its forward pass


class MixtureSelector:
    """Everybody who can be served, as much as fixed share gives him; before there are weights the average."""

    def choose(self, candidates: Candidates) -> Model:
        students: dict[str, Student | Part] = {"student": candidates.student}
        if candidates.average is not None:
            students["average"] = candidates.average
        every = {**students, **candidates.teachers}
        weights = {name: candidates.weights.get(name, 0.0) for name in every}
        least = LEAST * sum(weights.values())
        kept = {name: weight for name, weight in weights.items() if weight >= least > 0}
        first = max(students, key=lambda name: (weights[name], name == "average"))  # whoever reads one student finds it
        if not set(kept) - {first}:
            return students[first]  # type: ignore[return-value]
        names = [first, *(name for name in kept if name != first)]
        total = sum(kept.values())
        shares = [kept.get(name, 0.0) / total for name in names]
        exponents = [candidates.exponents.get(name, 1.0) for name in names]
        how = {"weights": shares, "exponents": exponents}
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
        weights = torch.tensor(how["weights"]).to(logits)
        exponents = torch.tensor(how.get("exponents", [1.0] * len(weights))).to(logits)  # older versions have none
        spread = (1 - EVEN) * whole + EVEN / whole.shape[2]
        heard = torch.softmax(spread.log() * exponents.unsqueeze(1), 2)
        return (torch.einsum("p,bpc->bc", weights, heard) + 1e-9).log()


@hookimpl
def streamkd_selectors() -> Iterable[Kind]:
    """The mixture."""
    yield Kind("auto", lambda options: MixtureSelector(), summary="everybody, weighed by what has come true")
