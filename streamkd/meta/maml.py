"""The engine ``maml``: the last inner steps once more on a clone of learn2learn, the gate inside, by double backward.

    clone of θ ─► per step: z = f(x; θ_t), L_in(z, w) ─► θ_{t+1} = θ_t - η·∇L_in ─► CE(query; θ_n) ─► ∂/∂w

Finn et al. 2017, algorithm 1, with the gate's weights w in place of the start as what is learned. Only plain SGD is
unrolled: learn2learn's clones know no other. Second order goes through every θ_t; first order lets a step's gradient
forget the steps before it, which is the first-order sum of ``hypergradient.directions``. (FOMAML, which drops ∂g/∂w
with the Hessian, would tell the gate nothing.) Over one step the two are the same.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamkd import extras
from streamkd.errors import ConfigError
from streamkd.learning import terms
from streamkd.learning.step import Step
from streamkd.learning.terms import Term
from streamkd.meta.trajectory import InnerStep
from streamkd.teachers.teacher import capture

SHARED = -1  # a key: the gate that terms share
"""Key of the step's own gate among tables and weights; gates of single terms go by the term's place."""
Weights = Mapping[int, Tensor]


def rate_of(step: Step) -> float:
    """The learning rate, if that is all there is to the student's optimiser.

    Raises:
        ConfigError: it is not plain SGD. MissingExtra: learn2learn is not installed.
    """
    extras.need("learn2learn", "the engine maml", "adapt.engine")
    optimizer, odd = step.optimizer, ""
    groups = optimizer.param_groups
    if not isinstance(optimizer, torch.optim.SGD):
        odd = type(optimizer).__name__
    elif settings := [n for n in ("momentum", "weight_decay", "maximize") if any(g.get(n) for g in groups)]:
        odd = f"SGD with {settings[0]}"
    elif len({float(group["lr"]) for group in groups}) > 1:
        odd = "SGD with several learning rates"
    elif step.clip_norm is not None:
        odd = "clipped SGD"
    if odd:
        raise ConfigError(
            f"the engine maml unrolls plain SGD alone, got {odd}",
            where="adapt.engine",
            fix="set optimizer: {name: sgd} without momentum, decay and clipping, or take the engine auto",
        )
    return float(groups[0]["lr"])


def since_growth(trajectory: list[InnerStep]) -> list[InnerStep]:
    """The last steps under one label space: what is unrolled keeps the head that it began with."""
    sizes = [[value.shape for value in taken.update.before] for taken in trajectory]
    first = next((place for place, size in enumerate(sizes) if size == sizes[-1]), 0)
    return trajectory[first:]


def tables(
    step: Step,
    parts: Sequence[Term],
    trajectory: Sequence[InnerStep],
    weights: Sequence[Weights],
    query: tuple[Tensor, Tensor],
    first_order: bool,
) -> tuple[list[dict[int, Tensor]], float]:
    """Table A of each step and gate, batch · dL_out/dw, and the outer loss after all steps.

    ``weights`` [batch, 1 + teachers] of each step by gate: the step's own under ``SHARED``.

    Raises:
        RuntimeError: of torch, where an operator of the student has no double backward.
    """
    leaves = [{key: w.detach().clone().requires_grad_() for key, w in mine.items()} for mine in weights]
    with torch.enable_grad():
        loss = F.cross_entropy(_unrolled(step, parts, trajectory, leaves, first_order)(query[0]), query[1])
        flat = [leaf for mine in leaves for leaf in mine.values()]
        slopes = iter(torch.autograd.grad(loss, flat, materialize_grads=True))
    return [{key: len(leaf) * next(slopes) for key, leaf in mine.items()} for mine in leaves], float(loss.detach())


def _unrolled(
    step: Step, parts: Sequence[Term], trajectory: Sequence[InnerStep], weights: Sequence[Weights], first_order: bool
) -> nn.Module:
    """A student after the steps of the trajectory; its parameters carry the graph to ``weights``."""
    algorithms = _learn2learn("algorithms.maml")
    start = copy.deepcopy(step.student)
    _put(start, trajectory[0])
    learner = algorithms.MAML(start, lr=rate_of(step), allow_nograd=True).clone()
    for taken, mine in zip(trajectory, weights, strict=True):
        _own_buffers(learner.module, taken)
        if not first_order:
            learner.adapt(_loss(learner.module, parts, taken, mine))
            continue
        here = _cut(learner.module)
        trained = [p for p in here.parameters() if p.requires_grad]
        loss = _loss(here, parts, taken, mine)
        found = iter(torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True))
        gradients = [next(found) if p.requires_grad else None for p in here.parameters()]
        algorithms.maml_update(learner.module, learner.lr, gradients)
    _own_buffers(learner.module, trajectory[-1])
    unrolled: nn.Module = learner.module
    return unrolled


def _learn2learn(part: str) -> Any:
    return extras.load(f"learn2learn.{part}", "the engine maml", "adapt.engine")


def _put(module: nn.Module, taken: InnerStep) -> None:
    """The parameters before that step; a head that has grown since is cut back."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter, value in zip(trained, taken.update.before, strict=True):
        parameter.data = value.clone()


def _own_buffers(module: nn.Module, taken: InnerStep) -> None:
    """Buffers of its own: learn2learn's clone shares running statistics with the original."""
    for name, value in taken.buffers.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = value.clone()


def _cut(module: nn.Module) -> nn.Module:
    """A clone whose parameters are leaves."""
    clone: nn.Module = _learn2learn("utils").clone_module(module)
    for part in clone.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = value.detach().requires_grad_(value.requires_grad)  # type: ignore[assignment]
    return clone


def _loss(module: nn.Module, parts: Sequence[Term], taken: InnerStep, weights: Weights) -> Tensor:
    features: dict[str, Tensor] = {}
    with capture(module, terms.layers_of(parts), features):
        logits = module(taken.x)
    own: dict[int, Any] = {key: w for key, w in weights.items() if key != SHARED}
    shared = weights.get(SHARED, taken.lesson.weights)
    seen = dataclasses.replace(taken.lesson, logits=logits, features=features, weights=shared, own_weights=own)
    return terms.total(parts, seen)
