import json

import pyarrow as pa
import pyarrow.flight as fl


def put(url: str, table: pa.Table, producer: str, stream: str = "main") -> int:
    accepted = 0
    with fl.connect(url) as client:
        writer, acks = client.do_put(fl.FlightDescriptor.for_path(stream), table.schema)
        with writer:
            for sequence, batch in enumerate(table.to_batches(max_chunksize=500)):
                writer.write_with_metadata(batch, json.dumps({"producer": producer, "sequence": sequence}).encode())
                if (ack := acks.read()) is None:
                    break  # refused: the end of the block raises why
                accepted += json.loads(ack.to_pybytes())["accepted"]  # the server has these rows on disk
    return accepted
