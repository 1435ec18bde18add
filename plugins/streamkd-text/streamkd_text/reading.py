"""Records of one raw text column as texts: int8 bytes [batch, width], ended in zeros, which may have come as floats."""

import torch
from torch import Tensor

from streamkd.api import PluginError

_BYTE = 0xFF


def texts(x: Tensor) -> list[str]:
    """The text of each row; what follows the first zero is none of it."""
    rows = (x.to(torch.int16) & _BYTE).to(torch.uint8).cpu().numpy()
    return [row.tobytes().split(b"\0", 1)[0].decode(errors="ignore") for row in rows]


def rows_of(texts: list[str], like: Tensor) -> Tensor:
    """Texts as rows [texts, width] in the width and type of others; what does not fit is cut between two characters."""
    width = like.shape[1]
    whole = (text.replace("\0", " ").encode()[:width].decode(errors="ignore").encode() for text in texts)
    data = b"".join(text.ljust(width, b"\0") for text in whole)
    return torch.frombuffer(bytearray(data), dtype=torch.int8).reshape(-1, width).to(like)


def require_text(shape: tuple[int, ...], who: str) -> None:
    """Refuse a record that cannot be one raw text.

    Raises:
        PluginError: it has another form.
    """
    if len(shape) != 1 or shape[0] < 8:
        raise PluginError(
            f"needed one column of raw text, got records of {list(shape)}",
            where=who,
            fix="inputs: [{name: text, kind: text, raw: true, shape: [256]}]; beside others name it under student",
        )
