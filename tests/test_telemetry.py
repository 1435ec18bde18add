"""Telemetry: the table, the recorder, the exposition."""

import json
import math
import shutil
import subprocess
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamkd.errors import StreamkdError
from streamkd.telemetry import FAMILIES, HELD, PREFIX, SERIES, Exposition, Recorder


def samples(exposition: Exposition) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = exposition.expose()[0].decode()
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def full_house(teachers: int = 9) -> Recorder:
    """Every family recorded with as many label values as a rich configuration has."""
    recorder = Recorder()
    many = {
        "teacher": [f"teacher-{i}" for i in range(teachers)],
        "reason": ["a", "b", "c"],
        "plugin": [f"plugin-{i}" for i in range(10)],
    }
    for name, family in FAMILIES.items():
        key = next((label for label in family.labels if label in many), None)
        for value in many[key] if key else [""]:
            labels = {label: value if label == key else label for label in family.labels}
            {"counter": recorder.count, "gauge": recorder.set, "histogram": recorder.observe}[family.type](
                name, 1.0, **labels
            )
    return recorder


def test_deltas_of_several_processes_add_up() -> None:
    """Counters and histograms of several recorders are sums, over JSON, however often they drain."""
    exposition = Exposition()
    for _ in range(3):
        recorder = Recorder()
        recorder.count("train_steps_total", 2)
        recorder.count("train_steps_total")
        recorder.observe("predict_batch_size", 3)
        recorder.observe("predict_batch_size", 5000)
        exposition.apply(json.loads(json.dumps(recorder.drain())))
        assert recorder.drain() == []
    got = samples(exposition)
    assert got["train_steps_total", ()] == 9
    assert got["predict_batch_size_count", ()] == 6
    assert got["predict_batch_size_sum", ()] == 15009
    assert got["predict_batch_size_bucket", (("le", "4.0"),)] == 3
    assert got["predict_batch_size_bucket", (("le", "+Inf"),)] == 6


def test_gauges_keep_the_last_value_and_can_go() -> None:
    """A gauge shows its last value; a removed series is gone."""
    exposition, recorder = Exposition(), Recorder()
    recorder.set("teacher_marginal_gain_ratio", 0.1, teacher="a")
    recorder.set("teacher_marginal_gain_ratio", 0.2, teacher="a")
    exposition.apply(recorder.drain())
    assert exposition.value("teacher_marginal_gain_ratio", teacher="a") == 0.2
    recorder.remove("teacher_marginal_gain_ratio", teacher="a")
    exposition.apply(recorder.drain())
    assert exposition.value("teacher_marginal_gain_ratio", teacher="a") is None


@pytest.mark.parametrize(
    "record",
    [
        lambda r: r.count("nothing_total"),
        lambda r: r.count("records_rejected_total", source="main"),
        lambda r: r.count("train_steps_total", source="main"),
        lambda r: r.set("train_steps_total", 1),
        lambda r: r.count("train_steps_total", -1),
    ],
)
def test_what_the_table_does_not_declare_is_refused_at_once(record: object) -> None:
    """An unknown family, other labels, another type and a falling counter raise where they are recorded."""
    with pytest.raises(StreamkdError, match="metric"):
        record(Recorder())


@pytest.mark.parametrize(
    "delta", [["x", [], 1], ["ready", ["a"], 1], ["ready", [], "1"], ["predict_batch_size", [], [1]]]
)
def test_a_foreign_delta_is_refused(delta: list) -> None:
    """A delta that does not fit the table is refused, and nothing of its message is taken."""
    exposition = Exposition()
    with pytest.raises(StreamkdError):
        exposition.apply([["train_steps_total", [], 5.0], delta])
    assert exposition.value("train_steps_total") == 0


def test_unlabelled_counters_begin_at_zero() -> None:
    """A counter without labels is exposed before anything happened."""
    assert samples(Exposition())["train_steps_total", ()] == 0


def test_a_rich_configuration_stays_under_500_series(caplog: pytest.LogCaptureFixture) -> None:
    """Every family with ten teachers, ten plugins and three reasons has fewer than 500 series, none refused."""
    exposition = Exposition()
    exposition.apply(full_house().drain())
    lines = [line for line in exposition.expose()[0].decode().splitlines() if not line.startswith("#")]
    assert {key[0] for key in samples(exposition)} >= {n for n, f in FAMILIES.items() if f.type != "histogram"}
    assert len(lines) <= SERIES
    assert not caplog.records


def test_the_ceiling_holds_against_any_labels() -> None:
    """Label values without end are cut off at the ceiling, and the other families go on."""
    exposition, recorder = Exposition(), Recorder()
    for i in range(2_000):
        recorder.set("gate_weight_ratio", 1.0, teacher=str(i))
    exposition.apply(recorder.drain())
    recorder.count("train_steps_total")
    recorder.set("ready", 1)
    recorder.observe("model_swap_duration_seconds", 0.1)
    exposition.apply(recorder.drain())
    lines = [line for line in exposition.expose()[0].decode().splitlines() if not line.startswith("#")]
    assert len(lines) <= SERIES
    assert exposition.value("train_steps_total") == exposition.value("ready") == 1
    assert any(line.startswith("streamkd_model_swap_duration_seconds_count 1") for line in lines)


def test_what_a_recorder_holds_is_bounded() -> None:
    """Label values without end and of any length: a drain stays small, and says how many it has left out."""
    recorder = Recorder()
    for i in range(3 * HELD):
        recorder.set("gate_weight_ratio", 1.0, teacher=f"{i}" + "x" * 10_000)
        recorder.count("teacher_requests_total", teacher=str(i))
    deltas = recorder.drain()
    assert len(json.dumps(deltas)) < 1 << 20
    assert [amount for family, _, amount in deltas if family == "telemetry_dropped_total"] == [5 * HELD]
    recorder.count("train_steps_total")
    assert recorder.drain() == [["train_steps_total", [], 1.0]]


def test_gauges_of_a_label_can_be_forgotten() -> None:
    """What a process that is gone said of its teachers goes, and makes room; counters and other gauges stay."""
    exposition, recorder = Exposition(), Recorder()
    recorder.count("teacher_requests_total", teacher="ema")
    recorder.set("teachers", 3)
    exposition.apply(recorder.drain())
    exposition.apply([["teacher_marginal_gain_ratio", [str(i)], 1.0] for i in range(2_000)])
    exposition.forget("teacher")
    exposition.apply([["teacher_marginal_gain_ratio", ["ema"], 0.5]])
    assert exposition.value("teacher_marginal_gain_ratio", teacher="ema") == 0.5
    assert exposition.value("teacher_marginal_gain_ratio", teacher="0") is None
    assert exposition.value("teachers") == 3
    assert exposition.value("teacher_requests_total", teacher="ema") == 1


def test_values_that_are_not_finite_are_exposed() -> None:
    """A loss that is not a number is shown as such: an alert waits for it."""
    exposition, recorder = Exposition(), Recorder()
    recorder.set("train_loss", math.nan, loss="total")
    exposition.apply(json.loads(json.dumps(recorder.drain())))
    assert math.isnan(samples(exposition)["train_loss", (("loss", "total"),)])


def test_threads_lose_no_count() -> None:
    """Counts of several threads and a draining one all arrive."""
    recorder, exposition = Recorder(), Exposition()
    threads = [
        threading.Thread(target=lambda: [recorder.count("train_steps_total") for _ in range(2000)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        exposition.apply(recorder.drain())
    exposition.apply(recorder.drain())
    assert exposition.value("train_steps_total") == 6000


def test_recording_does_not_import_prometheus() -> None:
    """A process that only records never imports prometheus_client."""
    code = (
        "import sys; from streamkd.telemetry import Recorder; Recorder().count('train_steps_total');"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not installed")
def test_promtool_has_nothing_to_say() -> None:
    """`promtool check metrics` passes over every family without a word."""
    exposition = Exposition()
    exposition.apply(full_house().drain())
    checked = subprocess.run(["promtool", "check", "metrics"], input=exposition.expose()[0], capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
