"""The files of deploy/ that a search on a cluster takes agree with each other, with Ray and with the command."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streamkd.cli import cli
from streamkd.config import from_tree
from streamkd.plugins import Registry

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text("utf-8")
TEXT = (DEPLOY / "search.yaml").read_text("utf-8")
DOCUMENTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load_all(TEXT)}
MACHINES: dict[str, Any] = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text("utf-8"))
PART = {"app.kubernetes.io/part-of": "streamkd-search"}

CLUSTER = DOCUMENTS["RayCluster"]
HEAD = CLUSTER["spec"]["headGroupSpec"]
(WORKERS,) = CLUSTER["spec"]["workerGroupSpecs"]
PODS: dict[str, dict[str, Any]] = {
    "head": HEAD["template"],
    "workers": WORKERS["template"],
    "driver": DOCUMENTS["Job"]["spec"]["template"],
}
SCRIPT: str = PODS["driver"]["spec"]["containers"][0]["args"][0]


def container(pod: str) -> dict[str, Any]:
    """The only container of a pod."""
    (found,) = PODS[pod]["spec"]["containers"]
    return found


def environment(pod: str) -> dict[str, Any]:
    """Its environment by name."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(pod)["env"]}


@pytest.fixture(scope="module")
def ray_start() -> set[str]:
    """The options of `ray start`."""
    ray = Path(sys.executable).with_name("ray")
    said = subprocess.run([ray, "start", "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    return set(re.findall(r"^\s+(--[a-z-]+)", said, re.MULTILINE))


def started() -> Iterator[str]:
    """Each `ray start` of the two files, as one line."""
    commands = [*MACHINES["head_start_ray_commands"], *MACHINES["worker_start_ray_commands"], *SCRIPT.splitlines()]
    yield from (command for command in commands if "ray start" in command)


def test_ray_takes_the_cluster_of_machines() -> None:
    """The file fits Ray's own schema, names a head and as many workers as it allows."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    jsonschema.validate(MACHINES, json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text()))
    assert MACHINES["provider"]["head_ip"]
    assert len(MACHINES["provider"]["worker_ips"]) == MACHINES["max_workers"]


def test_every_option_is_one_that_ray_takes(ray_start: set[str]) -> None:
    """What is given to `ray start`, by the files or through KubeRay, are its options."""
    given = {option for command in started() for option in re.findall(r"--[a-z-]+", command.split("ray start")[1])}
    given |= {f"--{name}" for group in (HEAD, WORKERS) for name in group["rayStartParams"]}
    assert given
    assert given <= ray_start


def test_the_dashboard_is_off() -> None:
    """No head serves it, and were it on it would listen on loopback alone."""
    params = HEAD["rayStartParams"]
    assert (params["include-dashboard"], params["dashboard-host"]) == ("false", "127.0.0.1")
    head = next(command for command in started() if "--head" in command)
    assert "--include-dashboard=false --dashboard-host=127.0.0.1" in head
    assert "8265" not in TEXT + str(MACHINES)


def test_every_ray_asks_for_the_token() -> None:
    """Token mode everywhere, one secret under one name, and its value in no file."""
    auth = CLUSTER["spec"]["authOptions"]
    assert auth["mode"] == environment("driver")["RAY_AUTH_MODE"] == "token"
    reference = environment("driver")["RAY_AUTH_TOKEN"]["secretKeyRef"]
    assert reference == {"name": auth["secretName"], "key": "auth_token"}
    assert f"kubectl create secret generic {auth['secretName']}" in README
    assert "Secret" not in DOCUMENTS
    machines = [*MACHINES["head_start_ray_commands"], *MACHINES["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in machines if "ray start" in command)
    assert MACHINES["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_nothing_is_published() -> None:
    """No service of a public kind, no ingress, no port of a host."""
    assert HEAD["serviceType"] == "ClusterIP"
    assert HEAD["enableIngress"] is False
    assert not re.search(r"NodePort|LoadBalancer|hostPort|hostNetwork|kind: Ingress|kind: Service\b", TEXT)
    assert [port["containerPort"] for pod in PODS for port in container(pod).get("ports", [])] == [6379]


def test_the_pods_hear_each_other_alone() -> None:
    """The policy covers every pod, lets in what it covers, and out of it only to themselves and for names."""
    policy = DOCUMENTS["NetworkPolicy"]["spec"]
    themselves = [{"podSelector": {"matchLabels": PART}}]
    assert policy["podSelector"]["matchLabels"] == PART
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == [{"from": themselves}]
    among, names = policy["egress"]
    assert among == {"to": themselves}
    assert {port["port"] for port in names["ports"]} == {53}
    assert all(pod["metadata"]["labels"] == PART for pod in PODS.values())
    assert all(one["metadata"]["labels"] == PART for one in DOCUMENTS.values())


@pytest.mark.parametrize("pod", PODS)
def test_no_pod_has_more_rights_than_it_needs(pod: str) -> None:
    """Not root but the image's user, no capability, nothing writable but what is mounted, no account."""
    spec, user = (
        PODS[pod]["spec"],
        re.findall(r"^USER (\d+):(\d+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[-1],
    )
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_mounts_what_is_declared(pod: str) -> None:
    """Every mount has its volume and every volume its mount; claims and maps are those of the file; /tmp is there."""
    volumes = {one["name"]: one for one in PODS[pod]["spec"]["volumes"]}
    mounts = {one["name"]: one["mountPath"] for one in container(pod)["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    assert environment(pod)["HOME"] == mounts["scratch"] == "/tmp"
    assert ("searches" in volumes) == (pod == "driver")  # nobody else writes
    if pod == "driver":
        claim = DOCUMENTS["PersistentVolumeClaim"]
        assert volumes["searches"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        assert environment("driver")["OUT"].startswith(mounts["searches"])
        assert volumes["configuration"]["configMap"]["name"] == DOCUMENTS["ConfigMap"]["metadata"]["name"]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_says_what_it_takes(pod: str) -> None:
    """Requests and limits of CPU and memory, memory and GPUs the same in both."""
    resources = container(pod)["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys() == resources["limits"].keys()
    assert all(
        resources["requests"][name] == resources["limits"][name] for name in resources["limits"] if name != "cpu"
    )


def test_the_gpus_are_used_up() -> None:
    """A worker has a CPU for every trial that fits its GPU; head and driver take no trial."""
    limits = container("workers")["resources"]["limits"]
    asked = {name: float(value) for name, value in re.findall(r"--(cpus|gpus)-per-trial (\S+)", SCRIPT)}
    assert float(limits["cpu"]) / asked["cpus"] == float(limits["nvidia.com/gpu"]) / asked["gpus"] == 4
    assert (HEAD["rayStartParams"]["num-cpus"], HEAD["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "--num-cpus=0 --num-gpus=0" in SCRIPT
    assert WORKERS["replicas"] == WORKERS["minReplicas"] == WORKERS["maxReplicas"]


def test_ports_and_names_agree() -> None:
    """The driver asks the service that KubeRay makes; probes, node managers and both files have the same ports."""
    assert environment("driver")["HEAD"] == f"{CLUSTER['metadata']['name']}-head-svc:6379"
    assert container("head")["readinessProbe"]["tcpSocket"]["port"] == 6379
    assert container("workers")["readinessProbe"]["tcpSocket"]["port"] == 6380
    for command in started():
        assert "--node-manager-port=6380 --object-manager-port=6381" in command
    for group in (HEAD, WORKERS):
        assert (group["rayStartParams"]["node-manager-port"], group["rayStartParams"]["object-manager-port"]) == (
            "6380", "6381",
        )  # fmt: skip


def test_one_image_with_one_ray() -> None:
    """Every pod runs the image of the Dockerfile, whose Ray is the one that is pinned; no registry is named."""
    assert {container(pod)["image"] for pod in PODS} == {"streamkd:latest"}
    pinned = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert [CLUSTER["spec"]["rayVersion"]] == pinned


def test_the_drivers_command_is_one_that_streamkd_takes() -> None:
    """Its options are real ones, its configuration is the map's file and is taken, and begun again it goes on."""
    command = SCRIPT.split("exec streamkd tune", 1)[1]
    known = {option for parameter in cli.commands["tune"].params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= known
    folder, name = re.findall(r" (/\S+)/(\S+\.yaml) ", command)[0]
    assert folder == {one["name"]: one["mountPath"] for one in container("driver")["volumeMounts"]}["configuration"]
    from_tree(yaml.safe_load(DOCUMENTS["ConfigMap"]["data"][name]), Registry.load())
    assert 'journal.log" && RESUME=--resume' in SCRIPT
    assert "$RESUME" in command
    assert PODS["driver"]["spec"]["restartPolicy"] == "OnFailure"


def test_the_script_is_bash() -> None:
    """bash reads the driver's script without complaint."""
    done = subprocess.run(["bash", "-n", "-c", SCRIPT], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")
