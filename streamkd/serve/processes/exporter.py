"""The newest artefact, for devices to fetch: what is served, exported now and then by a process of its own.

    every N seconds, if another version is served since ─► `streamkd export STATE --int8`, last in line ─► artefact/
                                                           it fails: said in the log, tried again next time

The process reads the state directory as anybody may; nothing here waits for it, and it goes when its supervisor does.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from streamkd import extras, logs

FOLDER, NAME = "artefact", "model.onnx"
SECONDS = 600.0  # that an export may take
logger = logging.getLogger(__name__)


class Exporter:
    """Exports into a state directory; ``served`` gives the number of the version that answers, ``None`` before one.

    Raises:
        MissingExtra: what exports is not installed.
    """

    def __init__(self, state: Path, every: float, served: Callable[[], int | None]) -> None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            extras.need(package, "serve.export_every")
        self.path = state / FOLDER / NAME
        self._state, self._every, self._served = state, every, served
        self._exported: int | None = None

    async def run(self) -> None:
        """Export until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            version = self._served()
            if version is not None and version != self._exported and await self._export():
                self._exported = version

    async def _export(self) -> bool:
        words = ("-m", "streamkd", "export", str(self._state), "--to", str(self.path), "--int8")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        try:
            os.setpriority(os.PRIO_PROCESS, process.pid, 10)
            said, wrong = await asyncio.wait_for(process.communicate(), SECONDS)
        except (TimeoutError, ProcessLookupError):
            said, wrong = b"", b"it has not ended in time"
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if process.returncode != 0:
            logger.warning("nothing is exported: %s", logs.one_line(wrong.decode(errors="replace"))[-500:])
            return False
        logger.info("%s", said.decode(errors="replace").strip().splitlines()[-1])
        return True
