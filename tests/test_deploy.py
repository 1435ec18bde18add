"""The files of deploy/ fit each other, the product, and the tools that read them."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamkd.telemetry import FAMILIES, PREFIX

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
UNIT = (DEPLOY / "streamkd.service").read_text("utf-8")


def tool(name: str, *arguments: str | Path) -> str:
    """What a tool says; skips where it is not installed, fails where it is not content."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_scrape_configuration() -> None:
    """promtool has nothing to say about the configuration and the rules that it names."""
    assert "1 rule files found" in tool("promtool", "check", "config", DEPLOY / "prometheus.yml")


def test_the_alerts_fire_when_they_should() -> None:
    """A healthy server is quiet, and each symptom fires its alert, by Prometheus' own evaluation."""
    assert "SUCCESS" in tool("promtool", "test", "rules", DEPLOY / "alerts_test.yml")


def test_every_alert_is_tried() -> None:
    """The run of symptoms expects every alert that there is."""
    expected = (DEPLOY / "alerts_test.yml").read_text("utf-8")
    assert [rule["alert"] for rule in RULES if f'alertname="{rule["alert"]}"' not in expected] == []


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_asks_only_for_what_is_recorded(rule: dict[str, Any]) -> None:
    """Each metric of a rule is in the table, its labels are the table's, and some line of the product records it."""
    source = "".join(p.read_text("utf-8") for p in (ROOT / "streamkd").rglob("*.py") if p.name != "families.py")
    used = re.findall(rf"{PREFIX}(\w+)(?:\{{([^}}]*)\}})?", rule["expr"])
    assert used or "up{" in rule["expr"]
    for name, labels in used:
        family = name if name in FAMILIES else name.removesuffix("_bucket")
        assert f'"{family}"' in source, f"nothing records {family}"
        assert set(re.findall(r"(\w+)=", labels)) <= set(FAMILIES[family].labels)


def test_every_alert_says_what_to_do() -> None:
    """An alert has a severity of two, a summary and an action, and stands in the README's table."""
    readme = (DEPLOY / "README.md").read_text("utf-8")
    for rule in RULES:
        severity = rule["labels"]["severity"]
        assert severity in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert f"| `{rule['alert']}` | {severity} |" in readme


def test_compose_publishes_on_loopback_only() -> None:
    """Without TLS and tokens nothing listens beyond loopback on the machine."""
    published = [port for service in COMPOSE["services"].values() for port in service["ports"]]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_hardens_every_service() -> None:
    """Read-only root, no capability, no new privileges, logs that end."""
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "max-size" in service["logging"]["options"]


def test_compose_mounts_what_is_there() -> None:
    """Files that are mounted exist, volumes are declared, and Prometheus scrapes the service's port."""
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["streamkd:8470"]


def test_composes_command_is_one_that_streamkd_takes() -> None:
    """The command line in compose.yaml and in the image names real options."""
    from streamkd.cli import cli

    known = {option for parameter in cli.commands["serve"].params for option in parameter.opts}
    image = re.findall(r"^CMD \[(.*)\]", DOCKERFILE, re.MULTILINE)[-1]
    for command in (COMPOSE["services"]["streamkd"]["command"], re.findall(r'"([^"]+)"', image)):
        assert command[0] == "serve"
        assert {word for word in command if word.startswith("--")} <= known


def test_compose_grants_the_time_that_a_stop_takes() -> None:
    """The container is given longer than the drain before it is killed."""
    from streamkd.settings import Serve

    assert int(COMPOSE["services"]["streamkd"]["stop_grace_period"].rstrip("s")) > Serve().drain_seconds + 30


def test_the_image_is_built_in_two_stages_and_runs_as_nobody() -> None:
    """The last stage has no compiler, takes the environment of the first, and drops root before it starts."""
    *_, last = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert "gcc" not in last
    assert "COPY --from=build" in last
    assert last.index("USER 10001:10001") < last.index("ENTRYPOINT")
    assert "HEALTHCHECK" in last
    assert "/v2/health/live" in last


def test_the_image_copies_what_is_there() -> None:
    """Every path of the checkout that the Dockerfile copies exists and is not held back by the ignore file."""
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").split()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in kept


def test_the_images_plugins_are_there() -> None:
    """The plugins that the image installs unless told otherwise are folders of plugins/."""
    for name in re.findall(r'^ARG PLUGINS="(.*)"', DOCKERFILE, re.MULTILINE)[0].split():
        assert (ROOT / "plugins" / name / "pyproject.toml").is_file()


def test_no_file_names_a_registry() -> None:
    """Images and packages come from wherever the machine is set up to take them."""
    images = [service["image"] for service in COMPOSE["services"].values()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all("." not in image.split("/")[0].split(":")[0] for image in images)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """systemd-analyze verifies the unit, its program put where one is."""
    unit = tmp_path / "streamkd.service"
    unit.write_text(UNIT.replace("/opt/streamkd/bin/streamkd", "/bin/true"), "utf-8")
    assert tool("systemd-analyze", "verify", unit) == ""


def test_the_unit_leaves_little_open(tmp_path: Path) -> None:
    """systemd's own rating of its exposure is at most 2 of 10."""
    assert "exposure level" in tool(
        "systemd-analyze", "security", "--offline=true", "--threshold=20", DEPLOY / "streamkd.service"
    )


def test_the_unit_stops_the_supervisor_alone_and_gives_up_on_a_wrong_configuration() -> None:
    """SIGTERM reaches one process, in time for its checkpoint; exit codes 2 and 3 are not tried again."""
    from streamkd.errors import ConfigError, StateConflict

    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT)
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 60
    assert service["RestartPreventExitStatus"] == f"{ConfigError.exit_code} {StateConflict.exit_code}"
    assert service["DynamicUser"] == "yes"
