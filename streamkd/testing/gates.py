"""The contract of gates: weights per sample over the hard label and whatever teachers there are."""

import dataclasses
from typing import cast

import torch
from torch import nn

from streamkd.gates.gate import GateInputs, Hedging, Measured
from streamkd.hookspecs import Kind, Options
from streamkd.testing.clauses import Clause, Given, begin, carried, needs, same, shaped
from streamkd.testing.specimens import evidence_of, of_teachers, part_of

WEIGHTS_OF = "end with `weights_of(hard, share(scores, evidence.heard), evidence.heard, evidence.labelled)`"


def check_gate(kind: Kind, options: Given = None, floor: float = 0.0) -> None:
    """A gate: weights per sample over hard label and teachers, whoever and however many they are.

    ``floor`` is the least weight of the hard label under these options.

    Raises:
        ContractBroken: a clause is broken; the text names it.
    """
    clause, chosen = begin("gate", kind, options)
    with clause("`make(options)` gives a torch.nn.Module", "subclass torch.nn.Module"):
        gate = kind.make(chosen)
        needs(isinstance(gate, nn.Module), "a torch.nn.Module", repr(gate))
    _weighs(clause, gate, floor, "as it is made")
    with torch.no_grad():
        for seed, parameter in enumerate(gate.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    _weighs(clause, gate, floor, "after its parameters have moved")
    with clause("the gradient of its weights reaches its parameters, finite", "no detach() or no_grad() in forward"):
        if parameters := [p for p in gate.parameters() if p.requires_grad]:
            gradients = torch.autograd.grad(gate(evidence_of(3))[:, :2].sum(), parameters, allow_unused=True)
            needs(any(g is not None for g in gradients), "a gradient to some parameter", "none")
            needs(all(g is None or bool(torch.isfinite(g).all()) for g in gradients), "finite gradients", "others")
    if hasattr(gate, "feedback"):
        _takes_prices(clause, gate, floor)
    _carries_over(clause, kind, chosen, gate)


def _weighs(clause: Clause, gate: nn.Module, floor: float, about: str) -> None:
    for teachers in (0, 1, 3, 6):
        _weighs_so_many(clause, gate, floor, f"{teachers} teachers, {about}", evidence_of(teachers))
    _changes_nothing(clause, gate, about)
    _takes_teachers_as_they_come(clause, gate, about)
    _listens_without_label(clause, gate, about)
    _takes_any_evidence(clause, gate, about)


def _weighs_so_many(clause: Clause, gate: nn.Module, floor: float, about: str, evidence: GateInputs) -> None:
    with clause(f"rows of weights are not negative and sum to 1, {about}", WEIGHTS_OF):
        weights = gate(evidence)
        shaped(weights, (len(evidence.labels), 1 + len(evidence.teachers)))
        needs(bool((weights >= 0).all()), "no negative weight", f"{weights.min()}")
        same(weights.sum(1), torch.ones(len(evidence.labels)))
    with clause(
        f"the hard label never falls below the floor {floor}, {about}", "raise column 0 to the floor before the rest"
    ):
        needs(bool((weights[:, 0] >= floor - 1e-6).all()), f"at least {floor}", f"{weights[:, 0].min()}")
    with clause(f"only teachers that are heard have weight, {about}", WEIGHTS_OF):
        needs(not bool((weights[:, 1:] * ~evidence.heard).any()), "0 where a teacher is not heard", f"{weights}")
    with clause(f"each sample is weighed by itself, {about}", "take no mean over the batch"):
        same(torch.cat([gate(part_of(evidence, slice(0, 2))), gate(part_of(evidence, slice(2, None)))]), weights)


def _changes_nothing(clause: Clause, gate: nn.Module, about: str) -> None:
    evidence, shown = evidence_of(3), evidence_of(3)
    first = gate(shown)
    kept = first.detach().clone()
    with clause(
        f"weighing changes nothing: asked again it says the same, its parameters and buffers stay, {about}",
        "learn in feedback() or by the outer loss; draw nothing in forward",
    ):
        before = _state(gate)
        same(gate(shown), first, 0)
        for name, value in _state(gate).items():
            same(value, before[name], 0)
    with clause(f"it leaves its evidence and the weights that it gave as they are, {about}", "work on copies"):
        gate(of_teachers(evidence_of(3), [2, 0, 1]))
        same(first, kept, 0)
        for field in ("logits", "labels", "answers", "known", "heard", "facts", "met", "stale"):
            same(getattr(shown, field), getattr(evidence, field), 0)


def _takes_teachers_as_they_come(clause: Clause, gate: nn.Module, about: str) -> None:
    evidence = evidence_of(3)
    weights = gate(evidence)
    with clause(f"permuting the teachers permutes their weights, {about}", "know teachers by name, never by place"):
        same(gate(of_teachers(evidence, [2, 0, 1]))[:, 1:], weights[:, 1:][:, [2, 0, 1]])
    with clause(f"a teacher that is never heard is as good as gone, {about}", "count only those in evidence.heard"):
        known, heard = evidence.known.clone(), evidence.heard.clone()
        known[:, 1], heard[:, 1] = False, False
        deaf = dataclasses.replace(evidence, known=known, heard=heard)
        same(gate(deaf)[:, [0, 1, 3]], gate(of_teachers(deaf, [0, 2])))


def _listens_without_label(clause: Clause, gate: nn.Module, about: str) -> None:
    evidence = evidence_of(3)
    with clause(
        f"rows without label listen to teachers alone, whose weights sum to 1, {about}",
        f"{WEIGHTS_OF}; labels of -1 are no columns: `at_labels`",
    ):
        labels = evidence.labels.clone()
        labels[::2] = -1
        heard = torch.where((labels < 0).unsqueeze(1), evidence.known.any(2), evidence.heard)
        silent = dataclasses.replace(evidence, labels=labels, heard=heard)
        shaped(gate(silent), (len(labels), 4))
        same(gate(silent)[labels < 0].sum(1), heard[labels < 0].any(1).float())
        needs(not bool(gate(silent)[labels < 0][:, 0].any()), "no weight for a label that is not there", "some")
        same(gate(silent)[labels >= 0], gate(evidence)[labels >= 0])


def _takes_any_evidence(clause: Clause, gate: nn.Module, about: str) -> None:
    evidence = evidence_of(3)
    with clause(f"extreme logits give finite weights, {about}", "log_softmax and clamp; no exp() of logits"):
        extreme = dataclasses.replace(evidence, logits=evidence.logits * 1e4, answers=evidence.answers * 1e4)
        shaped(gate(extreme), (len(evidence.labels), 4))
    with clause(
        f"what was not measured is None or NaN, and it weighs all the same, {about}",
        "take met and stale of None as never and nobody, credit of NaN as nothing known",
    ):
        for measure in (None, lambda: Measured(torch.full((3, 4), torch.nan), 0.4)):
            bare = dataclasses.replace(evidence, measure=measure, met=None, stale=None)
            shaped(gate(bare), (len(evidence.labels), 4))
            same(gate(bare).sum(1), torch.ones(len(evidence.labels)))
    with clause(
        f"evidence that says that it is complete is weighed as it would be without saying so, {about}",
        "use evidence.complete to spare masks, for nothing else",
    ):
        known, heard = torch.ones_like(evidence.known), torch.ones_like(evidence.heard)
        whole = dataclasses.replace(evidence, known=known, heard=heard)
        same(gate(dataclasses.replace(whole, complete=True)), gate(whole))


def _takes_prices(clause: Clause, gate: nn.Module, floor: float) -> None:
    feedback = cast(Hedging, gate).feedback
    with clause(
        "feedback(evidence, table) takes any prices, and leaves them and the evidence as they are",
        "work on copies; move nothing where a price is not finite",
    ):
        evidence, shown = evidence_of(3), evidence_of(3)
        table = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
        for prices in (table, table * 1e6, torch.zeros_like(table), torch.full_like(table, torch.nan)):
            given = prices.clone()
            feedback(shown, given)
            shaped(gate(shown), (len(table), 4))
            same(given.nan_to_num(), prices.nan_to_num(), 0)
            for field in ("logits", "answers"):
                same(getattr(shown, field), getattr(evidence, field), 0)
    _weighs(clause, gate, floor, "after prices")


def _carries_over(clause: Clause, kind: Kind, options: Options, gate: nn.Module) -> None:
    with clause(
        "a state dict carries the gate over",
        "make all that weights hang on parameters or buffers, or give get_extra_state() and set_extra_state()",
    ):
        other = kind.make(options)
        other.load_state_dict(carried(dict(gate.state_dict())))
        same(other(evidence_of(3)), gate(evidence_of(3)), 0)
    if isinstance(gate, Hedging):
        with clause("restored, it takes prices as if never stopped", "make what feedback() hangs on part of the state"):
            table = torch.randn(6, 4, generator=torch.Generator().manual_seed(6))
            for one in (gate, other):
                one.feedback(evidence_of(3), table.clone())
            same(other(evidence_of(3)), gate(evidence_of(3)), 0)


def _state(gate: nn.Module) -> dict[str, torch.Tensor]:
    tensors = (*gate.named_parameters(), *gate.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}
