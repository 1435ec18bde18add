"""A store on loopback with the interface of Google's: gcp-storage-emulator, in memory."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pa_fs
import pytest
from object_store import BUCKET, free_ports

_EMULATOR = shutil.which("gcp-storage-emulator", path=str(Path(sys.executable).parent))


def google_url(port: int, prefix: str) -> str:
    """The address of a prefix of the bucket."""
    return f"gs://anonymous@{BUCKET}/{prefix}?scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=5"


@contextlib.contextmanager
def google_store() -> Iterator[int]:
    """The port of a store with one bucket."""
    if _EMULATOR is None:
        pytest.skip("no store of Google's kind: pip install gcp-storage-emulator")
    [port] = free_ports(1)
    process = subprocess.Popen([_EMULATOR, "start", "-M", "-q", "-H", "127.0.0.1", "--port", str(port)])
    try:
        _wait(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    system, _ = pa_fs.FileSystem.from_uri(google_url(port, "").replace("?", "?project_id=flowers&"))
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError):
            return system.create_dir(BUCKET)
        assert process.poll() is None, "the store has ended"
        assert time.monotonic() < deadline, "the store does not begin"
