"""A search on a real Ray: the same search as here, whatever becomes of its actors."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamkd.errors import ConfigError, StreamkdError
from streamkd.tune import cluster
from streamkd.tune.settings import Settings
from streamkd.tune.study import Study

sys.path.append(str(Path(__file__).parent))  # children look there too
import stand_ins
from drivers import drive, family, over, refuse_repeated, wait_for, works
from stand_ins import DEEDS, SPACE, here, tune


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a Ray of two CPUs and a GPU that is not there, on loopback, with a token of its own."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # it warns of a future change otherwise
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # of one machine: every port is on loopback
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        options = f"--node-ip-address=127.0.0.1 --port={address.rpartition(':')[2]} --num-cpus=2 --num-gpus=1 --block"
        options += f" --include-dashboard=false --object-store-memory={128 << 20} --temp-dir={folder}"
        options += f" --ray-client-server-port={free_port()}"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options.split()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            try:
                assert any("Ray runtime started" in line for line in process.stdout)
                yield address
            finally:
                process.terminate()  # it ends its own


def told(found: Any) -> list[Any]:
    """What of the trials does not depend on when and where they ran."""
    return [
        (one.number, one.values, one.state, one.reason.partition(":")[0], [r["objectives"] for r in one.readings])
        for one in found.trials
    ]


@pytest.mark.timeout(600)  # Ray is started
def test_calls_are_mapped_over_a_cluster(head: str) -> None:
    """Their answers come in the order in which they were asked for."""
    with cluster.mapped(head) as each:
        assert each(os.path.basename, ["/tmp/a", "b", "/c"]) == ["a", "b", "c"]


@pytest.mark.timeout(600)  # Ray is started, and an actor's imports are made
def test_a_search_on_ray_is_the_search_that_it_is_here(head: str, tmp_path: Path) -> None:
    """One trial at a time, with proposals, halving and deeds of every kind: values, readings, states and reasons are
    those of a search in this process, where no deed can be survived that ends it.
    """
    deeds = tuple(100 + DEEDS.index(deed) for deed in ("nothing", "nan", "raise"))
    space = stand_ins.Space(
        (SPACE.parameters[0], stand_ins.Parameter(stand_ins.DEED, stand_ins.Categorical(deeds), integer=True))
    )
    asked: dict[str, Any] = {"space": space, "sampler": "optuna", "trials": 6, "concurrency": 1}
    there = tune(tmp_path / "ray", cluster.run, address=head, **asked)
    assert told(there) == told(tune(tmp_path / "here", here(), **asked))
    assert {"finished", "failed"} <= there.states.keys()


@pytest.mark.parametrize(("gpus", "seen"), [(0.25, "'0'"), (0.0, "''")])
def test_a_trial_sees_the_gpus_that_it_asked_for(head: str, tmp_path: Path, gpus: float, seen: str) -> None:
    """One of a quarter sees the first GPU; one that asked for none sees none, whatever the machine has."""
    asked = {"trials": 1, "gpus_per_trial": gpus, "concurrency": 1}
    with pytest.raises(StreamkdError, match=f"error: sees {seen}"):
        tune(tmp_path / "s", cluster.run, stand_ins.Looking, address=head, **asked)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.soak
def test_an_actor_that_is_gone_takes_its_trial_alone(head: str, tmp_path: Path) -> None:
    """Each trial ends its slot: that is named, what it had read is kept, and the next one has another slot."""
    found = tune(tmp_path / "s", cluster.run, stand_ins.Taking, address=head, trials=2, concurrency=1)
    assert found.states == {"failed": 2}
    for one in found.trials:
        assert one.reason.startswith("crash: its machine or Ray's process there ended")
        assert len(one.readings) == 1


def listening(processes: Sequence[psutil.Process]) -> set[str]:
    """The addresses at which they listen."""
    found = set()
    for one in processes:
        with contextlib.suppress(psutil.Error):
            found |= {at.laddr.ip.removeprefix("::ffff:") for at in one.net_connections() if at.status == "LISTEN"}
    return found


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(600)  # a Ray is started, and two actors' imports are made
def test_a_search_that_is_killed_on_ray_goes_on_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of this machine alone hears loopback alone. Killed with -9, its driver takes it and every trial along, but
    for two agents that Ray lets wait a minute; resumed without it, what was over is kept, and what was under way has
    its number and values again.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    out = tmp_path / "s"
    process = drive(out, 6, "local")
    wait_for(lambda: bool(over(out)) or process.poll() is not None, 300)
    processes = family(process.pid)
    agents = [one for one in processes if one.name().endswith("Agent")]
    heard = listening(processes)
    process.kill()
    process.wait()
    before, left = over(out), {one.number: one.values for one in Study.open(out).trials()}
    assert before
    assert heard == {"127.0.0.1"}
    wait_for(lambda: not any(works(one) for one in processes if one not in agents), 60)
    assert not [one for one in processes if works(one) and one not in agents]
    for agent in agents:
        with contextlib.suppress(psutil.Error):
            agent.kill()
    assert drive(out, 6, "resume").wait(300) == 0
    after = over(out)
    refuse_repeated(before, after)
    assert sorted(after) == list(range(6))
    assert {number: after[number].values for number in left} == left


def test_a_trial_that_fits_nowhere_is_said(head: str, tmp_path: Path) -> None:
    """More than any machine has is an error at once, with what there is."""
    said = "needed 100 CPUs and 0 GPUs on one machine for each trial, got 2 CPUs, 1 GPUs"
    with pytest.raises(StreamkdError, match=said):
        tune(tmp_path / "s", cluster.run, address=head, cpus_per_trial=100.0)


def test_nobody_at_the_address_is_said_at_once(tmp_path: Path) -> None:
    """A port that nobody listens at is an error in words, within seconds; so is the address of a Ray client."""
    with pytest.raises(StreamkdError, match=r"needed a Ray cluster, got: Connection refused"):
        tune(tmp_path / "refused", cluster.run, address=f"127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="not driven through a Ray client"):
        tune(tmp_path / "client", cluster.run, address="ray://127.0.0.1:10001")


@pytest.mark.timeout(600)  # Ray Tune's actors make their imports
def test_ray_tune_searches_over_trials_that_measure_as_here(head: str, tmp_path: Path) -> None:
    """Its own search, by dotted paths: each trial ends with what the same values end with in this process."""
    import ray
    from ray import tune as ray_tune

    from streamkd.tune.space.places import Places
    from streamkd.tune.trainable import trainable
    from streamkd.tune.trials import recording
    from streamkd.tune.trials.trial import Trial

    config, rates = stand_ins.config(student={"name": "mlp", "hidden": [16]}), [0.001, 0.01]
    ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tuner = ray_tune.Tuner(
            trainable(config, stand_ins.REGISTRY, seeds=(100,)),
            param_space={stand_ins.RATE: ray_tune.grid_search(rates)},
            run_config=ray_tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        )
        found = {one.config[stand_ins.RATE]: one.metrics for one in tuner.fit()}
    finally:
        ray.shutdown()
    recordings = {100: recording.record(config, stand_ins.REGISTRY, 100)}
    for rate in rates:
        changed = Places(config, stand_ins.REGISTRY).changed({stand_ins.RATE: rate})
        reading = Trial(changed, stand_ins.REGISTRY, recordings).advance(recordings[100].total)
        assert found[rate]["accuracy"] == reading.objectives["accuracy"]
        assert found[rate]["records"] == reading.records


def test_shares_of_a_gpu_are_rays() -> None:
    """Without a cluster they are refused, with the way out."""
    with pytest.raises(ConfigError, match="--address local"):
        Settings(gpus_per_trial=0.25)
