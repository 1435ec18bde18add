"""The configuration: every kind of mistake is refused with file, line, path, what was needed and the nearest key."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from streamkd.choices import TeacherChoice
from streamkd.config import Config, dump, from_tree, load
from streamkd.document import Document
from streamkd.errors import ConfigError
from streamkd.plugins import Registry

GOOD = """\
name: mine
stream:
  source: {name: replay, dataset: digits}
  records:
    inputs:
      - {name: pixels, shape: [8, 8], dtype: uint8}
      - name: speed
        mean: 3.0
memory:
  size: 100
teachers:
  - name: ema
  - {name: snapshot, limit: 2}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(
        only=[
            "replay",
            "flight",
            "http",
            "vicinal",
            "detectors",
            "policies",
            "admission",
            "selectors",
            "students",
            "teachers",
            "recall",
            "former",
            "snapshot",
            "mixture",
            "last-label",
            "linear",
            "crossed",
            "forgetting",
            "analytic",
            "gates",
            "optimizers",
            "per-sample",
            "match-gate",
        ]
    )


def refused(tmp_path: Path, text: str, *overrides: str, registry: Registry | None = None) -> ConfigError:
    """The error that this file, with these overrides, is refused with; places are relative to ``tmp_path``."""
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, registry)
    error = caught.value
    error.where = error.where.replace(f"{tmp_path}/", "")
    return error


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_good_file_is_taken(tmp_path: Path, registry: Registry) -> None:
    """Values that are there are taken, the others have their defaults, and every plugin is found."""
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    config = load(path, registry=registry)
    assert (config.name, config.memory.size, config.serve.port) == ("mine", 100, 8470)
    assert [teacher.key for teacher in config.teachers] == ["ema", "snapshot"]
    assert config.teachers[1].values == {"limit": 2}
    assert config.stream.records.inputs[0].shape == (8, 8)


def test_a_plugin_without_options_is_its_name(tmp_path: Path, registry: Registry) -> None:
    """Wherever a plugin is named, the name alone does, and is kept as a choice of that name."""
    path = tmp_path / "c.yaml"
    path.write_text(changed("size: 100", "policy: reservoir").replace("  - name: ema\n", "  - ema\n") + "gate: fixed\n")
    config = load(path, registry=registry)
    assert (config.memory.policy.name, config.teachers[0].key, config.gate.name) == ("reservoir", "ema", "fixed")
    assert from_tree(dump(config), registry) == config


def test_the_margin_of_admission_has_its_old_name_for_a_release(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """`pool.admit_margin` is the option of the admission, and says so; beside the new one it is refused."""
    path = tmp_path / "c.yaml"
    path.write_text(GOOD + "pool: {admit_margin: 0.3}\n")
    assert load(path, registry=registry).pool.admission.values == {"margin": 0.3}
    assert "pool.admit_margin is called pool.admission.margin now" in caplog.text
    both = "pool: {admit_margin: 0.3, admission: {name: worth, margin: 0.1}}\n"
    assert "unknown key 'admit_margin'" in refused(tmp_path, GOOD + both, registry=registry).message


def test_no_file_is_the_embedded_stream(registry: Registry) -> None:
    """Without a file there is a whole configuration, and its plugins exist."""
    config = load(None, registry=registry)
    assert config.stream.source.values["repeat"] is True
    assert from_tree(dump(config), registry) == config


@pytest.mark.parametrize(
    ("old", "new", "where", "message", "fix"),
    [
        # unknown keys, with the nearest
        ("  size: 100", "  sise: 100", "c.yaml:10: memory.sise", "unknown key 'sise'", "did you mean 'size'?"),
        ("name: mine", "nmae: mine", "c.yaml:1: nmae", "unknown key 'nmae'", "did you mean 'name'?"),
        ("        mean: 3.0", "        maen: 3.0", "c.yaml:8: stream.records.inputs.1.maen", "unknown key 'maen'",
         "did you mean 'mean'?"),
        ("shape: [8, 8]", "shpe: [8, 8]", "c.yaml:6: stream.records.inputs.0.shpe", "unknown key 'shpe'",
         "did you mean 'shape'?"),
        ("name: mine", "qqq: 1", "c.yaml:1: qqq", "unknown key 'qqq'", "known keys: adapt, checkpoint"),
        # wrong types
        ("size: 100", "size: many", "c.yaml:10: memory.size", "should be a valid integer, unable to parse string as an "
         "integer, got 'many'", ""),
        ("size: 100", "size: 1.5", "c.yaml:10: memory.size", "got a number with a fractional part, got 1.5", ""),
        ("size: 100", "size: yes", "c.yaml:10: memory.size", "needed a number, got yes", ""),
        ("mean: 3.0", "mean: off", "c.yaml:8: stream.records.inputs.1.mean", "needed a number, got no", ""),
        ("mean: 3.0", "mean: [1, two]", "c.yaml:8: stream.records.inputs.1.mean", "valid number", ""),
        ("limit: 2", "limit: yes", "c.yaml:13: teachers.1.limit", "needed a number, got yes", ""),
        ("size: 100", "replay:", "c.yaml:10: memory.replay", "valid integer, got None", ""),
        ("  size: 100", "  - 100", "c.yaml:9: memory", "needed a mapping of keys", ""),
        ("  - name: ema\n", "  - 5\n", "c.yaml:12: teachers.0", "got 5", ""),
        ("name: mine", "name: [a]", "c.yaml:1: name", "valid string, got ['a']", ""),
        # impossible values
        ("size: 100", "size: 0", "c.yaml:10: memory.size", "greater than 0, got 0", ""),
        ("size: 100", "bytes: 0", "c.yaml:10: memory.bytes", "greater than 0, got 0", ""),
        ("size: 100", "size: 100\n  bytes: 900", "c.yaml:9: memory", "needed size or bytes, got both (100, 900)", ""),
        ("size: 100", "holdout_ratio: 1.0", "c.yaml:10: memory.holdout_ratio", "less than 1, got 1.0", ""),
        ("size: 100", "policy: lifo", "c.yaml:10: memory.policy.name", "there is no policy 'lifo'",
         "known policies: class-balanced, reservoir"),
        ("name: mine", "optimizer: {learning_rate: .inf}", "c.yaml:1: optimizer.learning_rate", "finite number", ""),
        ("name: mine", "optimizer: {learning_rate: .nan}", "c.yaml:1: optimizer.learning_rate", "got nan", ""),
        ("name: mine", "optimizer: {nesterov: true}", "c.yaml:1: optimizer", "nesterov needs momentum above 0", ""),
        ("name: mine", "optimizer: {name: adam, momentum: 0.9}", "c.yaml:1: optimizer", "belong to sgd, not to", ""),
        ("name: mine", "serve: {port: 70000}", "c.yaml:1: serve.port", "less than or equal to 65535", ""),
        ("mean: 3.0", "std: 0", "c.yaml:7: stream.records.inputs.1", "std is greater than 0", ""),
        ("name: speed", "name: pixels", "c.yaml:4: stream.records", "used twice: pixels", ""),
        ("name: snapshot", "name: ema", "c.yaml", "two teachers go by the name 'ema'", ""),
        ("limit: 2", "isolate: {timeout_seconds: 500}", "c.yaml", "500 needs less than serve.hang_seconds 120", ""),
        ("limit: 2", "isolate: {time: 5}", "c.yaml:13: teachers.1.isolate.time", "unknown key 'time'", ""),
        # missing keys
        ("  source: {name: replay, dataset: digits}\n", "", "c.yaml:2: stream.source", "'source' is missing", ""),
        ("  - name: ema\n", "  - {id: a}\n", "c.yaml:12: teachers.0.name", "the key 'name' is missing", ""),
        # plugins
        ("name: replay,", "name: repaly,", "c.yaml:3: stream.source.name", "there is no source 'repaly'",
         "did you mean 'replay'?"),
        ("name: snapshot, limit: 2", "name: snapshoot", "c.yaml:13: teachers.1.name", "there is no teacher 'snapshoot'",
         "did you mean 'snapshot'?"),
        ("limit: 2", "limt: 2", "c.yaml:13: teachers.1.limt", "unknown key 'limt'", "did you mean 'limit'?"),
        ("limit: 2", "limit: 0", "c.yaml:13: teachers.1.limit", "greater than 0, got 0", ""),
        ("name: mine", "gate: {name: fixed, teachers: {ema: -1}}", "c.yaml:1: gate.teachers.ema", "to 0, got -1", ""),
        ("name: mine", "student: {name: mlp, hidden: [16, 0]}", "c.yaml:1: student.hidden.1", "greater than 0", ""),
        ("name: mine", "losses: [{name: match-gate, temperature: cold}]", "c.yaml:1: losses.0.temperature",
         "valid number", ""),
        ("name: mine", "losses: [{name: match-gate, gate: {name: fixd}}]", "c.yaml:1: losses.0.gate.name",
         "there is no gate 'fixd'", "did you mean 'fixed'?"),
        ("name: mine", "losses: [{name: match-gate, gate: {name: fixed, hard: 2}}]", "c.yaml:1: losses.0.gate.hard",
         "equal to 1, got 2", ""),
        ("name: mine", "losses: []", "c.yaml:1: losses", "at least 1 item", ""),
        ("name: mine", "losses: [{name: match-gate, weight: 0}]", "c.yaml", "learn nothing", ""),
        ("name: mine", "publish: {model: ensemble}", "c.yaml", "needs the teacher analytic", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_place(
    tmp_path: Path, registry: Registry, old: str, new: str, where: str, message: str, fix: str
) -> None:
    """File, line and dotted path (with list indices), what was needed and got, and the way out."""
    error = refused(tmp_path, changed(old, new), registry=registry)
    assert error.where == where
    assert message in error.message
    assert fix in error.fix
    assert error.exit_code == 2


def test_what_is_served_needs_its_teacher(tmp_path: Path, registry: Registry) -> None:
    """The moving average cannot be served where there is none."""
    error = refused(
        tmp_path, changed("  - name: ema\n", "  - name: memory\n") + "publish: {model: ema}\n", registry=registry
    )
    assert "publish.model ema needs the teacher ema" in error.message


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("name: [a\nb: 1\n", "c.yaml:2", "is not YAML"),
        ("a: 1\n\tb: 2\n", "c.yaml:2", "is not YAML"),
        ("name: a\n---\nname: b\n", "c.yaml:2", "is not YAML"),
        ("", "c.yaml", "needed a mapping of keys, got NoneType"),
        ("- a\n- b\n", "c.yaml", "needed a mapping of keys, got list"),
        ("just words\n", "c.yaml", "needed a mapping of keys, got str"),
        (GOOD + "name: other\n", "c.yaml:14: name", "the key is there twice"),
        (GOOD.replace("  size: 100", "  size: 100\n  size: 50"), "c.yaml:11: memory.size", "the key is there twice"),
        ("? [a, b]\n: 1\n", "c.yaml:1", "is not YAML"),
        ("name: !!python/object:os.system {}\n", "c.yaml:1", "is not YAML"),
        ("1: 2\n" + GOOD, "c.yaml:1: 1", "should be strings"),
    ],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, where: str, message: str) -> None:
    """Broken YAML, several documents, no mapping, a key that is there twice: each says where."""
    error = refused(tmp_path, text)
    assert error.where == where
    assert message in error.message


@pytest.mark.parametrize("content", [None, b"name: \xff\xfe"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Absent, or not text."""
    path = tmp_path / "c.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("override", "where", "message"),
    [
        ("memory.size", "--set", "needed a.b=c, got 'memory.size'"),
        ("=3", "--set", "needed a.b=c, got '=3'"),
        ("memory.size=[1", "--set memory.size", "is not YAML"),
        ("memory.sise=3", "--set: memory.sise", "unknown key 'sise'"),
        ("memory.size=0", "--set: memory.size", "greater than 0, got 0"),
        ("memory={sise: 3}", "--set: memory.sise", "unknown key 'sise'"),
        ("name.first=x", "--set name.first", "there is nothing at 'first'"),
        ("name.first.second=x", "--set name.first.second", "there is nothing at 'first'"),
        ("teachers.7.limit=1", "--set teachers.7.limit", "there is nothing at '7'"),
        ("teachers.x=1", "--set teachers.x", "there is nothing at 'x'"),
        ("teachers.1.limit=0", "--set: teachers.1.limit", "greater than 0"),
        ("a..b=1", "--set", "needed a.b=c, got 'a..b=1'"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, registry: Registry, override: str, where: str, message: str) -> None:
    """``--set`` is checked like the file, and the error says that it came from there."""
    error = refused(tmp_path, GOOD, override, registry=registry)
    assert error.where == where
    assert message in error.message


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    """They may go into lists and make nodes that were not there; the last of two wins."""
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    config = load(path, ["memory.size=7", "memory.size=9", "teachers.1.limit=3", "serve.port=0", "gate={name: fixed}"])
    assert (config.memory.size, config.teachers[1].values["limit"], config.serve.port, config.gate.name) == (
        9,
        3,
        0,
        "fixed",
    )


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    """The first is explained, the others are named."""
    error = refused(tmp_path, changed("size: 100", "size: 0\n  replay: -1\n  policy: 1"))
    assert error.where == "c.yaml:10: memory.size"
    assert "and 2 more: memory.replay, memory.policy" in error.message


def test_a_file_within_aliases_keeps_its_lines(tmp_path: Path) -> None:
    """Anchors and merge keys are plain YAML and are taken."""
    path = tmp_path / "c.yaml"
    path.write_text(GOOD + "checkpoint: &often {every_seconds: 3}\npublish:\n  <<: *often\n")
    assert load(path).publish.every_seconds == 3


def test_the_tree_goes_round_through_json(tmp_path: Path, registry: Registry) -> None:
    """What is kept beside a checkpoint gives the same configuration back."""
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    config = load(path, ["serve.tls={certificate: a.pem, key: b.pem}", "optimizer.clip_norm=1e-3"])
    again = from_tree(json.loads(json.dumps(dump(config))), registry)
    assert again == config
    assert dump(again) == dump(config)


def test_one_bound_of_the_memory_decides() -> None:
    """Bytes, unless records are given; what a file says in records an override may say in bytes."""
    stream = {"stream": {"source": {"name": "replay"}}}
    for given, bounds in (
        ({}, (None, 64 << 20)),
        ({"size": 7}, (7, None)),
        ({"bytes": 900, "size": None}, (None, 900)),
    ):
        memory = from_tree({**stream, "memory": given}).memory
        assert (memory.size, memory.bytes) == bounds


def test_a_kept_tree_with_a_mistake_names_its_path() -> None:
    """Without a file there is still the dotted path."""
    with pytest.raises(ConfigError) as caught:
        from_tree({"stream": {"source": {"name": "replay"}}, "memory": {"size": -1}})
    assert caught.value.where == "memory.size"


@pytest.mark.parametrize("change", [lambda c: setattr(c, "seed", 3), lambda c: setattr(c.memory, "size", 3)])
def test_the_tree_is_frozen(change: Any) -> None:
    """Nobody changes a configuration once it is there."""
    config = Config.model_validate({"stream": {"source": {"name": "replay"}}})
    with pytest.raises(ValidationError, match="frozen"):
        change(config)


def test_defaults_are_shared_by_no_two_configurations() -> None:
    """What one plugin choice holds, another does not see."""
    one, other = (Config.model_validate({"stream": {"source": {"name": "replay"}}}) for _ in range(2))
    one.gate.values["x"] = 1
    assert other.gate.values == {}


def _bomb(levels: int) -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "x.yaml:1: holds itself"),
        ("a: 1\nb: &b {c: {d: *b}}", "x.yaml:2: holds itself"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 64"),
        ("a: " + "[" * 50_000, "nested deeper than 64"),
        ("a:\n" + "\n".join(" " * n + "- " for n in range(200)), "nested deeper than 64"),
        (_bomb(9), "more than 100000 values"),
        ("a0: &a0 {k: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)),
         "more than 100000 values"),
        ("a: [" + "1, " * 120_000 + "]", "more than 100000 values"),
        ("# " + "x" * (1 << 20), "characters, at most"),
        ("a: 2001-99-99", "holds a value that cannot be"),
        ("a: " + "9" * 5_000, "holds a value that cannot be"),
        ("a: !!bool abc", "holds a value that cannot be"),
        ("a: !!timestamp abc", "holds a value that cannot be"),
        ('a: !!int ""', "holds a value that cannot be"),
        ("a: \x00", "is not YAML"),
        ("? [a]\n: b", "is not YAML"),
        ("a: !!python/object/apply:os.system [id]", "is not YAML"),
    ],
    ids=["itself", "itself below", "deep", "very deep", "deep blocks", "aliases", "merges", "many", "long", "date",
         "number", "no switch", "no time", "no number", "control", "key", "python"],
)  # fmt: skip
def test_a_document_has_an_end(text: str, words: str) -> None:
    """Recursion, depth, bombs of aliases, and values that cannot be are said in a second, with the file."""
    begin = time.process_time()
    with pytest.raises(ConfigError, match=re.escape(words)):
        Document.parse(text, "x.yaml")
    with pytest.raises(ConfigError):
        Document({}).override("a=" + text)
    assert time.process_time() - begin < 20


def test_aliases_that_stay_small_are_taken() -> None:
    """They are YAML's way not to write a thing twice."""
    assert Document.parse("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 3}", "x").tree["d"] == {"b": [1, 2], "e": 3}
    assert Document.parse("a: &a {b: 1}\nd: {<<: *a, b: 3}", "x").tree["d"] == {"b": 3}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "a\\b", ".", "..", "a\nb", "a\x1b", "a" * 129])
def test_a_teachers_id_is_no_path(name: str) -> None:
    """It is a label of metrics and a name in checkpoints."""
    with pytest.raises(ValidationError):
        TeacherChoice(name="ema", id=name)
    assert TeacherChoice(name="ema", id="net-1.b ü").key == "net-1.b ü"


def test_a_key_that_is_gone_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For one release, with its line; the tree that a state directory holds says nothing, and stays as it is."""
    path = tmp_path / "c.yaml"
    path.write_text("stream: {source: {name: replay, dataset: digits}}\npool:\n  limit: 3\n  merge: false\n")
    assert load(path).pool.limit == 3
    assert "c.yaml:4: pool.merge does nothing any more" in caplog.text
    caplog.clear()
    tree = dump(load(path)) | {"pool": {"limit": 3, "merge": False}}
    caplog.clear()
    assert from_tree(tree).pool.limit == 3
    assert not caplog.text
    assert tree["pool"] == {"limit": 3, "merge": False}


def test_a_key_of_another_name_is_taken_and_said(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """For one release; what is wrong under the old name is said with its line."""
    path = tmp_path / "c.yaml"
    text = "stream: {source: {name: replay, dataset: digits}}\nvicinity:\n  rows: 7\n"
    path.write_text(text)
    assert load(path).vicinal.values == {"rows": 7}
    assert "c.yaml:2: vicinity is called vicinal now" in caplog.text
    path.write_text(text.replace("7", "many"))
    with pytest.raises(ConfigError, match=r"c\.yaml:3: vicinal\.rows"):
        load(path, registry=registry)


def test_a_gate_of_an_older_name_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """For one release."""
    assert from_tree({"stream": {"source": {"name": "flight"}}, "gate": {"name": "arbiter"}}).gate.name == "hedge"
    assert "arbiter is called hedge" in caplog.text


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ({"inputs": [{"name": "x"}, {"name": "y"}], "student": ["x"]}, "the student does not read 'y'"),
        ({"inputs": [{"name": "x"}], "task": "prediction_id"}, "needs the name prediction_id for itself"),
    ],
)
def test_labels_need_predictions_that_can_become_records(records: dict[str, Any], said: str) -> None:
    """Every input column is in the request, and the label names the prediction."""
    stream = {"source": {"name": "http"}, "records": records, "labels": {}}
    with pytest.raises(ConfigError, match=said):
        from_tree({"stream": stream})


def test_a_quantity_as_label_is_refused_with_the_way_out() -> None:
    """Regression is none of this learner's: the error says so, and what to do."""
    records = {"inputs": [{"name": "x"}], "label_type": "float32"}
    with pytest.raises(ConfigError, match=r"label_type.*a quantity \(regression\) is not learned: make classes of it"):
        from_tree({"stream": {"source": {"name": "flight"}, "records": records}})


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ({"order": {}}, r"order needs the time of a record; name its column in records\.event_time"),
        ({"order": {}, "labels": {}}, "order and labels exclude one another"),
        ({"order": {}, "limits": {"shares": {"broker": 2}}}, "order and limits.shares exclude one another"),
        ({"also": ["http", {"name": "flight"}]}, "names the source flight a second time with the same options"),
        ({"order": {"late": "teach"}}, r"order\.late"),
    ],
)
def test_an_order_needs_times_and_sources_differ(stream: dict[str, Any], said: str) -> None:
    """The reason is told."""
    records = {"inputs": [{"name": "x"}]}
    with pytest.raises(ConfigError, match=said):
        from_tree({"stream": {"source": {"name": "flight"}, "records": records, **stream}})


@pytest.mark.parametrize(
    ("stream", "where"),
    [
        ("source: flight\n  also: [http, {name: replay, dataset: digits}]", r"c\.yaml:3: stream\.also\.1"),
        ("source: {name: replay, dataset: digits}\n  also: [flight]", r"c\.yaml:2: stream\.source"),
        ("source: {name: replay, path: x.csv}\n  order: {}", r"c\.yaml:2: stream\.source"),
    ],
)
def test_several_sources_and_an_order_need_the_log(tmp_path: Path, registry: Registry, stream: str, where: str) -> None:
    """A source that is not pushed to has none: the one that is in the way is named, with its line."""
    (tmp_path / "c.yaml").write_text(f"stream:\n  {stream}\n")
    with pytest.raises(ConfigError, match=where + ".*is not pushed to"):
        load(tmp_path / "c.yaml", registry=registry)
