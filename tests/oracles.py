"""Oracles: every formula of the product once more, slow and obvious, in float64, one sample and one class at a time."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamkd.gates.gate import GateInputs
from streamkd.gates.per_sample import PerSampleOptions


def softmax(logits: Sequence[float], known: Sequence[bool] | None = None, temperature: float = 1.0) -> list[float]:
    """Tempered softmax over the classes that are known; zeros where none is."""
    known = known or [True] * len(logits)
    scaled = [z / temperature for z, k in zip(logits, known, strict=True) if k]
    top = max(scaled, default=0.0)
    parts = [math.exp(z / temperature - top) if k else 0.0 for z, k in zip(logits, known, strict=True)]
    total = sum(parts)
    return [p / total for p in parts] if total else parts


def asked(answers: Sequence[float], known: Sequence[bool], logits: Sequence[float], temperature: float) -> list[float]:
    """A teacher's p^T in the mass that the student gives to what it knows, and beside it what the student says."""
    teacher, own = softmax(answers, known, temperature), softmax(logits, temperature=temperature)
    mass = sum(s for s, k in zip(own, known, strict=True) if k)
    heard = [mass * p if k else s for p, s, k in zip(teacher, own, known, strict=True)]
    return heard if any(known) else [0.0] * len(own)


def match_gate(
    logits: Tensor, labels: Tensor, answers: Tensor, known: Tensor, weights: Tensor, temperature: float
) -> list[float]:
    """w0·CE(y, s) + (1-w0)·T²·KL(q^T ‖ s^T) with q^T = Σ_k v_k·p_k^T, v_k = w_k / (1-w0), per sample."""
    losses = []
    for i in range(len(logits)):
        student = softmax(logits[i].tolist())
        tempered = softmax(logits[i].tolist(), temperature=temperature)
        w0 = float(weights[i, 0])
        loss = -w0 * math.log(student[int(labels[i])]) if w0 else 0.0
        mixture = [0.0] * len(student)
        for k in range(answers.shape[1]):
            teacher = asked(answers[i, k].tolist(), known[i, k].tolist(), logits[i].tolist(), temperature)
            share = float(weights[i, 1 + k]) / (1 - w0) if w0 < 1 else 0.0
            mixture = [q + share * p for q, p in zip(mixture, teacher, strict=True)]
        divergence = sum(q * math.log(q / s) for q, s in zip(mixture, tempered, strict=True) if q > 0)
        losses.append(loss + (1 - w0) * temperature**2 * divergence)
    return losses


def per_teacher(
    logits: Tensor, labels: Tensor, answers: Tensor, known: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Σ_i [w_i0·CE + Σ_k w_ik·T²·KL(p_ik^T ‖ s_i^T)], each teacher's own KL, differentiable in ``logits``."""
    total = logits.new_zeros(())
    for i in range(len(logits)):
        total = total - weights[i, 0] * torch.log_softmax(logits[i], 0)[labels[i]]
        student = torch.log_softmax(logits[i] / temperature, 0)
        for k in range(answers.shape[1]):
            teacher = asked(answers[i, k].tolist(), known[i, k].tolist(), logits[i].tolist(), temperature)
            for c, p in enumerate(teacher):
                if p > 0:
                    total = total + weights[i, 1 + k] * temperature**2 * p * (math.log(p) - student[c])
    return total


def gate_prior(evidence: GateInputs, options: PerSampleOptions) -> list[list[float]]:
    """v_k ∝ ((1 - slip)·p_k(y) + slip / C)^(b·trust) · exp(c_k[y])^credit · r_k^present among those heard, · stale / n
    for n stale; w0 = max(hard, doubt·(1 - Σ v_k·exp(c_k[y]) / (1 - noise)))·b within [room, 1 - room], and no less than
    floor·b. The belief b goes evenly, over a label's first known_after meetings, from 1 to
    1 - (noise - noise_from) / noise_range within [least_belief, 1].
    """
    answers, known, heard, credit = evidence.answers, evidence.known, evidence.heard, evidence.credit
    least = min(max(1 - (evidence.noise - options.noise_from) / options.noise_range, options.least_belief), 1.0)
    rows, classes = [], answers.shape[2]
    for i, label in enumerate(evidence.labels.tolist()):
        mine = [k for k in range(answers.shape[1]) if heard[i, k]]
        old = [k for k in mine if evidence.stale[k]]
        counts = {k: options.stale / len(old) if k in old else 1.0 for k in mine}
        belief = 1.0 + (least - 1.0) * min(int(evidence.met[i]) / options.known_after, 1.0)
        if not mine:
            rows.append([1.0] + [0.0] * answers.shape[1])
            continue
        p = {k: softmax(answers[i, k].tolist(), known[i, k].tolist())[label] for k in mine}
        p = {k: max(v, math.exp(-10)) for k, v in p.items()}
        q = {k: math.exp(float(credit[k, label])) for k in mine}
        drawn = {k: (1 - options.slip) * p[k] + options.slip / classes for k in mine}
        now = {k: 1.0 if evidence.present is None else float(evidence.present[k]) for k in mine}
        score = {k: drawn[k] ** (belief * options.trust) * q[k] ** options.credit * counts[k] for k in mine}
        score = {k: v * now[k] ** options.present for k, v in score.items()}
        share = {k: score[k] / sum(score.values()) for k in mine}
        trusted = sum(share[k] * q[k] for k in mine) / (1 - evidence.noise)
        w0 = max(options.hard, options.doubt * (1 - trusted))
        w0 = max(options.floor * belief, min(max(w0 * belief, options.room), 1 - options.room))
        rows.append([w0] + [(1 - w0) * share.get(k, 0.0) for k in range(answers.shape[1])])
    return rows


def optimizer_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """θ' by the formulas of PyTorch's documentation of SGD, Adam and AdamW, differentiable in the gradients."""
    group = optimizer.param_groups[0]
    rate, decay = group["lr"], group["weight_decay"]
    moved = []
    for p, g in zip(parameters, grads, strict=True):
        state = optimizer.state.get(p, {})
        start = p.detach()
        if isinstance(optimizer, torch.optim.AdamW):
            start = start - rate * decay * start
        else:
            g = g + decay * start
        if isinstance(optimizer, torch.optim.SGD):
            moved.append(start - rate * _sgd_direction(g, state.get("momentum_buffer"), group))
            continue
        beta1, beta2 = group["betas"]
        t = float(state["step"]) + 1 if state else 1.0
        m = beta1 * (state["exp_avg"] if state else 0) + (1 - beta1) * g
        v = beta2 * (state["exp_avg_sq"] if state else 0) + (1 - beta2) * g * g
        alive = v > 0
        root = torch.sqrt(torch.where(alive, v, 1.0) / (1 - beta2**t)) * alive
        step = (m / (1 - beta1**t)) / (root + group["eps"])
        # a dead unit's gradient is 0 for every weight of every source: it says nothing of them
        moved.append(start - rate * torch.where(alive, step, step.detach()))
    return moved


def _sgd_direction(g: Tensor, buffer: Tensor | None, group: dict) -> Tensor:
    momentum = group["momentum"]
    if not momentum:
        return g
    new = g if buffer is None else momentum * buffer + g
    return g + momentum * new if group["nesterov"] else new


def clip(grads: Sequence[Tensor], clip_norm: float | None) -> list[Tensor]:
    """``torch.nn.utils.clip_grad_norm_``, differentiable."""
    if clip_norm is None:
        return list(grads)
    norm = sum((g**2).sum() for g in grads) ** 0.5
    factor = clip_norm / (norm + 1e-6)
    return [g * factor if factor < 1 else g for g in grads]


def hypergradient(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    inner: Callable[[dict[str, Tensor], Tensor], Tensor],
    outer: Callable[[dict[str, Tensor]], Tensor],
    weights: Tensor,
    clip_norm: float | None,
) -> Tensor:
    """batch · dL_out(θ'(w))/dw by double backward through the whole inner step."""
    names = [name for name, _ in module.named_parameters()]
    parameters = [p for _, p in module.named_parameters()]
    weights = weights.detach().clone().requires_grad_()
    loss = inner(dict(zip(names, parameters, strict=True)), weights)
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    moved = optimizer_step(optimizer, parameters, clip(grads, clip_norm))
    (slope,) = torch.autograd.grad(outer(dict(zip(names, moved, strict=True))), weights)
    return slope * len(weights)


def call(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The module's output with other parameters."""
    return functional_call(module, parameters, (x,))


def readings(
    logits: Tensor, labels: Tensor, answers: Tensor, known: Tensor, weights: Tensor
) -> tuple[list[float], list[float]]:
    """-Σ w_k·log p_k(y) and -log Σ w_k·p_k(y), the student as source 0; a row without label has 0 in both."""
    literal, mixture = [], []
    for i in range(len(logits)):
        y = int(labels[i])
        sources = [softmax(logits[i].tolist())]
        sources += [softmax(answers[i, k].tolist(), known[i, k].tolist()) for k in range(answers.shape[1])]
        pairs = [(float(w), p[y]) for w, p in zip(weights[i], sources, strict=True) if w > 0 and y >= 0]
        literal.append(-sum(w * math.log(p) for w, p in pairs))
        mixture.append(-math.log(sum(w * p for w, p in pairs)) if pairs else 0.0)
    return literal, mixture


def decoupled_kd(
    logits: Tensor,
    labels: Tensor,
    answers: Tensor,
    known: Tensor,
    weights: Tensor,
    temperature: float,
    target: float,
    others: float,
) -> list[float]:
    """w0·CE + Σ_k w_k·T²·(α·TCKD + β·NCKD), Zhao et al. 2022, equations 1, 2 and 7, per sample with a label."""
    losses = []
    for i in range(len(logits)):
        y = int(labels[i])
        loss = -float(weights[i, 0]) * math.log(softmax(logits[i].tolist())[y])
        s = softmax(logits[i].tolist(), temperature=temperature)
        for k in range(answers.shape[1]):
            p = asked(answers[i, k].tolist(), known[i, k].tolist(), logits[i].tolist(), temperature)
            rest_p, rest_s = (sum(v for c, v in enumerate(q) if c != y) for q in (p, s))
            binary = _kl([p[y], rest_p], [s[y], rest_s])
            apart = [(p[c] / rest_p, s[c] / rest_s) for c in range(len(s)) if c != y and rest_p > 0]
            share = _kl([a for a, _ in apart], [b for _, b in apart])
            loss += float(weights[i, 1 + k]) * temperature**2 * (target * binary + others * share)
        losses.append(loss)
    return losses


def _kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def attention(ours: Tensor, theirs: Tensor, power: float) -> list[float]:
    """½·‖ Q/‖Q‖ - Q_k/‖Q_k‖ ‖₂ of maps [batch, channels, height, width] of one size, Q = Σ_c |h_c|^p."""
    distances = []
    for a, b in zip(ours, theirs, strict=True):
        maps = []
        for h in (a, b):
            flat = [sum(abs(float(c[y, x])) ** power for c in h) for y in range(h.shape[1]) for x in range(h.shape[2])]
            norm = math.sqrt(sum(q * q for q in flat))
            maps.append([q / norm for q in flat])
        distances.append(math.sqrt(sum((p - q) ** 2 for p, q in zip(*maps, strict=True))) / 2)
    return distances


def relations(ours: Tensor, theirs: Tensor, among: Sequence[bool]) -> tuple[list[float], list[float]]:
    """Mean Huber loss of each row's relations to the others ``among`` them: scaled distances, cosines of angles."""
    rows = [i for i, counted in enumerate(among) if counted]
    spaces = []
    for space in (ours.tolist(), theirs.tolist()):
        far = {(i, j): math.dist(space[i], space[j]) for i in rows for j in rows if i != j}
        spaces.append((space, far, sum(far.values()) / max(len(far), 1)))

    def cosine(i: int, j: int, m: int, which: int) -> float:
        space, far, _ = spaces[which]
        ways = zip(space[i], space[j], space[m], strict=True)
        return sum((b - a) * (c - a) for a, b, c in ways) / (far[i, j] * far[i, m])

    distances, angles = [0.0] * len(among), [0.0] * len(among)
    for i in rows:
        others = [j for j in rows if j != i]
        near = [_huber(*(far[i, j] / mean for _, far, mean in spaces)) for j in others]
        seen = [_huber(cosine(i, j, m, 0), cosine(i, j, m, 1)) for j in others for m in others if j != m]
        distances[i] = sum(near) / max(len(near), 1)
        angles[i] = sum(seen) / max(len(seen), 1)
    return distances, angles


def _huber(a: float, b: float) -> float:
    return (a - b) ** 2 / 2 if abs(a - b) <= 1 else abs(a - b) - 0.5
