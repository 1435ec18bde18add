"""A tracking store in a file, and what is in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="needs mlflow-skinny: pip install ./plugins/streamkd-mlflow")


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of SQLite; its tables are made once, which takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def runs(uri: str) -> Callable[[str], list[Any]]:
    """The runs of an experiment."""
    from mlflow.tracking import MlflowClient

    def of(experiment: str) -> list[Any]:
        client = MlflowClient(uri, uri)
        found = client.get_experiment_by_name(experiment)
        return client.search_runs([found.experiment_id]) if found else []

    return of


@pytest.fixture(autouse=True)
def _artifacts_go_beside_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
