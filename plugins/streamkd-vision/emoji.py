"""Colour images of what a distribution brings: the emoji of Debian, and the group that Unicode puts each in.

    apt-get install fonts-noto-color-emoji unicode-data
    python plugins/streamkd-vision/emoji.py data

writes ``emoji-train.parquet`` and ``emoji-test.parquet``: PNG bytes of 48×48 pixels, and the group as label. Every
fourth is a test record. One picture stands for all colours of skin.
"""

import io
import random
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GROUPS = Path("/usr/share/unicode/emoji/emoji-test.txt")
SIDE, DRAWN, SCALE = 48, 136, 109  # pixels; the font has pictures of one size, which goes by 109


def main(folder: Path, font: Path = FONT, groups: Path = GROUPS) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = ImageFont.truetype(str(font), SCALE)
    found = grouped(groups.read_text("utf-8"))
    random.Random(0).shuffle(found)
    rows = [(png(emoji, drawn), group) for emoji, group in found]
    for part, chosen in (("train", [r for n, r in enumerate(rows) if n % 4]), ("test", rows[::4])):
        images, labels = zip(*chosen, strict=True)
        table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels)})
        pq.write_table(table, folder / f"emoji-{part}.parquet")


def grouped(lines: str) -> list[tuple[str, str]]:
    """Each emoji that is one picture, without those that only a colour of skin tells apart, and its group."""
    found, group = [], ""
    for line in lines.splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif match := re.match(r"([0-9A-F ]+?)\s*; fully-qualified", line):
            codes = [int(code, 16) for code in match[1].split()]
            if not any(0x1F3FB <= code <= 0x1F3FF for code in codes):
                found.append(("".join(map(chr, codes)), group))
    return found


def png(emoji: str, font: ImageFont.FreeTypeFont) -> bytes:
    """Before white, as PNG."""
    image = Image.new("RGB", (DRAWN, DRAWN), "white")
    ImageDraw.Draw(image).text((0, DRAWN // 2), emoji, font=font, embedded_color=True, anchor="lm")
    file = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
