"""One Ray for all tests of the door to it: it takes seconds to start."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # Ray's workers look there too


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[object]:
    """A Ray of our own that declares four CPUs and a GPU that there need not be."""
    from streamkd.scale import cluster

    with cluster.started(cpus=4, gpus=1) as found:
        yield found
