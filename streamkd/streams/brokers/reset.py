"""Where to go on when a broker no longer has the message that is to come next."""

from streamkd.errors import SourceError

MOVED = "%s: the broker has the messages from %d to %d and the next one would be %d; it goes on at %d"
"""Of a partition: what is there, what would come next, where it goes on."""


def onward(partition: str, at: int, held: tuple[int, int], reset: str | None) -> int | None:
    """The offset to go on at; ``None`` where ``at`` may be read: the broker has the offsets from, and up to, ``held``.

    ``reset``: ``earliest``, ``latest``, ``stop``, or ``None``: the first that is there where ours have expired, and
    nowhere where the partition ends before ours, for then nobody can tell which messages are new.

    Raises:
        SourceError: a person has to tell.
    """
    low, high = held
    if low <= at <= high:
        return None
    where = reset or ("earliest" if at < low else "stop")
    if where == "stop":
        lost = "they have expired" if at < low else "the topic was made anew, or has lost some"
        said = f"the broker has the messages from {low} to {high} and the next one would be {at}: {lost}"
        raise SourceError(said, where=partition, fix="stream.source.reset: earliest or latest says where to go on")
    return low if where == "earliest" else high
