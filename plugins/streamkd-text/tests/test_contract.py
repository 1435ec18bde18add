"""Both students and the rows keep the contracts that streamkd checks."""

from pathlib import Path
from typing import Any

import pytest

from streamkd import testing
from streamkd.plugins import Registry
from streamkd.records import RecordSchema


@pytest.mark.parametrize(
    "options",
    [{}, {"ngrams": 0}, {"hidden": 0, "ngrams": 64}, {"hidden": 0, "random": 6}, {"adapter": 2, "layers": 2}],
)
def test_the_students_keep_their_contract(
    registry: Registry, schema: RecordSchema, folder: Path, options: dict[str, Any]
) -> None:
    """Row by row, a head that grows, copies and states, with n-grams and without, with a layer and without."""
    testing.check_student(registry.kind("students", "text-encoder"), {"encoder": str(folder), **options}, schema)
    if options.get("ngrams", 1) and not {"random", "adapter"} & {*options}:
        testing.check_student(registry.kind("students", "text-ngrams"), options, schema)


def test_the_rows_keep_their_contract(registry: Registry, schema: RecordSchema) -> None:
    """They fit the step's rows and follow from state and rows alone."""
    testing.check_rows(registry.kind("rows", "text-joined"), {"count": 7}, schema)


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_the_closed_form_stands_on_the_encoder(
    registry: Registry, schema: RecordSchema, folder: Path, method: str
) -> None:
    """The teacher `analytic` over the vectors keeps its contract."""
    if "text-encoder" not in Registry.load().names("students"):
        pytest.skip("streamkd-text is not installed: a version finds the student by its entry point")
    body = {"name": "text-encoder", "encoder": str(folder), "hidden": 0, "ngrams": 32}
    options = {"method": method, "body": body, "dense": 10, "ridge": 0.1}
    testing.check_teacher(registry.kind("teachers", "analytic"), options, schema)
