"""What the analytic teacher looks at: the layer before a frozen network's head, its own columns, its files."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamkd.analytic import features as extractor
from streamkd.analytic.features import NetworkFeatures
from streamkd.analytic.random_features import RandomFeatures
from streamkd.errors import PluginError, StateError
from streamkd.plugins import Registry
from streamkd.records import InputColumn, RecordSchema
from streamkd.students import networks
from streamkd.students.networks import Normalise
from streamkd.teachers.checkpoint import CheckpointOptions

REGISTRY = Registry.load(["students"])
STREAM = RecordSchema(
    inputs=(
        InputColumn(name="image", shape=(8, 8), dtype="uint8", scale=1 / 255),
        InputColumn(name="sound", shape=(6,)),
    ),
    student=("image",),
)
IMAGE = RecordSchema(inputs=(STREAM.inputs[0],))
SOUND = RecordSchema(inputs=(InputColumn(name="sound", shape=(2, 3), scale=2.0, mean=0.5, std=3.0),))


def published(folder: Path, schema: RecordSchema, kind: str = "mlp", seed: int = 3, **options: Any) -> Path:
    """A student of two classes as it is published."""
    made = REGISTRY.kind("students", kind)
    student = networks.build(made, made.options(**options), schema, 2, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"student": {"name": kind, "options": options}, "schema": schema.model_dump(mode="json")}
    networks.write_published(folder, student, {**about, "classes": ["x", "y"], "seed": seed})
    return folder


def network(path: Path, schema: RecordSchema = STREAM, **options: Any) -> NetworkFeatures:
    return extractor.network(CheckpointOptions(path=path, **options), schema, REGISTRY)


def rows(count: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.cat([torch.randint(0, 255, (count, 64), generator=g).float(), torch.randn(count, 6, generator=g)], 1)


def head_input(folder: Path, x: Tensor) -> Tensor:
    """What the head of a published student reads."""
    student = networks.read_model(folder / "model.safetensors", folder / "model.json", REGISTRY)[0]
    seen: list[Tensor] = []
    student.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    student(x)
    return seen[0]


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_a_students_features_are_what_its_head_reads(tmp_path: Path, kind: str) -> None:
    """Of any student, of columns of its own, without gradient; width and columns are said."""
    options = {"hidden": (5, 7)} if kind == "mlp" else {"channels": (4,), "hidden": 7}
    folder = published(tmp_path / "net", IMAGE, kind, **options)
    found = network(folder)
    wanted = head_input(folder, rows()[:, :64].reshape(-1, 8, 8))
    assert torch.equal(found(rows()), wanted)
    assert (found.width, found.columns) == (7, ("image",))
    assert not any(weight.requires_grad for weight in found.parameters())


def test_only_its_own_columns_reach_it_normalised_in_its_own_way(tmp_path: Path) -> None:
    """Another column moves nothing; its schema's scale and shape count, not the stream's."""
    folder = published(tmp_path / "net", SOUND, hidden=(5,))
    x = rows()
    other = x.clone()
    other[:, :64] = 7.0
    found = network(folder)
    assert torch.equal(found(x), found(other))
    assert torch.equal(found(x), head_input(folder, x[:, 64:].reshape(-1, 2, 3)))


def test_columns_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    """A column of another size says what was needed, what came, and how to name another."""
    folder = published(tmp_path / "net", SOUND, hidden=(5,))
    with pytest.raises(PluginError, match=r"needed sound tensor \[2, 3\], got image tensor \[8, 8\]") as caught:
        network(folder, columns=("image",))
    assert "columns: [...]" in caught.value.fix
    with pytest.raises(StateError, match="no such model"):
        network(tmp_path / "absent")


def test_whoever_lacks_a_column_is_not_served(tmp_path: Path) -> None:
    """Requests bring the student's columns: features of others answer no request; random ones always do."""
    found = network(published(tmp_path / "net", SOUND, hidden=(5,)))
    assert extractor.served(found, ("image", "sound"))
    assert not extractor.served(found, ("image",))
    assert extractor.served(RandomFeatures((8, 8), 2, 3, seed=0), ())


def test_a_frozen_network_stays_at_rest(tmp_path: Path) -> None:
    """Whatever is done with what it is part of, dropout and running means stay off."""
    found = network(published(tmp_path / "net", SOUND, hidden=(5,)))
    torch.nn.Sequential(found).train()
    assert not any(module.training for module in found.modules())


def test_features_of_a_version_need_nothing_but_its_folder(tmp_path: Path) -> None:
    """Written and read back where the first files are gone, for requests of its columns alone, they are the same."""
    folder = published(tmp_path / "net", SOUND, hidden=(5,))
    found, version = network(folder), tmp_path / "version"
    wanted = found(rows())
    version.mkdir()
    about = json.loads(json.dumps(extractor.write(version, found)))
    for file in folder.iterdir():
        file.unlink()
    normalise, loaded = extractor.load(version, about, STREAM.only(["sound"]), REGISTRY)
    assert normalise is None
    assert torch.equal(loaded(rows()[:, 64:]), wanted)


def test_random_features_of_a_version_follow_from_three_numbers(tmp_path: Path) -> None:
    """Nothing is written for them; channels, dense and seed bring them back behind the schema's normalisation."""
    found = extractor.random(Normalise(IMAGE), 3, None, 5)
    about = extractor.write(tmp_path, found)
    normalise, loaded = extractor.load(tmp_path, about, IMAGE, REGISTRY)
    x = rows()[:, :64].reshape(-1, 8, 8)
    assert normalise is not None
    assert torch.equal(loaded(normalise(x)), found(Normalise(IMAGE)(x)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["other", "gone"])
def test_files_that_have_changed_since_are_not_published(tmp_path: Path, harm: str) -> None:
    """A version holds the network that the features came from, or is not written."""
    folder, version = published(tmp_path / "net", SOUND, hidden=(5,)), tmp_path / "version"
    found = network(folder)
    version.mkdir()
    if harm == "other":
        published(folder, SOUND, seed=4, hidden=(5,))
    else:
        (folder / "model.safetensors").unlink()
    with pytest.raises(StateError, match="network"):
        extractor.write(version, found)


def onnx_model(path: Path, *, rank: int = 2) -> tuple[np.ndarray, Path]:
    """Features [n, 4] (or [n, 2, 2]) and logits [n, 3] of vectors [n, 6], with a JSON that has three classes."""
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    draw = np.random.RandomState(0)
    weight, head = draw.randn(6, 4).astype(np.float32), draw.randn(4, 3).astype(np.float32)
    shape = [4] if rank == 2 else [2, 2]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["features"]),
        helper.make_node("MatMul", ["flat", "H"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info(n, float32, ["n", *s]) for n, s in (("logits", [3]), ("features", shape))]
    constants = {"W": weight, "H": head, "shape": np.array([-1, *shape], dtype=np.int64)}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", float32, ["n", 6])],
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    path.with_suffix(".json").write_text(json.dumps({"classes": [0, 1, 2]}))
    return weight, path


def test_an_onnx_models_output_is_the_feature_vector(tmp_path: Path) -> None:
    """The output that is named, whatever its JSON says of classes; a version takes it along, a copy shares it."""
    weight, path = onnx_model(tmp_path / "net.onnx")
    found = network(path, columns=("sound",), output="features")
    wanted = rows()[:, 64:] @ torch.from_numpy(weight)
    torch.testing.assert_close(found(rows()), wanted)
    assert found.width == 4
    assert torch.equal(copy.deepcopy(found)(rows()), found(rows()))
    version = tmp_path / "version"
    version.mkdir()
    (version / "model.json").write_text("{}")  # the student's, which says nothing of this model
    _, loaded = extractor.load(version, extractor.write(version, found), STREAM, REGISTRY)
    assert torch.equal(loaded(rows()), found(rows()))


def test_an_output_that_is_no_vector_is_refused(tmp_path: Path) -> None:
    """Features of two axes say what was needed and which outputs there are."""
    _, path = onnx_model(tmp_path / "net.onnx", rank=3)
    with pytest.raises(PluginError, match=r"needed an output \[batch, .*\[1, 2, 2\]") as caught:
        network(path, columns=("sound",), output="features")
    assert "logits, features" in caught.value.fix


def test_another_file_columns_or_output_is_another_identity(tmp_path: Path) -> None:
    """What a state is bound to: the bytes, not the path; the columns; the output."""
    first = network(published(tmp_path / "a", SOUND, hidden=(5,)))
    assert network(published(tmp_path / "b", SOUND, hidden=(5,))).identity == first.identity
    assert network(published(tmp_path / "c", SOUND, seed=4, hidden=(5,))).identity != first.identity
    _, path = onnx_model(tmp_path / "net.onnx")
    one, other = (network(path, columns=("sound",), output=output) for output in ("features", "logits"))
    assert one.identity != other.identity
