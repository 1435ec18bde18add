"""Answers of an exported model, by onnxruntime and numpy alone: `python predict.py model.onnx < rows.jsonl`, or

`Exported("model.onnx").predict([{"image": pixels}])`: [(label, probability)]; also of {"image": [pixels, ...]}.
"""

import hashlib
import json
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnxruntime


class Exported:
    """``labels``; ``columns``: what a row holds; ``answer``: probabilities [n, labels] of what ``encode`` gives."""

    def __init__(self, path: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["streamkd"])
        self.labels, self.columns = self.about["labels"], self.about["columns"]

    def predict(self, rows: Any) -> list[tuple[Any, float]]:
        said = self.answer(self.encode(rows))
        return [(self.labels[best], float(row[best])) for row, best in zip(said, said.argmax(1), strict=True)]

    def answer(self, records: np.ndarray) -> np.ndarray:
        return np.asarray(self.session.run(None, {"records": records})[0])

    def encode(self, rows: Any) -> np.ndarray:
        """Rows, a dict for each or a list for each column, as numbers; ``None`` and NaN are gaps."""
        if not isinstance(rows, dict):
            rows = {c["name"]: [row.get(c["name"]) for row in rows] for c in self.columns}
        parts = [_column(c, rows[c["name"]]).reshape(len(rows[c["name"]]), -1) for c in self.columns]
        return np.concatenate(parts, 1).reshape(-1, *self.about["shape"]).astype(self.about["dtype"])


def _column(column: dict, values: Any) -> np.ndarray:
    kind, fills = column["kind"], column["missing"] == "fill"
    if kind == "tensor":
        made, gaps = _numbers(column, values)
    else:
        gaps = np.array([v is None or v == "" or v != v for v in values], bool)[:, None]
        made = (_category if kind == "category" else _time)(column, values, gaps[:, 0])
    if gaps.any() and not fills:
        raise ValueError(f"column {column['name']}: a gap in row {np.argwhere(gaps)[0][0]}")
    return np.concatenate([np.where(gaps, 0, made), gaps], 1) if fills and kind != "category" else made


def _numbers(column: dict, values: Any) -> tuple[np.ndarray, np.ndarray]:
    size, kept = int(np.prod(column["shape"])), np.dtype(column["dtype"])
    if column["pad"]:
        values = [v if v is None else ([*v] + [0] * size)[:size] for v in values]
    given = np.array([[np.nan] * size if v is None else np.ravel(v) for v in values]).reshape(len(values), -1)
    given = given.astype(float) if given.dtype.kind == "O" else given  # None inside a list
    if given.dtype.kind not in "biuf" or given.shape[1] != size:
        raise ValueError(f"column {column['name']}: needed {size} numbers a row, got {given.shape[1]} {given.dtype}")
    made, gaps = np.nan_to_num(given).astype(kept), ~np.isfinite(given)
    if kept.kind in "iu" and ((made != given) & ~gaps).any():
        raise ValueError(f"column {column['name']}: a value that {kept} cannot hold")
    made = np.moveaxis(made.reshape(-1, *column["shape"]), 1, -1) if column.get("layout") == "CHW" else made
    return made.reshape(len(made), -1), gaps


def _category(column: dict, values: Any, gaps: np.ndarray) -> np.ndarray:
    places, known = column["shape"][0], column["values"]
    made, spare = np.zeros((len(values), places), np.float32), places - len(known) - (column["missing"] == "fill")
    for row, v in enumerate(values):
        text = str(int(v) if isinstance(v, bool) or (isinstance(v, float) and v.is_integer()) else v)
        hashed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % spare
        made[row, places - 1 if gaps[row] else known.index(text) if text in known else len(known) + hashed] = 1
    return made


def _time(column: dict, values: Any, gaps: np.ndarray) -> np.ndarray:
    moments = [0 if gap else _since_1970(v, column["epoch"]) for v, gap in zip(values, gaps, strict=True)]
    days, found, day = np.array(moments, "M8[us]").astype("M8[D]"), [], np.array(moments, float) / 86_400_000_000
    month, year = ((days - days.astype(f"M8[{unit}]").astype("M8[D]")).astype(int) for unit in "MY")
    turns = {"minute": day * 24 % 1, "hour": day % 1, "weekday": (day // 1 + 3) % 7 / 7}
    turns |= {"day_of_month": month / 31, "day_of_year": year / 365.25, "age": day}
    for part in column["parts"]:
        turn = 2 * np.pi * turns[part]
        found += [(day - 10_957) / 365.25] if part == "age" else [np.sin(turn), np.cos(turn)]
    return np.stack(found, 1).astype(np.float32)


def _since_1970(value: Any, epoch: Any) -> int:
    if isinstance(value, int | float) and epoch:
        return int(value) * {"s": 10**6, "ms": 1000}.get(epoch, 1) // (1000 if epoch == "ns" else 1)
    value = datetime.fromisoformat(value) if isinstance(value, str) else value
    zoned = value.tzinfo if isinstance(value, datetime) else None
    return int(np.datetime64(value.astimezone(UTC).replace(tzinfo=None) if zoned else value, "us").astype(int))


if __name__ == "__main__":
    for answer in Exported(sys.argv[1]).predict([json.loads(line) for line in sys.stdin]):
        print(json.dumps(dict(zip(("label", "probability"), answer, strict=True))))  # noqa: T201
