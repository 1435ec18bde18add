"""The gate's hypergradient in closed form: how the weight of each source on each sample moves the outer loss.

    g = ∇L_in(θ)  ─►  θ' = U(θ, g)  ─►  v = ∇L_out(θ')  ─►  u = (∂θ'/∂g)ᵀ v  ─►  A = d(source losses) along u

``A[i, k]`` is, exactly, batch · dL_out/dw_ik: w_ik enters the inner gradient as a factor of sample i's k-th source
loss ℓ_ik, so dL_out/dw_ik = ⟨u, ∇ℓ_ik⟩ / batch, a directional derivative, and no double backward is needed.
``streamkd.meta.jacobian`` takes it; here are the optimisers: what one step, or a chain of them, makes of a gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamkd.meta.rates import Rates, rates_of

Tensors = list[Tensor]


@dataclass(frozen=True, slots=True)
class OptimizerMoments:
    """Adam's state of one parameter after a step: m, v, and how many steps there have been."""

    first: Tensor
    second: Tensor
    count: float


@dataclass(frozen=True, slots=True)
class Update:
    """One step of the optimiser as it was taken.

    ``before``: θ; ``gradients``: g before clipping; ``norm``: of all that was clipped together, None without clipping;
    ``moments``: Adam's after the step, empty for SGD.
    """

    before: Tensors
    gradients: Tensors
    norm: Tensor | None
    moments: list[OptimizerMoments]


def clipped(grads: Sequence[Tensor], clip_norm: float | None, norm: Tensor | None = None) -> Tensors:
    """Gradients after ``torch.nn.utils.clip_grad_norm_``, its 1e-6 in the denominator included.

    ``norm`` is theirs, unless more was clipped together with them.
    """
    if clip_norm is None:
        return list(grads)
    factor = (clip_norm / ((norm_of(grads) if norm is None else norm) + 1e-6)).clamp(max=1.0)
    return [grad * factor for grad in grads]


def _corrections(moments: OptimizerMoments, rates: Rates) -> tuple[float, float]:
    return 1 - rates.betas[0] ** moments.count, 1 - rates.betas[1] ** moments.count


def moments_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[OptimizerMoments]:
    """Adam's present state of each parameter, not copied; zeros where one has never had a gradient; none for SGD."""
    if isinstance(optimizer, torch.optim.SGD):
        return []
    return [_moments(p, optimizer.state.get(p, {})) for p in parameters]


def _moments(p: Tensor, state: dict[str, Tensor]) -> OptimizerMoments:
    if "exp_avg" not in state:
        return OptimizerMoments(torch.zeros_like(p), torch.zeros_like(p), 1.0)
    return OptimizerMoments(state["exp_avg"], state["exp_avg_sq"], float(state["step"]))


def directions(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    updates: Sequence[Update],
    outer: Sequence[Tensor],
    clip_norm: float | None,
) -> list[Tensors]:
    """u_t = (∂θ_n/∂g_t)ᵀ v for each of the last n steps, oldest first; ``outer`` = v at θ_n.

    Through the optimiser's own memory exactly; what a step's *gradient* owes to the weights before it (η·Hessian) is
    left out, so n = 1 is exact and more are the first-order sum. With B the derivative by a momentum buffer, M and V by
    Adam's moments, and the hats' corrections c = 1 - βᵗ::

        SGD    u_t = B_t ⊙ v,  B_t = -η + m·B_{t+1}
               u_t = (B_t - η) ⊙ v,  B_t = -ηm + m·B_{t+1}             Nesterov
        Adam   u_t = ((1-β1)·M_t + 2(1-β2)·g_t·V_t) ⊙ v,  M_t = -η/(c1(√v̂+ε)) + β1·M_{t+1},
               V_t = η·m̂/(2·c2·√v̂·(√v̂+ε)²) + β2·V_{t+1};  0 where v̂ = 0

    A parameter that has grown since a step, along its first axis, is cut back to the rows that it had.

    Raises:
        ConfigError: the optimiser is none of SGD, Adam, AdamW.
    """
    found: list[Tensors] = [[] for _ in updates]
    for at, rates in enumerate(rates_of(optimizer, parameters)):
        seen = [_Seen.of(update, at, clip_norm) for update in updates]
        if isinstance(optimizer, torch.optim.SGD):
            moved = _through_sgd(rates, seen, outer[at])
        else:
            coupled = not isinstance(optimizer, torch.optim.AdamW)
            moved = _through_adam(rates, seen, outer[at], coupled=coupled)
        for u, mine in zip(found, moved, strict=True):
            u.append(mine)
    return [_through_clip(update, u, clip_norm) for update, u in zip(updates, found, strict=True)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One parameter's part of an update: θ, the gradient as it entered, moments."""

    before: Tensor
    gradient: Tensor
    moments: OptimizerMoments | None

    @classmethod
    def of(cls, update: Update, at: int, clip_norm: float | None) -> "_Seen":
        (gradient,) = clipped([update.gradients[at]], clip_norm, update.norm)
        return cls(update.before[at], gradient, update.moments[at] if update.moments else None)


def _through_sgd(rates: Rates, seen: list[_Seen], outer: Tensor) -> Tensors:
    own, buffer = -rates.learning_rate, 0.0
    found: Tensors = []
    for one in reversed(seen):
        buffer = own * (rates.momentum if rates.nesterov else 1.0) + rates.momentum * buffer
        found.append((own + buffer if rates.nesterov else buffer) * narrowed(outer, one.before.shape))
    return found[::-1]


BLOCK = 65_536
"""Numbers at a time: the dozen passes below are bound by memory, and so many stay in a core's own cache."""


def _through_adam(rates: Rates, seen: list[_Seen], outer: Tensor, *, coupled: bool) -> Tensors:
    found = [torch.empty_like(one.before, memory_format=torch.contiguous_format) for one in seen]
    for begin in range(0, outer.numel(), BLOCK):
        later: tuple[Tensor, Tensor] | None = None
        for one, into in zip(reversed(seen), reversed(found), strict=True):
            block = slice(begin, min(begin + BLOCK, one.before.numel()))
            by_first, by_second, dead = _adam_slopes(one, rates, block)
            if later is not None:
                by_first.add_(later[0][: len(by_first)], alpha=rates.betas[0])
                by_second.add_(later[1][: len(by_second)], alpha=rates.betas[1])
            later = by_first, by_second
            g = one.gradient.reshape(-1)[block]
            if coupled and rates.weight_decay:
                g = g + rates.weight_decay * one.before.reshape(-1)[block]
            u = torch.addcmul(by_first, g, by_second).mul_(outer.reshape(-1)[block])
            # v̂ = 0: no sample has ever moved this weight, so its column of J is 0 and any u is exact; 1/ε there would
            # drown all other directions in a finite difference
            into.view(-1)[block] = u.masked_fill_(dead, 0.0)
    return found


def _adam_slopes(one: _Seen, rates: Rates, block: slice) -> tuple[Tensor, Tensor, Tensor]:
    """(1-β1)·∂θ'/∂m and 2(1-β2)·∂θ'/∂v of the step itself, in place wherever it can be, and where v is 0."""
    after = one.moments
    assert after is not None
    c1, c2 = _corrections(after, rates)
    root = (after.second.reshape(-1)[block] / c2).sqrt_()
    by_first = (root + rates.eps).reciprocal_()
    by_second = (after.first.reshape(-1)[block] * by_first).mul_(by_first).div_(root)
    by_second.mul_((1 - rates.betas[1]) * rates.learning_rate / (c1 * c2))
    return by_first.mul_(-(1 - rates.betas[0]) * rates.learning_rate / c1), by_second, root == 0


def narrowed(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The leading rows of a tensor that has grown from that shape."""
    return tensor if tensor.shape == torch.Size(shape) else tensor[: shape[0]]


def _through_clip(update: Update, u: Tensors, clip_norm: float | None) -> Tensors:
    """Clipping is symmetric: g ↦ c·g/(‖g‖+e) has the Jacobian c/(‖g‖+e)·(I - ggᵀ/(‖g‖(‖g‖+e)))."""
    if clip_norm is None:
        return u
    norm = norm_of(update.gradients) if update.norm is None else update.norm
    if norm + 1e-6 <= clip_norm:
        return u
    inner = torch.stack([(g * d).sum() for g, d in zip(update.gradients, u, strict=True)]).sum()
    along = inner / (norm * (norm + 1e-6))
    return [clip_norm / (norm + 1e-6) * (d - along * g) for g, d in zip(update.gradients, u, strict=True)]


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, for passes that must leave running statistics as they are."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """√Σ‖t‖²."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
