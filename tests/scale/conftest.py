"""One Ray for all tests of the door to it: it takes seconds to start."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.append(HERE)


@pytest.fixture(scope="package")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A Ray of our own that declares four CPUs and a GPU that there need not be; its workers find the toys."""
    import ray.tune  # noqa: F401  (as a program may have done, without a token)

    from streamkd.scale import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH")))))
        patch.setenv("TOYS", str(tmp_path_factory.mktemp("toys")))
        with cluster.started(cpus=4, gpus=1) as found:
            yield found
