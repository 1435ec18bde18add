"""The analytic teacher: right without gradient or memory, quick with new classes, modest, exact when resumed."""

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from sklearn.datasets import load_digits
from torch import Tensor

from streamkd.analytic import readout
from streamkd.analytic import teacher as analytic
from streamkd.analytic.features import BodyFeatures
from streamkd.analytic.teacher import AnalyticOptions, AnalyticTeacher
from streamkd.errors import PluginError, StateConflict
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.replay.ring import whole
from streamkd.state import tree
from streamkd.students.networks import write_published
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import Observing, Teacher, TeacherContext, Versioned

DIGITS = toys.schema_of(8, 8, scale=1 / 16)


def digits(order: str = "classes") -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, shuffled, or two classes after two others."""
    found = load_digits()
    x, y = torch.from_numpy(found.images).float(), torch.from_numpy(found.target)
    mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[mixed], y[mixed]
    if order == "classes":
        places = torch.argsort(y // 2, stable=True)
        x, y = x[places], y[places]
    return x, y


def teacher_of(classes: int = 10, schema: RecordSchema = DIGITS, **options: Any) -> AnalyticTeacher:
    student = toys.mlp(classes, schema=schema)
    context = TeacherContext("analytic", student, schema, list(range(classes)), torch.device("cpu"))
    return AnalyticTeacher(AnalyticOptions(**options), context)


def steps(x: Tensor, y: Tensor, batch: int = 10) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(batch), y.split(batch), strict=True)


def show(teacher: AnalyticTeacher, x: Tensor, y: Tensor) -> AnalyticTeacher:
    for part, labels in steps(x, y):
        teacher.observe(part, labels)
    return teacher


def right(teacher: AnalyticTeacher, x: Tensor, y: Tensor) -> float:
    answers = teacher.logits(x).masked_fill(~teacher.known(), -torch.inf)
    return float((answers.argmax(1) == y).float().mean())


def test_it_is_a_settled_teacher_that_observes() -> None:
    """The pool asks it anew when its version rises, and shows it the labels."""
    teacher = teacher_of()
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, Versioned)
    assert isinstance(teacher, Observing)


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_one_pass_in_any_order_of_the_classes_teaches_it_the_digits(method: str) -> None:
    """Class after class, each record once, it gets nineteen of twenty held-out digits, as many as of a mixed order."""
    found = {}
    for order in ("classes", "mixed"):
        x, y = digits(order)
        out = torch.arange(len(y)) % 5 == 0
        teacher = show(teacher_of(method=method, channels=32, dense=256), x[~out], y[~out])
        teacher.end_task()
        found[order] = right(teacher, x[out], y[out])
    assert found["classes"] > 0.95
    assert found["classes"] > found["mixed"] - 0.015


def test_it_says_nothing_before_it_has_seen_anything() -> None:
    """No class is known, every logit is 0."""
    teacher = teacher_of()
    assert not teacher.known().any()
    assert not teacher.logits(digits()[0][:3]).any()


def test_answers_change_only_with_the_version() -> None:
    """Between two versions the pool may keep what was said."""
    x, y = digits()
    teacher = teacher_of(channels=8, dense=0)
    said, version = teacher.logits(x[:7]), teacher.version
    for part, labels in steps(x, y):
        teacher.observe(part, labels)
        now = teacher.logits(x[:7])
        assert torch.equal(now, said) == (teacher.version == version)
        said, version = now, teacher.version
    assert 5 < version < len(y) / 64


def test_a_new_class_is_answered_after_a_few_of_its_records() -> None:
    """With ``FEW`` of its records, and two such steps since the last solution, a class is known; soon known better."""
    x, y = digits()
    teacher = show(teacher_of(channels=8, dense=0), x[y < 4], y[y < 4])
    assert teacher.known()[:4].all()
    assert not teacher.known()[4:].any()
    teacher.end_task()
    new, version = x[y == 4][:60], teacher.version
    teacher.observe(new[:15], torch.full((15,), 4))
    assert not teacher.known()[4]
    teacher.observe(new[15:16], torch.full((1,), 4))
    assert teacher.known()[4]
    assert teacher.version == version + 1
    teacher.observe(new[16:], torch.full((44,), 4))
    assert teacher.version == version + 1
    teacher.observe(x[y == 4][60:64], torch.full((4,), 4))
    assert teacher.version == version + 2


def test_a_task_that_ends_leaves_nothing_waiting() -> None:
    """What arrived since the last solution is in the next one before teachers are judged."""
    x, y = digits()
    teacher = show(teacher_of(channels=8, dense=0), x[:405], y[:405])
    version = teacher.version
    teacher.end_task()
    assert teacher.version == version + 1
    assert teacher.moments.records == 405
    teacher.end_task()
    assert teacher.version == version + 1


def test_when_the_inputs_change_it_is_solved_sooner() -> None:
    """A block of which it gets clearly fewer right than usual is answered by a new solution."""
    x, y = digits("mixed")
    many, labels = x.repeat(6, 1, 1), y.repeat(6)
    teacher = show(teacher_of(channels=8, dense=0), many, labels)
    teacher.end_task()
    version = teacher.version
    turned = many.flip(1)
    show(teacher, turned[:270], labels[:270])
    assert teacher.version > version
    show(teacher, many[:270], labels[:270])
    same = copy.deepcopy(teacher)
    show(same, many[270:540], labels[270:540])
    assert same.version == teacher.version


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_its_temperature_is_chosen_on_rows_not_learned_yet(method: str) -> None:
    """With more features than records it would be sure of everything; tempered, unseen rows hardly surprise it."""
    x, y = digits("mixed")
    teacher = show(teacher_of(method=method, channels=64, dense=512), x[:600], y[:600])
    teacher.end_task()
    surprise = [
        float(torch.nn.functional.cross_entropy(teacher.logits(x[700:]) * factor, y[700:]))
        for factor in (1.0, float(teacher.network.temperature))
    ]
    assert float(teacher.network.temperature) > 4
    assert surprise[0] < 0.25
    assert surprise[0] < surprise[1] / 2


def test_a_moving_normalisation_is_waited_for() -> None:
    """While mean and spread are fitted nothing is learned; then all rows are, with the final statistics."""
    x, y = digits("mixed")
    schema = toys.schema_of(8, 8, fit=100)
    teacher = teacher_of(schema=schema, channels=8, dense=0)
    show(teacher, x[:90], y[:90])
    assert teacher.version == 0
    assert teacher.moments.records == 0
    show(teacher, x[90:600], y[90:600])
    teacher.end_task()
    assert teacher.moments.records == 600
    normalised = (x[:100].double() - x[:100].double().mean(0)) / x[:100].double().std(0, correction=0).clamp_min(1e-6)
    varied = x[:100].std(0) > 0
    torch.testing.assert_close(teacher.network.normalise(x[:100])[:, varied], normalised.float()[:, varied])
    assert right(teacher, x[700:], y[700:]) > 0.9


def test_rows_that_wait_for_the_normalisation_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many records the stream's normalisation is fitted on, at most ``FIT`` wait."""
    monkeypatch.setattr(analytic, "FIT", 50)
    x, y = digits("mixed")
    teacher = teacher_of(schema=toys.schema_of(8, 8, fit=10_000), channels=8, dense=0)
    show(teacher, x[:80], y[:80])
    assert not teacher._raw
    assert teacher.moments.records + sum(len(labels) for _, labels in teacher._rows) == 80


def test_it_grows_without_a_new_version() -> None:
    """More labels widen its answers; the old classes' solution stays and the new ones are unknown."""
    x, y = digits()
    teacher = show(teacher_of(4, channels=8, dense=0), x[y < 4], y[y < 4])
    before, version = teacher.logits(x[:5]), teacher.version
    weight, bias = teacher.network.weight.clone(), teacher.network.bias.clone()
    teacher.grow(range(10))
    assert torch.equal(teacher.network.weight[:4], weight)
    assert torch.equal(teacher.network.bias[:4], bias)
    # a wider product may round otherwise: the logits stay to its rounding
    torch.testing.assert_close(teacher.logits(x[:5])[:, :4], before, rtol=1e-5, atol=1e-4)
    assert teacher.version == version
    assert teacher.known().tolist() == [True] * 4 + [False] * 6
    assert not teacher.logits(x[:5])[:, 4:].any()


def test_asking_about_a_steps_rows_spares_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool asks about fresh rows before it shows them: their features are made once; others' are made anew."""
    x, y = digits()
    teacher = show(teacher_of(channels=8, dense=0), x[:300], y[:300])
    made: list[int] = []
    forward = teacher.network.extractor.forward
    monkeypatch.setattr(teacher.network.extractor, "forward", lambda rows: made.append(len(rows)) or forward(rows))
    joined = x[300:340]
    teacher.logits(joined[:10])
    teacher.observe(joined[:10], y[300:310])
    teacher.logits(joined[:10])
    teacher.observe(joined[10:20].clone(), y[310:320])
    assert made == [10, 10, 10]


def test_rows_are_told_by_what_they_hold() -> None:
    """A tensor that was asked about and then holds other rows teaches these, as a new tensor would."""
    x, y = digits("mixed")
    one, other = (show(teacher_of(dense=64, channels=8), x[:600], y[:600]) for _ in range(2))
    mine = x[900:1200].clone()
    one.logits(mine)
    mine.copy_(x[600:900])
    for teacher, rows in ((one, mine), (other, x[600:900])):
        teacher.observe(rows, y[600:900])
        teacher.end_task()
    assert torch.equal(one.logits(x[1200:]), other.logits(x[1200:]))


def test_its_state_has_string_keys_and_integer_ones_are_taken() -> None:
    """A state of an earlier release counts new rows by integer columns: it goes on as one of today."""
    x, y = digits("mixed")
    teacher = show(teacher_of(dense=64, channels=8), x[:305], y[:305])
    state = copy.deepcopy(teacher.state_dict())
    assert state["new"]
    assert all(isinstance(column, str) for column in state["new"])
    old = {**state, "new": {int(column): count for column, count in state["new"].items()}}
    found = []
    for saved in (state, old):
        resumed = teacher_of(dense=64, channels=8)
        resumed.load_state_dict(copy.deepcopy(saved))
        found.append(show(resumed, x[305:700], y[305:700]).logits(x[700:]))
    assert torch.equal(*found)


def test_records_of_no_image_are_learned_by_dense_features() -> None:
    """A flat vector has no filters, whatever ``channels`` says."""
    teacher = teacher_of(3, schema=toys.schema_of(toys.FEATURES), dense=300)
    assert teacher.network.extractor.width == 300
    for x, y in toys.batches(60):
        teacher.observe(x, y)
    teacher.end_task()
    x, y = toys.batches(1, batch=400, seed=5)[0]
    assert right(teacher, x, y) > 0.75


def test_a_layer_that_losses_name_is_there() -> None:
    """Its features and its normalisation can be listened to; another name is refused with the known ones."""
    teacher = teacher_of(channels=8, dense=0)
    found = teacher.features(digits()[0][:3], ("extractor", "normalise"))
    assert found["extractor"].shape == (3, 128)
    assert not found["extractor"].requires_grad
    with pytest.raises(PluginError, match="extractor"):
        teacher.features(digits()[0][:3], ("extractr",))


def test_its_bytes_are_those_of_what_it_holds() -> None:
    """The features' numbers, the scatter, and the rows that wait all count."""
    x, y = digits()
    teacher = show(teacher_of(channels=8, dense=64), x[:300], y[:300])
    width = 8 * 16 + 64
    least = 4 * (width**2 + 64 * 64 + 2 * 10 * width)
    assert least < teacher.size_bytes() < 3 * least
    before = teacher.size_bytes()
    teacher.observe(x[300:310], y[300:310])
    assert teacher.size_bytes() == before + 10 * (4 * width + 8)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from the disk."""
    parts = tree.pack(state)
    parts.document = json.loads(json.dumps(parts.document))
    parts.tensors = {key: tensor.clone() for key, tensor in parts.tensors.items()}
    return tree.unpack(parts)


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_a_restored_solution_leaves_rows_out_as_before(method: str) -> None:
    """The same bits for any number of rows: its factor lies in memory as it did, else the solves round otherwise."""
    x, y = digits()
    make = partial(teacher_of, method=method, channels=8, dense=128)
    before, after = show(make(), x[:600], y[:600]), make()
    before.end_task()
    after.load_state_dict(stored(before.state_dict()))
    for rows in range(1, 100):
        assert torch.equal(after.recall(x[:rows], y[:rows]), before.recall(x[:rows], y[:rows])), rows


@pytest.mark.parametrize("stop", [3, 30, 64, 77])
@pytest.mark.parametrize("fit", [0, 200])
@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_stopped_and_resumed_is_never_stopped(stop: int, fit: int, method: str) -> None:
    """From a state on disk it goes on bit for bit, wherever it was stopped: while waiting, within a block, after it."""
    x, y = digits()
    schema = toys.schema_of(8, 8, fit=fit)
    make = partial(teacher_of, schema=schema, method=method, channels=8, dense=32)
    whole, before, after = make(), make(), make()
    for number, (part, labels) in enumerate(steps(x, y)):
        whole.observe(part, labels)
        if number == stop:
            after.load_state_dict(stored(before.state_dict()))
        (before if number < stop else after).observe(part, labels)
    for teacher in (whole, after):
        teacher.end_task()
    assert after.version == whole.version
    assert torch.equal(after.logits(x), whole.logits(x))
    assert torch.equal(after.recall(x, y), whole.recall(x, y))
    assert torch.equal(after.known(), whole.known())
    assert torch.equal(after.moments.scatter.tril(), whole.moments.scatter.tril())


def test_other_features_do_not_fit_an_old_state() -> None:
    """A state of other random features is refused, with the way out."""
    state = teacher_of(channels=8, dense=0).state_dict()
    with pytest.raises(StateConflict, match="128 random features"):
        teacher_of(channels=16, dense=0).load_state_dict(state)


def test_another_method_does_not_fit_an_old_state() -> None:
    """A state says by which method it was solved; the other one is refused, with both named."""
    state = stored(teacher_of(channels=8, dense=0).state_dict())
    with pytest.raises(StateConflict, match="needed the method lda of the checkpoint, got ridge"):
        teacher_of(method="ridge", channels=8, dense=0).load_state_dict(state)


def network_of(folder: Path, seed: int = 0) -> Path:
    """A published student of three classes whose head reads 40 numbers."""
    folder.mkdir()
    student = toys.mlp(3, hidden=(60, 40), seed=seed, schema=DIGITS)
    about = {"student": {"name": "mlp", "options": {"hidden": [60, 40]}}, "schema": DIGITS.model_dump(mode="json")}
    write_published(folder, student, {**about, "classes": ["a", "b", "c"], "seed": seed})
    return folder


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_it_learns_on_the_features_of_a_frozen_network(tmp_path: Path, method: str) -> None:
    """A network of other classes gives the features; nothing of it is in the state; resumed it is never stopped."""
    x, y = digits("mixed")
    path = network_of(tmp_path / "net")
    whole = show(teacher_of(method=method, features=path), x[:1300], y[:1300])
    whole.end_task()
    assert whole.moments.width == 40
    assert right(whole, x[1300:], y[1300:]) > 0.8
    before, after = (teacher_of(method=method, features=path) for _ in range(2))
    state = stored(show(before, x[:700], y[:700]).state_dict())
    assert not [name for name in state["network"] if name.startswith("extractor")]
    after.load_state_dict(state)
    show(after, x[700:1300], y[700:1300]).end_task()
    assert torch.equal(after.logits(x), whole.logits(x))


def test_another_network_does_not_fit_an_old_state(tmp_path: Path) -> None:
    """The file's hash is in the state: other weights, and random features, are refused; the same bytes go on."""
    state = stored(teacher_of(features=network_of(tmp_path / "a")).state_dict())
    teacher_of(features=network_of(tmp_path / "b")).load_state_dict(state)
    with pytest.raises(StateConflict, match="needed the sha256"):
        teacher_of(features=network_of(tmp_path / "c", seed=1)).load_state_dict(state)
    with pytest.raises(StateConflict, match="got none"):
        teacher_of().load_state_dict(state)


def with_body(hidden: int = 40, **options: Any) -> AnalyticTeacher:
    return teacher_of(body={"name": "mlp", "hidden": [hidden]}, dense=30, **options)


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_it_learns_on_a_students_body(method: str) -> None:
    """What the body shows its head, and random features of that; resumed it is never stopped, without keeping it."""
    x, y = digits("mixed")
    whole = show(with_body(method=method), x[:1300], y[:1300])
    whole.end_task()
    body = whole.network.extractor
    assert isinstance(body, BodyFeatures)
    h = body.body(x[:5] / 16)
    torch.testing.assert_close(body(x[:5] / 16), torch.cat([h, body.random(h)], 1))
    assert (h.shape[1], whole.moments.width) == (40, 70)
    assert right(whole, x[1300:], y[1300:]) > 0.8
    before, after = (with_body(method=method) for _ in range(2))
    state = stored(show(before, x[:700], y[:700]).state_dict())
    assert not [name for name in state["network"] if name.startswith("extractor")]
    after.load_state_dict(state)
    show(after, x[700:1300], y[700:1300]).end_task()
    assert torch.equal(after.logits(x), whole.logits(x))


def test_a_version_makes_the_body_again(tmp_path: Path) -> None:
    """From its name, its options and the seed, without files of its own."""
    x, y = digits("mixed")
    teacher = show(with_body(), x[:600], y[:600])
    teacher.end_task()
    part = teacher.part()
    assert part is not None
    about = json.loads(json.dumps(part.write(tmp_path)))
    again = readout.load(tmp_path, about, DIGITS, 10, Registry.load())
    assert torch.equal(again(x), part(x))


def test_another_body_does_not_fit_an_old_state() -> None:
    """Other options, or none, are refused."""
    state = stored(with_body().state_dict())
    with_body().load_state_dict(state)
    for other, said in (
        (with_body(hidden=41), r"the body.hidden \[40\] .*got \[41\]"),
        (teacher_of(channels=0, dense=70), "needed the body mlp"),
    ):
        with pytest.raises(StateConflict, match=said):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("body", "said"), [({"name": "mpl"}, "did you mean 'mlp'"), ({"name": "mlp", "hiden": [3]}, "body mlp: .*hiden")]
)
def test_a_body_that_is_none_is_refused(body: dict[str, Any], said: str) -> None:
    """Its name and its options are a student's."""
    with pytest.raises(PluginError, match=said):
        teacher_of(body=body)


@pytest.mark.parametrize(
    "options",
    [
        {"output": "o"},
        {"features": "f", "dense": 3},
        {"features": "f", "body": {"name": "mlp"}},
    ],
)
def test_options_of_features_that_are_not_used_are_refused(options: dict[str, Any]) -> None:
    """An output without a network and random features beside one would do nothing: they are named."""
    with pytest.raises(ValueError, match="leave out one or the other"):
        AnalyticOptions(**options)


SEEN = RecordSchema(
    inputs=(InputColumn(name="seen", shape=(4,)), InputColumn(name="digit", shape=(64,), scale=1 / 16, fit=50)),
    student=("seen",),
)


@pytest.mark.parametrize("body", [None, {"name": "mlp", "hidden": [50]}])
def test_of_columns_that_the_student_does_not_read_it_teaches_and_is_not_served(body: dict[str, Any] | None) -> None:
    """What it reads is normalised as its columns say, and nothing else moves its answers."""
    x, y = digits("mixed")
    rows = torch.cat([torch.zeros(len(x), 4), x.flatten(1)], 1)
    teacher = show(teacher_of(schema=SEEN, columns=("digit",), body=body), rows[:600], y[:600])
    teacher.end_task()
    assert right(teacher, rows[700:], y[700:]) > 0.85
    other = rows[700:].clone()
    other[:, :4] = 7
    assert torch.equal(teacher.logits(other), teacher.logits(rows[700:]))
    assert teacher.part() is None


def test_other_columns_are_another_teacher() -> None:
    """A state goes on over the same columns alone, and a name that is no column is refused."""
    state = teacher_of(schema=SEEN, columns=("digit",)).state_dict()
    for columns in ((), ("seen", "digit")):
        with pytest.raises(StateConflict, match="columns"):
            teacher_of(schema=SEEN, columns=columns).load_state_dict(state)
    with pytest.raises(PluginError, match="'sound' is no input column; there are: seen, digit"):
        teacher_of(schema=SEEN, columns=("sound",))


def test_features_that_are_not_finite_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One such row would spoil the sums for ever; the others of its step are learned."""
    x, y = digits("mixed")
    teacher = teacher_of(channels=8, dense=0)
    forward = teacher.network.extractor.forward
    monkeypatch.setattr(
        teacher.network.extractor, "forward", lambda rows: forward(rows).index_fill(0, torch.tensor([2]), torch.inf)
    )
    show(teacher, x[:600], y[:600]).end_task()
    assert teacher.moments.records == 540
    monkeypatch.undo()
    assert right(teacher, x[700:], y[700:]) > 0.9


def test_in_a_pool_its_answers_on_remembered_rows_are_those_of_its_last_version() -> None:
    """What the memory holds of its answers is what it says now within float16, of replayed rows as if not learned."""
    student = toys.mlp()
    teacher = AnalyticTeacher(AnalyticOptions(dense=50), toys.context_of("analytic", student))
    step = toys.make_step(teachers=[teacher], snapshots=0, student=student)
    for x, y in toys.batches(60):
        toys.train(step, x, y)
    pool: Pool = step.pool
    assert teacher.version > 1
    assert pool.teachers == [teacher]
    for ring in (step.memory.replayed, step.memory.holdout):
        rows = whole(ring)
        assert rows is not None
        kept = pool.answers(rows.x, 0, rows, 3).logits[:, 0]
        said = teacher.recall(rows.x, rows.y) if ring is step.memory.replayed else teacher.logits(rows.x)
        torch.testing.assert_close(kept, said, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_rows_that_were_learned_are_recalled_as_if_they_were_new(method: str) -> None:
    """The teacher is surer of learned digits than of new ones; each left out, it is as surprised as by new ones."""
    x, y = digits("mixed")
    teacher = show(teacher_of(method=method, channels=32, dense=0), x[:800], y[:800])
    teacher.end_task()
    sure, recalled, new = (
        float(torch.nn.functional.cross_entropy(said, labels))
        for said, labels in (
            (teacher.logits(x[:800]), y[:800]),
            (teacher.recall(x[:800], y[:800]), y[:800]),
            (teacher.logits(x[800:]), y[800:]),
        )
    )
    assert sure < new / 2
    assert recalled == pytest.approx(new, rel=0.35)


def test_nothing_is_recalled_before_the_first_solution() -> None:
    """Without a solution there is nothing to leave out; of a class that is newer than the solution, neither."""
    x, y = digits()
    teacher = teacher_of(4, channels=8, dense=0)
    assert not teacher.recall(x[:3], y[:3]).any()
    show(teacher, x[y < 4], y[y < 4]).grow(range(10))
    said = teacher.recall(x[y == 7][:5], torch.full((5,), 7))
    wanted = teacher.logits(x[y == 7][:5])
    torch.testing.assert_close(torch.softmax(said[:, :4], 1), torch.softmax(wanted[:, :4], 1), rtol=1e-3, atol=1e-4)


def test_where_one_class_is_rare_the_commoner_is_answered_first() -> None:
    """Of labels that the inputs hardly tell, equally likely classes would miss half of the common ones."""
    draw = torch.Generator().manual_seed(0)
    y = (torch.rand(2_000, generator=draw) < 0.1).long()
    x = torch.randn(2_000, 6, generator=draw) + 0.3 * y[:, None]
    teacher = show(teacher_of(schema=toys.schema_of(6), channels=0, dense=64), x[:1_600], y[:1_600])
    teacher.end_task()
    right = (teacher.logits(x[1_600:]).argmax(1) == y[1_600:]).float().mean()
    assert right > float((y[1_600:] == 0).float().mean()) - 0.02
    teacher.network.prior.zero_()
    assert (teacher.logits(x[1_600:]).argmax(1) == y[1_600:]).float().mean() < right - 0.1
