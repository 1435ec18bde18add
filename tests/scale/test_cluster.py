"""The Ray that a search starts: closed to everybody else, on loopback, gone without a trace."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from processes import LOOPBACK, family, listening

from streamkd.errors import ConfigError, StreamkdError
from streamkd.scale import cluster
from streamkd.scale.cluster import Cluster

STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    print("let in", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 5))
except Exception as fault:
    print(type(fault).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_every_port_is_on_loopback(ray_cluster: Cluster) -> None:
    """All that this process and Ray's processes listen at is loopback, on IPv4 and IPv6."""
    pids = family(os.getpid())
    assert any("gcs_server" in line for line in pids.values())
    addresses = listening(pids)
    assert len(addresses) > 3
    assert set(addresses) <= LOOPBACK


def test_a_stranger_is_not_let_in(ray_cluster: Cluster) -> None:
    """A process that does not know the token is refused by the head, and one that does is let in."""
    import ray

    head = ray.get_runtime_context().gcs_address
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    asked = [sys.executable, "-c", STRANGER, head]
    for environment in (without, {**without, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        said = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60).stdout
        assert said.strip() == "AuthenticationError"
    assert subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.startswith("let in")


def test_there_is_no_dashboard(ray_cluster: Cluster) -> None:
    """Nobody answers HTTP: no address of a dashboard is known."""
    import ray

    assert not ray._private.worker.get_dashboard_url()


def test_its_resources_are_those_that_were_declared(ray_cluster: Cluster) -> None:
    """Four CPUs and a GPU were declared, whatever the machine has; a second start inside shares them."""
    assert (str(ray_cluster), ray_cluster.local) == ("4 CPUs, 1 GPUs", True)
    with cluster.started(cpus=1) as inner:
        assert str(inner) == str(ray_cluster)
    assert cluster.found(local=True).fits(1, 0) == 4  # it still runs


def test_sigterm_stays_the_drivers(ray_cluster: Cluster) -> None:
    """Ray takes the signal for itself; the handler from before it is back."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "trials"),
    [
        ([{"CPU": 2.0}], 1, 0, 2),
        ([{"CPU": 2.0}], 0.5, 0, 4),
        ([{"CPU": 16.0, "GPU": 1.0}], 1, 0.25, 4),
        ([{"CPU": 16.0, "GPU": 1.0}], 1, 0.3, 3),
        ([{"CPU": 1.0, "GPU": 1.0}], 1, 0.25, 1),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}], 2, 0.5, 2),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 3, 0, 0),
        ([{"CPU": 2.0}], 1, 1, 0),
        ([], 1, 0, 0),
    ],
)
def test_as_many_trials_fit_as_each_machine_takes(
    nodes: list[dict[str, float]], cpus: float, gpus: float, trials: int
) -> None:
    """A trial lies on one machine and needs all that it asks for there; fractions are counted as Ray does."""
    assert Cluster(tuple(nodes), True).fits(cpus, gpus) == trials


def test_what_is_needed_and_what_is_there_are_said() -> None:
    """The error names both, how long was waited, and the options that ask for less."""
    fault = str(Cluster(({"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}), False).too_small(1, 2, 12.3))
    assert "needed 1 CPUs and 2 GPUs on one machine for each trial, got 2 CPUs, 0 GPUs; 8 CPUs, 1 GPUs" in fault
    assert "for 12 s" in fault
    assert "--gpus-per-trial" in fault


def test_nobody_at_the_address_is_said_at_once() -> None:
    """A port that nobody listens at is an error in words, within seconds; so is the address of a Ray client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(StreamkdError, match=r"needed a Ray cluster, got: Connection refused"),
        cluster.started(f"127.0.0.1:{port}"),
    ):
        pass
    with pytest.raises(ConfigError, match="not driven through a Ray client"), cluster.started("ray://127.0.0.1:10001"):
        pass
