"""The teacher: columns and labels, what is missing, seeds, and what it refuses."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from streamkd_river import answers, models
from streamkd_river.models import MODELS
from streamkd_river.teacher import RiverOptions, RiverTeacher
from torch import Tensor

from streamkd.api import PluginError, RecordSchema, StateConflict

Make = Callable[..., RiverTeacher]
Stream = Callable[..., Iterator[tuple[Tensor, Tensor, Tensor]]]


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_the_table(model: str, teacher: Make, stream: Stream) -> None:
    """Each classifier is right in three of four rows before the rule turns round."""
    who, right = teacher(model), []
    for x, y, learn in list(stream(24))[:12]:
        right.append((who.test_then_train(x, y, learn).argmax(1) == y).float().mean())
    assert float(torch.stack(right[4:]).mean()) > 0.75


@pytest.mark.parametrize("model", MODELS)
def test_missing_values_are_left_out(model: str, teacher: Make, stream: Stream) -> None:
    """Rows with holes are answered and learned, and leave nothing behind that is not a number."""
    who = teacher(model)
    for x, y, learn in stream(4):
        x[::3, 1], x[1::3, 4] = torch.nan, torch.inf
        assert who.test_then_train(x, y, learn).isfinite().all()
    x, _, _ = next(stream(1, seed=9))
    assert who.logits(x).isfinite().all()
    assert who.logits(torch.full_like(x, torch.nan)).isfinite().all()


def test_what_is_served_reads_the_students_columns(
    schema: RecordSchema, teacher: Make, stream: Stream, tmp_path: Path
) -> None:
    """Of whole records in a learner; a version that is read from its files gets these columns alone."""
    some = schema.model_copy(update={"student": ("c1", "c0")})
    who = teacher("naive_bayes.GaussianNB", schema=some)
    for batch in stream(4):
        who.test_then_train(*batch)
    x, _, _ = next(stream(1, seed=9))
    part = who.part()
    assert part is not None
    assert torch.equal(part(x), who.logits(x))
    brought = some.only(["c1", "c0"])
    loaded = answers.load(tmp_path, part.write(tmp_path), brought, 2, None)
    assert torch.equal(loaded(x[:, [1, 0]]), who.logits(x))


def test_only_learned_labels_are_known(teacher: Make, stream: Stream) -> None:
    """The others have next to no probability, and are masked."""
    who = teacher("naive_bayes.GaussianNB", classes=4)
    assert not who.known().any()
    x, y, _ = next(stream(1))
    who.test_then_train(x, y, y == 1)
    assert who.known().tolist() == [False, True, False, False]
    assert float(who.logits(x).softmax(1)[:, 1].min()) > 0.999


def test_the_seed_decides_what_is_drawn(teacher: Make, stream: Stream) -> None:
    """The student's, or its own; another one grows another forest."""
    answers = []
    for options in ({}, {"seed": 3}, {"seed": 4}):
        who = teacher("forest.ARFClassifier", parameters={"n_models": 3}, **options)
        answers.append(torch.cat([who.test_then_train(*batch) for batch in stream(6)]))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


SCRIPT = """
import random
from river import forest
model, generator, said = forest.ARFClassifier(n_models=3, seed=0), random.Random(0), []
for _ in range(300):
    row = {name: generator.random() for name in range(6)}
    label = int(row[0] + row[1] > 1)
    said.append(model.predict_proba_one(row))
    model.learn_one(row, label)
print(said)
"""


def test_every_process_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows whose columns go by number, as the teacher gives them, whatever seed Python hashes words with."""
    said = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert len(said[0]) > 1_000


def test_replayed_rows_are_asked_about_on_demand(teacher: Make) -> None:
    """Prequential by default, live where the option asks for that."""
    assert teacher("naive_bayes.GaussianNB").role == "prequential"
    assert teacher("naive_bayes.GaussianNB", replayed=True).role == "live"


@pytest.mark.parametrize(
    ("model", "parameters", "words"),
    [
        ("forest.ARFClasifier", {}, "did you mean 'forest.ARFClassifier'"),
        ("forest.ARFClassifier", {"n_model": 3}, "n_models"),
        ("forest.ARFClassifier", {"max_features": "x"}, "refuses its parameters"),
    ],
)
def test_what_river_does_not_have_is_refused(teacher: Make, model: str, parameters: dict[str, Any], words: str) -> None:
    """Names of models and parameters, the nearest being told, and what River itself refuses."""
    with pytest.raises(PluginError) as caught:
        teacher(model, parameters=parameters)
    assert words in str(caught.value) + (caught.value.fix or "")


def test_parameters_are_plain_values() -> None:
    """What YAML calls a number, a word, a switch."""
    with pytest.raises(ValidationError):
        RiverOptions(parameters={"splitter": [1]})
    assert "grace_period" in models.parameters_of("tree.HoeffdingTreeClassifier")
    assert "splitter" in models.parameters_of("tree.HoeffdingTreeClassifier")


def test_the_state_of_another_model_is_refused(teacher: Make) -> None:
    """Both are named."""
    state = teacher("naive_bayes.GaussianNB").state_dict()
    with pytest.raises(StateConflict, match=r"naive_bayes\.GaussianNB.*tree\.HoeffdingTreeClassifier"):
        teacher("tree.HoeffdingTreeClassifier").load_state_dict(state)
