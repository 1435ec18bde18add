"""The Open Inference Protocol v2, with its binary tensor extension: bytes to named columns, and back.

    JSON [+ binary tensors] ─► InferRequest: columns by name ─► (predictor) ─► JSON [+ binary tensors]

A record that cannot be read does not fail the others: where there are some, an output ``error`` says what is wrong with
each, empty for the good ones, and the other outputs have nothing in their places. Without a single good record the
request is refused, unless it asks for that output.

With ``Inference-Header-Content-Length: n`` the body is n bytes of JSON, then the tensors that say
``binary_data_size``, in their order (``streamkd.serve.predictions.tensors``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic_core import from_json

from streamkd.errors import LimitExceeded, RecordError
from streamkd.records import Label, RecordSchema
from streamkd.serve.predictions.tensors import (
    Faults,
    Values,
    as_mapping,
    datatype_of,
    kind_of,
    read_tensor,
    text_bytes,
    to_binary,
    to_json,
    wire_shape,
)
from streamkd.streams.encoding.arrays import encode_inputs
from streamkd.streams.log.predictions import ID_CHARACTERS

MODEL = "student"
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data",)
# an empty JSON list of 3 bytes is 64 bytes of Python: large tensors belong in the binary part
JSON_BYTES = 16 << 20
OUTPUTS = ("label", "probability")
ERROR = "error"  # the output that is there where it is wanted, and where a record is bad
# 10,000 classes for 4,096 records would be 800 MB of JSON
JSON_VALUES, BINARY_VALUES = 1 << 20, 1 << 24
_SLICE = 1 << 14  # values that become JSON in one go, about 1 ms
_HEAD_BYTES = 1 << 16  # of a request, beside its tensors' values: names, shapes, the id
Columns = Mapping[str, Values | pa.Array]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """``columns`` hold ``rows`` records each; ``outputs`` are the wanted ones, and whether in binary.

    ``faults`` are the bad records: zeros and gaps stand for what they hold.
    ``prediction_id``: the key for a later label, where the client has chosen one.
    """

    id: str
    columns: Columns
    rows: int
    outputs: tuple[tuple[str, bool], ...]
    faults: Faults
    prediction_id: str = ""


def read(
    body: bytes, header_length: str | None, schema: RecordSchema, limit_rows: int
) -> tuple[InferRequest, np.ndarray]:
    """The request in a body, and its inputs as the student takes them, [rows, *shape].

    Raises:
        RecordError: as ``parse``, or there is no good record. LimitExceeded: too many rows, or too much JSON.
    """
    request = parse(body, header_length, schema, limit_rows)
    inputs = encode_inputs(request.columns, schema, request.faults.note)
    if len(request.faults) == request.rows and ERROR not in dict(request.outputs):
        more = f" (the first of {request.rows} records, none of which is good)" if request.rows > 1 else ""
        raise RecordError(request.faults[0] + more)
    return request, inputs


def parse(body: bytes, header_length: str | None, schema: RecordSchema, limit_rows: int) -> InferRequest:
    """The request in a body, images undecoded.

    Raises:
        RecordError: what was needed and what came. LimitExceeded: too many rows, or too much JSON.
    """
    head, tail = _split(body, header_length)
    tree = json_object(head)
    identity = tree.get("id", "")
    if not isinstance(identity, str) or len(identity) > 512:
        raise RecordError(f"needed a string of at most 512 characters as id, got {identity!r:.80}")
    parameters = as_mapping(tree.get("parameters", {}), "parameters")
    outputs = _outputs(tree.get("outputs"), parameters.get("binary_data_output") is True)
    faults = Faults()
    columns, rows = _inputs(tree.get("inputs"), tail, schema, limit_rows, faults)
    return InferRequest(identity, columns, rows, outputs, faults, _prediction_id(parameters.get("prediction_id", "")))


def _prediction_id(given: object) -> str:
    if isinstance(given, str) and len(given) <= ID_CHARACTERS and "/" not in given:
        return given
    raise RecordError(f"needed a prediction_id of at most {ID_CHARACTERS} characters without /, got {given!r:.80}")


def largest_body(schema: RecordSchema, rows: int) -> int | None:
    """Bytes that a request of so many records can need, in JSON or in binary; ``None`` where a record has no size."""
    sizes = [text_bytes(column) for column in schema.inputs]
    return None if None in sizes else _HEAD_BYTES + rows * sum(size or 0 for size in sizes)


def json_length(body: bytes, header_length: str | None) -> int:
    """Bytes of JSON at the beginning of a body.

    Raises:
        RecordError: the header says none that can be.
    """
    if header_length is None:
        return len(body)
    # one of thousands of digits is no number that Python reads
    is_number = header_length.isascii() and header_length.isdigit() and len(header_length) < 19
    if not is_number or int(header_length) > len(body):
        raise RecordError(f"needed {HEADER_LENGTH} of 0 to {len(body)}, got {header_length[:40]!r}")
    return int(header_length)


def render(
    request: InferRequest,
    probabilities: np.ndarray,
    classes: Sequence[Label],
    schema: RecordSchema,
    version: int,
    parameters: Mapping[str, str | float | bool],
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of the answer; ``probabilities`` [rows, classes] float32.

    Raises:
        LimitExceeded: more values than an answer may have.
    """
    tensors, binary = [], []
    for name, in_binary in _told(request):
        values = _values(name, request, probabilities, classes)
        _check_values(probabilities.size if name == "probability" else request.rows, in_binary)
        datatype = {"probability": "FP32", "label": _label_datatype(schema), ERROR: "BYTES"}[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(np.shape(values))}
        if in_binary:
            raw = to_binary(values, datatype)
            binary.append(raw)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            tensors.append(to_json(tensor))
        else:
            tensors.append(to_json(tensor)[:-1] + b',"data":[' + _listed(values) + b"]}")
    tree = {"model_name": MODEL, "model_version": str(version), "parameters": dict(parameters)}
    told = to_json({"id": request.id, **tree} if request.id else tree)
    head = told[:-1] + b',"outputs":[' + b",".join(tensors) + b"]}"
    if not binary:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *binary]), headers


def _told(request: InferRequest) -> tuple[tuple[str, bool], ...]:
    """The outputs of the answer, and whether in binary: with bad records also what is wrong with them."""
    if not request.faults or ERROR in dict(request.outputs):
        return request.outputs
    return (*request.outputs, (ERROR, all(binary for _, binary in request.outputs)))


def _values(name: str, request: InferRequest, probabilities: np.ndarray, classes: Sequence[Label]) -> Any:
    if name == ERROR:
        return [request.faults.get(row, "") for row in range(request.rows)]
    bad = list(request.faults)
    if name == "probability":
        if bad:
            probabilities = probabilities.copy()
            probabilities[bad] = np.nan
        return probabilities
    labels: list[Label | None] = [classes[i] for i in probabilities.argmax(axis=1).tolist()]
    for row in bad:
        labels[row] = None
    return labels


def _check_values(values: int, binary: bool) -> None:
    if values > (limit := BINARY_VALUES if binary else JSON_VALUES):
        fix = "send fewer records" if binary else "send fewer records, or ask for the output in binary"
        raise LimitExceeded(f"the answer would have {values} values, at most {limit}", fix=fix)


def _listed(values: Any) -> bytes:
    """JSON of all values, without brackets; in slices, so that other threads have the interpreter in between."""
    flat = np.ravel(values) if isinstance(values, np.ndarray) else values
    slices = (flat[start : start + _SLICE] for start in range(0, len(flat), _SLICE))
    return b",".join(to_json(s.tolist() if isinstance(s, np.ndarray) else s)[1:-1] for s in slices)


def metadata(schema: RecordSchema, classes: Sequence[Label], versions: Sequence[int]) -> dict[str, Any]:
    """Model metadata: the tensors by name, and the classes in the order of ``probability``."""
    inputs = [{"name": c.name, "datatype": datatype_of(c), "shape": [-1, *wire_shape(c)]} for c in schema.inputs]
    outputs = [
        {"name": "label", "datatype": _label_datatype(schema), "shape": [-1]},
        {"name": "probability", "datatype": "FP32", "shape": [-1, len(classes)]},
        {"name": ERROR, "datatype": "BYTES", "shape": [-1]},
    ]
    return {
        "name": MODEL,
        "versions": [str(version) for version in versions],
        "platform": "streamkd_pytorch",
        "inputs": inputs,
        "outputs": outputs,
        "classes": list(classes),
    }


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    length = json_length(body, header_length)
    if length > JSON_BYTES:
        raise LimitExceeded(
            f"needed at most {JSON_BYTES} bytes of JSON, got {length}", fix="send tensors with binary_data_size"
        )
    return body[:length], memoryview(body)[length:]


def json_object(text: bytes) -> Mapping[str, Any]:
    """A JSON object; NaN and nesting beyond the parser's limit are refused.

    Raises:
        RecordError: anything else.
    """
    try:
        tree = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as fault:
        raise RecordError(f"needed JSON, got: {fault}") from None
    return as_mapping(tree, "the request")


def _outputs(wanted: Any, binary: bool) -> tuple[tuple[str, bool], ...]:
    if wanted is None or wanted == []:
        return tuple((name, binary) for name in OUTPUTS)
    if not isinstance(wanted, list):
        raise RecordError(f"needed a list as outputs, got {kind_of(wanted)}")
    chosen = {}
    for output in wanted:
        name = as_mapping(output, "an output").get("name")
        if name not in (*OUTPUTS, ERROR):
            raise RecordError(f"needed one of the outputs {', '.join((*OUTPUTS, ERROR))}, got {name!r:.80}")
        parameters = as_mapping(output.get("parameters", {}), f"parameters of output {name}")
        if parameters.get("classification"):
            raise RecordError(f"output {name}: the classification extension is not supported", fix="ask for label")
        chosen[name] = bool(parameters.get("binary_data", binary))
    return tuple(chosen.items())


def _inputs(
    inputs: Any, tail: memoryview, schema: RecordSchema, limit_rows: int, faults: Faults
) -> tuple[Columns, int]:
    known = {column.name: column for column in schema.inputs}
    if not isinstance(inputs, list):
        raise RecordError(f"needed a list as inputs, got {kind_of(inputs)}")
    names = [as_mapping(tensor, "an input").get("name") for tensor in inputs]
    if len(names) != len(known) or set(map(str, names)) != set(known):
        raise RecordError(f"needed the inputs {', '.join(known)}, got {', '.join(map(str, names))[:200] or 'none'}")
    columns, rows = {}, {}
    for tensor in inputs:
        column = known[tensor["name"]]
        columns[column.name], rows[column.name], tail = read_tensor(tensor, column, tail, limit_rows, faults)
    if len(tail):
        raise RecordError(f"needed no bytes after the tensors, got {len(tail)}")
    if len(set(rows.values())) > 1:
        raise RecordError(f"needed the same number of records in each input, got {rows}")
    return columns, next(iter(rows.values()))


def _label_datatype(schema: RecordSchema) -> str:
    return "INT64" if schema.label_type == "int" else "BYTES"
