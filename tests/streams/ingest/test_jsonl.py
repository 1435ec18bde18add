"""JSON lines: values coerced to the schema, one bad line hurting only itself."""

import base64
import json
from typing import Any

import pytest

from streamkd.records import InputColumn, RecordSchema
from streamkd.settings import Limits
from streamkd.streams.encoding import codec
from streamkd.streams.ingest import jsonl
from streamkd.streams.ingest.admission import admit_lines

FULL = RecordSchema(
    inputs=(InputColumn(name="x", shape=(2,), dtype="uint8"), InputColumn(name="t", kind="text", shape=(8,))),
    label_type="string",
    task="task",
    id="id",
    event_time="at",
)
GOOD: dict[str, Any] = {"x": [1, 2], "t": "hello", "label": "a", "task": 3, "id": "r1", "at": "2024-01-01T00:00:00Z"}
FLOAT = RecordSchema(inputs=(InputColumn(name="x", shape=(2,)),))


def parse(schema: RecordSchema, *lines: Any) -> tuple[Any, list[int], list[Any]]:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return jsonl.parse(encoded, schema, 1 << 20)


def test_a_line_becomes_a_canonical_row() -> None:
    """Numbers, text, tasks of any type, ids and times arrive in the schema's types; other keys are ignored."""
    rows, places, rejects = parse(FULL, {**GOOD, "extra": [1]}, {**GOOD, "at": 0.5, "id": None, "task": "b"})
    assert (places, rejects) == ([0, 1], [])
    assert rows.schema.equals(codec.arrow_schema(FULL))
    first, second = rows.to_pylist()
    assert (first["x"], first["t"], first["label"], first["task"], first["id"]) == ([1, 2], "hello", "a", "3", "r1")
    assert first["at"].isoformat() == "2024-01-01T00:00:00+00:00"
    assert (second["id"], second["at"].timestamp()) == (None, 0.5)


def test_images_are_base64() -> None:
    """The bytes come out as they went in."""
    schema = RecordSchema(inputs=(InputColumn(name="x", kind="image", shape=(2, 2)),))
    rows, _, rejects = parse(schema, {"x": base64.b64encode(b"\x89PNG").decode(), "label": 1}, {"x": "?", "label": 1})
    assert rows.column("x").to_pylist() == [b"\x89PNG"]
    assert [reject.reason for reject in rejects] == ["decode"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "decode"),
        (b"[1]", "decode"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "decode"),
        (b'{"x": [1, 2], "label": ' + b"9" * 10_000 + b"}", "decode"),
        ({"label": 1}, "missing_input"),
        ({"x": [1, None], "label": 1}, "missing_input"),
        ({"x": [1, 2, 3], "label": 1}, "wrong_shape"),
        ({"x": [[1], [2, 3]], "label": 1}, "wrong_shape"),
        ({"x": [1, "a"], "label": 1}, "decode"),
        ({"x": [1, 10**30], "label": 1}, "decode"),
        (b'{"x": [1, NaN], "label": 1}', "not_finite"),
        ({"x": [1, 1e300], "label": 1}, "not_finite"),
        ({"x": [1, 2]}, "missing_label"),
        ({"x": [1, 2], "label": "a"}, "decode"),
        ({"x": [1, 2], "label": 1.5}, "decode"),
        ({"x": [1, 2], "label": 2**63}, "decode"),
        (b'{"x": [1, 2], "label": Infinity}', "decode"),
    ],
)
def test_a_bad_line_is_refused_alone_with_its_reason(line: Any, reason: str) -> None:
    """Between two good lines, which are taken."""
    good = {"x": [1, 2], "label": 1.0}
    rows, places, rejects = parse(FLOAT, good, line, good)
    assert (rows.num_rows, places) == (2, [0, 2])
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, reason)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": [1, 256]}, "decode"),
        ({"x": [1, 1.5]}, "decode"),
        ({"label": 5}, "decode"),
        ({"task": None}, "missing_task"),
        ({"task": []}, "decode"),
        ({"at": "yesterday"}, "decode"),
        ({"t": "\ud800"}, "decode"),
        *(({"x": value}, "decode") for value in ({}, "12", [1, "2"], [256, 0], [-1, 0], [1e400, 0], [10**400, 0])),
        *(({"x": value}, "wrong_shape") for value in (1, True, [], [1], [[1], [2]], [[1, 2]], [[[1]], [[2]]])),
        *(({"x": value}, "missing_input") for value in (None, [1, None])),
        *(({"t": value}, "decode") for value in (1, True, [], {}, ["a"])),
        *(({"t": value}, reason) for value, reason in ((None, "missing_input"), ("a" * 5_000_000, "too_large"))),
        *(({"label": value}, "decode") for value in (1.5, [], {}, "\ud800", 10**400)),
        ({"label": None}, "missing_label"),
        *(({"task": value}, "decode") for value in ({}, "\ud800")),
        *(({"id": value}, "decode") for value in ([], {}, "\ud800")),
        *(({"at": value}, "decode") for value in (True, [], {}, "", "2024", "2024-13-01", "2024-01-01T00:00:60Z")),
        *(({"at": value}, "decode") for value in ("2024-01-01T00:00:00+99:99", "0000-01-01", "９９", 10**400, 1e400)),
        *(({"at": value}, "decode") for value in (253_402_300_800, -62_135_596_801, 1e18, -1e20)),
        *(({"at": value}, "decode") for value in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00")),
    ],
)
def test_each_column_refuses_what_is_not_its_own(change: dict[str, Any], reason: str) -> None:
    """Integers must fit, labels of text be text, times be times, text be Unicode."""
    body = json.dumps({**GOOD, **change}).encode()
    rejects = admit_lines(body, FULL, Limits(), "p").letters
    assert [reject.reason for reject in rejects] == [reason]


def test_a_line_past_the_limit_is_not_even_parsed() -> None:
    """Its length alone refuses it."""
    _, _, rejects = jsonl.parse([b"x" * 101], FLOAT, 20)
    assert [reject.reason for reject in rejects] == ["too_large"]
