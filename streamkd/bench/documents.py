"""Generated tables in documents that people write: what a benchmark found stands between two marks.

<!-- figures -->
...
<!-- end of figures -->
"""

from collections.abc import Sequence
from pathlib import Path

from streamkd.errors import ConfigError

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown, numbers to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def write(file: Path, text: str) -> None:
    """Put ``text`` between the marks of ``file``, or into a new file with nothing else.

    Raises:
        ConfigError: the file is there without its marks; nothing of it is written over.
    """
    whole = file.read_text("utf-8") if file.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"needed the lines {BEGIN} and {END}", where=str(file), fix="add them, or name a new file")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")
