"""The queue is shared by whoever wants room: a sender that has more than its part waits while others are sent away.

    refused ─► wants room for a while ─► others with more than queue / senders that want some ─► wait

Who is alone may fill it. A sender may be given a larger part, or a smaller one. Whose records lie there is known of
this process's time; for one thread at a time.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

WANTING_SECONDS = 10.0  # after which who was sent away and has not come again is not kept room for


class Shares:
    """Records by sender that no checkpoint holds yet, and who wants room."""

    def __init__(
        self, records: int, clock: Callable[[], float] = time.monotonic, weights: Mapping[str, float] | None = None
    ) -> None:
        """``records``: that the queue can hold. ``weights``: of senders whose part is not that of others."""
        self._records, self._clock, self._weights = records, clock, weights or {}
        self._owned: Counter[str] = Counter()
        self._written: deque[tuple[int, str, int]] = deque()
        self._wanting: dict[str, float] = {}

    def refuse(self, sender: str) -> None:
        """It found no room."""
        self._wanting[sender] = self._clock()

    def take(self, sender: str, records: int) -> None:
        """It has room for so many, which are on their way."""
        self._owned[sender] += records
        self._wanting.pop(sender, None)

    def end(self, sender: str, records: int, offset: int | None) -> None:
        """They are in the log before this offset, or not at all."""
        if offset is None:
            self._owned[sender] -= records
        else:
            self._written.append((offset, sender, records))

    def learn(self, offset: int) -> None:
        """A checkpoint holds everything before the offset."""
        while self._written and self._written[0][0] <= offset:
            _, sender, records = self._written.popleft()
            self._owned[sender] -= records
        self._owned = +self._owned

    def is_beyond(self, sender: str, records: int) -> bool:
        """Whether so many more are beyond its share, while others want room."""
        since = self._clock() - WANTING_SECONDS
        self._wanting = {name: at for name, at in self._wanting.items() if at > since}
        others = sum(map(self._weight, self._wanting.keys() - {sender}))
        owned, mine = self._owned[sender], self._weight(sender)
        return bool(others and owned) and (owned + records) * (others + mine) > self._records * mine

    def _weight(self, sender: str) -> float:
        return self._weights.get(sender, 1.0)
