"""The teacher ``checkpoint``: answers by label, own columns, own normalisation, the file's identity; ONNX alike."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from streamkd.errors import PluginError, StateConflict, StateError
from streamkd.hookspecs import Kind
from streamkd.plugins import Registry
from streamkd.records import InputColumn, Label, RecordSchema
from streamkd.replay.memory import Memory
from streamkd.students import networks
from streamkd.teachers.checkpoint import CheckpointOptions, CheckpointTeacher
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import TeacherContext

onnx = pytest.importorskip("onnx")
REGISTRY = Registry.load(["students"])
STREAM = RecordSchema(
    inputs=(
        InputColumn(name="image", shape=(4, 4), dtype="uint8", scale=1 / 255),
        InputColumn(name="sound", shape=(6,)),
    ),
    student=("image",),
)
SOUND = RecordSchema(inputs=(InputColumn(name="sound", shape=(2, 3), scale=2.0, mean=0.5, std=3.0),))


def published(folder: Path, schema: RecordSchema, classes: Sequence[Label], kind: str = "mlp", **options: Any) -> Path:
    """A student as it is published."""
    made = REGISTRY.kind("students", kind)
    student = networks.build(made, made.options(**options), schema, len(classes), seed=3)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"student": {"name": kind, "options": options}, "schema": schema.model_dump(mode="json")}
    networks.write_published(folder, student, {**about, "classes": list(classes), "seed": 3})
    return folder


def network_of(folder: Path) -> networks.Student:
    return networks.read_model(folder / "model.safetensors", folder / "model.json", REGISTRY)[0]


def teacher(path: Path, labels: Sequence[Label], schema: RecordSchema = STREAM, **options: Any) -> CheckpointTeacher:
    context = TeacherContext("net", toys.mlp(), schema, labels, torch.device("cpu"), REGISTRY)
    return CheckpointTeacher(CheckpointOptions(path=path, **options), context)


def rows(count: int = 5) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.cat([torch.randint(0, 255, (count, 16), generator=g).float(), torch.randn(count, 6, generator=g)], 1)


def test_answers_are_put_by_label(tmp_path: Path) -> None:
    """The output of a class stands in the column of that label; labels that it does not have are masked."""
    path = published(tmp_path, SOUND, [7, 3, 9], hidden=(5,))
    answers = teacher(path, [9, 1, 7])
    theirs = network_of(path)(rows()[:, 16:].reshape(-1, 2, 3))
    assert torch.equal(answers.logits(rows())[:, [0, 2]], theirs[:, [2, 0]])
    assert answers.known().tolist() == [True, False, True]
    assert not answers.logits(rows())[:, 1].any()


def test_a_label_that_comes_later_is_heard_from_then_on(tmp_path: Path) -> None:
    """Growth maps what the model has known all along, and says so by its version."""
    answers = teacher(published(tmp_path, SOUND, [7, 3], hidden=(5,)), [7])
    before = answers.logits(rows()), answers.version
    answers.grow([7, 1])
    assert answers.version == before[1]
    answers.grow([7, 1, 3])
    assert answers.known().tolist() == [True, False, True]
    assert answers.version > before[1]
    assert torch.equal(answers.logits(rows())[:, :1], before[0])


def test_remembered_answers_follow_a_label_that_comes_later(tmp_path: Path) -> None:
    """The cache holds the true logits of the new column before the next step asks, not the zeros that it grew by."""
    answers = teacher(published(tmp_path, SOUND, [7, 3], hidden=(5,)), [7])
    memory = Memory(8, 0.0, 2, seed=0)
    pool = Pool([answers], None, memory, limit=2, limit_bytes=1 << 20)
    memory.insert(rows(4), torch.zeros(4, dtype=torch.int64), 0, torch.zeros(4, 1))
    remembered = memory.sample(4)
    assert remembered is not None
    pool.answers(remembered.x, 0, remembered, 1)
    pool.grow([7, 3])
    got = pool.answers(remembered.x, 0, remembered, 2)
    assert got.known.all()
    torch.testing.assert_close(got.logits[:, 0], answers.logits(remembered.x), rtol=1e-3, atol=1e-3)


def test_it_has_its_own_columns_and_normalisation(tmp_path: Path) -> None:
    """Only the column that it names moves its answer, scaled as its own schema says."""
    path = published(tmp_path, SOUND, [0, 1], hidden=(5,))
    x = rows()
    other = x.clone()
    other[:, :16] = 7.0
    answers = teacher(path, [0, 1])
    assert torch.equal(answers.logits(x), answers.logits(other))
    seen = answers.network.normalise(x[:, 16:].reshape(-1, 2, 3))
    torch.testing.assert_close(seen, (x[:, 16:].reshape(-1, 2, 3) * 2.0 - 0.5) / 3.0)


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    """A model that calls its input otherwise is refused until `columns` says which it reads."""
    own = RecordSchema(inputs=(InputColumn(name="waves", shape=(6,)),))
    path = published(tmp_path, own, [0, 1])
    with pytest.raises(PluginError, match="'waves' is no input column") as caught:
        teacher(path, [0, 1])
    assert "columns: [...]" in caught.value.fix
    assert teacher(path, [0, 1], columns=("sound",)).logits(rows()).shape == (5, 2)
    with pytest.raises(PluginError, match=r"needed waves tensor \[6\], got image tensor \[4, 4\]"):
        teacher(path, [0, 1], columns=("image",))


def test_another_architecture_teaches(tmp_path: Path) -> None:
    """A convolutional network beside a student that reads another column."""
    schema = RecordSchema(inputs=(STREAM.inputs[0],))
    path = published(tmp_path, schema, [0, 1], kind="convnet", channels=(4,), hidden=8)
    answers = teacher(path, [0, 1])
    assert torch.equal(answers.logits(rows()), network_of(path)(rows()[:, :16].reshape(-1, 4, 4)))
    shown = answers.features(rows(), ("body.hidden",))
    assert shown["body.hidden"].shape == (5, 8)
    assert not shown["body.hidden"].requires_grad


def test_classes_may_be_renamed_and_must_fit(tmp_path: Path) -> None:
    """`classes` says what the outputs are in the stream's labels; a wrong count, twins and other types are refused."""
    path = published(tmp_path, SOUND, ["cat", "dog"])
    assert teacher(path, [5, 4], classes=(4, 5)).known().all()
    for classes, said in (((1,), "needed 2 different"), ((1, 1), "needed 2 different"), (None, "of type int")):
        with pytest.raises(PluginError, match=said):
            teacher(path, [4, 5], classes=classes)


def test_a_file_with_its_json_beside_it_is_a_model(tmp_path: Path) -> None:
    """`net.safetensors` and `net.json` give the answers of the directory that they came from."""
    folder = published(tmp_path / "whole", SOUND, [0, 1])
    for ending in ("safetensors", "json"):
        (tmp_path / f"net.{ending}").write_bytes((folder / f"model.{ending}").read_bytes())
    ours, theirs = teacher(tmp_path / "net.safetensors", [0, 1]), teacher(folder, [0, 1])
    assert torch.equal(ours.logits(rows()), theirs.logits(rows()))


@pytest.mark.parametrize("damage", ["absent", "no weights", "cut", "no json", "other shape"])
def test_a_model_that_cannot_be_read_says_where(tmp_path: Path, damage: str) -> None:
    """Missing and damaged files name the place."""
    folder = tmp_path / "m"
    if damage != "absent":
        published(folder, SOUND, [0, 1], hidden=(5,))
    if damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:90])
    elif damage == "no json":
        (folder / "model.json").unlink()
    elif damage == "other shape":
        about = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps({**about, "classes": [0, 1, 2]}))
    with pytest.raises(StateError) as caught:
        teacher(folder, [0, 1])
    assert str(folder) in caught.value.where


def test_another_file_under_the_same_key_is_refused(tmp_path: Path) -> None:
    """What remembered answers came from may not change silently: weights, columns, classes."""
    first = teacher(published(tmp_path / "a", SOUND, [0, 1], hidden=(5,)), [0, 1])
    teacher(published(tmp_path / "b", SOUND, [0, 1], hidden=(5,)), [0, 1]).load_state_dict(first.state_dict())
    other = teacher(published(tmp_path / "c", SOUND, [1, 0], hidden=(5,)), [0, 1])
    with pytest.raises(StateConflict, match="needed the sha256"):
        other.load_state_dict(first.state_dict())


def gemm(path: Path, student: networks.Student, inputs: Sequence[tuple[str, list[Any]]], shape: Sequence[Any]) -> Path:
    """An ONNX model of one linear layer over inputs that are flattened and joined."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weight, bias = student.body.head.weight.detach().numpy(), student.body.head.bias.detach().numpy()
    nodes = [helper.make_node("Flatten", [name], [f"{name}_flat"]) for name, _ in inputs]
    nodes += [helper.make_node("Concat", [f"{name}_flat" for name, _ in inputs], ["whole"], axis=1)]
    nodes += [helper.make_node("Gemm", ["whole", "W", "b"], ["logits"], transB=1)]
    nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, float32, sizes) for name, sizes in inputs],
        [helper.make_tensor_value_info(name, float32, list(shape)) for name in ("logits", "probabilities")],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in (("W", weight), ("b", bias))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def linear(features: int, classes: int) -> networks.Student:
    kind = Kind("mlp", networks.Mlp, networks.MlpOptions)
    return networks.build(kind, networks.MlpOptions(hidden=()), toys.schema_of(features), classes, 0)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_an_onnx_model_answers_as_the_network_that_it_was(tmp_path: Path, batch: Any) -> None:
    """Logits by label, whether the model takes any batch or a fixed one."""
    student = linear(6, 3)
    path = gemm(tmp_path / "net.onnx", student, [("in", [batch, 6])], [batch, 3])
    answers = teacher(path, [2, 0], columns=("sound",), classes=(0, 1, 2))
    torch.testing.assert_close(answers.logits(rows()), student(rows()[:, 16:]).detach()[:, [2, 0]])
    assert answers.size_bytes() == path.stat().st_size


def test_an_onnx_model_may_give_probabilities(tmp_path: Path) -> None:
    """Their logarithm has the same softmax as the logits."""
    student = linear(6, 3)
    path = gemm(tmp_path / "net.onnx", student, [("in", ["n", 6])], ["n", 3])
    chosen = {"columns": ("sound",), "classes": (0, 1, 2)}
    answers = teacher(path, [0, 1, 2], output="probabilities", probabilities=True, **chosen)
    torch.testing.assert_close(answers.logits(rows()).softmax(1), student(rows()[:, 16:]).detach().softmax(1))


def test_an_onnx_models_json_says_how_it_sees_a_record(tmp_path: Path) -> None:
    """Names, classes and normalisation come from the JSON beside it; images arrive channels first."""
    student = linear(16, 2)
    path = gemm(tmp_path / "net.onnx", student, [("in", ["n", 1, 4, 4])], ["n", 2])
    own = RecordSchema(inputs=(STREAM.inputs[0],))
    path.with_suffix(".json").write_text(json.dumps({"classes": [1, 0], "schema": own.model_dump(mode="json")}))
    wanted = student(rows()[:, :16] / 255).detach()
    torch.testing.assert_close(teacher(path, [0, 1]).logits(rows()), wanted[:, [1, 0]])


def test_an_onnx_model_of_several_inputs_gets_a_column_each(tmp_path: Path) -> None:
    """Columns go to the inputs in the order in which they are named."""
    student = linear(22, 2)
    path = gemm(tmp_path / "net.onnx", student, [("first", ["n", 6]), ("second", ["n", 4, 4])], ["n", 2])
    answers = teacher(path, [0, 1], columns=("sound", "image"))
    wanted = student(torch.cat([rows()[:, 16:], rows()[:, :16]], 1)).detach()
    torch.testing.assert_close(answers.logits(rows()), wanted)
    with pytest.raises(PluginError, match="a column for each of its inputs"):
        teacher(path, [0, 1], columns=("sound",))


def test_an_onnx_model_that_does_not_fit_says_what_it_takes(tmp_path: Path) -> None:
    """Wrong sizes, too few classes and files that are none are refused in words."""
    path = gemm(tmp_path / "net.onnx", linear(5, 3), [("in", ["n", 5])], ["n", 3])
    with pytest.raises(PluginError, match="does not run on records of shape") as caught:
        teacher(path, [0, 1], columns=("sound",))
    assert "in ['n', 5]" in caught.value.fix
    fitting = gemm(tmp_path / "fits.onnx", linear(6, 3), [("in", ["n", 6])], ["n", 3])
    with pytest.raises(PluginError, match="needed 3 different classes"):
        teacher(fitting, [0, 1], columns=("sound",), classes=(0, 1))
    (tmp_path / "none.onnx").write_bytes(b"not a model")
    with pytest.raises(PluginError, match="cannot be read as an ONNX model"):
        teacher(tmp_path / "none.onnx", [0, 1], columns=("sound",))


def test_onnxruntime_is_imported_only_by_a_model_that_needs_it(tmp_path: Path) -> None:
    """Where it is not installed, only an ONNX file says so."""
    import subprocess
    import sys

    code = "import sys, streamkd.teachers.checkpoint; print('onnxruntime' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
