"""Each model keeps the contract that streamkd checks."""

import pytest
from streamkd_river import teacher
from streamkd_river.models import MODELS

from streamkd import testing
from streamkd.plugins import Registry
from streamkd.records import RecordSchema

FEW = {"forest.ARFClassifier": 3, "ensemble.SRPClassifier": 3}


@pytest.mark.parametrize("model", MODELS)
def test_the_teacher_keeps_its_contract(model: str, schema: RecordSchema) -> None:
    """Answers in the stream's order, growth, and going on after a stop, as of any teacher."""
    registry = Registry()
    assert registry.register(teacher, "river") == ["teachers/river"]
    options = {"model": model, "parameters": {"n_models": FEW[model]} if model in FEW else {}}
    testing.check_teacher(registry.kind("teachers", "river"), options, schema)


def test_asked_about_every_row_it_keeps_its_contract(schema: RecordSchema) -> None:
    """As a live teacher too."""
    registry = Registry()
    registry.register(teacher, "river")
    options = {"model": "naive_bayes.GaussianNB", "replayed": True}
    testing.check_teacher(registry.kind("teachers", "river"), options, schema)
