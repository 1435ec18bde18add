"""int8: weights per channel of all that is rounded without harm, and float32 of what is not."""

from pathlib import Path

import numpy as np
import onnx
import torch

import streamkd
from streamkd.export import graph
from streamkd.export.loader import Exported
from streamkd.export.quantized import quantize
from streamkd.streams.replay import datasets


def test_an_ensemble_is_rounded_but_for_its_filters_and_its_solution(state: Path, tmp_path: Path) -> None:
    """The student's layers and the dense features are int8, a scale for each of their rows; answers stay alike."""
    model = streamkd.load(state)
    images = model.encode(datasets.load("digits").test.select(["image"]).to_batches()[0])
    graph.write(model, tmp_path / "plain.onnx")
    quantize(tmp_path / "plain.onnx", tmp_path / "int8.onnx", model.model, images[:50].numpy(), graph.about(model))
    held = {tensor.name: tensor for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    rounded = {
        name: len(onnx.numpy_helper.to_array(held[f"{name}_scale"]))
        for name in (name.removesuffix("_quantized") for name in held if name.endswith("_quantized"))
        if onnx.numpy_helper.to_array(held[f"{name}_quantized"]).ndim > 1
    }
    layers = {
        f"model.parts.0.body.{layer}.weight": n for layer, n in (("hidden.0", 128), ("hidden.1", 64), ("head", 10))
    }
    assert rounded == {**layers, "model.parts.1.extractor.weight": 64}
    with torch.no_grad():
        wanted = torch.softmax(model(images), 1).numpy()
    said = Exported(tmp_path / "int8.onnx").answer(images.numpy())
    assert np.mean(said.argmax(1) == wanted.argmax(1)) >= 0.99
    assert np.abs(said - wanted).max() > 1e-4
