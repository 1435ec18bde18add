"""Episodes: what is drawn from known tasks, and what never is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkd.pretraining.episodes import EpisodeShape, KnownTask
from streamkd.pretraining.initialization import Batch

TASKS = ((0, 1, 2), (3, 4, 5, 6), (7, 8))


def _known(seed: int = 0, tasks: object = TASKS, rows: int = 12) -> KnownTask:
    """Records x = (label, number), nine labels."""
    y = torch.arange(9).repeat(rows)
    x = torch.stack([y.float(), torch.arange(len(y)).float()], 1)
    return KnownTask(x, y, tasks, seed)  # type: ignore[arg-type]


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 5), st.integers(2, 40))
def test_a_course_is_tasks_with_labels_by_arrival(seed: int, tasks: int, ways: int, records: int) -> None:
    """Each part has labels of one task, columns are numbered without a gap, every row has the label it was given."""
    course = _known(seed).draw(EpisodeShape(tasks, ways, records))
    assert len(course) == tasks
    classes = course[-1].classes
    assert len(set(classes)) == len(classes)
    before: tuple[int, ...] = ()
    for part in course:
        new = set(part.classes) - set(before)
        assert part.classes[: len(before)] == before
        assert any(new <= set(task) for task in TASKS)
        assert len(new) <= ways
        for batch in (part.support, part.query):
            assert [classes[column] for column in batch.y.tolist()] == batch.x[:, 0].int().tolist()
        before = part.classes


def test_support_and_query_never_meet() -> None:
    """Over many courses no record is support in one and query in another."""
    known = _known()
    courses = [known.draw(EpisodeShape()) for _ in range(30)]
    support, query = (
        {int(number) for course in courses for part in course for number in getattr(part, half).x[:, 1]}
        for half in ("support", "query")
    )
    assert support
    assert not support & query


def test_noise_changes_support_labels_within_the_task() -> None:
    """About the asked share is another label of the same task; the query stays right."""
    known = _known(rows=200)
    wrong = total = 0
    for _ in range(20):
        course = known.draw(EpisodeShape(records=300), noise=0.3)
        classes = course[-1].classes
        before: set[int] = set()
        for part in course:
            given_labels = [classes[column] for column in part.support.y.tolist()]
            assert set(given_labels) <= set(part.classes) - before
            wrong += sum(a != b for a, b in zip(given_labels, part.support.x[:, 0].int().tolist(), strict=True))
            total += len(given_labels)
            assert [classes[c] for c in part.query.y.tolist()] == part.query.x[:, 0].int().tolist()
            before = set(part.classes)
    assert 0.25 < wrong / total < 0.35


def test_one_task_s_labels_are_dealt_out() -> None:
    """Where there are fewer tasks than an episode has, the labels are dealt to so many."""
    course = _known(tasks=(tuple(range(9)),)).draw(EpisodeShape(tasks=2))
    assert len(course) == 2
    assert len(course[1].classes) == 9


def test_steps_hold_fresh_rows_and_earlier_ones() -> None:
    """A step's replayed rows were fresh in a step before it."""
    episode = _known().start_episode(EpisodeShape(records=30), batch=10, replay=5)
    seen: set[int] = set()
    for number, step in enumerate(episode.steps):
        rows = [int(row) for row in step.x[:, 1]]
        replayed = [row for row in rows if row in seen]
        assert len(replayed) == (0 if number == 0 else min(5, len(seen)))
        seen |= set(rows)
    assert episode.classes == int(episode.query.y.max()) + 1


def _pictures() -> KnownTask:
    """Twelve 8×8 images of each of nine labels: an arrow of the label's own brightness, off the middle."""
    y = torch.arange(9).repeat(12)
    x = torch.zeros(len(y), 8, 8)
    x[:, 1:3, 2:6] = (y + 1).view(-1, 1, 1).float()
    return KnownTask(x, y, TASKS, seed=0)


def _quarters(batch: Batch) -> dict[int, set[int]]:
    """By class, the quarter-turns that its images were found in; images may have moved by a pixel."""
    upright = torch.zeros(8, 8)
    upright[1:3, 2:6] = 1.0
    found: dict[int, set[int]] = {}
    for image, y in zip(batch.x, batch.y.tolist(), strict=True):
        ink = (image > 0).float()
        for quarter in range(4):
            turned = torch.rot90(upright, quarter)
            moves = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
            if any(torch.equal(ink, torch.roll(turned, move, (0, 1))) for move in moves):
                found.setdefault(y, set()).add(quarter)
    return found


def test_each_class_of_images_is_turned_as_a_class() -> None:
    """All of a class lies alike, in steps as in the query; over episodes every quarter-turn comes."""
    known, every = _pictures(), set()
    for _ in range(10):
        episode = known.start_episode(EpisodeShape(records=30), batch=10, replay=5, turned=True, shift=1)
        asked = _quarters(episode.query)
        assert set(asked) == set(range(episode.classes))
        for step in episode.steps:
            for y, quarters in _quarters(step).items():
                assert quarters == asked[y]
                assert len(quarters) == 1
        every |= {quarter for quarters in asked.values() for quarter in quarters}
    assert every == {0, 1, 2, 3}


def test_support_moves_and_the_query_does_not() -> None:
    """Images of the steps lie a pixel off now and then, those asked about never."""
    episode = _pictures().start_episode(EpisodeShape(records=60), batch=10, replay=5, shift=1)
    upright = torch.zeros(8, 8, dtype=torch.bool)
    upright[1:3, 2:6] = True
    assert all(torch.equal(image > 0, upright) for image in episode.query.x)
    lying = [torch.equal(image > 0, upright) for step in episode.steps for image in step.x]
    assert 0 < sum(lying) < len(lying)


def test_what_is_no_image_stays_as_it_is() -> None:
    """Vectors are neither turned nor moved: every row of the steps and of the query is one of the known records."""
    known = _known()
    episode = known.start_episode(EpisodeShape(records=30), batch=10, replay=5, turned=True, shift=2)
    rows = {tuple(row) for row in known.x.tolist()}
    assert {tuple(row) for batch in (*episode.steps, episode.query) for row in batch.x.tolist()} <= rows


def test_the_seed_decides() -> None:
    """The same seed draws the same courses, another one others."""
    one, same, other = (_known(seed).draw(EpisodeShape()) for seed in (1, 1, 2))
    assert torch.equal(one[0].support.x, same[0].support.x)
    assert not torch.equal(one[0].support.x[:5], other[0].support.x[:5])


def test_too_few_records_are_refused() -> None:
    """Labels with one record each leave nothing to be asked about."""
    with pytest.raises(ValueError, match="two labels"):
        _known(rows=1)
