"""A file of text as pieces of whole records in UTF-8, unpacked as it is read: never more of it than a piece."""

import codecs
import contextlib
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from streamkd.errors import SourceError

PIECE_BYTES = 4 << 20


def whole_lines(path: Path, encoding: str, cut: Callable[[bytes], int], most_bytes: int) -> Iterator[bytes]:
    """Pieces, of which ``cut`` says how many bytes are whole records; the last one may lack its line end.

    Raises:
        SourceError: a record of more than ``most_bytes``. OSError, EOFError, zlib.error: as the file is.
    """
    held = b""
    for part in _parts(path, encoding):
        held += part
        if end := cut(held):
            yield held[:end]
            held = held[end:]
        elif len(held) > max(most_bytes, PIECE_BYTES):
            said = f"a record of more than {len(held):,} bytes without its end"
            raise SourceError(said, fix="write a record a line; see stream.limits.row_bytes and the csv options")
    if held:
        yield held


def _parts(path: Path, encoding: str) -> Iterator[bytes]:
    """The bytes as UTF-8, without their mark."""
    decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("replace")
    mark = codecs.BOM_UTF8
    with contextlib.closing(_opened(path)) as file:
        while data := file.read(PIECE_BYTES):
            part = data if decoder is None else decoder.decode(data).encode()
            yield part.removeprefix(mark)
            mark = b""
        if decoder is not None and (rest := decoder.decode(b"", final=True)):
            yield rest.encode()


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
