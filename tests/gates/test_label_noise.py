"""Label noise: mistakes that no confidence takes away, at all times and for everybody, are wrong labels."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamkd.gates.label_noise import BLOCK, BLOCKS, LabelNoise

CLASSES = 5
STEP = 50


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def said(answers: Tensor, confidence: Tensor) -> Tensor:
    """Logits [n, classes] of one who answers with so much probability, at least 1 / classes."""
    rest = ((1 - confidence) / (CLASSES - 1)).log()
    return torch.where(
        torch.nn.functional.one_hot(answers, CLASSES) > 0, confidence.log().unsqueeze(1), rest.unsqueeze(1)
    )


def source(labels: Tensor, right: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Answers that are right with probability ``right`` [n], and as sure as that."""
    hit = torch.rand(len(labels), generator=draw(seed)) < right
    return torch.where(hit, labels, (labels + 2) % CLASSES), right.clamp(0.21, 0.999)


def turned(labels: Tensor, part: float, seed: int) -> Tensor:
    """A part of the labels made wrong."""
    return torch.where(torch.rand(len(labels), generator=draw(seed)) < part, (labels + 1) % CLASSES, labels)


def heard(labels: Tensor, *sources: tuple[Tensor, Tensor], noise: LabelNoise | None = None) -> LabelNoise:
    """Some sources' answers and confidence on records that arrive in steps."""
    noise = noise or LabelNoise()
    names = [f"source {place}" for place in range(len(sources))]
    logits = torch.stack([said(*source) for source in sources], 1)
    for at in range(0, len(labels), STEP):
        part = slice(at, at + STEP)
        noise.observe(names, logits[part], torch.ones_like(logits[part], dtype=torch.bool), labels[part])
    return noise


def truth(count: int, seed: int) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=draw(seed))


def skill(count: int, seed: int, least: float = 0.3) -> Tensor:
    """How likely a source is right on each record: anything from ``least`` to 1."""
    return least + (1 - least) * torch.rand(count, generator=draw(seed)) ** 0.5


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([0.15, 0.3, 0.4]))
def test_wrong_labels_are_found(seed: int, part: float) -> None:
    """One who is sure where he is right is contradicted by a part that is wrong, and about that part is told."""
    labels = truth(8 * BLOCK, seed)
    right = skill(len(labels), seed + 1, least=0.6)
    found = heard(turned(labels, part, seed + 3), source(labels, right, seed + 2)).share
    assert found is not None
    assert part - 0.15 < found < part + 0.1


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([0.25, 0.5, 0.75]))
def test_hard_records_and_overlapping_classes_are_none(seed: int, least: float) -> None:
    """However often the unsure err, where the sure do not no label is in doubt."""
    labels = truth(8 * BLOCK, seed)
    assert (heard(labels, source(labels, skill(len(labels), seed + 1, least), seed + 2)).share or 0.0) < 0.05


def drifting(labels: Tensor, seed: int) -> Tensor:
    """Classes change their names after a third of the records."""
    at = len(labels) // 3
    return torch.cat([labels[:at], (labels[at:] + 1) % CLASSES])


def late(labels: Tensor, seed: int) -> Tensor:
    """A third of the labels is wrong, but not from the beginning."""
    at = 4 * BLOCK
    return torch.cat([labels[:at], turned(labels[at:], 0.33, seed)])


@pytest.mark.parametrize("change", [drifting, late], ids=["names", "late"])
def test_a_changed_world_is_no_noise(change: Callable[[Tensor, int], Tensor]) -> None:
    """Those who were right and no longer are say nothing of labels."""
    labels = truth(12 * BLOCK, 0)
    given_labels = change(labels, 5)
    assert (heard(given_labels, source(labels, skill(len(labels), 1, 0.6), 2)).share or 0.0) < 0.05


def test_noise_that_begins_late_is_told_once_what_was_before_is_forgotten() -> None:
    """After so many blocks, the clean beginning is no witness any more."""
    labels = truth((BLOCKS + 4) * BLOCK, 0)
    noise = heard(late(labels, 5), source(labels, skill(len(labels), 1, 0.6), 2))
    assert (noise.share or 0.0) > 0.2


def test_where_nobody_knows_much_nothing_is_told() -> None:
    """Sure and wrong on three records of four: that is ignorance or noise, who knows."""
    labels = truth(4 * BLOCK, 0)
    right = torch.full_like(labels, 0.25, dtype=torch.float32)
    answers, _ = source(labels, right, 1)
    assert heard(labels, (answers, torch.full_like(right, 0.9))).share is None


def test_one_who_is_right_where_he_is_sure_disproves_the_others() -> None:
    """One who is sure of wrong answers finds the labels wrong; beside a good source it says nothing."""
    labels = truth(6 * BLOCK, 0)
    bad = turned(labels, 0.4, 1), torch.full((len(labels),), 0.95)
    good = source(labels, skill(len(labels), 2), 3)
    assert (heard(labels, bad).share or 0.0) > 0.25
    assert (heard(labels, bad, good).share or 0.0) < 0.05


def test_what_a_source_does_not_know_it_is_not_asked() -> None:
    """Labels that it does not know are no mistakes of it, and one who knows a single class is right by no merit."""
    labels = truth(2 * BLOCK, 0)
    logits = said(labels, torch.full((len(labels),), 0.9)).unsqueeze(1).repeat(1, 2, 1)
    known = torch.ones_like(logits, dtype=torch.bool)
    known[:, 0, 3:] = False
    known[:, 1, 1:] = False
    noise = LabelNoise()
    noise.observe(["some", "one"], logits, known, labels)
    blocks = noise.state_dict()["blocks"]
    assert [*blocks] == ["some"]
    assert blocks["some"][0][-2:] == [int((labels < 3).sum()), 0]


def test_records_without_label_say_nothing() -> None:
    """Whatever is answered to them: what is kept is the same without them."""
    labels = truth(100, 0)
    with_gaps = torch.where(torch.arange(100) % 3 == 0, -1, labels)
    kept = with_gaps >= 0
    answers, sure = source(labels, skill(100, 1), 2)
    some, all_of_them = heard(with_gaps[kept], (answers[kept], sure[kept])), heard(with_gaps, (answers, sure))
    rows = [noise.state_dict()["waiting"]["source 0"] for noise in (some, all_of_them)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("at", [0, 50, 450, 500, 1250])
def test_resumed_it_goes_on(at: int) -> None:
    """Stopped within a block, at its end, and restored, what it says is what it would have said."""
    labels = truth(3 * BLOCK, 0)
    answers, sure = source(labels, skill(len(labels), 1), 2)
    whole = heard(labels, (answers, sure))
    restored = LabelNoise()
    restored.load_state_dict(
        heard(labels[:at], (answers[:at], sure[:at])).state_dict() if at else LabelNoise().state_dict()
    )
    resumed = heard(labels[at:], (answers[at:], sure[at:]), noise=restored)
    assert resumed.state_dict()["blocks"] == whole.state_dict()["blocks"]
    assert resumed.share == whole.share


def test_what_is_kept_is_bounded() -> None:
    """So many blocks of a source, and none of one who is not there any more."""
    labels = truth((BLOCKS + 3) * BLOCK, 0)
    answers, sure = source(labels, skill(len(labels), 1), 2)
    noise = heard(labels, (answers, sure), (answers, sure))
    assert {len(rows) for rows in noise.state_dict()["blocks"].values()} == {BLOCKS}
    heard(labels[:BLOCK], (answers[:BLOCK], sure[:BLOCK]), noise=noise)
    assert [*noise.state_dict()["blocks"]] == ["source 0"]
