"""What the supervisor and its children say to each other: one frozen dataclass for each kind of message.

    supervisor ─► child    Begin; then Stop to the learner, Committed and Drain to the ingress
    child ─► supervisor    Beat, Status, Counted, Stopped, Fatal; the learner Ready, Committed, NewVersion,
                           the ingress Listening, Waiting
    with tenants           Of around what concerns one of them, to and from the ingress; Done of a worker

On the channel each is one line of JSON: its name as ``kind``, and its fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamkd.errors import LogDamaged, StreamkdError

Json = dict[str, Any]
Offsets = Mapping[str, int]  # the next record of each partition
FAULT = 4_000  # characters of what ended a child


@dataclass(frozen=True)
class Begin:
    """How to begin; from ``entry_points`` on for the ingress alone, ``again``: there was one before."""

    config: Json
    state: str
    entry_points: tuple[str, ...] = ()
    http_socket: str = ""
    again: bool = False


@dataclass(frozen=True)
class Stop:
    """The learner is to end after its step."""

    checkpoint: bool = True


@dataclass(frozen=True)
class Drain:
    """The ingress is to take nothing more, write what it has taken, and end."""


@dataclass(frozen=True)
class Ready:
    """The learner has the lock of the state directory, and its parts fit."""


@dataclass(frozen=True)
class Committed:
    """How far the newest checkpoint reaches, and from where on one that is kept may have to read again."""

    offsets: Offsets
    oldest: Offsets = field(default_factory=dict)


@dataclass(frozen=True)
class NewVersion:
    """The learner has published."""

    version: int


@dataclass(frozen=True)
class Beat:
    """The main loop goes on, with what; how far the learner is, and where the source ends."""

    doing: str
    offsets: Offsets = field(default_factory=dict)
    ends: Offsets = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """How the learner stands, as the page shows it; of the ingress, how late labels and the order do."""

    status: Json


@dataclass(frozen=True)
class Counted:
    """What was counted since the last time, as ``Recorder.drain`` gives it."""

    deltas: list[Any]


@dataclass(frozen=True)
class Listening:
    """The ingress takes records everywhere; ``urls`` by protocol, beside the one HTTP port."""

    urls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Waiting:
    """The ingress cannot listen everywhere, and tries again."""

    reason: str


@dataclass(frozen=True)
class Stopped:
    """The child has ended in order, and is not to be started again."""


@dataclass(frozen=True)
class Fatal:
    """The child ends of what another start would not help; ``damage``: of the log."""

    message: str
    exit_code: int = 1
    damage: bool = False


@dataclass(frozen=True)
class Of:
    """A message that concerns one tenant, to or from the ingress that they share."""

    tenant: str
    said: Json


@dataclass(frozen=True)
class Done:
    """A worker has left the tenant that it was given, with what would have been a learner's exit code."""

    exit_code: int


FromChild = Beat | Status | Counted | Stopped | Fatal | Ready | Committed | NewVersion | Listening | Waiting | Of | Done
Message = Begin | Stop | Drain | FromChild
_KINDS = {kind.__name__.lower(): kind for kind in Message.__args__}


def fatal(fault: StreamkdError) -> Fatal:
    """An error as a child's last words."""
    return Fatal(str(fault)[:FAULT], fault.exit_code, isinstance(fault, LogDamaged))


def to_json(message: Message) -> Json:
    """What goes over the channel."""
    return {"kind": type(message).__name__.lower(), **vars(message)}


def from_json(said: Json) -> Message:
    """The message that came.

    Raises:
        StreamkdError: there is no such message, or it has other fields.
    """
    fields = dict(said)
    try:
        message: Message = _KINDS[fields.pop("kind", "")](**fields)
    except (KeyError, TypeError) as fault:
        raise StreamkdError(f"needed a message, got {said!r:.200} ({fault!r})", where="channel") from None
    return message
