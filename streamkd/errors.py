"""Every error that streamkd raises on purpose.

::

    StreamkdError               says what was needed and got, where, and how to fix it
    ├── ConfigError             the configuration cannot be used (exit code 2)
    ├── PluginError             a plugin is missing, broken, or breaks its contract
    ├── MissingExtra            a package that an extra brings is not installed (exit code 2)
    ├── RecordError             records that cannot be taken
    │   ├── SchemaMismatch      a whole batch has other columns or types than the stream
    │   └── LimitExceeded       a batch is larger than the stream allows
    ├── SourceError             a source cannot be opened or read
    ├── StateError              a state directory cannot be used
    │   ├── StateInUse          another learner owns it
    │   ├── StateConflict       its parts do not fit each other or the configuration (exit code 3)
    │   ├── CheckpointDamaged   a checkpoint is truncated or its hash is wrong
    │   └── LogDamaged          the log's file or one of its batches is not what was written
    ├── TrialFailed             a trial of a search gives nothing to judge it by; ``reason`` says why
    ├── Overloaded              a bounded queue is full; come again after ``retry_after_seconds``
    └── NotReady                nothing is published yet, or the process is draining
"""


def first_line(fault: BaseException) -> str:
    """What a library says of its error, in a line; of one that says nothing, its name."""
    return str(fault).splitlines()[0] if str(fault) else type(fault).__name__


class StreamkdError(Exception):
    """What was needed and what came (``message``), ``where``, and how to ``fix`` it."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  fix: {self.fix}" if self.fix else text


class ConfigError(StreamkdError):
    """The configuration cannot be used; ``where`` is ``file:line: dotted.path``."""

    exit_code = 2


class PluginError(StreamkdError):
    """A plugin is missing, does not load, or breaks its contract."""


class MissingExtra(StreamkdError):
    """A package is not installed that only the named ``extra`` of streamkd brings."""

    exit_code = 2

    def __init__(self, message: str, *, extra: str, where: str = "", fix: str = "") -> None:
        super().__init__(message, where=where, fix=fix)
        self.extra = extra


class RecordError(StreamkdError):
    """Records that cannot be taken."""


class SchemaMismatch(RecordError):
    """A whole batch has other columns or types than the stream."""


class LimitExceeded(RecordError):
    """A batch has more bytes, rows or columns than the stream allows."""


class SourceError(StreamkdError):
    """A source cannot be opened or read."""


class StateError(StreamkdError):
    """A state directory cannot be used."""


class StateInUse(StateError):
    """Another learner owns the state directory."""


class StateConflict(StateError):
    """The state directory was written under another configuration, or its parts are not of one time.

    To start again would change nothing: whoever keeps the process alive can tell by the exit code.
    """

    exit_code = 3


class CheckpointDamaged(StateError):
    """A checkpoint is truncated, or its content does not have the hash that was committed."""


class LogDamaged(StateError):
    """The log's file is broken, or one of its batches is not what was written."""


class TrialFailed(StreamkdError):
    """A trial of a search gives nothing to judge it by; ``reason``: error, crash, hang, memory or nan."""

    def __init__(self, reason: str, message: str = "", *, where: str = "", fix: str = "") -> None:
        super().__init__(message or reason, where=where, fix=fix)
        self.reason = reason
        self.args = (reason, message)  # so that it can be sent between processes


class Overloaded(StreamkdError):
    """A bounded queue is full."""

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, where: str = "", fix: str = "") -> None:
        super().__init__(message, where=where, fix=fix)
        self.retry_after_seconds = retry_after_seconds


class NotReady(StreamkdError):
    """Nothing is published yet, or the process is draining."""
