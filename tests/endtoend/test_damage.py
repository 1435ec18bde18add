"""Bits that flipped on the disk: found, named, and the server ends in words instead of starting again and again."""

import contextlib
import sqlite3

import pytest

from streamkd.records import InputColumn, RecordSchema
from streamkd.streams.log.log import Log

from .conftest import Serve, records

SCHEMA = RecordSchema(inputs=(InputColumn(name="x", shape=(8,)),), task="task")


@pytest.mark.parametrize("form", ["a bit", pytest.param("a page", marks=pytest.mark.soak)])
def test_a_log_that_the_disk_has_changed_ends_the_server_in_words(serve: Serve, form: str) -> None:
    """The damaged batch is named with its offsets, once; nothing of it is trained; the exit code is 1."""
    server = serve(listen=False)
    state = server.state
    server.kill_all()
    state.mkdir(exist_ok=True)
    log = Log(state / "log.sqlite", SCHEMA)
    for sequence in range(4):
        log.append(
            records(500, first=500 * sequence).select(log.arrow_schema.names).cast(log.arrow_schema), "p", sequence
        )
    log.close()
    with contextlib.closing(sqlite3.connect(state / "log.sqlite")) as connection:
        if form == "a bit":
            connection.create_function("flip", 1, lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:])
            connection.execute("UPDATE batches SET payload = flip(payload) WHERE first = 1000")
            connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'batches'").fetchone()
    if form == "a page":
        with (state / "log.sqlite").open("r+b") as file:
            file.seek((page - 1) * 16_384)
            file.write(b"\xff" * 16_384)
    server.start()
    assert server.wait(60) == (1 if form == "a bit" else 3)
    said = (
        "the batch of the offsets 1000 to 1499 of producer 'p', sequence 2,"
        if form == "a bit"
        else "log.sqlite   DOES NOT FIT: "
    )
    assert server.err.count(said) == 1, server.err
    assert "Traceback" not in server.err
    assert "it is started again" not in server.err
