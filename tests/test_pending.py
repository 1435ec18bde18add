"""Records whose labels come later: answered when they come, judged by those answers, and all of it in the state."""

from typing import Any

import numpy as np
import pytest
import torch
from baselines import REGISTRY

from streamkd import config as configuration
from streamkd.bench.drifting import Delayed
from streamkd.inspection import weights_sha256
from streamkd.learner import Learner, pending
from streamkd.learner.pending import Pending
from streamkd.learning import mixture
from streamkd.state.tree import pack, unpack
from streamkd.wiring import open_source, schema_of

RECORDS = 300


def learner(delay: int, **changes: Any) -> Learner:
    """A small one on a drifting table; labels come when ``delay`` more records have come."""
    tree = {
        "stream": {"source": {"name": "replay", "dataset": "agrawal", "order": "given", "limit": RECORDS}},
        "student": {"name": "mlp", "hidden": [8]},
        "teachers": [{"name": "ema"}, {"name": "last-label"}, {"name": "linear"}],
        "adapt": {"every": 0},
        "device": "cpu",
        **changes,
    }
    config = configuration.from_tree(tree, REGISTRY)
    schema = schema_of(config, REGISTRY)
    source, _ = open_source(config, REGISTRY, schema)
    return Learner(config, REGISTRY, Delayed(source, delay), schema)


def pending_of(one: Learner) -> Pending:
    """There is one, as the source says that labels are late."""
    assert one.prequential.pending is not None
    return one.prequential.pending


def test_what_was_said_then_is_what_is_judged() -> None:
    """The mixture is tested by the answers that everybody gave when the records came, 25 before their labels."""
    one, given = learner(25), {}
    while one.advance():
        learned = range(one.records - one.last.fresh, one.records)  # type: ignore[union-attr]
        said = one.step.mixture.last
        assert said is not None
        for row, offset in enumerate(learned):
            if offset in given:
                names, probabilities, mixed = given[offset]
                assert said.names == names
                np.testing.assert_array_equal(said.probabilities[row], probabilities)
                np.testing.assert_array_equal(said.mixed[row], mixed)
            else:  # it came before anybody could be asked
                assert np.isnan(said.probabilities[row]).all()
                assert offset < 35
        for offset, answer in pending_of(one)._answers.items():
            given[offset] = (answer.names, answer.evidence["said"], answer.mixed)
    assert len(given) == RECORDS - 35
    assert one.prequential.mixture.records == one.prequential.student.records == RECORDS - 35


def test_records_wait_until_their_label_comes() -> None:
    """As many are kept as have come and were not learned."""
    one = learner(40)
    for _ in range(10):
        one.advance()
    assert pending_of(one).asked == 100 + 40
    assert len(pending_of(one)) == 40


def test_a_label_that_no_answer_waits_for_tells_nobody_anything() -> None:
    """What was never answered is learned, and weighs nobody."""
    one = learner(2 * RECORDS)
    while one.advance():
        assert set(one.step.mixture.now.weights.values()) == {0.25}
    assert one.records == RECORDS
    assert one.prequential.mixture.records == 0


def test_everybody_has_an_opinion_of_images() -> None:
    """The default teachers are asked what they say of records of more than one dimension, and none is off for it."""
    images = {"source": {"name": "replay", "dataset": "digits", "order": "given", "limit": RECORDS}}
    default = [choice.model_dump() for choice in configuration.Config.model_fields["teachers"].default]
    one = learner(25, stream=images, teachers=default)
    while one.advance():
        pass
    assert not one.step.pool.guard.strikes
    assert one.records == RECORDS


@pytest.mark.parametrize("stop", [1, 4, 17])
def test_answers_that_wait_outlive_a_restart(stop: int) -> None:
    """A learner restored from a checkpoint ends in the bits of one that was never stopped, counts too."""

    def run(one: Learner, steps: int = -1) -> Learner:
        while steps and one.advance():
            steps -= 1
        return one

    whole, stopped, resumed = run(learner(25)), run(learner(25), stop), learner(25)
    resumed.restore(unpack(pack(stopped.state())), dict(stopped.offsets), stopped.config)
    run(resumed)
    assert weights_sha256(resumed.student.state_dict()) == weights_sha256(whole.student.state_dict())
    assert resumed.step.mixture.now.weights == whole.step.mixture.now.weights
    labels = whole.labels.labels
    assert resumed.prequential.mixture.figures(labels) == whole.prequential.mixture.figures(labels)


def test_the_served_version_is_judged_by_what_it_said_then() -> None:
    """A version that answered before the label came is counted by that answer, whatever is served since."""
    one = learner(25)
    one.advance()
    columns = torch.eye(2)[torch.zeros(RECORDS, dtype=torch.int64)]
    one.prequential.version.take(lambda x: columns[: len(x)])
    one.advance()  # 10 come, and are answered with the first class
    one.prequential.version.take(lambda x: columns[: len(x)].flip(1))
    while one.records < 50:
        one.advance()
    labels = one.labels.indices(one.source.read("replay/0", 35, 15).rows.column("label").to_pylist())
    assert one.prequential.version.measures.records == 15
    right = labels[:10].count(0) + labels[10:].count(1)
    assert one.prequential.version.measures.overall == pytest.approx(right / 15)


def test_what_sources_said_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bytes a record is still answered and counted, and weighs nobody."""
    record = (4 + 18 + 6 + 9) * 2 * 4  # sources, pairs twice; heads of a teacher, its pairs; two classes
    monkeypatch.setattr(pending, "KEPT_BYTES", 5 * record)
    one = learner(40)
    for _ in range(10):
        one.advance()
    assert sum(bool(answer.evidence) for answer in pending_of(one)._answers.values()) == 5
    while one.advance():
        pass
    assert one.prequential.mixture.records == RECORDS - 50


def test_a_class_that_came_meanwhile_had_no_part_in_the_answer() -> None:
    """What was said of two classes is read over three, nothing for the third; a new source stands as the student."""
    one = Pending(Delayed(learner(5).source, 5), learner(5).schema, torch.device("cpu"))
    for offset, names, classes in ((7, ("student",), 2), (8, ("student", "ema"), 3)):
        said, each = np.full((1, len(names), classes), 1 / classes), np.full((1, 2, 9, classes), 1 / classes)
        one._keep(np.array([offset]), mixture.Testimony(names, said, said[:, 0], each), None)
    found, published = one.take([7, 8, 9], 3)
    assert found.names == ("student", "ema")
    np.testing.assert_allclose(found.probabilities[0], [[0.5, 0.5, 0.0]] * 2, atol=1e-3)
    assert np.isnan(found.probabilities[2]).all()
    assert np.isnan(published[:, 0]).all()


def test_nobody_waits_for_a_label_that_was_refused() -> None:
    """An answer whose label never becomes a record is let go when later labels come."""
    one = Pending(Delayed(learner(5).source, 5), learner(5).schema, torch.device("cpu"))
    said, each = np.full((3, 1, 2), 0.5), np.full((3, 2, 9, 2), 0.5)
    one._keep(np.array([7, 8, 9]), mixture.Testimony(("student",), said, said[:, 0], each), None)
    one.asked = 10
    one.take([8], 2)  # 7 was refused
    assert len(one) == 1
    one.take([9], 2)
    assert (len(one), one._bytes) == (0, 0)
