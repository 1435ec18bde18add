"""What a server exports now and then: another version once, a failure said and tried again."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from streamkd import extras
from streamkd.errors import MissingExtra
from streamkd.export.loader import Exported
from streamkd.serve.processes.exporter import Exporter


def until(exporter: Exporter, condition: Callable[[], object]) -> None:
    async def run() -> None:
        running = asyncio.create_task(exporter.run())
        try:
            async with asyncio.timeout(90):
                while not condition():
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_a_version_is_exported_once(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a process of its own, into the state directory, once for each version that is served."""
    caplog.set_level(logging.INFO)
    asked: list[int] = []

    def served() -> int:
        asked.append(1)
        return 1

    exporter = Exporter(state, 0.05, served)
    until(exporter, lambda: len(asked) > 5)
    assert [record.getMessage()[:15] for record in caplog.records if "wrote" in record.getMessage()] == [
        "wrote version 1"
    ]
    assert Exported(exporter.path).about["version"] == 1
    assert {file.name for file in exporter.path.parent.iterdir()} == {"model.onnx", "predict.py", "model.report.json"}


def test_a_failure_is_said_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the words of the command; nothing is asked for before a version is served."""
    served: list[int | None] = [None]
    exporter = Exporter(tmp_path, 0.05, lambda: served[0])
    until(exporter, lambda: served.append(1) or len(served) > 4)  # type: ignore[func-returns-value]
    assert not caplog.records
    served[0] = 7
    until(exporter, lambda: len(caplog.records) > 1)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "is no state directory and no published version" in caplog.text


def test_a_server_that_cannot_export_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named at once, not after minutes in the log."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"(?s)needed onnx for serve\.export_every.*streamkd\[export\]"):
        Exporter(tmp_path, 60, lambda: 1)
