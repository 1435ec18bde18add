"""The family of streams over which a gate is learned: drawn from a number alone, with the teachers that it says."""

import numpy as np
import pytest
import torch

from streamkd.gates.prior import GatePrior
from streamkd.meta.artefact import Artefact
from streamkd.pretraining import family, worlds
from streamkd.pretraining.outsiders import NATURES, Outsider, closed_form

SHORT = (60, 90)


def _labels(drawn: family.Drawn) -> list[int]:
    rows = drawn.source.read(family.PARTITION, 0, 10_000).rows
    return rows["label"].to_pylist()


def test_a_stream_is_drawn_from_its_number() -> None:
    """The same number gives the same records and teachers, another one others."""
    one, again, other = (family.draw(seed, SHORT) for seed in (7, 7, 8))
    ends = [drawn.source.read(family.PARTITION, 0, 10_000).rows for drawn in (one, again)]
    assert ends[0].equals(ends[1])
    assert (one.name, dict(one.tree)) == (again.name, dict(again.tree))
    assert _labels(one) != _labels(other)


def test_the_family_has_every_world_order_and_stranger() -> None:
    """Of a hundred, each kind; and about as many with wrong labels as there should be."""
    names = [family.draw(seed, SHORT).name for seed in range(100)]
    for kind in (*worlds.KINDS, *(f"by {order}" for order in family.ORDERS), *NATURES):
        assert any(kind in name for name in names), kind
    assert np.mean(["wrong" in name for name in names]) == pytest.approx(family.NOISY, abs=0.15)


@pytest.mark.parametrize("kind", worlds.KINDS)
def test_a_world_tells_its_classes_apart(kind: worlds.Kind) -> None:
    """A network in closed form that has learned a domain knows it, and knows less of another one."""
    draw = np.random.default_rng(5)
    one = worlds.world(kind, 3, 2, draw)
    labels = draw.integers(0, one.classes, 400)
    network = closed_form(torch.from_numpy(one.records(labels, 0, draw)), torch.from_numpy(labels), 0)

    def right(domain: int) -> float:
        asked = draw.integers(0, one.classes, 300)
        said = network(torch.from_numpy(one.records(asked, domain, draw))).argmax(1).numpy()
        return float((said == asked).mean())

    assert right(0) > 1.5 / one.classes
    assert right(1) < right(0) - 0.1


def _said(nature: str, records: int) -> tuple[Outsider, torch.Tensor]:
    """An outsider of four classes, after so many records, asked about one of each."""
    network = torch.nn.functional.one_hot
    one = Outsider("stranger", nature, lambda x: network(x.long(), 4).float(), 4, 100, 0).anew([0, 1, 2, 3])
    one.observe(torch.zeros(records), torch.zeros(records))
    return one, one.logits(torch.arange(4)).argmax(1) == torch.arange(4)


@pytest.mark.parametrize(
    ("nature", "records", "right", "knows"),
    [
        ("good", 0, 4, 4),
        ("permuted", 0, 0, 4),
        ("half", 0, 2, 4),
        ("partial", 0, 4, 2),
        ("late", 99, 4, 0),
        ("late", 100, 4, 4),
        ("lying", 99, 4, 4),
        ("lying", 100, 0, 4),
    ],
)
def test_an_outsider_is_what_its_nature_says(nature: str, records: int, right: int, knows: int) -> None:
    """Of four classes so many are right, and so many are known, before and after its turn."""
    one, found = _said(nature, records)
    assert int(found.sum()) == right
    assert int(one.known().sum()) == knows


def test_a_pass_says_the_same_again() -> None:
    """Under one prior and one number, for nothing stays in its teachers; under another prior something else."""
    drawn = next(one for seed in range(20) if (one := family.draw(seed, (200, 201))).strangers)
    plain = family.pass_over(drawn, Artefact(learned_for=GATE, gate_prior=GatePrior().model_dump()))
    assert 0 < plain.student < 1
    assert family.pass_over(drawn, Artefact()) == plain
    assert family.pass_over(drawn, Artefact(learned_for=GATE, gate_prior={"hard": 0.9, "floor": 0.9})) != plain


GATE = {"gate": [{"name": "per-sample"}]}
