"""The gate's hypergradient in closed form: how the weight of each source on each sample moves the outer loss.

    g = ∇L_in(θ)  ─►  θ' = U(θ, g)  ─►  v = ∇L_out(θ')  ─►  u = (∂θ'/∂g)ᵀ v  ─►  A = d(source losses) along u

``A[i, k]`` is, exactly, batch · dL_out/dw_ik: w_ik enters the inner gradient as a factor of sample i's k-th source
loss ℓ_ik, so dL_out/dw_ik = ⟨u, ∇ℓ_ik⟩ / batch, a directional derivative. No double backward is needed. ``forward``
takes it with one forward-mode pass, ``finite_difference`` with two plain ones, on every operator.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.errors import ConfigError

Tensors = list[Tensor]


@dataclass(frozen=True, slots=True)
class Rates:
    """What an optimiser's group says of one step."""

    learning_rate: float
    weight_decay: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float


def clipped(grads: Sequence[Tensor], clip_norm: float | None) -> Tensors:
    """Gradients after ``torch.nn.utils.clip_grad_norm_``, its 1e-6 in the denominator included."""
    if clip_norm is None:
        return list(grads)
    factor = (clip_norm / (_norm(grads) + 1e-6)).clamp(max=1.0)
    return [grad * factor for grad in grads]


def virtual_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Sequence[Tensor], clip_norm: float | None
) -> Tensors:
    """θ' = U(θ, g): the parameters that the optimiser's next step would give; nothing is changed.

    Raises:
        ConfigError: the optimiser is none of SGD, Adam, AdamW.
    """
    rates = _rates(optimizer)
    if isinstance(optimizer, torch.optim.SGD):
        return [
            _sgd_step(p, g, optimizer.state.get(p, {}), rates)
            for p, g in zip(parameters, clipped(grads, clip_norm), strict=True)
        ]
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    moved = []
    for p, g in zip(parameters, clipped(grads, clip_norm), strict=True):
        first, second, c1, c2, _ = _adam_moments(p, g, optimizer.state.get(p, {}), rates, decoupled)
        start = p.detach() * (1 - rates.learning_rate * rates.weight_decay) if decoupled else p.detach()
        moved.append(start - rates.learning_rate * (first / c1) / ((second / c2).sqrt() + rates.eps))
    return moved


def _sgd_step(p: Tensor, g: Tensor, state: dict[str, Tensor], rates: Rates) -> Tensor:
    g = g + rates.weight_decay * p.detach()
    if rates.momentum:
        buffer = state.get("momentum_buffer")
        buffer = g if buffer is None else rates.momentum * buffer + g
        g = g + rates.momentum * buffer if rates.nesterov else buffer
    return p.detach() - rates.learning_rate * g


def _adam_moments(
    p: Tensor, g: Tensor, state: dict[str, Tensor], rates: Rates, decoupled: bool
) -> tuple[Tensor, Tensor, float, float, Tensor]:
    """Both moments after the step, their bias corrections, and the gradient that entered them."""
    if not decoupled:
        g = g + rates.weight_decay * p.detach()
    beta1, beta2 = rates.betas
    zero = torch.zeros_like(p)
    first = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
    second = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    count = float(state.get("step", torch.zeros(()))) + 1
    return first, second, 1 - beta1**count, 1 - beta2**count, g


def direction(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    outer: Sequence[Tensor],
    clip_norm: float | None,
) -> Tensors:
    """u = (∂θ'/∂g)ᵀ v for ``outer`` = v, exact for SGD (momentum, Nesterov, decay), Adam, AdamW, each also clipped.

    Adam: u = -η[((1-β1)/c1)/(√v̂+ε) - m̂(1-β2)g/(c2·√v̂·(√v̂+ε)²)] ⊙ v, c = 1-βᵗ; 0 where v̂ = 0.
    """
    rates = _rates(optimizer)
    entering = clipped(grads, clip_norm)
    if isinstance(optimizer, torch.optim.SGD):
        factor = -rates.learning_rate * (1 + rates.momentum if rates.nesterov else 1)
        u = [factor * v for v in outer]
    else:
        decoupled = isinstance(optimizer, torch.optim.AdamW)
        u = [
            _adam_slope(p, g, optimizer.state.get(p, {}), rates, decoupled) * v
            for p, g, v in zip(parameters, entering, outer, strict=True)
        ]
    return _through_clip(grads, u, clip_norm)


def _adam_slope(p: Tensor, g: Tensor, state: dict[str, Tensor], rates: Rates, decoupled: bool) -> Tensor:
    first, second, c1, c2, g = _adam_moments(p, g, state, rates, decoupled)
    beta1, beta2 = rates.betas
    root = (second / c2).sqrt()
    slope = (1 - beta1) / c1 / (root + rates.eps)
    bend = (first / c1) * (1 - beta2) * g / (c2 * root * (root + rates.eps) ** 2)
    # v̂ = 0: no sample has ever moved this weight, so its column of J is 0 and any u is exact; 1/ε there would drown
    # all other directions in a finite difference
    return -rates.learning_rate * torch.where(root > 0, slope - bend, 0.0)


def _through_clip(grads: Sequence[Tensor], u: Tensors, clip_norm: float | None) -> Tensors:
    """Clipping is symmetric: g ↦ c·g/(‖g‖+e) has the Jacobian c/(‖g‖+e)·(I - ggᵀ/(‖g‖(‖g‖+e)))."""
    if clip_norm is None:
        return u
    norm = _norm(grads)
    if norm + 1e-6 <= clip_norm:
        return u
    inner = torch.stack([(g * d).sum() for g, d in zip(grads, u, strict=True)]).sum()
    along = inner / (norm * (norm + 1e-6))
    return [clip_norm / (norm + 1e-6) * (d - along * g) for g, d in zip(grads, u, strict=True)]


def forward(
    module: nn.Module,
    x: Tensor,
    u: Sequence[Tensor],
    labels: Int[Tensor, "batch"],
    soft: Float[Tensor, "batch teachers classes"],
    temperature: float,
) -> Float[Tensor, "batch sources"]:
    """Table A by one forward-mode pass: A_i0 = (s_i - e_yi)·ż_i, A_ik = T·(s_i^T - p_ik^T)·ż_i, ż = J_θ z·u.

    Dual numbers, not ``torch.func.jvp``, which fails on BatchNorm in training mode.

    Raises:
        NotImplementedError or RuntimeError: of torch, where an operator has no forward mode.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    values = [p.detach() for p in module.parameters() if p.requires_grad]
    with forward_ad.dual_level(), torch.no_grad():
        with warnings.catch_warnings():
            # at the first dual number torch compiles its rules with a compiler of its own that it calls deprecated
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            duals = {n: forward_ad.make_dual(p, d) for n, p, d in zip(names, values, u, strict=True)}
        z, slope = forward_ad.unpack_dual(functional_call(module, duals | own_buffers(module), (x,)))
    if slope is None:
        slope = torch.zeros_like(z)
    hard = torch.softmax(z, -1) - nn.functional.one_hot(labels, z.shape[1])
    tempered = torch.softmax(z / temperature, -1).unsqueeze(1)
    # a teacher that knows nothing of a row has mass 0 and asks nothing
    mass = soft.sum(-1, keepdim=True)
    asked = temperature * (mass * tempered - soft)
    table = torch.cat([hard.unsqueeze(1), asked], dim=1)
    return (table * slope.unsqueeze(1)).sum(-1)


def finite_difference(
    module: nn.Module,
    u: Sequence[Tensor],
    losses: Callable[[nn.Module, dict[str, Tensor]], Float[Tensor, "batch sources"]],
) -> Float[Tensor, "batch sources"]:
    """Table A by a central difference of the source losses at θ ± ε·u, ε = 1e-2/‖u‖; error near 1e-4 in float32.

    The source losses hold no gate, so nothing that depends on φ is differenced.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    values = [p.detach() for p in module.parameters() if p.requires_grad]
    eps = float(1e-2 / _norm(u).clamp_min(1e-12))
    sides = []
    with torch.no_grad():
        for sign in (1, -1):
            moved = {n: p + sign * eps * d for n, p, d in zip(names, values, u, strict=True)}
            sides.append(losses(module, moved | own_buffers(module)))
    return (sides[0] - sides[1]) / (2 * eps)


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, for passes that must leave running statistics as they are."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))


def _rates(optimizer: torch.optim.Optimizer) -> Rates:
    if not isinstance(optimizer, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW):
        raise ConfigError(
            f"the gate's hypergradient needs SGD, Adam or AdamW, got {type(optimizer).__name__}",
            where="optimizer",
            fix="take one of these, or a gate without parameters (fixed)",
        )
    group = optimizer.param_groups[0]
    odd = [name for name in ("amsgrad", "dampening", "maximize") if group.get(name)]
    if odd or len(optimizer.param_groups) > 1:
        raise ConfigError(
            f"the gate's hypergradient has no closed form for {odd[0] if odd else 'several groups of parameters'}",
            where="optimizer",
            fix="leave it at its default, or take a gate without parameters (fixed)",
        )
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return Rates(
        float(group["lr"]),
        float(group["weight_decay"]),
        float(group.get("momentum", 0.0)),
        bool(group.get("nesterov", False)),
        (float(beta1), float(beta2)),
        float(group.get("eps", 0.0)),
    )
