"""Table A: the derivative of each source's loss on each sample along a direction u of the student's parameters.

    A[i, k] = ⟨u, ∇_θ ℓ_ik⟩,  the student's slope first (ż = J_θ z·u, once), then each loss read along it

``forward`` takes the student's slope with one forward-mode pass, ``difference`` with two plain ones, on every operator.
Both answer with a ``Jvp``, from which any gated loss is read without another pass of the student.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.losses.match_gate import Gated, LossInputs, MatchGate, soft_of
from streamkd.meta.hypergradient import norm_of
from streamkd.teachers.teacher import capture


def lacks_forward_mode(fault: RuntimeError) -> bool:
    """Whether torch says that an operator has no forward mode, and so never will."""
    return isinstance(fault, NotImplementedError) and "forward" in str(fault) and " AD" in str(fault)


@runtime_checkable
class Jvp(Protocol):
    """How the student's outputs on a batch change along u."""

    def table(self, loss: Gated, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        """A of that loss; ``lesson`` gives labels, answers and weights, the logits and features are the student's.

        Raises:
            NotImplementedError or RuntimeError: of torch, where the loss has an operator without forward mode.
        """
        ...


def forward(
    module: nn.Module, x: Tensor, at: Mapping[str, Tensor], u: Sequence[Tensor], layers: Sequence[str] = ()
) -> "ForwardMode":
    """The slope by one forward-mode pass at the parameters and buffers ``at``; ``u`` in the order of the former.

    Dual numbers, not ``torch.func.jvp``, which fails on BatchNorm in training mode.

    Raises:
        NotImplementedError or RuntimeError: of torch, where an operator has no forward mode.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    outputs: dict[str, Tensor] = {}
    with forward_ad.dual_level(), torch.no_grad(), capture(module, layers, outputs):
        duals = {n: _dual(at[n], d) for n, d in zip(names, u, strict=True)}
        logits = _unpacked(functional_call(module, dict(at) | duals, (x,)))
        return ForwardMode(logits, {name: _unpacked(outputs[name]) for name in layers})


def _dual(value: Tensor, slope: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # at the first dual number torch compiles its rules with a compiler of its own that it calls deprecated
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        return forward_ad.make_dual(value, slope)


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = forward_ad.unpack_dual(dual)
    return value, torch.zeros_like(value) if slope is None else slope


@dataclass(frozen=True, slots=True)
class ForwardMode:
    """Logits and features with their derivatives along u."""

    logits: tuple[Tensor, Tensor]
    features: Mapping[str, tuple[Tensor, Tensor]]

    def table(self, loss: Gated, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        if type(loss) is MatchGate:
            return match_gate(*self.logits, lesson, loss.temperature)
        with forward_ad.dual_level(), torch.no_grad():
            features = {name: _dual(*pair) for name, pair in self.features.items()}
            seen = dataclasses.replace(lesson, logits=_dual(*self.logits), features=features)
            return _unpacked(loss.per_source(seen))[1]


def match_gate(
    logits: Float[Tensor, "batch classes"],
    slope: Float[Tensor, "batch classes"],
    lesson: LossInputs,
    temperature: float,
) -> Float[Tensor, "batch sources"]:
    """A_i0 = (s_i - e_yi)·ż_i, A_ik = T·(s_i^T - p_ik^T)·ż_i; 0 for a missing label and a silent teacher."""
    soft = soft_of(lesson, temperature)
    labels = lesson.labels.unsqueeze(1)
    hard = (torch.softmax(logits, -1) * slope).sum(1) - slope.gather(1, labels.clamp_min(0)).squeeze(1)
    tempered = (torch.softmax(logits / temperature, -1) * slope).sum(1, keepdim=True)
    # a teacher that knows nothing of a row has mass 0 and asks nothing
    asked = soft.sum(-1) * tempered - torch.bmm(soft, slope.unsqueeze(2)).squeeze(2)
    return torch.cat([torch.where(labels < 0, 0.0, hard.unsqueeze(1)), temperature * asked], dim=1)


def difference(
    module: nn.Module, x: Tensor, at: Mapping[str, Tensor], u: Sequence[Tensor], layers: Sequence[str] = ()
) -> "CentralDifference":
    """The slope by a central difference at θ ± ε·u, ε = 1e-2/‖u‖; error near 1e-4 in float32.

    The losses of single sources hold no gate, so nothing that depends on φ is differenced.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    # along 0 nothing changes, at any distance
    eps = float(1e-2 / norm_of(u).clamp_min(1e-12))
    sides = []
    with torch.no_grad():
        for sign in (eps, -eps):
            outputs: dict[str, Tensor] = {}
            moved = {n: torch.add(at[n], d, alpha=sign) for n, d in zip(names, u, strict=True)}
            with capture(module, layers, outputs):
                # buffers that the pass moves (running statistics) must not reach the other side
                fresh = {n: value.clone() for n, value in at.items() if n not in moved}
                sides.append((functional_call(module, fresh | moved, (x,)), outputs))
    return CentralDifference(sides[0], sides[1], eps)


@dataclass(frozen=True, slots=True)
class CentralDifference:
    """Logits and features at θ + ε·u and at θ - ε·u."""

    above: tuple[Tensor, Mapping[str, Tensor]]
    below: tuple[Tensor, Mapping[str, Tensor]]
    eps: float

    def table(self, loss: Gated, lesson: LossInputs) -> Float[Tensor, "batch sources"]:
        with torch.no_grad():
            high, low = (
                loss.per_source(dataclasses.replace(lesson, logits=logits, features=features))
                for logits, features in (self.above, self.below)
            )
        return (high - low) / (2 * self.eps)
