"""ExecuTorch as a third runtime, in an environment of its own whose Python is at ``STREAMKD_TEST_EXECUTORCH``."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkd.export import graph
from streamkd.export.loader import Exported
from streamkd.export.published import Published
from streamkd.records import RecordSchema

from .test_graph import CASES, SIZES, of_images, of_table

PYTHON = os.environ.get("STREAMKD_TEST_EXECUTORCH")
PAGE = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text()
RUN = """
import sys, numpy, torch
from executorch.runtime import Runtime
method = Runtime.get().load_program("model.pte").load_method("forward")
x = torch.from_numpy(numpy.load("records.npy"))
numpy.savez("answers.npz", **{str(n): method.execute([x[:n].contiguous()])[0].numpy() for n in map(int, sys.argv[1:])})
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON, reason="STREAMKD_TEST_EXECUTORCH names no Python that has executorch"),
]


@pytest.mark.parametrize("case", [*CASES, "table"])
def test_executorch_answers_as_the_artefact(
    tmp_path: Path, case: str, table: tuple[RecordSchema, list[dict[str, Any]]]
) -> None:
    """Lowered by the script of the how-to: all built-in students and parts, at several sizes."""
    model, schema, x = of_table(table) if case == "table" else of_images(*CASES[case])
    published = Published(model, ["a", "b", "c"], schema)
    graph.write(published, tmp_path / "model.onnx")
    graph.write_program(published, tmp_path / "model.pt2", most=64)
    np.save(tmp_path / "records.npy", x[:64].numpy())
    [lower] = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M) if "executorch" in block]
    for script, words in ((lower, ["model.pt2", "model.pte"]), (RUN, [*map(str, SIZES)])):
        there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(PYTHON), "-c", script, *words], cwd=tmp_path, env=there, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    answers, artefact = np.load(tmp_path / "answers.npz"), Exported(tmp_path / "model.onnx")
    for size in SIZES:
        np.testing.assert_allclose(answers[str(size)], artefact.answer(x[:size].numpy()), atol=2e-4)
