"""What is known of producers of labels by how they are contradicted."""

from collections.abc import Mapping

import numpy as np
import pytest

from streamkd.gates.producers import ERRORS, HEARD, MOST, OTHERS, PSEUDO, Producers

LIES: Mapping[str, float] = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0, "liar": 0.4}


def _taught(
    records: int = 2_000, lies: Mapping[str, float] = LIES, common: float = 0.0, skill: float = 0.9
) -> Producers:
    """Producers whose labels, of four classes, are wrong that often, before answers that are right ``skill`` of the
    time and as sure as that.
    """
    draw, one = np.random.default_rng(0), Producers(0)
    names = draw.choice(list(lies), records).tolist()
    true, given = draw.integers(0, 4, records), draw.integers(0, 4, records)
    said = np.where(draw.uniform(size=records) < skill, true, given)
    wrong = draw.uniform(size=records) < [max(common, lies[name]) for name in names]
    labels = np.where(wrong, (true + 1) % 4, true)
    answers = np.full((records, 4), (1 - skill) / 4)
    answers[np.arange(records), said] += skill
    one.learn(names, labels, answers)
    return one


def test_the_liar_is_told_from_the_others() -> None:
    """Of his labels 0.4 are wrong, which is what is said, a little less; of the others hardly any."""
    noise = _taught().noise
    assert 0.25 < noise.pop("liar") < 0.45
    assert max(noise.values()) < 0.05


def test_it_is_said_in_closed_form() -> None:
    """Contradicted more than expected, drawn to nothing, beside the median; nothing within two standard errors."""
    one = Producers(0)
    for count in (1, 9):
        one.learn(["a", "b"] * count, np.array([0, 1] * count), np.array([[0.8, 0.2]] * 2 * count))
        n, e, v = 0.8 * count, np.array([-0.2, 0.8]) * count, 0.16 * count
        x, error = e / (n + PSEUDO), np.sqrt(v + 1) / (n + PSEUDO)
        gap = float(x[1] - x[0])
        assert list(one.noise.values()) == pytest.approx([0.0, gap if gap > ERRORS * error else 0.0], abs=1e-2)
        assert bool(one.noise["b"]) == (count > 1)
        one = Producers(0)


@pytest.mark.parametrize(("common", "skill"), [(0.3, 0.9), (0.0, 0.4)])
def test_what_concerns_all_is_nobodys(common: float, skill: float) -> None:
    """Labels that are wrong whoever gave them, and records that are hard, make no liar."""
    assert max(_taught(lies=dict.fromkeys("abcd", 0.0), common=common, skill=skill).noise.values()) < 0.05


def test_one_alone_is_no_liar() -> None:
    """There is nobody to compare him with."""
    assert _taught(lies={"liar": 0.4}).noise == {"liar": 0.0}


def test_labels_are_withheld_as_far_as_they_are_doubted() -> None:
    """Of the liar's one in ten is heard, of the others all; the same in the same step."""
    one = _taught()
    names, labels = ["liar", "a"] * 2_000, np.ones(4_000, dtype=np.int64)
    heard = one.heard(names, labels, 7)
    assert (heard[1::2] == 1).all()
    assert float((heard[::2] == 1).mean()) == pytest.approx(HEARD, abs=0.03)
    assert (one.heard(names, labels, 7) == heard).all()
    assert (one.heard(names, labels, 8) != heard).any()


def test_who_brings_what_nobody_knew_is_heard_again() -> None:
    """Contradicted by all who do not know his domain yet, he is withheld; once they have learned it he is heard."""
    draw, one = np.random.default_rng(0), Producers(0)
    names = ["a", "b", "new"] * 1_000
    labels = draw.integers(0, 2, len(names))
    right = np.stack([1 - labels, labels], 1) * 0.9 + 0.05
    ignorant = np.where(np.array(names)[:, None] == "new", 1 - right, right)
    one.learn(names, labels, ignorant)
    assert one.noise["new"] > 0.5
    for _ in range(4):
        one.learn(names, labels, right)
    assert one.noise["new"] < 0.05


def test_it_is_bounded() -> None:
    """More producers than are told apart are one; a record that names nobody tells nothing."""
    one = Producers(0)
    names = [f"p{number}" for number in range(3 * MOST)]
    one.learn([*names, None], np.zeros(3 * MOST + 1, dtype=np.int64), np.full((3 * MOST + 1, 2), 0.5))
    assert len(one.records) == MOST + 1
    assert one.records[OTHERS] == 2 * MOST


def test_the_state_gives_back_what_is_known() -> None:
    """The same noise, and the same labels withheld."""
    one, other = _taught(), Producers(0)
    other.load_state_dict(one.state_dict())
    assert other.noise == one.noise
