"""Dead letters that come back: looked at, mended, sent again and counted once, or let go."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streamkd import letters
from streamkd.errors import ConfigError, StateError
from streamkd.records import InputColumn, RecordSchema, Reject
from streamkd.state.checkpoint import CheckpointStore, DeadBatch
from streamkd.state.directory import StateDirectory
from streamkd.streams.log.dead_letters import DeadLetter
from streamkd.streams.log.log import Entry, Log

ROWS = pa.record_batch({"x": pa.array([1.5, 2.5]), "label": pa.array(["a", "b"])})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """With three letters of the log, one of them no record at all, and one of the learner."""
    directory = StateDirectory(tmp_path)
    with directory.lock():
        checkpoints = CheckpointStore(directory)
        batch = DeadBatch([Reject(1, "too_many_labels", "'b' is new")], ROWS, "main/0", range(10, 12))
        checkpoints.save({"a": 1}, offsets={"main/0": 12}, records=12, config={}, environment={}, dead_letters=[batch])
        checkpoints.close()
    log = Log(directory.log, RecordSchema(inputs=(InputColumn(name="x"),)))
    lines = [b'{"x": [1, 2], "label": 3}', b'{"x": 7, "label": 4}', b"{nothing"]
    kept = [
        DeadLetter("main", reason, "said", record=line, form="json")
        for line, reason in zip(lines, ("wrong_shape", "missing_label", "decode"), strict=True)
    ]
    log.append_many([Entry(pa.RecordBatch.from_pylist([], schema=log.arrow_schema), None, None, kept, "")])
    log.close()
    return tmp_path


def names(state: Path, **chosen: Any) -> list[str]:
    return [letter.name for letter in letters.letters(state, **chosen)]


def test_those_of_log_and_learner_are_there_with_their_reasons(state: Path) -> None:
    """In order of arrival, each under a name of its own; all of one reason, or those that are named."""
    assert names(state) == ["log-1", "log-2", "log-3", "learner-1"]
    assert names(state, reason="too_many_labels") == ["learner-1"]
    assert names(state, names=["log-2"]) == ["log-2"]
    [learners] = letters.letters(state, ["learner-1"])
    told = learners.told()
    assert (told["source"], told["offset"], told["detail"]) == ("main/0", 11, "'b' is new")


def test_a_record_is_shown_as_it_came(state: Path) -> None:
    """A line that is JSON, one that is none, a row of Arrow."""
    shown = list(letters.as_lines(letters.letters(state)))
    assert [json.loads(shown[place]) for place in (0, 1, 3)] == [
        {"x": [1, 2], "label": 3},
        {"x": 7, "label": 4},
        {"x": 2.5, "label": "b"},
    ]
    assert shown[2] == "{nothing"


def test_a_message_that_is_no_record_is_shown_in_base64_and_stays(state: Path) -> None:
    """Of a topic, Arrow or Avro that could not be read: there is nothing that could be sent to a server."""
    with Log(StateDirectory(state).log).file.writing() as writer:
        letters.DeadLetters(writer).put([DeadLetter("t/0", "decode", "no", 5, b"\x00\xffpoison", "message")], 0)
    [letter] = letters.letters(state, ["log-4"])
    assert [json.loads(line) for line in letters.as_lines([letter])] == [{"message": "AP9wb2lzb24="}]
    assert letter.batch() is None
    assert letter.told()["offset"] == 5


def test_a_record_is_sent_as_it_came_unless_it_is_none(state: Path) -> None:
    """The same ones again go under the same name, others under another."""
    found = letters.letters(state)
    sent = [batch.to_pylist() for letter in found if (batch := letter.batch()) is not None]
    assert sent == [[{"x": [1, 2], "label": 3}], [{"x": 7, "label": 4}], [{"x": 2.5, "label": "b"}]]
    assert letters.producer_of(found) == letters.producer_of(letters.letters(state))
    assert letters.producer_of(found) != letters.producer_of(found[:2])


def test_letters_are_sent_with_those_of_the_same_columns(state: Path) -> None:
    """A refusal by columns keeps back none of the others; what is no record is not sent."""
    found = letters.letters(state)
    sent = [([letter.name for letter in some], batch.num_rows) for some, batch in letters.sendings(found)]
    assert sent == [(["log-1"], 1), (["log-2"], 1), (["learner-1"], 1)]
    [(some, batch)] = letters.sendings([found[0], found[0]])
    assert (len(some), batch.num_rows) == (2, 2)


def test_looking_holds_up_nobody(state: Path) -> None:
    """While somebody writes into the log its letters can be read."""
    with closing(Log(StateDirectory(state).log)) as log, log.file.writing():
        assert names(state) == ["log-1", "log-2", "log-3", "learner-1"]


def test_what_is_let_go_is_gone_and_numbers_are_not_used_again(state: Path) -> None:
    """Of both places; a letter that comes later has another name."""
    letters.drop(state, letters.letters(state, ["log-3", "learner-1"]))
    assert names(state) == ["log-1", "log-2"]
    with Log(StateDirectory(state).log).file.writing() as writer:
        letters.DeadLetters(writer).put([DeadLetter("main", "decode", "again")], 0)
    assert names(state) == ["log-1", "log-2", "log-4"]


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (lambda state: letters.letters(state / "nothing"), StateError, "is no state directory"),
        (lambda state: letters.letters(state, ["log-9"]), StateError, "has no dead letter 'log-9'"),
        (lambda state: letters.letters(state, reason="ugly"), ConfigError, "there is no reason 'ugly'"),
    ],
)
def test_what_is_not_there_is_said(
    state: Path, asked: Callable[[Path], Any], error: type[Exception], said: str
) -> None:
    """With the way to find it."""
    with pytest.raises(error, match=said) as caught:
        asked(state)
    assert caught.value.fix  # type: ignore[attr-defined]
