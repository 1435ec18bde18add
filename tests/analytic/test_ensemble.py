"""The ensemble: the pool by its formula, the share that held-out records bear out, files that come back whole."""

import copy
import json
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamkd.analytic import readout
from streamkd.analytic.ensemble import SHARES, Ensemble, best_share, pooled
from streamkd.analytic.readout import Readout
from streamkd.analytic.teacher import AnalyticOptions, AnalyticTeacher
from streamkd.errors import StateError
from streamkd.plugins import Registry
from streamkd.students.networks import Student, load_published
from streamkd.teachers import served
from streamkd.teachers.served import Candidates, Model, Served
from streamkd.teachers.teacher import TeacherContext, copy_of

SCHEMA = toys.schema_of(8, 8)
REGISTRY = Registry.load(only=["students", "analytic", "selectors", "mixture"])


def images(count: int, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=g)
    centres = torch.randn(classes, 8, 8, generator=torch.Generator().manual_seed(9))
    return centres[y] + torch.randn(count, 8, 8, generator=g), y


def parts(classes: int = 3) -> tuple[Student, Readout]:
    """An untrained student and the network of an analytic teacher that has learned."""
    student, teacher = both(classes)
    return student, teacher.network


def both(classes: int = 3) -> tuple[Student, AnalyticTeacher]:
    student = toys.mlp(classes, schema=SCHEMA).eval()
    context = TeacherContext("a", student, SCHEMA, list(range(classes)), torch.device("cpu"))
    teacher = AnalyticTeacher(AnalyticOptions(channels=4, dense=8), context)
    teacher.observe(*images(200))
    teacher.end_task()
    return student, teacher


def together(student: Student, analytic: Readout, share: float) -> Served:
    return Served({"student": student, "analytic": analytic}, Ensemble(True, SHARES).combine, {"share": share})


@given(st.integers(0, 5), st.sampled_from(SHARES), st.sampled_from([1, 2, 4, 5]))
def test_the_pool_is_its_formula(seed: int, share: float, knows: int) -> None:
    """p^share·q^(1-share) among the known classes, renormalised to what p gives them, one number at a time."""
    g = torch.Generator().manual_seed(seed)
    first, second = (4 * torch.randn(3, 5, generator=g) for _ in range(2))
    found = pooled(first, second, torch.arange(5) < knows, share)
    for row in range(3):
        p = oracles.softmax(first[row].tolist())
        q = oracles.softmax(second[row].tolist(), [c < knows for c in range(5)])
        both = [p[c] ** share * q[c] ** (1 - share) for c in range(knows)]
        wanted = [sum(p[:knows]) * b / sum(both) for b in both] + p[knows:]
        assert found[row].exp().tolist() == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))


def test_at_its_ends_the_pool_is_one_model() -> None:
    """Share 1 is the student; share 0 the analytic part, where it knows every class; sure models stay finite."""
    first, second = 500 * torch.randn(4, 3), 500 * torch.randn(4, 3)
    known = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(pooled(first, second, known, 1.0), torch.log_softmax(first, 1))
    torch.testing.assert_close(pooled(first, second, known, 0.0), torch.log_softmax(second, 1))
    assert torch.isfinite(pooled(first, second, known, 0.5)).all()
    torch.testing.assert_close(pooled(first, second, ~known, 0.5), torch.log_softmax(first, 1))


def test_a_class_unknown_to_the_analytic_part_is_the_students_alone() -> None:
    """It has the student's own probability."""
    student, analytic = parts()
    student.grow(4)
    analytic.grow(4)
    x, _ = images(6)
    model = together(student, analytic, 0.25)
    torch.testing.assert_close(model(x).exp()[:, 3], torch.softmax(student(x), 1)[:, 3])
    assert model.classes == 4


def test_the_share_is_the_one_of_the_best_likelihood() -> None:
    """Who says nothing is not listened to beside who knows, if enough records say so; equals meet in the middle."""
    y = torch.tensor([0, 1, 2, 1] * 20)
    knows, nothing = 6 * torch.eye(3)[y], torch.zeros(80, 3)
    known = torch.ones(3, dtype=torch.bool)
    assert best_share(nothing, knows, known, y) == 0.0
    assert best_share(nothing, knows, known, y, SHARES[1:-1]) == 0.25
    assert best_share(knows, nothing, known, y) == 1.0
    assert best_share(nothing, nothing, known, y) == 0.5
    assert best_share(nothing[:4], knows[:4], known, y[:4]) == 0.5
    first, second = knows.clone(), knows.clone()
    first[:40], second[40:] = first[:40].roll(1, 1), second[40:].roll(1, 1)
    assert best_share(first, second, known, y) == 0.5


def test_wrong_labels_do_not_make_the_unsure_one_the_better() -> None:
    """Who is right and sure is preferred to who knows half as much, also where a third of the labels is wrong."""
    truth = torch.arange(90) % 3
    sure, unsure = 6 * torch.eye(3)[truth], 0.7 * torch.eye(3)[truth]
    labels = torch.where(torch.arange(90) < 30, (truth + 1) % 3, truth)
    known = torch.ones(3, dtype=torch.bool)
    assert best_share(sure, unsure, known, labels) <= 0.25
    assert best_share(sure, unsure, known, labels, tolerance=1.0) >= 0.75


def chosen(student: Student, teacher: AnalyticTeacher, held: tuple[Tensor, Tensor] | None) -> Model:
    part = teacher.part()
    assert part is not None
    return Ensemble(True, SHARES).choose(Candidates(student, None, {"a": part}, held, 0.0))


def test_what_is_served_is_chosen_on_held_out_records() -> None:
    """The ensemble, the student itself where that is best alone, half and half where nothing is held out."""
    student, teacher = both()
    x, y = (rows[:80] for rows in images(200))
    better = chosen(student, teacher, (x, y))
    assert isinstance(better, Served)
    assert better.how["share"] <= 0.5
    assert chosen(student, teacher, (x, teacher.logits(x).argmin(1))) is student
    unsure = chosen(student, teacher, None)
    assert isinstance(unsure, Served)
    assert unsure.how["share"] == 0.5


def test_a_teacher_that_knows_only_by_heart_is_not_served() -> None:
    """With more features than records it is sure of each learned one; the share is that of records never seen."""
    student = toys.mlp(3, schema=SCHEMA).eval()
    context = TeacherContext("a", student, SCHEMA, [0, 1, 2], torch.device("cpu"))
    teacher = AnalyticTeacher(AnalyticOptions(channels=0, dense=400), context)
    x, _ = images(300)
    y = torch.randint(3, (300,), generator=torch.Generator().manual_seed(3))  # nothing to learn but by heart
    teacher.observe(x[:150], y[:150])
    teacher.end_task()
    with torch.no_grad():
        student.head.weight.zero_(), student.head.bias.zero_()
    teacher.network.temperature.fill_(4.0)
    assert (teacher.logits(x[:150]).argmax(1) == y[:150]).float().mean() > 0.95
    model = chosen(student, teacher, (x[150:], y[150:]))
    assert model is student or model.how["share"] > 0.5


def written(folder: Path, model: Model) -> Path:
    about = {"student": {"name": "mlp", "options": {"hidden": [8]}}, "schema": SCHEMA.model_dump(mode="json")}
    more = {"classes": ["a", "b", "c"], "seed": 0, "records": 200, "published_at": 1.0}
    served.write(folder, model, {**about, **more, "served": {"name": "ensemble", "options": {}}})
    return folder


def test_a_version_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """The loaded ensemble gives the same probabilities, bit for bit, and asks for no gradient."""
    model = together(*parts(), 0.75).eval()
    loaded = served.load(written(tmp_path, model), REGISTRY, 7)
    x, _ = images(9)
    wanted = torch.softmax(model(x), 1).detach().numpy()
    assert np.array_equal(loaded.predict(x.numpy()), wanted)
    assert loaded.version == 7
    assert loaded.classes == ["a", "b", "c"]
    assert not any(p.requires_grad for p in loaded.student.parameters())
    np.testing.assert_allclose(wanted.sum(1), 1, rtol=1e-5)


def test_a_version_of_a_student_alone_is_written_and_read_as_ever(tmp_path: Path) -> None:
    """Without an ensemble there is no second file, and versions of before there were any are read."""
    student, _ = parts()
    written(tmp_path, student)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    loaded = served.load(tmp_path, REGISTRY)
    x, _ = images(4)
    assert np.array_equal(loaded.predict(x.numpy()), torch.softmax(student(x), 1).detach().numpy())


def test_the_student_of_an_ensemble_can_be_read_alone(tmp_path: Path) -> None:
    """Whoever wants a student (a teacher from a file) finds it in an ensemble's directory."""
    student, analytic = parts()
    loaded = load_published(written(tmp_path, together(student, analytic, 0.5)), REGISTRY)
    for name, tensor in student.state_dict().items():
        assert torch.equal(loaded.student.state_dict()[name], tensor), name


@pytest.mark.parametrize("harm", ["missing", "cut", "features"])
def test_a_damaged_ensemble_is_refused(tmp_path: Path, harm: str) -> None:
    """A file that is missing, cut, or of other features is an error that names the directory."""
    written(tmp_path, together(*parts(), 0.5))
    file = tmp_path / "parts" / "1" / readout.FILE
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        about = json.loads((tmp_path / "model.json").read_text())
        about["served"]["parts"][1]["about"]["features"]["dense"] = 9
        (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(StateError, match="parts of a version cannot be loaded"):
        served.load(tmp_path, REGISTRY)


def test_a_version_from_before_there_were_parts_is_read(tmp_path: Path) -> None:
    """The files of an older version lie beside each other, with the share in a word of its own."""
    model = together(*parts(), 0.25).eval()
    written(tmp_path, model)
    about = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "parts" / "1" / readout.FILE).rename(tmp_path / "ensemble.safetensors")
    (tmp_path / "parts" / "1").rmdir()
    features = about.pop("served")["parts"][1]["about"]["features"]
    (tmp_path / "model.json").write_text(json.dumps({**about, "ensemble": {"share": 0.25, "features": features}}))
    x, _ = images(9)
    wanted = torch.softmax(model(x), 1).detach().numpy()
    assert np.array_equal(served.load(tmp_path, REGISTRY).predict(x.numpy()), wanted)


def test_a_copy_shares_nothing_with_what_is_trained() -> None:
    """What is published stays as it was when student and teacher go on."""
    student, analytic = parts()
    model = together(student, analytic, 0.5)
    clone = copy_of(model)
    x, _ = images(5)
    before = clone(x)
    with torch.no_grad():
        for tensor in (*student.parameters(), *analytic.parameters()):
            tensor.add_(1.0)
    assert torch.equal(clone(x), before)
    assert not torch.equal(model(x), before)
    assert clone.state_dict().keys() == copy.deepcopy(model).state_dict().keys()
