"""Predictions for a file, over the Open Inference Protocol: what ``streamkd predict`` does.

file ─► batches ─► POST /v2/models/student/infer (binary tensors) ─► the rows' label and probabilities

A row that cannot be predicted has an error in place of a label: what the server says of it, or what its tensor cannot
hold.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from streamkd.errors import NotReady, RecordError, SchemaMismatch, StreamkdError
from streamkd.serve.predictions.openinference import ERROR, HEADER_LENGTH, OUTPUTS
from streamkd.serve.predictions.tensors import DATATYPES, Faults
from streamkd.streams.encoding import lists
from streamkd.streams.encoding.categories import category_of
from streamkd.streams.encoding.types import is_text
from streamkd.streams.files import formats

BATCH = 256
_ELEMENT = {wire: np.dtype(kind).newbyteorder("<") for kind, wire in DATATYPES.items()}


@dataclass
class Predicted:
    """How many rows were written, how many of them have no prediction, and why the first of those has none."""

    rows: int = 0
    bad: int = 0
    error: str = ""

    def count(self, answers: pa.Table) -> None:
        """Count one table of predictions."""
        errors = answers.column("error").drop_null()
        self.error = self.error or (errors[0].as_py() if len(errors) else "")
        self.rows, self.bad = self.rows + len(answers), self.bad + len(errors)


def predict_file(
    file: Path, url: str, *, token: str | None = None, progress: Callable[[int, int | None], None] = lambda n, of: None
) -> Iterator[pa.Table]:
    """Tables [rows] of ``label``, ``probability`` (of that label), ``version``, ``probabilities`` (per class).

    Their last column ``error`` is null where there is a label, and says why there is none.

    Raises:
        RecordError: the file lacks an input column, or has one of another type.
        NotReady: nothing is published yet. StreamkdError: the server cannot be reached.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if not _is_http(url):
        raise StreamkdError("needed http://HOST:PORT or https://", where=url, fix="the server prints its URLs")
    total, done = formats.count(file), 0
    with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=60, trust_env=False) as client:
        model = _ask(client, "GET", "/v2/models/student")
        if not isinstance(model.get("inputs"), list):
            raise RecordError(
                "what answers there is no model of ours", where=url, fix="name the URL that `serve` prints"
            )
        written = formats.sniff(file) == "csv"
        for batch in formats.batches(file, BATCH):
            faults = Faults()
            batch = _parsed(batch, model["inputs"], faults) if written else batch
            yield _predict(client, batch, model["inputs"], faults)
            done += batch.num_rows
            progress(done, total)
    if not done:
        raise RecordError("the file has no rows", where=str(file))


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def write(answers: Iterable[pa.Table], out: Path | None, say: Callable[[str], None]) -> Predicted:
    """Write predictions as they come, by the ending of ``out`` (.parquet, .arrow, .feather, else JSON lines).

    The file is there once it is whole. Without ``out`` each is said, as JSON.

    Raises:
        StreamkdError: it cannot be written.
    """
    written = Predicted()
    if out is None:
        for table in answers:
            written.count(table)
            say(_lines(table))
        return written
    part = out.with_name(f"{out.name}.part")
    try:
        with ExitStack() as opened:
            put = None
            for table in answers:
                put = put or _writer(out.suffix, part, table.schema, opened)
                put(table)
                written.count(table)
        part.replace(out)
    except OSError as fault:
        raise StreamkdError(
            f"cannot be written: {fault.strerror or fault}", where=str(out), fix="name another"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    say(f"wrote {written.rows} predictions to {out}")
    return written


def _writer(suffix: str, part: Path, schema: pa.Schema, opened: ExitStack) -> Callable[[pa.Table], object]:
    """What takes tables of the schema, until all that is ``opened`` is closed."""
    if suffix == ".parquet":
        return opened.enter_context(pa.parquet.ParquetWriter(part, schema)).write_table
    if suffix in (".arrow", ".feather"):
        return opened.enter_context(pa.ipc.new_file(str(part), schema)).write_table
    file = opened.enter_context(part.open("w", encoding="utf-8"))
    return lambda table: file.write(_lines(table) + "\n")


def _lines(table: pa.Table) -> str:
    return "\n".join(json.dumps(row) for row in table.to_pylist())


def request(batch: pa.RecordBatch, inputs: Sequence[dict[str, Any]], faults: Faults) -> tuple[bytes, int]:
    """The body that asks about a batch, and how long its JSON is; rows that cannot be said are noted in ``faults``."""
    tensors, binary = [], []
    for tensor in inputs:
        raw = _raw(batch, tensor, faults)
        shape = [batch.num_rows, *tensor["shape"][1:]]
        described = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape}
        tensors.append({**described, "parameters": {"binary_data_size": len(raw)}})
        binary.append(raw)
    head = json.dumps({"inputs": tensors, "outputs": [{"name": name} for name in (*OUTPUTS, ERROR)]}).encode()
    return b"".join([head, *binary]), len(head)


def _predict(client: httpx.Client, batch: pa.RecordBatch, inputs: Sequence[dict[str, Any]], faults: Faults) -> pa.Table:
    """Predictions of a batch; rows of ``faults`` have none, whatever the server says of them."""
    body, length = request(batch, inputs, faults)
    answer = _ask(
        client,
        "POST",
        "/v2/models/student/infer",
        content=body,
        headers={HEADER_LENGTH: str(length), "Content-Type": "application/octet-stream"},
    )
    outputs = {output["name"]: output for output in answer["outputs"]}
    errors = [faults.get(row) or said or None for row, said in enumerate(outputs[ERROR]["data"])]
    return _table(outputs, np.array([error is not None for error in errors]), errors, int(answer["model_version"]))


def _table(outputs: dict[str, Any], bad: np.ndarray, errors: list[str | None], version: int) -> pa.Table:
    probabilities = np.array(outputs["probability"]["data"], np.float32).reshape(outputs["probability"]["shape"])
    kind = pa.string() if outputs["label"]["datatype"] == "BYTES" else pa.int64()
    return pa.table(
        {
            "label": pa.array(outputs["label"]["data"], kind, mask=bad),
            "probability": pa.array(probabilities.max(axis=1), mask=bad),
            "version": [version] * len(bad),
            "probabilities": pa.array(list(probabilities), mask=bad),
            "error": pa.array(errors, pa.string()),
        }
    )


def _raw(batch: pa.RecordBatch, tensor: dict[str, Any], faults: Faults) -> bytes:
    """One input column in the protocol's binary form; a row that it cannot hold is noted, and zero or empty."""
    name, datatype = tensor["name"], tensor["datatype"]
    if batch.schema.get_field_index(name) < 0:
        have = ", ".join(batch.schema.names)
        raise RecordError(f"needed the column {name!r}, got {have}", fix="rename the file's column")
    column = batch.column(name)
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(e)) + e for e in _elements(column, name, faults))
    return _numbers(column, int(np.prod(tensor["shape"][1:])), tensor, faults).tobytes()


def _numbers(column: pa.Array, size: int, tensor: dict[str, Any], faults: Faults) -> np.ndarray:
    """The column's values [rows, size] in the protocol's type; what would become another value is noted.

    Floats can say that there is none, which the server takes or not.
    """
    kind, name = _ELEMENT[tensor["datatype"]], tensor["name"]
    column = column.cast(pa.float64()) if pa.types.is_null(column.type) else column
    try:
        values, good = lists.to_values(column, size, gaps=kind.kind == "f")
    except SchemaMismatch as fault:
        fix = "send what the model was trained on"
        raise RecordError(fault.message, where=f"column {name!r}", fix=fix) from None
    for row in np.flatnonzero(~good).tolist():
        faults.note(row, name, f"needed {size} numbers, got {column[row].as_py()!s:.80}")
    with np.errstate(over="ignore", invalid="ignore"):
        sent = values.astype(kind)
    same = ~np.isinf(sent) if kind.kind == "f" else sent == values
    for row in np.flatnonzero(~same.all(axis=1)).tolist():
        said = f"needed finite numbers that fit {tensor['datatype']}, got {values[row].tolist()!s:.80}"
        faults.note(row, name, said)
    return np.where(same & good[:, None], sent, kind.type(0))


def _parsed(batch: pa.RecordBatch, inputs: Sequence[dict[str, Any]], faults: Faults) -> pa.RecordBatch:
    """Words as numbers where numbers are needed: one word in a CSV file makes all of its column words."""
    for tensor in inputs:
        place = batch.schema.get_field_index(tensor["name"])
        if place >= 0 and tensor["datatype"] != "BYTES" and is_text(batch.schema.types[place]):
            column = _numbers_of(batch.column(place), tensor["name"], faults)
            batch = batch.set_column(place, tensor["name"], column)
    return batch


def _numbers_of(column: pa.Array, name: str, faults: Faults) -> pa.Array:
    values: list[float | None] = []
    for row, word in enumerate(column.to_pylist()):
        try:
            values.append(None if word is None else float(word))
        except ValueError:
            faults.note(row, name, f"needed a number, got {word!r:.80}")
            values.append(0.0)
    return pa.array(values, pa.float64())


def _elements(column: pa.Array, name: str, faults: Faults) -> Iterator[bytes]:
    if pa.types.is_timestamp(column.type):  # Python has no nanoseconds
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    for row, value in enumerate(column.to_pylist()):
        try:
            yield _element(value)
        except ValueError as fault:
            faults.note(row, name, fault)
            yield b""


def _element(value: object) -> bytes:
    """Text, a category, a time or an image."""
    if isinstance(value, bytes):
        return value
    said = value.isoformat() if isinstance(value, date) else category_of(value)
    return (said or "").encode()


def _ask(client: httpx.Client, method: str, path: str, **more: Any) -> Any:
    try:
        response = client.request(method, path, **more)
    except httpx.HTTPError as fault:
        raise StreamkdError(
            f"cannot be reached: {fault}", where=str(client.base_url), fix="is `streamkd serve` up?"
        ) from None
    try:
        said = response.json()
    except ValueError:
        said = None
    if not isinstance(said, dict):  # whatever answers there, it is none of ours
        raise RecordError(
            f"{response.status_code}, and no JSON object: {response.text!r:.80}",
            where=str(client.base_url),
            fix="name the URL that `streamkd serve` prints",
        )
    if response.status_code == 503:
        raise NotReady(said.get("error", "not ready"), where=str(client.base_url), fix="try again shortly")
    if response.is_error:
        raise RecordError(f"{response.status_code}: {said.get('error', response.text)}", where=str(client.base_url))
    return said
