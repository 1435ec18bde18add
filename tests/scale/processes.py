"""The processes of a Ray and what they listen at, as /proc tells."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and 127.0.0.1 as IPv6, as /proc writes them."""


def family(root: int) -> dict[int, str]:
    """A process and all below it, with their command lines."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, last = {root}, 0
    while len(found) > last:
        last = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    lines = {}
    for pid in found:
        with suppress(OSError):  # it ended meanwhile
            lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return lines


def listening(pids: Iterable[int]) -> list[str]:
    """The addresses at which these processes listen, as /proc writes them."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A":
                sockets[rest[5]] = local.partition(":")[0]
    targets = []
    for pid in pids:
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    targets.append(os.readlink(entry))
    return [sockets[one[8:-1]] for one in targets if one.startswith("socket:[") and one[8:-1] in sockets]
