"""``streamkd export``: files that answer as the version does, where there is neither torch nor streamkd."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner

import streamkd
from streamkd.cli import cli
from streamkd.errors import RecordError, StateError, StreamkdError
from streamkd.evaluate.report import write_report
from streamkd.export import artefact, figures
from streamkd.export.loader import Exported
from streamkd.streams.replay import datasets

FORMS = ["version", "float32", "int8"]


@pytest.fixture(scope="module")
def exported(state: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The student of a state directory in the best form that holds, and what was told of it."""
    to = tmp_path_factory.mktemp("exported") / "model.onnx"
    return to, artefact.export(state, to, part="student", int8=True)


@pytest.fixture(scope="module", autouse=True)
def _timed_for_a_moment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "SECONDS", 0.005)
        yield


def digits(rows: int) -> np.ndarray:
    images = datasets.load("digits").test.column("image").combine_chunks()[:rows]
    return images.flatten().to_numpy().reshape(-1, 8, 8).copy()


def test_it_answers_without_torch_and_without_streamkd(
    exported: tuple[Path, dict[str, Any]], state: Path, tmp_path: Path
) -> None:
    """In a process whose only packages are numpy and onnxruntime: the version's labels, class weights and all."""
    to, _ = exported
    packages = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs", "onnxruntime"):
        (tmp_path / name).symlink_to((packages / name).resolve())

    def python(*words: str, rows: str = "") -> "subprocess.CompletedProcess[str]":
        only = {**os.environ, "PYTHONPATH": str(tmp_path)}
        told = [sys.executable, "-S", *words]
        return subprocess.run(told, input=rows, env=only, cwd=tmp_path, capture_output=True, text=True)

    for absent in ("torch", "streamkd"):
        assert f"No module named '{absent}'" in python("-c", f"import {absent}").stderr
    rows = "".join(json.dumps({"image": image.tolist()}) + "\n" for image in digits(60))
    done = python(str(to.with_name("predict.py")), str(to), rows=rows)
    assert not done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    model = streamkd.load(state)
    student, weights = model.model.student, torch.tensor(model.model.how["class_weights"])  # type: ignore[union-attr]
    wanted = torch.softmax(student(torch.from_numpy(digits(60))) + weights.log(), 1)
    labels = [model.labels[column] for column in wanted.argmax(1).tolist()]
    assert np.mean([one["label"] == label for one, label in zip(found, labels, strict=True)]) >= artefact.AGREE
    assert np.allclose([one["probability"] for one in found], wanted.max(1).values, atol=0.1)


def test_each_form_is_measured_beside_the_version(exported: tuple[Path, dict[str, Any]]) -> None:
    """The report has a row for each, what became of int8, and lies beside the artefact."""
    to, report = exported
    assert json.loads(to.with_name("model.report.json").read_text()) == report
    assert [row["form"] for row in report["forms"]] == FORMS
    version, plain, int8 = report["forms"]
    assert version["agreement"] == 1.0
    assert plain["agreement"] >= artefact.AGREE
    assert plain["greatest_difference"] < 1e-4 < int8["greatest_difference"]
    assert int8["bytes"] < 0.5 * plain["bytes"]
    assert version["flops"] == int8["flops"] == 2 * (64 * 128 + 128 * 64 + 64 * 10)
    assert all(0 < row["p50"] <= row["p95"] for form in report["forms"] for row in form["latency_seconds"])
    assert [row["batch"] for row in version["latency_seconds"]] == [1, 32]
    assert 0.5 < version["accuracy"] <= 1.0
    kept = FORMS[2 if report["int8"]["kept"] else 1]
    assert to.stat().st_size == {row["form"]: row["bytes"] for row in report["forms"]}[kept]


def test_the_how_to_is_run(
    exported: tuple[Path, dict[str, Any]], state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python: a version as a module, and the artefact through what lies beside it."""
    (tmp_path / "state").symlink_to(state)
    for name in ("model.onnx", "predict.py"):
        (tmp_path / name).symlink_to(exported[0].with_name(name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    blocks = [block for block in blocks if "executorch" not in block]  # tests/export/test_executorch.py
    assert len(blocks) == 3
    names: dict[str, Any] = {"pixels": digits(1)[0]}
    for block in blocks:
        exec(block, names)
    assert names["logits"].shape == (1, len(names["model"].labels))
    assert torch.export.load("model.pt2").module()(torch.from_numpy(digits(5))).shape == (5, 10)


@pytest.mark.parametrize(
    ("agreement", "seconds", "why"),
    [
        (0.99, 1.0, ""),
        (0.98, 1.0, "agrees with the version on 98.0%"),
        (1.0, 1.2, "takes 1.20 times as long"),
        (0.5, 2.0, "50.0% of the records, needed 99%; it takes 2.00"),
    ],
)
def test_int8_is_kept_where_it_is_no_slower_and_answers_alike(agreement: float, seconds: float, why: str) -> None:
    """Else it is said why not."""
    plain = {"bytes": 100, "latency_seconds": [{"p50": 1.0}, {"p50": 1.0}]}
    int8 = {"bytes": 26, "agreement": agreement, "latency_seconds": [{"p50": seconds}, {"p50": 9.0}]}
    said = artefact.judged(plain, int8)
    assert said["kept"] == (not why)
    assert why in said["why"]
    assert said["bytes_ratio"] == 0.26


def test_a_second_runtime_answers_alike(exported: tuple[Path, dict[str, Any]]) -> None:
    """OpenVINO, by the same file, at several numbers of rows."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    to, _ = exported
    compiled = openvino.Core().compile_model(str(to), "CPU")
    for rows in (1, 5, 33):
        x = digits(rows)
        np.testing.assert_allclose(compiled(x)[0], Exported(to).answer(x), atol=0.05)


def test_the_command_compares_by_a_file_and_prints_a_table(state: Path, tmp_path: Path) -> None:
    """All that is served, of a version's own directory; accuracy is that of the file's labels."""
    test = datasets.load("digits").test
    rows = pa.table({"image": test.column("image"), "label": test.column("label")})
    pa.parquet.write_table(rows, tmp_path / "test.parquet")
    options = ["--to", str(tmp_path / "out/model.onnx"), "--records", str(tmp_path / "test.parquet")]
    write_report(tmp_path, [{"seed": 0}], {}, {"name": "digits"}, {})
    options += ["--report", str(tmp_path)]
    done = CliRunner().invoke(cli, ["export", str(state / "published/1"), *options], catch_exceptions=False)
    lines = done.output.splitlines()
    assert lines[0].split()[:3] == ["form", "accuracy", "agreement"]
    assert [line.split()[0] for line in lines[1:3]] == FORMS[:2]
    assert f"compared by {test.num_rows} records of test.parquet" in lines
    assert "(student, analytic)" in lines[-2]
    kept, shown = (json.loads((tmp_path / name).read_text()) for name in ("report.json", "out/model.report.json"))
    assert kept["export"] == shown
    page = (tmp_path / "report.html").read_text()
    assert all(f">{cell}</td>" in page for line in lines[1:3] for cell in re.split(r"\s{2,}", line))
    model = streamkd.load(state)
    with torch.no_grad():
        said = model(model.encode(rows.to_batches()[0])).argmax(1).tolist()
    right = np.mean([model.labels[c] == label for c, label in zip(said, rows["label"].to_pylist(), strict=True)])
    assert float(lines[1].split()[1]) == pytest.approx(right, abs=1e-3)


def test_what_cannot_be_exported_is_told_before_anything_is_written(state: Path, tmp_path: Path) -> None:
    """A student that is not there, no records to compare by, too few of them, a loader that is somebody else's."""
    to = tmp_path / "model.onnx"
    with pytest.raises(StateError, match=r"no student 'average'\n.*served, student"):
        artefact.export(state, to, part="average")
    lone = tmp_path / "version"
    shutil.copytree(state / "published/1", lone)
    with pytest.raises(StateError, match=r"no held-out records.*\n.*--records"):
        artefact.export(lone, to)
    (tmp_path / "few.jsonl").write_text(json.dumps({"image": digits(1)[0].tolist(), "label": 3}))
    with pytest.raises(RecordError, match="needed more than 200 records, got 1"):
        artefact.export(lone, to, records=tmp_path / "few.jsonl")
    (tmp_path / "predict.py").write_text("print('mine')")
    with pytest.raises(StreamkdError, match=r"another predict\.py"):
        artefact.export(state, to)
    with pytest.raises(StreamkdError, match="is the folder of a published version"):
        artefact.export(state, lone / "model.onnx")
    done = CliRunner().invoke(cli, ["export", str(state), "--to", str(to), "--report", str(lone)])
    assert re.search(r"needed a folder with report\.json, got .*No such file", str(done.exception))
    assert streamkd.load(lone).version == 1
    assert not to.exists()
    assert (tmp_path / "predict.py").read_text() == "print('mine')"
