"""One run of MLflow in a tracking store: begun, or gone on with where its state directory says which one it was.

The only door to the package ``mlflow``, which is imported by the first call. It sends no usage data from here, and
gives up soon on a server that is away: whoever calls tries again.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REMEMBERED = "mlflow-run"  # in the state directory: the run's id
PARAMS = 100  # MLflow takes no more in one request
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Point(NamedTuple):
    """A metric's value at a record; the time in milliseconds since 1970."""

    name: str
    value: float
    time: int
    record: int


class Store:
    """Writes one run. Every method may raise whatever the client of the store raises."""

    def __init__(self, uri: str, experiment: str, config: Mapping[str, Any], directory: Path | None) -> None:
        self._uri, self._experiment, self._config, self._directory = uri, experiment, config, directory
        self._client: Any = None
        self._run = ""

    def begin(self) -> None:
        """Open or make the run, once."""
        if self._run:
            return
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        self._client = self._client or MlflowClient(self._uri, self._uri)
        self._run = self._known() or self._made()

    def add(self, points: Sequence[Point]) -> None:
        """Points of metrics, in one request."""
        from mlflow.entities import Metric

        self._client.log_batch(self._run, metrics=[Metric(*point) for point in points])

    def register(self, model: str, version: int) -> None:
        """The files of a published version, and with them a new version of the registered model."""
        if self._directory is None or not (files := self._directory / "published" / str(version)).exists():
            return  # a newer one has taken its place
        self._client.log_artifacts(self._run, str(files), f"versions/{version}")
        if not self._client.search_registered_models(f"name = '{model}'", max_results=1):
            self._client.create_registered_model(model)
        source = f"{self._client.get_run(self._run).info.artifact_uri}/versions/{version}"
        self._client.create_model_version(model, source, self._run, {"streamkd.version": str(version)})

    def end(self) -> None:
        """The run is over, until it is gone on with."""
        self._client.set_terminated(self._run)

    def _known(self) -> str:
        """The run that the state directory remembers, if the store has it."""
        from mlflow.exceptions import MlflowException

        if self._directory is None or not (note := self._directory / REMEMBERED).exists():
            return ""
        run = note.read_text("utf-8").strip()
        try:
            if self._client.get_run(run).info.lifecycle_stage != "active":
                return ""
        except MlflowException as fault:
            if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
                return ""
            raise
        self._client.update_run(run, status="RUNNING")
        return run

    def _made(self) -> str:
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(self._experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self._experiment)
        run = self._client.create_run(experiment, run_name=self._config.get("name")).info.run_id
        params = [Param(key, value) for key, value in _flat(self._config)]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(run, params=params[start : start + PARAMS])
        if self._directory is not None:
            (self._directory / REMEMBERED).write_text(run, "utf-8")
        return run


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths and values; lists are one value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value if isinstance(value, str) else json.dumps(value)
