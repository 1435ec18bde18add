"""Worth: what a pool would lose, against its definition, and its limits."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamkd.teachers.worth import Assessment, assessment


def drawn(seed: int, teachers: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(15, teachers, 5, generator=g, dtype=torch.float64)
    return logits, torch.rand(15, teachers, 5, generator=g) < 0.7, torch.randint(0, 5, (15,), generator=g)


def oracle(logits: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """p_k(y) record by record."""
    rows = torch.zeros(logits.shape[:2], dtype=torch.float64)
    for i, y in enumerate(labels.tolist()):
        for k in range(logits.shape[1]):
            if known[i, k, y]:
                rows[i, k] = torch.exp(logits[i, k, y] - torch.logsumexp(logits[i, k][known[i, k]], 0))
    return rows


@given(st.integers(0, 1000))
def test_likelihoods_and_worth_are_their_definitions(seed: int) -> None:
    """p_k(y) over known classes, and the mean best likelihood with and without each teacher."""
    logits, known, labels = drawn(seed)
    found, wanted = assessment(logits, known, labels), oracle(logits, known, labels)
    torch.testing.assert_close(found.likelihood, wanted)
    worth = [
        wanted.max(1).values.mean() - wanted[:, [j for j in range(4) if j != k]].max(1).values.mean() for k in range(4)
    ]
    torch.testing.assert_close(found.marginal(), torch.stack(worth))


@given(st.integers(0, 1000), st.permutations(range(4)))
def test_worth_does_not_depend_on_the_order(seed: int, order: list[int]) -> None:
    """Permuting the teachers permutes their worth and accuracy."""
    logits, known, labels = drawn(seed)
    found, other = assessment(logits, known, labels), assessment(logits[:, order], known[:, order], labels)
    torch.testing.assert_close(found.marginal()[order], other.marginal())
    torch.testing.assert_close(found.accuracy()[order], other.accuracy())


def test_of_two_equals_neither_is_missed() -> None:
    """The same answers twice: no worth to either, whatever they know."""
    logits, known, labels = drawn(1, teachers=1)
    twice = assessment(logits.repeat(1, 2, 1), known.repeat(1, 2, 1), labels)
    assert (twice.marginal() == 0).all()


def test_a_teacher_that_knows_nothing_is_worth_nothing() -> None:
    """Nor has it any accuracy; alone, a teacher is worth its mean likelihood."""
    logits, known, labels = drawn(2, teachers=2)
    known[:, 1] = False
    found = assessment(logits, known, labels)
    assert found.marginal()[1] == found.accuracy()[1] == 0
    torch.testing.assert_close(found.marginal()[0], found.likelihood[:, 0].mean())


def test_without_teachers_there_is_no_worth() -> None:
    """An empty pool has none to tell, and what joins it adds its whole likelihood."""
    none = Assessment(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool), torch.zeros(3, 0, dtype=torch.bool))
    assert none.marginal().shape == (0,)
    assert none.gain([], torch.tensor([0.2, 0.4, 0.6])) == torch.tensor([0.2, 0.4, 0.6]).mean()
