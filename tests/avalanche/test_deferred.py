"""Deferred imports: what is never touched is never imported, and what is touched is the thing itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from streamkd.avalanche.deferred import deferred

USES = """
from typing import Union
from heavy.parts import Part, double
import heavy, heavy.parts as parts
Either = Union[int, Part]

def twice(x): return double(x)
def three(): return parts.Part.three
def version(): return heavy.__version__
def is_part(x): return isinstance(x, Part)
def child():
    class Child(Part): pass
    return Child
"""
PARTS = """
class Part:
    three = 3

def double(x): return 2 * x
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package ``user`` that imports a package ``heavy``, both fresh."""
    files = {"user/uses.py": USES, "heavy/parts.py": PARTS, "heavy/__init__.py": "__version__ = '7'"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    kept = set(sys.modules)
    yield
    for name in set(sys.modules) - kept:
        del sys.modules[name]


@pytest.mark.usefixtures("packages")
def test_it_is_imported_when_it_is_touched() -> None:
    """An import within the block brings nothing; a call brings the real one, also where it was imported by name."""
    with deferred("heavy"):
        from user import uses
    assert "heavy" not in sys.modules
    assert uses.twice(4) == 8
    assert "heavy.parts" in sys.modules
    assert (uses.three(), uses.version()) == (3, "7")


@pytest.mark.usefixtures("packages")
def test_a_stand_in_is_what_it_stands_for() -> None:
    """It can be tested against, subclassed, and stand in a union; afterwards an import gives the package."""
    with deferred("heavy"):
        from user import uses
    from heavy.parts import Part

    assert uses.is_part(Part())
    assert not uses.is_part(3)
    assert issubclass(uses.child(), Part)
    assert uses.Either is not None


@pytest.mark.usefixtures("packages")
def test_a_part_of_a_package_may_be_deferred() -> None:
    """The package itself is imported then, and has the part when it is touched."""
    with deferred("heavy.parts"):
        from user import uses
    assert "heavy" in sys.modules
    assert "heavy.parts" not in sys.modules
    assert uses.version() == "7"
    assert "heavy.parts" not in sys.modules
    assert uses.twice(4) == 8


@pytest.mark.usefixtures("packages")
def test_what_is_there_already_stays() -> None:
    """A package that somebody has imported is taken as it is."""
    import heavy.parts

    with deferred("heavy"):
        from user import uses
    assert uses.Part is heavy.parts.Part


def test_a_learner_starts_without_what_only_plots_need() -> None:
    """Its process meets neither matplotlib nor the exporters, nor image networks, nor torch's compiler, which steps of
    its optimisers would bring; Avalanche's metrics and whoever wants a network work none the less.
    """
    code = """
import sys, streamkd.serve.processes.learner, streamkd.avalanche.strategy
from streamkd.avalanche.deferred import AVALANCHES
assert "avalanche.training" in sys.modules
import torch, warnings
from streamkd.students import optimizers
parameters = [torch.nn.Parameter(torch.ones(2))]
parameters[0].sum().backward()
for name in ("sgd", "adam", "adamw"):
    optimizer = optimizers.build(name, parameters, learning_rate=0.1)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
print([name for name in (*AVALANCHES, "torch._dynamo") if name in sys.modules])
warnings.simplefilter("ignore")
from avalanche.evaluation.metrics.topk_acc import TopkAccuracy
from avalanche.evaluation.metric_utils import default_cm_image_creator
metric = TopkAccuracy(1)
metric.update(torch.eye(3), torch.tensor([0, 1, 1]), 0)
print(metric.result_task_label(0))
print(type(default_cm_image_creator(torch.eye(3))).__module__)
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor
print(torchvision.models.resnet18.__name__, torchvision.ops.nms.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    met, accuracy, image, networks = done.stdout.splitlines()
    assert met == "[]"
    assert "0.66" in accuracy
    assert image == "matplotlib.figure"
    assert networks == "resnet18 nms"
