import json

import pyarrow as pa
import pyarrow.flight as fl


def put(url: str, table: pa.Table, producer: str, stream: str = "main") -> int:
    with fl.connect(url) as client:
        writer, acks = client.do_put(fl.FlightDescriptor.for_path(stream), table.schema)
        accepted = 0
        for sequence, batch in enumerate(table.to_batches(max_chunksize=500)):
            writer.write_with_metadata(batch, json.dumps({"producer": producer, "sequence": sequence}).encode())
            ack = json.loads(acks.read().to_pybytes())  # the server has these rows on disk
            accepted += ack["accepted"]
        writer.close()
    return accepted
