"""Why a batch was refused whole: the label of ``source_errors_total``, and what its producer is told."""

import logging
import secrets
from dataclasses import dataclass

from streamkd.errors import LimitExceeded, NotReady, Overloaded, RecordError, SchemaMismatch, StreamkdError
from streamkd.streams.log.receipts import SequenceConflict

logger = logging.getLogger(__name__)


class BadRun(RecordError):
    """So many refused rows in a row that the stream is stopped instead of drained."""


@dataclass(frozen=True)
class Refusal:
    """``reason`` is the label of ``source_errors_total``; the listeners have a status or code for each."""

    reason: str
    said: str
    retry_after_seconds: float | None = None
    forgotten: int | None = None


_REASONS = {SchemaMismatch: "schema", LimitExceeded: "limits", BadRun: "bad_in_a_row", RecordError: "protocol"}


def refusal_of(fault: Exception) -> Refusal:
    """What an error means to the producer; one that nobody expected is logged under a number, and nothing else told."""
    if isinstance(fault, Overloaded):
        return Refusal("overloaded", fault.message, fault.retry_after_seconds)
    if isinstance(fault, NotReady):
        return Refusal("draining", fault.message)
    if isinstance(fault, MemoryError):
        fault = LimitExceeded("a batch needs more memory than there is", where="batch")
    if isinstance(fault, SequenceConflict):
        return Refusal("conflict", str(fault), forgotten=fault.forgotten)
    for kind, reason in _REASONS.items():
        if isinstance(fault, kind):
            return Refusal(reason, str(fault))
    number = secrets.token_hex(4)
    logger.error("a batch failed, error id %s", number, exc_info=fault)
    return Refusal("internal", str(fault) if isinstance(fault, StreamkdError) else f"internal error, id {number}")
