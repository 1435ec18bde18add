"""Back-pressure: a full queue waits for the learner, and never for ever."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .conftest import PUSHED, Serve, merged, records, streamkd, until


def test_more_records_than_the_queue_holds_go_through(serve: Serve, tmp_path: Path) -> None:
    """A push of five times what may wait, faster than it is learned, is acknowledged in full; then nothing waits."""
    server = serve(merged(PUSHED, {"stream": {"limits": {"queue_records": 600}}}))
    rows = records(3_000)
    pq.write_table(pa.Table.from_batches([rows]), tmp_path / "rows.parquet")
    done = streamkd("push", tmp_path / "rows.parquet", "--to", server.flight, "--batch", 100)
    assert "3000 accepted" in done.stdout, done.stderr
    server.trained(3_000)
    until(lambda: server.metrics()['streamkd_queue_records{queue="log"}'] == 0, 10, "an empty queue")
