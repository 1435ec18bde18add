"""The teacher ``torchvision``: the network's own answers, in the stream's columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from streamkd_vision import teacher as module
from streamkd_vision.teacher import TorchvisionOptions, TorchvisionTeacher
from torch import Tensor, nn

from streamkd.errors import PluginError, StateConflict
from streamkd.replay.memory import Memory
from streamkd.teachers.pool import Pool
from streamkd.teachers.teacher import TeacherContext

Context = Callable[..., TeacherContext]
SIZE = 32


def options(weights: Path, **changed: Any) -> TorchvisionOptions:
    values = {"network": "mobilenet_v3_small", "weights": weights, "classes": (0, 1, 2), "size": SIZE, **changed}
    return TorchvisionOptions.model_validate(values)


def images(count: int, shape: tuple[int, ...] = (8, 8), seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def seen(raw: Tensor) -> Tensor:
    """The slow, obvious way from 8×8 bytes to the network: torchvision's own transforms."""
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize((SIZE, SIZE), antialias=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return steps(raw.unsqueeze(1).repeat(1, 3, 1, 1))


def test_it_answers_what_the_network_answers(weights: Path, network: nn.Module, context: Context) -> None:
    """Logits are the network's own outputs on the image as torchvision's transforms prepare it."""
    raw = images(4)
    with torch.no_grad():
        expected = network(seen(raw))
    torch.testing.assert_close(TorchvisionTeacher(options(weights), context()).logits(raw), expected)


def test_outputs_go_to_the_column_of_their_label(weights: Path, context: Context) -> None:
    """Whatever the order in which labels arrive, an output stands in the column of its label."""
    raw = images(4)
    plain = TorchvisionTeacher(options(weights), context((0, 1, 2))).logits(raw)
    mixed = TorchvisionTeacher(options(weights), context((2, 7, 0))).logits(raw)
    torch.testing.assert_close(mixed, torch.stack([plain[:, 2], torch.zeros(4), plain[:, 0]], dim=1))


def test_it_knows_the_labels_that_it_shares_with_the_stream(weights: Path, context: Context) -> None:
    """Labels of the stream that the network does not have are unknown, also those that come later."""
    teacher = TorchvisionTeacher(options(weights), context((2, 7)))
    assert teacher.known().tolist() == [True, False]
    teacher.grow((2, 7, 0, 8))
    assert teacher.known().tolist() == [True, False, True, False]
    assert teacher.logits(images(3)).shape == (3, 4)


def test_the_files_own_labels_are_taken(weights: Path, context: Context) -> None:
    """Without ``classes`` the labels in the file's metadata name the outputs."""
    teacher = TorchvisionTeacher(options(weights, classes=None), context(("two", "else")))
    expected = TorchvisionTeacher(options(weights), context((2, 9))).logits(images(2))
    torch.testing.assert_close(teacher.logits(images(2)), expected)


@pytest.mark.parametrize(
    ("shape", "changed"),
    [((64,), {"image": (8, 8)}), ((8, 8, 3), {}), ((8, 8, 1), {})],
    ids=["flat", "colour", "grey"],
)
def test_every_layout_of_an_image_is_the_same_image(
    weights: Path, context: Context, shape: tuple[int, ...], changed: dict[str, Any]
) -> None:
    """A flat record, one channel and three are the same image to the network."""
    grey = images(2)
    layouts = {
        (64,): grey.flatten(1),
        (8, 8, 1): grey.unsqueeze(3),
        (8, 8, 3): grey.unsqueeze(3).repeat(1, 1, 1, 3),
    }
    expected = TorchvisionTeacher(options(weights), context()).logits(grey)
    got = TorchvisionTeacher(options(weights, **changed), context(shape=shape)).logits(layouts[shape])
    torch.testing.assert_close(got, expected)


def test_floats_are_taken_as_0_to_1(weights: Path, context: Context) -> None:
    """A stream of floats in 0..1 gets the answers of the same stream in bytes."""
    raw = images(2)
    expected = TorchvisionTeacher(options(weights), context()).logits(raw)
    got = TorchvisionTeacher(options(weights), context(dtype="float32")).logits(raw.float() / 255)
    torch.testing.assert_close(got, expected)


def test_each_row_is_answered_by_itself(weights: Path, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has the answers of its parts, also where it is cut to spare memory."""
    teacher = TorchvisionTeacher(options(weights), context())
    raw = images(5)
    parts = torch.cat([teacher.logits(raw[:2]), teacher.logits(raw[2:])])
    torch.testing.assert_close(teacher.logits(raw), parts)
    monkeypatch.setattr(module, "ROWS", 2)
    torch.testing.assert_close(TorchvisionTeacher(options(weights), context()).logits(raw), parts)


def test_features_are_the_layers_own_outputs(weights: Path, network: nn.Module, context: Context) -> None:
    """Named layers give what the network itself computes there."""
    raw = images(3)
    with torch.no_grad():
        expected = network.get_submodule("features")[:4](seen(raw))
    got = TorchvisionTeacher(options(weights), context()).features(raw, ("features.3", "features.0"))
    assert list(got) == ["features.3", "features.0"]
    torch.testing.assert_close(got["features.3"], expected)


def test_logits_and_features_of_the_same_rows_are_one_pass(
    weights: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on, asking for logits and then for features runs the network once."""
    passes: list[int] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *a: passes.append(len(a[2])) or run(*a))
    teacher = TorchvisionTeacher(options(weights), context())
    for step in range(3):
        raw = images(4, seed=step)
        teacher.logits(raw)
        teacher.features(raw.clone(), ("features.3",))
    assert len(passes) == 4


def test_changed_rows_are_answered_anew(weights: Path, context: Context) -> None:
    """A buffer that is filled again with other rows never gets the old rows' answers."""
    teacher = TorchvisionTeacher(options(weights), context())
    buffer = np.zeros((2, 8, 8), np.uint8)
    rows = torch.from_numpy(buffer)
    before = teacher.logits(rows)
    buffer[:] = images(2).numpy()
    assert not torch.equal(teacher.logits(rows), before)
    torch.testing.assert_close(teacher.logits(rows), TorchvisionTeacher(options(weights), context()).logits(rows))


def test_building_it_draws_nothing_from_the_callers_generator(weights: Path, context: Context) -> None:
    """A teacher changes nothing about the random numbers of the run."""
    here = context()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    TorchvisionTeacher(options(weights), here)
    torch.testing.assert_close(torch.rand(3), expected)


def test_a_pool_caches_its_answers_on_remembered_rows(weights: Path, context: Context) -> None:
    """In a pool its answers on remembered rows come from the memory, and equal the network's."""
    memory = Memory(8, 0.0, 1, seed=0)
    teacher = TorchvisionTeacher(options(weights), context((0, 1, 9)))
    pool = Pool([teacher], None, memory, limit=4, limit_bytes=1 << 30)
    raw = images(4)
    memory.insert(raw, torch.tensor([0, 1, 0, 1]), 0, torch.zeros(4, 3))
    remembered = memory.sample(4)
    assert remembered is not None
    answers = pool.answers(torch.cat([raw, remembered.x]), 4, remembered, 3)
    torch.testing.assert_close(answers.logits[:4, 0], teacher.logits(raw))
    torch.testing.assert_close(answers.logits[4:, 0], teacher.logits(remembered.x), atol=2e-3, rtol=2e-3)
    assert answers.known[:, 0].tolist() == [[True, True, False]] * 8


def test_other_weights_than_the_checkpoints_are_refused(
    weights: Path, network: nn.Module, context: Context, tmp_path: Path
) -> None:
    """A file that changed under a resumed run is an error: remembered answers came from the old one."""
    state = TorchvisionTeacher(options(weights), context()).state_dict()
    TorchvisionTeacher(options(weights), context()).load_state_dict(state)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor + 1 for name, tensor in network.state_dict().items()}, other)
    with pytest.raises(StateConflict, match="another id"):
        TorchvisionTeacher(options(other), context()).load_state_dict(state)


def test_an_unknown_layer_names_the_known_ones(weights: Path, context: Context) -> None:
    """A misspelt layer is an error with the nearest and all known names."""
    with pytest.raises(PluginError) as caught:
        TorchvisionTeacher(options(weights), context()).features(images(1), ("feature.3",))
    assert "there is no layer 'feature.3' in MobileNetV3" in str(caught.value)
    assert "did you mean 'features.3'?" in str(caught.value)
    assert "features.0, features.0.0" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"network": "mobilenet_v3_smal"}, "did you mean 'mobilenet_v3_small'?"),
        ({"network": "resnet18"}, "the weights are not those of resnet18 with 3 outputs: conv1.weight is missing"),
        ({"classes": (0, 1)}, r"classifier.3.weight: needed (2, 1024), got (3, 1024)"),
        ({"classes": ("a", "b", "c")}, "needed labels of the stream's type int, got 'a'"),
        ({"classes": (0, 1, 1)}, "needed each label once, got 1 twice"),
        ({"image": (9, 9)}, "needed an image of 64 numbers, got (9, 9)"),
        ({"image": (64,)}, "needed an image of (height, width) or (height, width, channels), got (64,)"),
        ({"image": (2, 16, 2)}, "needed 1 or 3 channels, as many as mean and std have, got 2"),
    ],
)
def test_what_does_not_fit_is_refused_at_start(
    weights: Path, context: Context, changed: dict[str, Any], said: str
) -> None:
    """Every misfit of options, file and stream is an error before the first record, in words."""
    with pytest.raises(PluginError) as caught:
        TorchvisionTeacher(options(weights, **changed), context())
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04 pickled", b"\xff" * 64], ids=["empty", "pickle", "noise"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, context: Context, content: bytes) -> None:
    """Only safetensors is read: nothing else is ever opened as code."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(PluginError, match="name a safetensors file"):
        TorchvisionTeacher(options(path), context())


def test_a_file_that_is_not_there_is_named(context: Context) -> None:
    """A path that cannot be read is an error with that path."""
    with pytest.raises(PluginError, match=r"/nowhere\.safetensors: weights cannot be read"):
        TorchvisionTeacher(options(Path("/nowhere.safetensors")), context())


def test_weights_that_are_not_finite_are_refused(weights: Path, tmp_path: Path, context: Context) -> None:
    """One NaN in the file is an error that names its tensor."""
    tensors = load_file(weights)
    tensors["classifier.3.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(PluginError, match=r"'classifier\.3\.bias' holds a number that is not finite"):
        TorchvisionTeacher(options(tmp_path / "nan.safetensors"), context())


def test_a_file_without_labels_needs_them_as_an_option(network: nn.Module, tmp_path: Path, context: Context) -> None:
    """Outputs without labels mean nothing to a stream, so they are refused."""
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(PluginError, match="needed the labels in the order of the outputs, got none"):
        TorchvisionTeacher(options(tmp_path / "plain.safetensors", classes=None), context())


def test_the_weights_must_be_named() -> None:
    """There is no default file: the configuration names one."""
    with pytest.raises(ValidationError, match="weights"):
        TorchvisionOptions.model_validate({})
