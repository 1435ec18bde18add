"""Fixed share: against the formulas, beside the best source, and for classes that do not come now."""

import numpy as np
import pytest

from streamkd.gates import fixed_share
from streamkd.gates.fixed_share import NOBODY, PAIRS, RATES, FixedShare

NAMES = ("a", "b", "c")


def said(rows: int, seed: int = 0, classes: int = 2) -> np.ndarray:
    """Probabilities of three sources."""
    return np.random.default_rng(seed).dirichlet(np.ones(classes), (rows, 3))


def in_tens(one: FixedShare, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Record by record, as batches of up to forty are."""
    batches = (slice(begin, begin + 10) for begin in range(0, len(labels), 10))
    return np.concatenate([one.test(NAMES, probabilities[rows], labels[rows], *NOBODY) for rows in batches])


@pytest.mark.parametrize(("batch", "together"), [(1, 1), (40, 1), (41, 2), (160, 4)])
def test_records_move_the_shares_by_the_formulas(batch: int, together: int) -> None:
    """Exponentiated gradient, then fixed share, then Bayes over the pairs: written out, one number at a time.

    Of a batch beyond forty several records tell together: each by the shares before all of them.
    """
    probabilities, labels = said(batch), np.random.default_rng(1).integers(0, 2, batch)
    one = FixedShare()
    mixed = one.test(NAMES, probabilities, labels, *NOBODY)
    pairs = [(rate, share) for rate in fixed_share.RATES for share in fixed_share.SHARES]
    tables, trust = [[1 / 3] * 3 for _ in pairs], [1 / len(pairs)] * len(pairs)
    p = (1 - fixed_share.LEAST) * probabilities + fixed_share.LEAST / 2
    for begin in range(0, batch, together):
        rows = range(begin, min(begin + together, batch))
        w = [sum(v * table[k] for v, table in zip(trust, tables, strict=True)) for k in range(3)]
        for row in rows:
            np.testing.assert_allclose(mixed[row], sum(w[k] * p[row, k] for k in range(3)), rtol=1e-9)
        found = []
        for place, (rate, share) in enumerate(pairs):
            told = [[p[row, k, labels[row]] for k in range(3)] for row in rows]
            m = [sum(v * g for v, g in zip(tables[place], given, strict=True)) for given in told]
            slopes = [sum(given[k] / each for given, each in zip(told, m, strict=True)) for k in range(3)]
            raised = [tables[place][k] * np.exp(rate * slopes[k]) for k in range(3)]
            tables[place] = [r / sum(raised) for r in raised]
            for _ in rows:
                tables[place] = [(1 - share) * v + share / 3 for v in tables[place]]
            found.append(trust[place] * np.prod(m))
        trust = [v / sum(found) for v in found]
        for _ in rows:
            trust = [(1 - fixed_share.SWITCH) * v + fixed_share.SWITCH / len(pairs) for v in trust]
    np.testing.assert_allclose([*one.weights.values()], np.array(trust) @ np.array(tables), rtol=1e-9)


def sources(right: list[float], labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sources that are sure and right so often, each for itself."""
    draw = np.random.default_rng(seed)
    rows = np.full((len(labels), len(right), 2), 0.1)
    for k, part in enumerate(right):
        chosen = np.where(draw.random(len(labels)) < part, labels, 1 - labels)
        rows[np.arange(len(labels)), k, chosen] = 0.9
    return rows


@pytest.mark.parametrize("right", [[0.9, 0.5, 0.5], [0.6, 0.55, 0.9], [0.7, 0.7, 0.7]])
def test_it_answers_as_well_as_the_best_source(right: list[float]) -> None:
    """Within half a point of it over 3,000 records; above it where all err for themselves."""
    labels = np.random.default_rng(2).integers(0, 2, 3_000)
    probabilities = sources(right, labels)
    mixed = in_tens(FixedShare(), probabilities, labels)
    best = max((probabilities[:, k].argmax(1) == labels).mean() for k in range(3))
    got = (mixed.argmax(1) == labels).mean()
    assert got > best - 0.005
    if right == [0.7, 0.7, 0.7]:
        assert got > best + 0.04  # two of three: 0.784


def test_it_follows_when_another_source_becomes_the_best() -> None:
    """A hundred records after the best has changed for the fifth time the new one has most of the answer."""
    labels = np.random.default_rng(3).integers(0, 2, 2_600)
    one, heard = FixedShare(), []
    for part in range(6):
        mine = labels[part * 400 : part * 400 + 100]
        one.test(NAMES, sources([0.95, 0.5, 0.5] if part % 2 else [0.5, 0.95, 0.5], mine, part), mine, *NOBODY)
        heard.append(one.weights["a" if part % 2 else "b"])
    assert min(heard) > 0.6


def test_records_of_classes_that_do_not_come_are_not_forgotten() -> None:
    """Whoever knows the present alone has the answer, unless held-out records of what does not come are shown."""
    before, now = np.zeros(300, dtype=np.int64), np.ones(600, dtype=np.int64)
    present, past = np.array([0.05, 0.95]), np.array([0.2, 0.8])
    told = np.stack([np.tile(present, (600, 1)), np.tile(past, (600, 1))], 1)
    held = np.tile([0.05, 0.8], (20, 1)), np.zeros(20, dtype=np.int64), np.zeros(20, dtype=bool)
    shares = []
    for records in (NOBODY, held):
        one = FixedShare()
        one.test(("present", "whole"), np.full((300, 2, 2), 0.5), before, *NOBODY)
        assert not one.presence.absent().any()
        one.test(("present", "whole"), told, now, *records)
        assert one.presence.absent().tolist() == [True, False]
        shares.append(one.weights["whole"])
    assert shares[0] < 0.3 < 0.9 < shares[1]


def test_records_of_a_rare_class_that_comes_are_told_by_what_comes() -> None:
    """Its held-out records are unlike the recent ones, for hardly any of these are of it; of a frequent one that says
    that its world is another.
    """
    one, labels = FixedShare(), np.tile([0] * 99 + [1], 10)
    one.test(("a", "b"), np.full((1_000, 2, 2), 0.5), labels, *NOBODY)
    held, unlike = np.array([0, 0, 1, 1]), np.array([False, True, False, True])
    assert one.still_true(held, unlike)[0].tolist() == [False, True, False, False]


def test_a_row_without_label_is_answered_and_tells_nothing() -> None:
    """Label -1."""
    one = FixedShare()
    one.test(NAMES, said(30), np.zeros(30, dtype=np.int64), *NOBODY)
    before = one.weights
    one.test(NAMES, said(5, seed=1), np.full(5, -1), *NOBODY)
    assert one.weights == before


def test_sources_come_and_go() -> None:
    """Who stays keeps his part beside the others who stay; who is new begins with an even share."""
    one = FixedShare()
    labels = np.zeros(200, dtype=np.int64)
    one.test(NAMES, sources([0.95, 0.6, 0.3], labels), labels, *NOBODY)
    before = one.weights
    one.test(("c", "a", "d"), said(1), np.array([-1]), *NOBODY)
    after = one.weights
    assert after["a"] / after["c"] == pytest.approx(before["a"] / before["c"], rel=0.05)
    assert 0.1 < after["d"] < 0.5
    assert sum(after.values()) == pytest.approx(1)


def test_it_goes_on_from_its_state() -> None:
    """To the same bits."""
    probabilities, labels = said(60), np.random.default_rng(1).integers(0, 2, 60)
    whole, first, second = FixedShare(), FixedShare(), FixedShare()
    mixed = in_tens(whole, probabilities, labels)
    in_tens(first, probabilities[:25], labels[:25])
    second.load_state_dict(first.state_dict())
    assert np.array_equal(in_tens(second, probabilities[25:], labels[25:]), mixed[25:])


def test_an_answer_that_is_not_finite_is_none() -> None:
    """Of a source that gives NaN now and then, of arriving records and of held-out ones: all weights stay finite."""
    labels = np.random.default_rng(0).integers(0, 2, 200)
    probabilities = sources([0.9, 0.6, 0.95], labels)
    probabilities[::7, 2] = np.nan
    held = np.full((5, 3), 0.5), np.zeros(5, dtype=np.int64), np.ones(5, dtype=bool)
    held[0][2, 1] = np.nan
    one = FixedShare()
    mixed = one.test(NAMES, probabilities, labels, *held)
    assert np.isfinite(mixed).all()
    assert np.isfinite([*one.weights.values()]).all()
    assert (mixed.argmax(1) == labels).mean() > 0.88


@pytest.mark.parametrize(("late", "best"), [(False, 0.5), (True, 0.02)])
def test_a_rate_is_worth_what_it_had_answered_by_then(late: bool, best: float) -> None:
    """Two sources are right in turns of twenty: who follows fast is ahead, unless labels come twenty records late."""
    share, given = FixedShare(), []
    for record in range(2_000):
        said = np.full((1, 2, 2), 0.1)
        said[0, record // 20 % 2, 0] = said[0, 1 - record // 20 % 2, 1] = 0.9
        share._meet(("a", "b"))
        given.append(share.each(("a", "b"), said))
        if record >= 20:
            label, before = np.zeros(1, dtype=np.int64), record - 20
            then = np.full((1, 2, 2), 0.1)
            then[0, before // 20 % 2, 0] = then[0, 1 - before // 20 % 2, 1] = 0.9
            share.test(("a", "b"), then, label, *NOBODY, given[before] if late else None)
    trust = {rate: share._trust[[pair[0] == rate for pair in PAIRS]].sum() for rate in RATES}
    assert max(trust, key=trust.__getitem__) == best
