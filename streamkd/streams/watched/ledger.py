"""Which files were read: an entry each, kept as a note beside the file's position in the log.

    WatchedFile ─► standing: waiting | read | refused | changed | older

An entry is written in the transaction of the file's rows. Entries do not pile up: beyond ``FILES`` of them the oldest
are folded into one mark, a time of change; what was changed before it and has no entry is not read any more.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from streamkd.streams.watched.place import WatchedFile

FILES = 100_000  # finished ones that are known by name
FOLDED_PART = 10  # of them, that are folded at once
SAID_CHARACTERS = 500
State = Literal["reading", "read", "refused", "changed"]
Standing = Literal["waiting", "read", "refused", "changed", "older"]


@dataclass(frozen=True)
class FileEntry:
    """How one file stands; ``tries``: processes that began to read on and did not come further."""

    state: State
    size: int
    modified: int
    tries: int = 0
    said: str = ""

    def note(self) -> str:
        return json.dumps([self.state, self.size, self.modified, self.tries, self.said[:SAID_CHARACTERS]])


def entry_of(found: WatchedFile, state: State, tries: int = 0, said: str = "") -> FileEntry:
    """The entry of a file as it was seen."""
    return FileEntry(state, found.size, found.modified, tries, said)


class Ledger:
    """The entries of one place's files."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.mark = f"{url}\nolder"  # the partition of the mark: no file's name
        self.entries: dict[str, FileEntry] = {}
        self.before = -1  # the mark
        self.folded: Counter[str] = Counter()  # entries behind it, by state

    def load(self, notes: Mapping[str, str], positions: Mapping[str, int]) -> None:
        """What the log says."""
        names = (name for name in notes if name.startswith(f"{self._url}/"))
        self.entries = {name: FileEntry(*json.loads(notes[name])) for name in names}
        self.before = positions.get(self.mark, -1)
        self.folded = Counter(json.loads(notes.get(self.mark, "{}")))

    def standing(self, found: WatchedFile, taken: int | None) -> Standing:
        """How a file stands, of which so many rows are ``taken``."""
        entry = self.entries.get(found.name)
        if entry is None:
            return "older" if found.modified <= self.before else "waiting"
        if (entry.size, entry.modified) == (found.size, found.modified):
            return "waiting" if entry.state == "reading" else entry.state
        return "changed" if taken else "waiting"  # nothing of it counts yet: it may be read anew

    def is_changed(self, found: WatchedFile) -> bool:
        """Whether it is another one than its entry says."""
        entry = self.entries[found.name]
        return (entry.size, entry.modified) != (found.size, found.modified)

    def is_begun(self, found: WatchedFile) -> bool:
        """Whether it is to be read on from where it was left."""
        entry = self.entries.get(found.name)
        return entry is not None and entry.state == "reading" and not self.is_changed(found)

    def fold(self, waiting: Iterable[WatchedFile]) -> tuple[dict[str, int | None], str] | None:
        """The moves and the mark's note that forget the oldest, where there are too many; none that ``waiting`` has."""
        if len(self.entries) <= FILES:
            return None
        first = min((found.modified for found in waiting), default=None)
        old = sorted(self._foldable(first))[: len(self.entries) - FILES + FILES // FOLDED_PART]
        if not old:
            return None
        folded = self.folded + Counter(self.entries[name].state for _, name in old)
        moves: dict[str, int | None] = {name: None for _, name in old}
        return {**moves, self.mark: old[-1][0]}, json.dumps(folded)

    def _foldable(self, before: int | None) -> Iterator[tuple[int, str]]:
        for name, entry in self.entries.items():
            if entry.state != "reading" and (before is None or entry.modified < before):
                yield entry.modified, name

    def put(self, name: str, entry: FileEntry) -> None:
        """Remember, at the end, so that the newest are the last."""
        self.entries.pop(name, None)
        self.entries[name] = entry

    def counts(self) -> Counter[str]:
        """Files by state, with those that are folded."""
        return self.folded + Counter(entry.state for entry in self.entries.values())

    def refusals(self, most: int) -> list[tuple[str, FileEntry]]:
        """The last files that were not read, or not to their end."""
        odd = [(name, entry) for name, entry in self.entries.items() if entry.state in ("refused", "changed")]
        return odd[-most:]


def once_more(entry: FileEntry) -> FileEntry:
    """Another process begins to read on."""
    return replace(entry, tries=entry.tries + 1)
