"""Predictions for a file, over the Open Inference Protocol: what ``streamkd predict`` does.

file ─► batches ─► POST /v2/models/student/infer (binary tensors) ─► the rows' label and probabilities
"""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from streamkd.errors import NotReady, RecordError, SchemaMismatch, StreamkdError
from streamkd.serve.predictions.openinference import HEADER_LENGTH
from streamkd.serve.predictions.tensors import DATATYPES
from streamkd.streams.encoding import lists
from streamkd.streams.files import formats

BATCH = 256
_ELEMENT = {wire: np.dtype(kind).newbyteorder("<") for kind, wire in DATATYPES.items()}


def predict_file(
    file: Path, url: str, *, token: str | None = None, progress: Callable[[int, int | None], None] = lambda n, of: None
) -> pa.Table:
    """A table [rows] of ``label``, ``probability`` (of that label), ``version`` and ``probabilities`` (per class).

    Raises:
        RecordError: the file lacks an input column, or the server refuses a batch.
        NotReady: nothing is published yet. StreamkdError: the server cannot be reached.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if not _is_http(url):
        raise StreamkdError("needed http://HOST:PORT or https://", where=url, fix="the server prints its URLs")
    total, done = formats.count(file), 0
    answers = []
    with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=60, trust_env=False) as client:
        model = _ask(client, "GET", "/v2/models/student")
        if not isinstance(model.get("inputs"), list):
            raise RecordError(
                "what answers there is no model of ours", where=url, fix="name the URL that `serve` prints"
            )
        for batch in formats.batches(file, BATCH):
            answers.append(_predict(client, batch, model["inputs"]))
            done += batch.num_rows
            progress(done, total)
    if not answers:
        raise RecordError("the file has no rows", where=str(file))
    return pa.concat_tables(answers)


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def write(rows: pa.Table, out: Path | None) -> str:
    """Write predictions by the ending of ``out`` (.parquet, .arrow, .feather, else JSON lines); says what was done.

    Raises:
        StreamkdError: it cannot be written.
    """
    if out is None:
        return "\n".join(json.dumps(row) for row in rows.to_pylist())
    try:
        if out.suffix == ".parquet":
            pa.parquet.write_table(rows, out)
        elif out.suffix in (".arrow", ".feather"):
            pa.feather.write_feather(rows, out, compression="uncompressed")
        else:
            out.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()), "utf-8")
    except OSError as fault:
        raise StreamkdError(
            f"cannot be written: {fault.strerror or fault}", where=str(out), fix="name another"
        ) from None
    return f"wrote {rows.num_rows} predictions to {out}"


def _predict(client: httpx.Client, batch: pa.RecordBatch, inputs: Sequence[dict[str, Any]]) -> pa.Table:
    tensors, binary = [], []
    for tensor in inputs:
        raw = _raw(batch, tensor)
        shape = [batch.num_rows, *tensor["shape"][1:]]
        described = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape}
        tensors.append({**described, "parameters": {"binary_data_size": len(raw)}})
        binary.append(raw)
    head = json.dumps({"inputs": tensors}).encode()
    answer = _ask(
        client,
        "POST",
        "/v2/models/student/infer",
        content=b"".join([head, *binary]),
        headers={HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"},
    )
    outputs = {output["name"]: output for output in answer["outputs"]}
    probabilities = np.array(outputs["probability"]["data"], np.float32).reshape(outputs["probability"]["shape"])
    return pa.table(
        {
            "label": outputs["label"]["data"],
            "probability": probabilities.max(axis=1),
            "version": [int(answer["model_version"])] * batch.num_rows,
            "probabilities": list(probabilities),
        }
    )


def _raw(batch: pa.RecordBatch, tensor: dict[str, Any]) -> bytes:
    """One input column in the protocol's binary form."""
    name, datatype = tensor["name"], tensor["datatype"]
    where = f"column {name!r}"
    if batch.schema.get_field_index(name) < 0:
        have = ", ".join(batch.schema.names)
        raise RecordError(f"needed the column {name!r}, got {have}", fix="rename the file's column")
    column = batch.column(name)
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(e)) + e for e in _elements(column))
    return _numbers(column, int(np.prod(tensor["shape"][1:])), datatype, where).tobytes()


def _numbers(column: pa.Array, size: int, datatype: str, where: str) -> np.ndarray:
    """The column's values [rows, size] in the protocol's type; what would become another value is refused."""
    try:
        values, good = lists.to_values(column.cast("uint8") if pa.types.is_boolean(column.type) else column, size)
    except SchemaMismatch as fault:
        raise RecordError(fault.message, where=where, fix="send what the model was trained on") from None
    if not good.all():
        row = int(np.argmin(good))
        raise RecordError(f"needed {size} numbers, got {column[row].as_py()!s:.80}", where=f"{where}, row {row}")
    with np.errstate(over="ignore", invalid="ignore"):
        sent = values.astype(_ELEMENT[datatype])
    same = np.isfinite(sent) if sent.dtype.kind == "f" else sent == values
    if not same.all():
        row = int(np.argmin(same.all(axis=1)))
        raise RecordError(
            f"needed finite numbers that fit {datatype}, got {values[row].tolist()!s:.80}", where=f"{where}, row {row}"
        )
    return sent


def _elements(column: pa.Array) -> Iterator[bytes]:
    for value in column.to_pylist():
        yield value.encode() if isinstance(value, str) else value or b""


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
