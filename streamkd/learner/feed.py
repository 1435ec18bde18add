"""The feed: what comes from a source, as records that can be learned; what cannot, as dead letters.

source ─► Batcher: cut by count, or by a silence that is journaled ─► codec ─► as many labels as there is room for
  ▲           └ never over what is skipped
  └ goes on behind it
"""

import sqlite3
import time
from collections.abc import Sequence

from streamkd.errors import SourceError, StreamkdError
from streamkd.records import Chunk, Records, RecordSchema, Reject, Source
from streamkd.settings import Stream
from streamkd.state.checkpoint import DeadBatch
from streamkd.streams.batcher import Batcher
from streamkd.streams.encoding.decoder import Decoder
from streamkd.streams.log.log import Log
from streamkd.streams.log.paces import Gear
from streamkd.streams.pace import Gearbox, Pace
from streamkd.streams.skips import Skip, Skips
from streamkd.strikes import blame
from streamkd.tasks.labels import LabelSpace
from streamkd.telemetry import Recorder


class Feed:
    """Reads a source batch by batch; ``offsets`` are behind what it gave, ``dead`` is what it refused."""

    def __init__(
        self,
        stream: Stream,
        source: Source,
        schema: RecordSchema,
        labels: LabelSpace,
        recorder: Recorder,
        journal: Log | None,
        skips: Sequence[Skip] = (),
    ) -> None:
        self.offsets: dict[str, int] = dict.fromkeys(source.partitions, 0)
        self.dead: list[DeadBatch] = []
        self.bad_in_a_row = 0
        self.seconds = 0.0
        """In which the source was read."""
        self.pulled = journal is None  # else records were counted when they were accepted
        self._name, self._limits = stream.source.name, stream.limits
        self._labels, self._recorder = labels, recorder
        self._indicators = schema.indicators
        gear = Gear(stream.batch.size, stream.batch.rehearsals)
        gearbox = Gearbox(gear) if stream.batch.pace == "auto" else None
        self._source, self._skips = source, Skips(skips)
        self._batcher = Batcher(source, gear, stream.batch.flush_seconds, journal, gearbox=gearbox, skips=self._skips)
        self._decoder = Decoder(source, schema)

    @property
    def pace(self) -> Pace:
        """How many rows a batch has now."""
        return self._batcher.pace

    def next(self) -> Records | None:
        """The good records of the next batch, none perhaps; ``None`` where the source has none now.

        Raises:
            SourceError: so many bad rows in a row that the source must be wrong. PluginError: the source failed.
        """
        self._pass_over()
        begun = time.perf_counter()
        try:
            chunk = self._batcher.next(self.offsets)
        except (StreamkdError, sqlite3.Error):
            raise
        except Exception as fault:  # a plugin is a stranger's code
            raise blame(f"source {self._name}", "read", fault) from fault
        finally:
            self.seconds += time.perf_counter() - begun
        if chunk is None:
            return None
        records, rejects = self._decoder.decode(chunk)
        if len(self._labels) + len(records) > self._limits.labels:
            records, more = self._without_surplus_labels(records, chunk.offset)
            rejects = [*rejects, *more]
        if rejects:
            self._refuse(chunk, rejects, len(records))
        self.offsets[chunk.partition] = chunk.next_offset
        if len(records):
            self.bad_in_a_row = 0
            self._count_gaps(records)
        return records

    def _pass_over(self) -> None:
        """Go on behind what is never learned, as far as there are records."""
        for partition, offset in self.offsets.items():
            past = self._skips.past(partition, offset)
            if past == offset:
                continue
            end = self._source.end(partition)
            self.offsets[partition] = past = past if end is None else min(past, end)
            self._recorder.count("records_skipped_total", past - offset, source=self._name)

    def _count_gaps(self, records: Records) -> None:
        for column, places in self._indicators.items():
            if gaps := int(records.inputs[:, places].sum()):
                self._recorder.count("gaps_filled_total", gaps, column=column)

    def _without_surplus_labels(self, records: Records, offset: int) -> tuple[Records, list[Reject]]:
        """Records of labels that are known or for which there is room: an id that stands as label fills no memory."""
        limit, known = self._limits.labels, self._labels
        new = [label for label in dict.fromkeys(records.labels) if label is not None and label not in known]
        surplus = set(new[max(0, limit - len(known)) :])
        rejects = [
            Reject(int(at) - offset, "too_many_labels", f"{label!r:.80} is new, and {limit} labels are known")
            for at, label in zip(records.offsets, records.labels, strict=True)
            if label in surplus
        ]
        return records.take([i for i, label in enumerate(records.labels) if label not in surplus]), rejects

    def _refuse(self, chunk: Chunk, rejects: Sequence[Reject], good: int) -> None:
        offsets = range(chunk.offset, chunk.next_offset)
        self.dead.append(DeadBatch(rejects, chunk.rows, chunk.partition, offsets))
        for reject in rejects:
            self._recorder.count("records_rejected_total", source=self._name, reason=reject.reason)
            self._recorder.count("dead_letter_records_total", source=self._name, reason=reject.reason)
        self.bad_in_a_row = 0 if good else self.bad_in_a_row + len(rejects)
        # pushed records are acknowledged already, and their bad runs refused at the door: stopping for
        # those in the log would stop every later start at the same place
        if self.pulled and self.bad_in_a_row >= self._limits.bad_in_a_row:
            raise SourceError(
                f"{self.bad_in_a_row} records in a row were refused, the last for {rejects[-1].reason}: "
                f"{rejects[-1].detail}",
                where=f"{chunk.partition}, offset {offsets[rejects[-1].row]}",
                fix="mend the source or stream.records; nothing of it was learned",
            )
