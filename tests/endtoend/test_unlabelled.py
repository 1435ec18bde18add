"""Records without label, pushed to a server that distils them: taken on every way, trained once each."""

import signal

import pyarrow as pa
import pytest

from . import bare_flight
from .conftest import PUSHED, Serve, records, until
from .test_push import post

ROWS = 300


def without(rows: pa.RecordBatch, how: str) -> pa.RecordBatch:
    """Every second label gone, all of them, or the column."""
    labels = rows.column("label").to_pylist()
    if how == "no column":
        return rows.drop_columns(["label"])
    kept = [label if how == "half" and at % 2 else None for at, label in enumerate(labels)]
    return rows.set_column(rows.schema.get_field_index("label"), "label", pa.array(kept, pa.int64()))


@pytest.mark.soak
def test_records_without_label_are_trained_once_each(serve: Serve) -> None:
    """Null labels, none at all, no column; over Flight, as Arrow and as JSON; after kill -9 they count once."""
    server = serve({**PUSHED, "stream": {**PUSHED["stream"], "unlabelled": "distil"}})
    parts = [records(ROWS, first=index * ROWS) for index in range(5)]
    flight = [parts[0], without(parts[1], "half"), without(parts[2], "no column")]
    for producer, rows in enumerate(flight):
        accepted = bare_flight.put(server.flight, pa.Table.from_batches([rows]), f"bare-{producer}")
        assert accepted == ROWS
    assert post(server, without(parts[3], "all"), "json", "json") == ROWS
    server.trained(4 * ROWS, 120)
    assert server.metric("records_unlabelled_total") == 2.5 * ROWS
    server.stop(signal.SIGKILL)
    server.again()
    assert post(server, without(parts[3], "all"), "json", "json") == ROWS  # sent again, answered, not taken
    assert post(server, without(parts[4], "no column"), "arrow", "arrow") == ROWS
    server.trained(5 * ROWS, 120)
    until(lambda: server.metric("records_duplicate_total") == ROWS, 10, "a duplicate batch")
    assert server.stop() == 0
    seen = server.inspect()
    assert (seen["records_trained"], seen["dead_letters"]) == (5 * ROWS, 0)
    assert seen["offsets"] == {"main/0": 5 * ROWS}
