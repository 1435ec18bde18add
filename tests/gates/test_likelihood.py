"""Credit: what is measured of teachers on held-out records, and the gate that goes by it."""

import dataclasses
import math

import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from streamkd.gates.gate import GateInputs, Measured
from streamkd.gates.likelihood import LikelihoodGate, LikelihoodOptions, held_out_likelihood
from streamkd.teachers.teacher import EmaOptions, EmaTeacher

CPU = torch.device("cpu")

seeds = st.integers(0, 10_000)


def measured(parts: dict) -> list[list[float]]:
    """(Σ log p + 2·mean) / (n + 2) per teacher and class, one record at a time."""
    rows, teachers, classes = parts["answers"].shape
    table = []
    for k in range(teachers):
        logs: dict[int, list[float]] = {c: [] for c in range(classes)}
        for i in range(rows):
            label = int(parts["labels"][i])
            if parts["known"][i, k, label]:
                p = oracles.softmax(parts["answers"][i, k].tolist(), parts["known"][i, k].tolist())
                logs[label].append(max(math.log(p[label]), -5.0))
        every = [value for values in logs.values() for value in values]
        mean = sum(every) / len(every) if every else math.nan
        table.append([(sum(logs[c]) + 2 * mean) / (len(logs[c]) + 2) for c in range(classes)])
    return table


@given(seeds)
def test_credit_is_the_mean_log_likelihood_of_each_class(seed: int) -> None:
    """Drawn towards the teacher's mean over all classes; NaN for a teacher that heard nothing."""
    parts = toys.lesson(seed, batch=9)
    got = held_out_likelihood(parts["answers"], parts["known"], parts["labels"])
    wanted = torch.tensor(measured(parts), dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_class_without_records_has_the_teachers_mean() -> None:
    """So has every class of which nothing was held out yet."""
    parts = toys.lesson(0, batch=6)
    parts["known"][:] = True
    parts["labels"][:] = torch.tensor([0, 1, 0, 1, 0, 1])
    got = held_out_likelihood(parts["answers"], parts["known"], parts["labels"])
    logs = torch.log_softmax(parts["answers"], -1)[torch.arange(6), :, parts["labels"]].clamp_min(-5)
    torch.testing.assert_close(got[:, 2], logs.mean(0))
    torch.testing.assert_close(got[:, 3], logs.mean(0))


def by_credit(evidence: GateInputs, floor: float, trust: float, doubt: float) -> list[list[float]]:
    """v ∝ exp(trust·likelihood), w0 = doubt·(1 - Σ v·exp(likelihood)) within the floor and 1."""
    rows = []
    for i, label in enumerate(evidence.labels.tolist()):
        mine = {k: float(evidence.credit[k, label]) for k in range(len(evidence.teachers)) if evidence.heard[i, k]}
        if not mine:
            rows.append([1.0] + [0.0] * len(evidence.teachers))
            continue
        total = sum(math.exp(trust * c) for c in mine.values())
        v = {k: math.exp(trust * c) / total for k, c in mine.items()}
        w0 = min(max(doubt * (1 - sum(v[k] * math.exp(mine[k]) for k in mine)), floor), 1.0)
        rows.append([w0] + [(1 - w0) * v.get(k, 0.0) for k in range(len(evidence.teachers))])
    return rows


@given(seeds, st.sampled_from([0.0, 0.3]), st.sampled_from([0.5, 4.0]), st.sampled_from([0.5, 1.0]))
def test_likelihood_weighs_by_the_credit_of_the_label(seed: int, floor: float, trust: float, doubt: float) -> None:
    """v ∝ exp(trust·credit[y]) among those heard; the label has what the teachers leave in doubt."""
    evidence = toys.evidence(toys.lesson(seed))
    gate = LikelihoodGate(LikelihoodOptions(floor=floor, trust=trust, doubt=doubt))
    wanted = torch.tensor(by_credit(evidence, floor, trust, doubt), dtype=torch.float64)
    torch.testing.assert_close(gate(evidence), wanted, rtol=1e-9, atol=1e-9)


def test_a_teacher_of_unknown_credit_counts_as_the_mean_of_those_heard() -> None:
    """A newcomer is neither trusted nor shunned before anything was measured of it."""
    parts = toys.lesson(3)
    parts["known"][:] = parts["heard"][:] = True
    evidence = toys.evidence(parts)
    table = evidence.credit.clone()
    table[1] = torch.nan
    filled = table.clone()
    filled[1] = (table[0] + table[2]) / 2
    gate = LikelihoodGate(LikelihoodOptions())
    got = gate(dataclasses.replace(evidence, measure=lambda: Measured(table)))
    torch.testing.assert_close(got, gate(dataclasses.replace(evidence, measure=lambda: Measured(filled))))


def test_without_any_credit_the_shares_are_even() -> None:
    """Nothing held out: every teacher alike, and the label as much as all of them."""
    parts = toys.lesson(3)
    parts["known"][:] = parts["heard"][:] = True
    weights = LikelihoodGate(LikelihoodOptions())(dataclasses.replace(toys.evidence(parts), measure=None))
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1 / 6, 1 / 6, 1 / 6]], dtype=torch.float64).expand(5, -1))


@given(seeds)
def test_trust_without_end_takes_the_best_teacher_of_each_class(seed: int) -> None:
    """trust to infinity is an argmax over those heard, trust 0 is even."""
    evidence = toys.evidence(toys.lesson(seed))
    best = LikelihoodGate(LikelihoodOptions(trust=1e4))(evidence)[:, 1:]
    for i, label in enumerate(evidence.labels.tolist()):
        if evidence.heard[i].any():
            credits = evidence.credit[:, label].masked_fill(~evidence.heard[i], -torch.inf)
            assert int(best[i].argmax()) == int(credits.argmax())
            assert float(best[i].max()) == pytest.approx(float(best[i].sum()))
    even = LikelihoodGate(LikelihoodOptions(trust=0.0))(evidence)[:, 1:]
    count = evidence.heard.sum(1, keepdim=True)
    torch.testing.assert_close(even, (evidence.heard * even.sum(1, keepdim=True) / count.clamp_min(1)))


def test_a_teacher_that_is_wrong_earns_less() -> None:
    """Of two averages that answer, one with its classes turned, the held-out records tell who is right."""

    class Turned(EmaTeacher):
        def logits(self, x: torch.Tensor) -> torch.Tensor:
            return super().logits(x).roll(1, 1)

    student = toys.mlp()
    teachers = [kind(EmaOptions(), toys.context_of(key, student)) for key, kind in (("a", EmaTeacher), ("b", Turned))]
    step = toys.make_step(
        student=student, teachers=teachers, snapshots=0, gate=LikelihoodGate(LikelihoodOptions(trust=2.0)), size=100
    )
    for x, y in toys.batches(60):
        toys.train(step, x, y)
    x, y = toys.batches(1, seed=5)[0]
    plan = step.begin(x, y, 0)
    weights = step.weigh(plan, step.forward(plan)).weights[plan.rows.mass > 0]
    assert (weights[:, 1] > 3 * weights[:, 2]).all()
