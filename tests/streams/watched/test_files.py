"""The source over files: each row once and in order, whatever files, readers and rows do."""

import gzip
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from streamkd.errors import LimitExceeded
from streamkd.settings import Limits
from streamkd.streams.ingest.intake import Intake
from streamkd.streams.log.dead_letters import DeadLetter
from streamkd.streams.log.log import Log
from streamkd.streams.watched import contents, ledger, texts
from streamkd.streams.watched.files import FilesListener, FilesOptions
from streamkd.telemetry import Recorder

from ..conftest import Way
from .conftest import ROWS, as_json, files, table, until, write

Open, Watch = Callable[..., Way], Callable[..., FilesListener]
KINDS = ("parquet", "feather", "arrow", "csv", "jsonl", "csv.gz")


def written(way: Way, count: int) -> list[int]:
    """The labels in the log, once there are so many; a moment later there are no more."""
    until(lambda: way.log.end() >= count)
    time.sleep(0.15)
    assert way.log.end() == count
    return way.labels()


def letters(way: Way) -> list[DeadLetter]:
    with way.log.file.reading() as reader:
        return type(way.log.letters)(reader).list()


def test_every_row_of_every_format_is_a_record_in_order(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Files of all formats, below one another, in the order of their names; later ones too, and the same fields."""
    way = open_way(ROWS)
    for number, kind in enumerate(KINDS):
        write(tmp_path / "in" / f"day-{number // 4}" / f"{number}.{kind}", range(30 * number, 30 * number + 30))
    watch(way)
    assert written(way, 180) == list(range(180))
    write(tmp_path / "in" / "a-later.csv", range(180, 200))
    assert written(way, 200) == list(range(200))
    rows = way.log.read(0, 200).rows
    assert rows.column("shop").to_pylist() == [f"s{n % 3}" for n in range(200)]
    assert rows.column("x").to_pylist() == [[n / 4] for n in range(200)]
    assert files(way, read=7, waiting=0)["refusals"] == []
    assert way.counted("source_records_total", "main") == 200


def test_the_order_may_be_that_of_the_changes(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Of what is there to be read: the oldest first, whatever it is called."""
    for age, name in enumerate("bca"):
        os.utime(write(tmp_path / "in" / f"{name}.csv", range(10 * age, 10 * age + 10)), (1e9 + age, 1e9 + age))
    way = open_way(ROWS)
    watch(way, order="modified")
    assert written(way, 30) == list(range(30))


def test_a_source_goes_on_in_the_middle_of_a_file(
    open_way: Open, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start reads the rows of each format that the first one left, and no other."""
    monkeypatch.setattr(texts, "PIECE_BYTES", 2_000)
    monkeypatch.setattr("streamkd.streams.files.parquet.DECODED_BYTES", 2_000)
    for number, kind in enumerate(KINDS):
        way = open_way(ROWS, queue_records=150 + 300 * number, batch_rows=40)
        write(tmp_path / "in" / f"{number}.{kind}", range(300 * number, 300 * number + 300))
        source = watch(way)
        until(lambda way=way, number=number: 300 * number < way.log.end() <= 300 * number + 150)
        until(lambda way=way: way.intake.is_full(table(range(50)).to_batches()[0]))
        source.drain(10)
        left = way.log.positions()[str(tmp_path / "in" / f"{number}.{kind}")]
        assert 0 < left < 300
        way.intake.close()
        way = open_way(ROWS, batch_rows=40)
        source = watch(way)
        assert written(way, 300 * number + 300) == list(range(300 * number + 300))
        source.drain(10)


def test_two_readers_of_one_log_write_each_row_once(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """As while a killed server's ingress has not ended yet and the next one has begun."""
    way = open_way(ROWS, batch_rows=7)
    other = Intake(log := Log(way.log.path, ROWS), Limits(batch_rows=7), recorder := Recorder())
    sources = [watch(way), watch(Way(log, other, recorder))]
    for number in range(8):
        write(tmp_path / "in" / f"{number}.{KINDS[number % 6]}", range(40 * number, 40 * number + 40))
        time.sleep(0.03)
    labels = written(way, 320)
    assert sorted(labels) == list(range(320))
    for number in range(8):
        mine = [label for label in labels if label // 40 == number]
        assert mine == sorted(mine)
    for source in sources:
        source.drain(10)
    other.close()
    log.close()


def test_a_file_is_read_once_it_has_settled(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """While it grows it waits, and others go before it; hidden, empty and unknown ones are none."""
    way = open_way(ROWS)
    watch(way, settle_seconds=0.4)
    growing = tmp_path / "in" / "a.jsonl"
    for name in (".b.csv", "_tmp/c.csv", "README.txt"):
        write(tmp_path / "in" / name, range(3))
    (tmp_path / "in" / "empty.csv").touch()
    write(tmp_path / "in" / "d.csv", range(10))
    for turn in range(8):
        with growing.open("ab") as file:
            file.write(as_json([100 + turn]))
        time.sleep(0.1)
        assert files(way, read=int(way.log.end() > 0))["waiting"] in (1, 2)
    assert written(way, 18) == [*range(10), *range(100, 108)]
    files(way, read=2, waiting=0, refused=0)


def test_what_is_no_file_to_be_read_is_passed_over(
    open_way: Open, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pipes, links in a circle or to nowhere; names that are no text are told. A link to a file is a file."""
    folder = tmp_path / "in"
    write(folder / "a.csv", range(10))
    (folder / "b.csv").symlink_to(write(tmp_path / "elsewhere.csv", range(10, 20)))
    (folder / "circle").symlink_to(folder)
    (folder / "dead.csv").symlink_to(tmp_path / "nowhere.csv")
    os.mkfifo(folder / "pipe.csv")
    for name in (b"\xff.csv", b"two\nlines.csv"):
        (folder / os.fsdecode(name)).write_text("x,shop,label\n1,a,99\n")
    way = open_way(ROWS)
    watch(way)
    assert written(way, 20) == list(range(20))
    files(way, read=2, waiting=0, refused=0)
    assert caplog.text.count("rename it") == 2


def test_bad_rows_are_letters_with_file_and_row(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Cells that are no numbers, lines of another width, bytes that are no text, broken JSON, rows of Parquet without
    their label: each with its number in the file and as it came, and its neighbours are taken.
    """
    folder = tmp_path / "in"
    cells = [b"x,shop,label", b"0.5,s0,0", b"zero,s1,1", b"1.5,s2", b"2.5,\xff,3", b"", b"3.5,s1,4", b"4.5,s2,five"]
    (folder / "a.csv").write_bytes(b"\r\n".join(cells))
    (folder / "b.jsonl").write_bytes(as_json([6]) + b"{broken\n" + as_json([8]) + b'{"x": "y", "label": 9}\n')
    pq.write_table(
        pa.table({"x": [1.0, 2.0, 3.0], "shop": ["a", "b", None], "label": [10, None, 12]}), folder / "c.parquet"
    )
    way = open_way(ROWS)
    watch(way)
    assert written(way, 5) == [0, 4, 6, 8, 10]
    found = [(Path(each.source).name, each.offset, each.reason, each.form) for each in letters(way)]
    assert found == [
        ("a.csv", 1, "decode", "json"),
        ("a.csv", 2, "decode", "message"),
        ("a.csv", 3, "decode", "message"),
        ("a.csv", 5, "decode", "json"),
        ("b.jsonl", 1, "decode", "json"),
        ("b.jsonl", 3, "decode", "json"),
        ("c.parquet", 1, "missing_label", "arrow"),
        ("c.parquet", 2, "missing_input", "arrow"),
    ]
    assert json.loads(letters(way)[0].record or b"") == {"x": "zero", "shop": "s1", "label": 1}
    assert letters(way)[1].record == b"1.5,s2\r"
    assert "invalid value 'zero'" in letters(way)[0].detail
    files(way, read=3, refused=0)


def broken(folder: Path) -> dict[str, str]:
    """Files that cannot be read, and what is said of each."""
    whole = {
        kind: write(folder / f"{kind}.{kind}", range(900)).read_bytes() for kind in ("parquet", "feather", "arrow")
    }
    packed = gzip.compress(as_json(range(900)))
    bad_pages = bytearray(whole["parquet"])
    bad_pages[100:1_000] = bytes(900)
    for path in folder.iterdir():
        path.unlink()
    said = {
        "cut.parquet": (whole["parquet"][:-40], "cannot be read: Parquet magic bytes not found"),
        "pages.parquet": (bytes(bad_pages), "cannot be read: "),
        "cut.feather": (whole["feather"][:-40], "cannot be read: Not an Arrow file"),
        "cut.arrow": (whole["arrow"][:-900], "cannot be read: Expected to be able to read"),
        "cut.jsonl.gz": (packed[: len(packed) // 2], "cannot be read: Compressed file ended"),
        "noise.csv.gz": (b"\1\2\3\4" * 100, "cannot be read: Not a gzipped file"),
        "array.json": (b'[{"x": 1}]', "needed one JSON object a line, got one array"),
        "other.csv": (b"x,y,label\n1,2,3\n", "column 'shop': needed string, got no such column"),
        "words.csv": (b"x,shop,label\n" + b"a,b,c\n" * 50, "refused rows in a row"),
        "noise.parquet": (bytes(range(256)), "got a file that begins with"),
    }
    for name, (data, _) in said.items():
        (folder / name).write_bytes(data)
    return {name: words for name, (_, words) in said.items()}


def test_broken_files_are_refused_alone(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Each with its reason, in the status and over a restart; the good ones between them are read."""
    said = broken(tmp_path / "in")
    good = [write(tmp_path / "in" / f"{name[0]}{number}-good.csv", range(5)) for number, name in enumerate(said)]
    way = open_way(ROWS, bad_in_a_row=40)
    source = watch(way)
    told = files(way, read=len(good), refused=len(said), waiting=0)
    reasons = {Path(each["name"]).name: each["reason"] for each in told["refusals"]}
    assert reasons.keys() == said.keys()
    for name, words in said.items():
        assert words in reasons[name], name
    assert way.counted("source_errors_total", "main", "file") == len(said)
    labels = way.labels()
    assert labels.count(4) >= len(good)
    end = way.log.end()
    source.drain(10)
    watch(way)
    time.sleep(0.3)
    assert way.log.end() == end
    assert len(files(way, refused=len(said))["refusals"]) == len(said)


@pytest.mark.parametrize("kind", ["feather", "arrow"])
def test_what_a_batch_declares_is_known_before_it_is_unpacked(kind: str, tmp_path: Path) -> None:
    """A few kilobytes of zstd that would be 8 MB are refused by what they say of themselves."""
    numbers = pa.array([0] * 500_000)
    rows = pa.table({"x": numbers, "shop": numbers, "label": numbers})
    path = tmp_path / f"bomb.{kind}"
    make = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
    with make(path, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_table(rows)
    assert path.stat().st_size < 100_000
    form = contents.FileForm(ROWS, Limits(batch_bytes=1 << 20))
    with pytest.raises(LimitExceeded, match=r"one of its batches declares 12,\d+,\d+ bytes, at most 1,048,576"):
        list(contents.read(path, "bomb", 0, form))


def test_a_row_group_of_huge_rows_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    """Texts of 200 KB, of which a piece would have more bytes than a batch may."""
    rows = pa.table({"x": [1.0] * 60, "shop": [f"{n}{'x' * 200_000}" for n in range(60)], "label": [1] * 60})
    pq.write_table(rows, tmp_path / "wide.parquet", use_dictionary=False, compression="zstd")
    assert (tmp_path / "wide.parquet").stat().st_size < 100_000
    form = contents.FileForm(ROWS, Limits(batch_bytes=1 << 20))
    with pytest.raises(LimitExceeded, match=r"a few rows of it declare \d+,\d+,\d+ bytes"):
        list(contents.read(tmp_path / "wide.parquet", "wide", 0, form))


def test_a_file_that_was_read_and_is_another_one_now_is_told(
    open_way: Open, watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Grown or written anew, at once or while the source is away: counted, once, and not read again."""
    way = open_way(ROWS)
    one, two = (write(tmp_path / "in" / f"{name}.csv", range(10)) for name in "ab")
    source = watch(way)
    files(way, read=2)
    with one.open("a") as file:
        file.write("7,s1,70\n")
    assert "changed since 10 rows of it were taken" in files(way, changed=1)["refusals"][0]["reason"]
    source.drain(10)
    write(two, range(50, 55))
    source = watch(way)
    files(way, read=0, changed=2)
    time.sleep(0.2)
    assert written(way, 20) == [*range(10), *range(10)]
    assert way.counted("source_errors_total", "main", "file") == 2
    assert "write new rows under a new name" in caplog.text


def test_a_refused_file_of_which_nothing_was_taken_may_be_mended(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Under its own name: it is another file then."""
    way = open_way(ROWS)
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1 and then nothing")
    watch(way)
    files(way, refused=1)
    write(tmp_path / "in" / "a.parquet", range(10))
    assert written(way, 10) == list(range(10))
    files(way, refused=0, read=1)


def test_a_file_that_ends_its_reader_is_left_alone(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """What three processes did not survive is refused by the fourth, and the rest goes on."""
    way = open_way(ROWS)
    poison = write(tmp_path / "in" / "a.csv", range(10))
    write(tmp_path / "in" / "b.csv", range(10, 20))
    found = poison.stat()
    entry = ledger.FileEntry("reading", found.st_size, found.st_mtime_ns, tries=3)
    with way.log.file.writing() as writer:
        writer.execute("INSERT INTO positions VALUES (?, 0, ?)", (str(poison), entry.note()))
    watch(way)
    assert "3 processes ended while they read it" in files(way, refused=1, read=1)["refusals"][0]["reason"]
    assert written(way, 10) == list(range(10, 20))


def test_a_place_that_is_not_there_yet_is_waited_for(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """And so is one that is away for a while: nothing is forgotten meanwhile."""
    way = open_way(ROWS)
    watch(way, path=str(tmp_path / "later"))
    until(lambda: way.counted("source_errors_total", "main", "unreachable") > 0)
    write(tmp_path / "later" / "a.csv", range(10))
    files(way, read=1)
    (tmp_path / "later").rename(tmp_path / "away")
    time.sleep(0.2)
    (tmp_path / "away").rename(tmp_path / "later")
    write(tmp_path / "later" / "b.csv", range(10, 20))
    assert written(way, 20) == list(range(20))


def test_a_file_out_of_reach_holds_the_others_up_for_a_moment_alone(
    open_way: Open, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried three times before them, so that a fault that passes leaves the order as it is."""
    faults = {"a.csv": 2, "b.csv": 10}

    def read(path: Path, *more: Any) -> Any:
        if faults.get(path.name, 0):
            faults[path.name] -= 1
            raise PermissionError(13, "no right to read")
        return plain(path, *more)

    plain = contents.read
    monkeypatch.setattr(contents, "read", read)
    for number, name in enumerate(("a", "b", "c")):
        write(tmp_path / "in" / f"{name}.csv", range(10 * number, 10 * number + 10))
    way = open_way(ROWS)
    watch(way)
    assert written(way, 30) == [*range(10), *range(20, 30), *range(10, 20)]
    assert way.counted("source_errors_total", "main", "unreachable") == 12


def test_the_ledger_is_bounded(open_way: Open, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of the oldest files become one mark; none behind it is read again, also after a restart, and a late one
    with an older time is told.
    """
    monkeypatch.setattr(ledger, "FILES", 10)
    way = open_way(ROWS)
    source = watch(way)
    for number in range(25):
        os.utime(write(tmp_path / "in" / f"{number:02}.csv", [number]), (1e9 + number, 1e9 + number))
        until(lambda number=number: way.log.end() == number + 1)
    files(way, read=25)
    until(lambda: len(way.log.notes()) <= 11)
    source.drain(10)
    os.utime(write(tmp_path / "in" / "late.csv", [99]), (1e9, 1e9))
    watch(way)
    folded = 25 - (len(way.log.notes()) - 1)
    assert folded >= 15
    files(way, read=25, waiting=0, older=folded + 1)
    assert sorted(written(way, 25)) == list(range(25))


def test_the_mark_never_passes_a_file_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many entries there are."""
    monkeypatch.setattr(ledger, "FILES", 3)
    book = ledger.Ledger("/d")
    for number in range(9):
        book.put(f"/d/{number}", ledger.FileEntry("read", 1, number))
    waiting = [ledger.WatchedFile("/d/x", 1, 4)]
    moves, _ = book.fold(waiting) or ({}, "")
    assert moves == {"/d/0": None, "/d/1": None, "/d/2": None, "/d/3": None, "/d\nolder": 3}


def test_a_full_queue_leaves_files_unread(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Rows wait in their file until a checkpoint makes room."""
    way = open_way(ROWS, queue_records=50, batch_rows=20)
    for number in range(5):
        write(tmp_path / "in" / f"{number}.parquet", range(40 * number, 40 * number + 40))
    watch(way)
    until(lambda: way.log.end() >= 40)
    time.sleep(0.2)
    assert way.log.end() <= 60
    while (end := way.log.end()) < 200:
        way.intake.committed(end)
        until(lambda end=end: way.log.end() > end)
    assert written(way, 200) == list(range(200))


class Disturbed:
    """A place that grows by files of all formats, some of them broken, while its reader is ended at any moment."""

    def __init__(self, folder: Path, way: Way, watch: Watch, seed: int) -> None:
        self.folder, self.way, self.watch, self.dice = folder, way, watch, random.Random(seed)
        self.sent = self.bad = self.turns = 0
        self.source = watch(way)

    def grow(self) -> None:
        rows, kind = self.dice.randint(1, 200), self.dice.choice(KINDS)
        self.turns += 1
        name = self.folder / f"{self.dice.randrange(10**6):06}-{self.turns}.{kind}"
        write(name, range(self.sent, self.sent + rows))
        self.sent += rows
        if self.dice.random() < 0.3:
            (self.folder / f"{self.turns}.parquet").write_bytes(self.dice.randbytes(200))
            self.bad += 1

    def end(self) -> None:
        time.sleep(self.dice.uniform(0.0, 0.15))
        if self.dice.random() < 0.5:
            self.source.drain(10)
            self.source = self.watch(self.way)


@pytest.mark.parametrize(
    ("seed", "turns"), [(0, 12), *(pytest.param(s, 100, marks=pytest.mark.soak) for s in range(100, 106))]
)
def test_ends_at_any_moment_lose_and_double_nothing(
    open_way: Open, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, turns: int
) -> None:
    """Each row once and in its file's order, whatever is between the files."""
    monkeypatch.setattr(texts, "PIECE_BYTES", 1_000)
    way = open_way(ROWS, batch_rows=30)
    disturbed = Disturbed(tmp_path / "in", way, watch, seed)
    for _ in range(turns):
        disturbed.grow()
        disturbed.end()
    labels = written(way, disturbed.sent)
    assert sorted(labels) == list(range(disturbed.sent))
    files(way, read=turns, refused=disturbed.bad)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("ftp://h/d", "needed a directory, s3://, gs:// or file://, got ftp://"),
        ("s3://key:secret@bucket/x", "a secret has no place in it"),
        ("", "at least 1 character"),
    ],
)
def test_a_path_that_cannot_be_watched_is_refused(path: str, said: str) -> None:
    """When the configuration is read."""
    with pytest.raises(ValidationError, match=said):
        FilesOptions(path=path)


def test_csv_is_read_as_the_options_say(open_way: Open, watch: Watch, tmp_path: Path) -> None:
    """Another separator, a decimal comma, gaps, Windows' code page, cells with line ends."""
    text = 'x;shop;label\n1,5;"Käse\nund Brot";1\n?;b;2\n2,5;c;3\n'
    (tmp_path / "in" / "a.csv").write_bytes(text.encode("cp1252"))
    way = open_way(ROWS)
    dialect = {"delimiter": ";", "decimal": ",", "nulls": ["?"], "newlines": True, "encoding": "cp1252"}
    watch(way, csv=dialect)
    assert written(way, 2) == [1, 3]
    rows = way.log.read(0, 2).rows
    assert rows.column("shop").to_pylist() == ["Käse\nund Brot", "c"]
    assert rows.column("x").to_pylist() == [[1.5], [2.5]]
    assert [(each.offset, each.reason) for each in letters(way)] == [(1, "missing_input")]
