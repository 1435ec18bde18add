"""Label noise: the surprise of confident answers tells wrong labels from ignorance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkd.distill.memory import Memory
from streamkd.distill.noise import label_noise, on_arrival, surprise

CLASSES = 5
ALL = torch.ones(1, CLASSES, dtype=torch.bool)


def said(answers: torch.Tensor, sure: torch.Tensor | float) -> torch.Tensor:
    """Logits that prefer ``answers`` by so much."""
    return sure * torch.nn.functional.one_hot(answers, CLASSES).float()


def labels_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def turned(labels: torch.Tensor, part: float, seed: int = 1) -> torch.Tensor:
    """A part of the labels made wrong."""
    wrong = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < part
    return torch.where(wrong, (labels + 1) % CLASSES, labels)


def empty() -> Memory:
    return Memory(20, 0.2, "class-balanced", teacher_slots=0, seed=0)


@given(st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.5]))
def test_wrong_labels_surprise_the_sure(seed: int, part: float) -> None:
    """One who knows every class finds the part that was made wrong, within its sampling error."""
    truth = labels_of(2000, seed)
    sure = 2 + torch.rand(2000, 1, generator=torch.Generator().manual_seed(seed))
    found = surprise(said(truth, sure), ALL.expand(2000, -1), turned(truth, part, seed + 1), 0.5)
    assert found == pytest.approx(part, abs=0.06)


def test_what_is_not_known_yet_surprises_nobody() -> None:
    """A third is answered wrongly, by one who is unsure there: no noise, though a third of all answers is wrong."""
    truth = labels_of(300)
    unsure = torch.arange(300) % 3 == 0
    answers = torch.where(unsure, (truth + 1) % CLASSES, truth)
    logits = said(answers, torch.where(unsure, 0.5, 3.0).unsqueeze(1))
    assert surprise(logits, ALL.expand(300, -1), truth, 0.5) == 0.0


def test_labels_that_a_teacher_does_not_know_are_no_mistakes_of_it() -> None:
    """Rows of unknown classes are left out, and a class that is masked is never the answer."""
    truth = labels_of(100)
    known = (torch.arange(CLASSES) < 3).expand(100, -1)
    logits = said(truth.clamp(max=2), 3.0)
    logits[:, 4] = 9.0
    assert surprise(logits, known, truth, 0.5) == 0.0


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_handful_tells_nothing(rows: int) -> None:
    """Fewer than four confident answers are no measurement."""
    truth = labels_of(rows)
    assert surprise(said(truth, 1.0), ALL.expand(rows, -1), truth, 0.5) is None


def test_the_teacher_who_is_right_most_often_is_asked() -> None:
    """One of turned classes is surprised at every label; beside one who knows them no label is in doubt."""
    truth = labels_of(40)
    wrong, right = said((truth + 1) % CLASSES, 5.0), said(truth, 2.0)
    known = torch.ones(40, 2, CLASSES, dtype=torch.bool)
    assert label_noise(torch.stack([wrong, right], 1), known, truth, empty()) == 0.0
    assert label_noise(wrong.unsqueeze(1), known[:, :1], truth, empty()) > 0.9


def test_answers_on_arrival_are_of_records_not_learned() -> None:
    """What the student said of the rows that came, kept or held out, over the classes of that day."""
    memory = Memory(200, 0.2, "class-balanced", teacher_slots=0, seed=0)
    truth = labels_of(400)
    given_labels = turned(truth, 0.4)
    for begin in range(0, 400, 10):
        rows = slice(begin, begin + 10)
        memory.insert(torch.zeros(10, 2), given_labels[rows], 0, said(truth[rows], 3.0))
    assert on_arrival(memory) == pytest.approx(0.4, abs=0.13)
    nobody = torch.zeros(0, 0, CLASSES)
    assert label_noise(nobody, nobody.bool(), truth[:0], memory) == on_arrival(memory)


def test_with_nobody_to_ask_there_is_no_noise() -> None:
    """An empty memory and no teacher: labels are believed."""
    nobody = torch.zeros(3, 0, CLASSES)
    assert label_noise(nobody, nobody.bool(), labels_of(3), empty()) == 0.0
