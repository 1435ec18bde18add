"""Commands that cannot be meant, and files that are none: a table of what is typed, the exit code and the words."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from .test_cli import streamkd

GOOD = """\
stream:
  source: {name: replay, path: good.parquet, order: seed}
  records: {inputs: [{name: x}]}
teachers: [{name: ema}]
"""
TO = "--to http://127.0.0.1:9"  # nobody listens there, and none of these gets so far
TYPED: list[tuple[str, int, str]] = [
    # what is typed behind `streamkd`, in a folder of files of every kind; exit code; words
    ("nothing", 2, "No such command 'nothing'"),
    ("--nothing", 2, "No such option '--nothing'"),
    ("check nowhere.yaml", 2, "nowhere.yaml: cannot be read"),
    ("check bad.yaml", 2, "bad.yaml:2: is not YAML"),
    ("check empty", 2, "empty: needed a mapping of keys"),
    ("check folder", 2, "'folder' is a directory"),
    ("check good.parquet", 2, "good.parquet: cannot be read"),
    ("check good.yaml more", 2, "unexpected extra argument (more)"),
    ("check --set", 2, "'--set' requires an argument"),
    ("check good.yaml --set stream.source.path=nowhere.parquet", 1, "nowhere.parquet: there is no such file"),
    ("check good.yaml --set stream.source.path=noise.parquet", 1, "noise.parquet: cannot be read: Parquet magic bytes"),
    ("check good.yaml --set stream.source.path=cut.parquet", 1, "cut.parquet: cannot be read: Parquet magic bytes"),
    ("check good.yaml --set stream.source.path=folder", 1, "folder: "),
    ("check good.yaml --set stream.source.path=other.parquet", 1, "other.parquet: needed a column 'x', got z"),
    ("check good.yaml --set stream.source.path=wide.csv", 1, "`csv: {encoding: utf-16}` under stream.source"),
    ("check good.yaml --set stream.source.path=zero.csv", 1, "zero.csv: column 'label': needed int64, got string"),
    (
        "check good.yaml --set stream.source.path=ragged.csv",
        1,
        "ragged.csv: near record 2: cannot be read: CSV parse error",
    ),
    (
        "check good.yaml --set stream.source.path=/dev/zero",
        1,
        "/dev/zero: needed Parquet, Arrow IPC, Feather, CSV or JSON lines",
    ),
    ("check good.yaml --set serve.tokens=nowhere.json", 2, "nowhere.json: "),
    ("check good.yaml --set serve.tokens=half.json", 2, "half.json: is no token file"),
    ("init", 2, "Missing argument 'FILE'"),
    ("init nowhere.parquet", 2, "'nowhere.parquet' does not exist"),
    ("init folder", 2, "'folder' is a directory"),
    ("init noise.parquet", 1, "noise.parquet: cannot be read: Parquet magic bytes"),
    ("init cut.parquet", 1, "cut.parquet: cannot be read: Parquet magic bytes"),
    ("init noise.csv", 1, "noise.csv: near record 2: cannot be read: CSV parse error"),
    ("init wide.csv", 1, "wide.csv: all 1 records have the label 2 in 'label'"),
    ("init ragged.csv", 1, "ragged.csv: near record 2: cannot be read: CSV parse error"),
    ("init empty", 1, "empty: the file is empty fix: name a file with records"),
    ("init good.parquet", 1, "good.yaml: is there already fix: name another with --out, or --force"),
    ("init good.parquet --accept everything --out new.yaml", 2, "everything; there are: "),
    ("init good.parquet --out folder", 2, "'folder' is a directory"),
    ("init good.parquet --out nowhere/x.yaml", 1, "nowhere/x.yaml: cannot be written"),
    ("init good.parquet --label lable --out new.yaml", 1, "did you mean --label label"),
    ("init other.parquet", 1, "no column looks like a label: z (double) fix: name it with --label COLUMN"),
    ("run good.yaml", 2, "Missing option '--report'"),
    ("run nowhere.yaml --report out", 2, "nowhere.yaml: cannot be read"),
    ("run good.yaml --report good.yaml", 2, "'good.yaml' is a file"),
    ("run good.yaml --report good.yaml/out", 1, "good.yaml/out: the folder cannot be made: Not a directory"),
    ("run good.yaml --report out --seeds a", 2, "needed numbers with commas between, got 'a'"),
    ("run good.yaml --report out --seeds ,", 2, "needed numbers with commas between, got ','"),
    ("run good.yaml --report out --seeds -1", 2, "needed numbers from 0 to 2^62, each once, got '-1'"),
    ("run good.yaml --report out --seeds 0,0", 2, "needed numbers from 0 to 2^62, each once, got '0,0'"),
    ("run good.yaml --report out --seeds 9999999999999999999999", 2, "needed numbers from 0 to 2^62, each once"),
    ("run live.yaml --report out", 2, "the source flight is pushed and never ends"),
    ("run --report out --set stream.source.repeat=true", 2, "the stream never ends fix: set repeat: false"),
    ("serve nowhere.yaml", 2, "nowhere.yaml: cannot be read"),
    ("serve good.yaml --port many", 2, "'many' is not a valid integer"),
    ("serve good.yaml --port 70000", 2, "serve.port: Input should be less than or equal to 65535, got 70000"),
    ("serve good.yaml --state good.yaml", 2, "'good.yaml' is a file"),
    ("serve good.yaml --host 0.0.0.0", 2, "0.0.0.0 can be reached from other machines; needed TLS and tokens"),
    ("serve good.yaml --set serve.tokens=nowhere.json --port 0", 2, "nowhere.json: "),
    ("serve good.yaml --set serve.tls={certificate:a,key:b} --port 0", 2, "serve.tls"),
    ("push good.parquet", 2, "Missing option '--to'"),
    (f"push nowhere {TO}", 1, "there is no dataset and no file 'nowhere' fix: datasets: digits"),
    ("push good.parquet --to nonsense", 1, "nonsense: needed "),
    ("push good.parquet --to ftp://h", 1, "needed grpc://, grpc+tls://, http://, https:// or kafka://, got ftp"),
    ("push good.parquet --to kafka://127.0.0.1:9092", 1, "needed kafka://HOST:PORT/TOPIC"),
    ("push good.parquet --to kafka://h/t?sasl.password=x", 1, "needs env:NAME, a variable of the environment"),
    ("push good.parquet --to kafka://h/t --producer me", 1, "what is pushed to it again is there twice"),
    ("push good.parquet --to http://", 1, "needed a host"),
    ("push good.parquet --to http://127.0.0.1:99999", 1, "needed a port from 1 to 65535"),
    ("push good.parquet --to http://127.0.0.1:x", 1, "needed a port from 1 to 65535"),
    ("push good.parquet --to grpc://127.0.0.1:0", 1, "needed a port from 1 to 65535"),
    (f"push good.parquet {TO} --rate 0", 2, "'--rate': 0.0 is not in the range x>0"),
    (f"push good.parquet {TO} --rate nan", 2, "'--rate': needed a finite number, got nan"),
    (f"push good.parquet {TO} --limit 0", 2, "'--limit': 0 is not in the range x>=1"),
    (f"push good.parquet {TO} --batch 0", 2, "'--batch': 0 is not in the range x>=1"),
    (f"push good.parquet {TO} --columns x", 2, "needed theirs=ours,..., got 'x'"),
    (f"push good.parquet {TO} --columns a=b", 1, "good.parquet: there is no column 'a': x, label"),
    (f"push good.parquet {TO} --columns x=y,label=y", 2, "needed each name once on either side"),
    ("push good.parquet --to https://127.0.0.1:9 --ca nowhere.pem", 2, "'nowhere.pem' does not exist"),
    ("push good.parquet --to https://127.0.0.1:9 --ca good.yaml", 1, "the certificates cannot be used"),
    (f"push noise.parquet {TO}", 1, "noise.parquet: cannot be read: Parquet magic bytes"),
    (f"push empty {TO}", 1, "empty: the file is empty"),
    (f"push bad.yaml {TO}", 2, "bad.yaml:2: is not YAML"),
    (f"push live.yaml {TO}", 2, "the source 'flight' is pushed to, so there is nothing to read"),
    ("predict good.parquet", 2, "Missing option '--to'"),
    (f"predict nowhere.parquet {TO}", 2, "'nowhere.parquet' does not exist"),
    (f"predict good.parquet {TO}", 1, "http://127.0.0.1:9: cannot be reached"),
    ("predict good.parquet --to nonsense", 1, "nonsense: needed http://HOST:PORT or https://"),
    ("predict good.parquet --to grpc://127.0.0.1:9", 1, "needed http://HOST:PORT or https://"),
    ("predict good.parquet --to http://127.0.0.1:x", 1, "needed http://HOST:PORT or https://"),
    ("predict good.parquet --to http://", 1, "needed http://HOST:PORT or https://"),
    (f"predict noise.parquet {TO}", 1, "noise.parquet: cannot be read"),
    (f"predict good.parquet {TO} --out good.yaml/out", 1, "good.yaml: the folder cannot be made: File exists"),
    ("tokens add t.json me", 2, "Missing option '--scope'"),
    ("tokens add t.json me --scope all", 2, "one or more of predict, ingest, label, admin"),
    ("tokens add folder me --scope predict", 2, "'folder' is a directory"),
    ("tokens add good.yaml me --scope predict", 2, "good.yaml: is no token file"),
    ("tokens add half.json me --scope predict", 2, "half.json: is no token file"),
    ("tokens add good.yaml/t me --scope predict", 2, "good.yaml/t: cannot be written: "),
    ("inspect nowhere", 1, "nowhere: is no state directory and no search"),
    ("inspect folder", 1, "folder: is no state directory and no search"),
    ("inspect good.yaml", 1, "good.yaml: is a file, no directory"),
    ("models list --state folder", 1, "folder: needed a state directory, got none"),
    ("models list --state nowhere", 1, "nowhere: needed a state directory, got none"),
    ("models list --state good.yaml", 2, "'good.yaml' is a file"),
    ("models rollback x", 2, "'x' is not a valid integer"),
    ("models rollback 1 --state folder", 1, "folder: needed a state directory, got none"),
    ("models unpin --state nowhere", 1, "nowhere: needed a state directory, got none"),
    ("teachers list --state nowhere", 1, "nowhere: is no state directory"),
    ("teachers train good.yaml --out t --student nothing", 2, "there is no student 'nothing' fix: known students"),
    ("teachers train good.yaml --out t --tasks some", 2, "'some' is not one of 'all', 'each'"),
    ("teachers train good.yaml --out t --columns nothing", 2, "'nothing' is no input column; there are: x"),
    ("teachers train live.yaml --out t", 2, "the source flight is pushed: nothing is recorded"),
    ("plugins list more", 2, "unexpected extra argument (more)"),
    ("tune good.yaml --space bad.yaml", 2, "bad.yaml:2: is not YAML"),
    ("tune good.yaml --space space.yaml", 2, "space.yaml:1: nothing.here: needed a domain, got [1, 2]"),
    ("tune good.yaml --trials 0", 2, "0 is not in the range x>=1"),
    ("tune good.yaml --objective best", 2, "there is no objective 'best' fix: known: accuracy"),
    ("tune good.yaml --objective latency:a", 2, "there is no objective 'latency:a'"),
    ("tune good.yaml --seeds x", 2, "needed numbers with commas between, got 'x'"),
    ("tune good.yaml --resume", 1, "there is no search to go on with"),
    ("tune live.yaml", 2, "a trial needs the whole stream again and again"),
    ("meta-train good.yaml", 2, "Missing option '--out'"),
    ("meta-train live.yaml --out m", 2, "the source flight is pushed: nothing is recorded"),
    ("meta-train good.yaml --out m --episodes -1", 2, "episodes: Input should be greater than or equal to 0"),
    ("meta-train good.yaml --out m --ways 0", 2, "ways: Input should be greater than 0, got 0"),
    ("meta-train good.yaml --out m --student-start best", 2, "'best' is not one of 'none', 'maml', 'metasgd'"),
    ("meta-train good.yaml --gate --out m", 2, "config does not belong to --gate: its streams are drawn"),
    ("meta-train --gate --out m --pairs 0", 2, "pairs: Input should be greater than 0, got 0"),
    ("meta-train good.yaml --out m --pairs 4", 2, "pairs belongs to --gate"),
    ("bench learning --only nothing", 2, "there is no stream 'nothing' fix: one of "),
    ("bench learning --seeds 0", 2, "0 is not in the range x>=1"),
    ("bench gate --policies nothing", 2, "there is no policy 'nothing' fix: one of "),
    ("bench drift --only nothing", 2, "there is no stream 'nothing' fix: one of "),
    ("bench drift --only weather --data . --methods streamkd", 1, "weather.parquet is not there"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Good files and files of no use, beside each other; at the end no command has left another."""
    folder = tmp_path_factory.mktemp("typed")
    x = np.random.default_rng(0).normal(size=60)
    pa.parquet.write_table(pa.table({"x": x, "label": np.arange(60) % 3}), folder / "good.parquet")
    pa.parquet.write_table(pa.table({"z": x}), folder / "other.parquet")
    (folder / "good.yaml").write_text(GOOD)
    (folder / "live.yaml").write_text("stream: {source: {name: flight}, records: {inputs: [{name: x}]}}\n")
    (folder / "bad.yaml").write_text("stream: [\n")
    (folder / "space.yaml").write_text("nothing.here: [1, 2]\n")
    (folder / "empty").write_text("")
    (folder / "half.json").write_text('{"tokens": [')
    (folder / "noise.parquet").write_bytes(b"PAR1" + bytes(range(256)))
    (folder / "cut.parquet").write_bytes((folder / "good.parquet").read_bytes()[:-20])
    (folder / "noise.csv").write_bytes(bytes(range(256)))
    (folder / "wide.csv").write_text("x,label\n1,2\n", "utf-16")
    (folder / "zero.csv").write_bytes(b"x,label\n1,\x00\n")
    (folder / "ragged.csv").write_text("x,label\n1,2\n1\n1,2,3\n")
    (folder / "folder").mkdir()
    before = sorted(os.listdir(folder))
    yield folder
    assert sorted({*os.listdir(folder)} - {"out"}) == before


@pytest.mark.parametrize(("typed", "code", "said"), TYPED, ids=[row[0] for row in TYPED])
def test_what_is_said_of_a_command(typed: str, code: int, said: str, folder: Path) -> None:
    """An exit code and words on stderr, never a traceback; and nothing is written."""
    done = streamkd(*typed.split(" "), cwd=folder)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
