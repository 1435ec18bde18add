"""Which older checkpoints are kept to go back to: the older, the sparser, in so many bytes.

    age in checkpoints   0 1 2 3 4 5 6 7 8 ... 16 ...
    kept                 all     every 2nd   every 4th   every 8th ...   two of each doubling

So whoever notices late goes back at most twice as far as needed, and a day of checkpoints every ten seconds is some
twenty-five. A checkpoint is counted by its ``serial``, the length of the line that led to it: it goes on where a
rollback has gone back to. Files that checkpoints share count once.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path


def sparse(serials: Mapping[int, int]) -> list[int]:
    """Of checkpoints (their serials by number) those that are kept, the newest first."""
    newest = max(serials.values(), default=0)
    return sorted(
        (number for number, serial in serials.items() if not serial % _spacing(newest - serial)), reverse=True
    )


def _spacing(age: int) -> int:
    """Each divides the next: who is let go at one age would be at every greater one."""
    return 1 << max(0, age.bit_length() - 2)


def within(most_bytes: int, older: Iterable[int], newest: Iterable[int], folder: Path) -> list[int]:
    """The first of ``older`` whose files beyond those of ``newest`` are at most so many bytes."""
    held: dict[int, int] = {}
    for number in newest:
        held |= _files(folder / str(number))
    base, kept = sum(held.values()), []
    for number in older:
        held |= _files(folder / str(number))
        if sum(held.values()) - base > most_bytes:
            break
        kept.append(number)
    return kept


def _files(folder: Path) -> dict[int, int]:
    """The bytes of its files by their place on the disk."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return {stat.st_ino: stat.st_size for stat in stats}
