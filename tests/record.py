"""What was tried and what was answered, as the page docs/hardening.md.

Nothing is written twice: a ``Table`` names a test, and its rows are those that the test is parametrized with. So what
stands on the page is executed and asserted by the test that is named above it. ``test_record.py`` holds the file to
that, and with ``--write-record`` writes it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from . import test_check, test_cli, test_commands, test_config, test_mistakes_at_work, test_plugins, test_testing
from .endtoend import test_attacks, test_bad_input
from .endtoend.attacks import Http, Put
from .producer import test_push
from .serve import test_supervisor
from .serve.http import test_api, test_hosts
from .serve.predictions import test_client, test_reader
from .state import test_coherence, test_versions
from .streams.encoding import test_codec, test_strange_columns
from .streams.files import test_strange_files
from .streams.ingest import test_flight, test_http, test_intake, test_jsonl, test_labels, test_tokens
from .streams.log import test_log, test_receipts
from .streams.replay import test_source

PAGE = Path(__file__).parent.parent / "docs" / "hardening.md"
Kind = Literal["input", "attack", "configuration", "plugin"]
NEEDED: dict[Kind, int] = {"input": 300, "attack": 60, "configuration": 100, "plugin": 40}
TITLES: dict[Kind, str] = {
    "input": "Bad inputs",
    "attack": "Attacks",
    "configuration": "Configurations",
    "plugin": "Plugins",
}
WIDTH = 110  # characters of a cell, of what has no title of its own


@dataclass(frozen=True)
class Table:
    """The rows of ``test``: ``said`` makes of one row what was sent and what was answered."""

    kind: Kind
    title: str
    about: str
    test: Callable[..., None]
    said: Callable[..., tuple[str, str]]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What was sent and what was answered, one pair for each case of the test."""
        return [self.said(*case) for case in cases(self.test)]

    @property
    def place(self) -> str:
        """The test's file and name."""
        path = Path(self.test.__code__.co_filename).relative_to(PAGE.parent.parent)
        return f"{path}::{self.test.__name__}"


def cases(test: Callable[..., None]) -> Iterator[tuple[Any, ...]]:
    """The argument sets of a test with one ``parametrize``."""
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    names = mark.args[0]
    alone = isinstance(names, str) and "," not in names
    for case in mark.args[1]:
        yield (case,) if alone else tuple(case)


def code(value: Any) -> str:
    """A value as it is written, cut where it is long."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    cut = text if len(text) <= WIDTH else f"{text[: WIDTH - 30]}… ({len(text):,} characters)"
    return f"`{cut}`" if cut else "nothing"


def plain(pattern: str) -> str:
    """The words of a regular expression, for people: what may come between them is an ellipsis."""
    words = re.sub(r"\[\\s\\S\]\*|\(\?s:\.\)\*|\.\*", " … ", pattern)
    words = re.sub(r"(?<!\\)\|", " or ", re.sub(r"\(([^()]*\|[^()]*)\)", r"\1", words)).replace(" +", " ")
    return re.sub(r"\\(.)", r"\1", words.replace("\\n", " ")).replace("  ", " ").strip()


def written(tree: Any) -> str:
    """A piece of configuration as one writes it in a line."""
    return code(
        yaml.safe_dump(tree, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()
    )


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    """The whole page in Markdown."""
    sums = {kind: sum(len(table.rows) for table in TABLES if table.kind == kind) for kind in NEEDED}
    counts = [
        f"| [{TITLES[kind].lower()}](#{TITLES[kind].lower().replace(' ', '-')}) | {sums[kind]} |" for kind in NEEDED
    ]
    parts = [HEAD, "\n".join(["| what | rows |", "|---|--:|", *counts])]
    for kind in NEEDED:
        parts += [f"## {TITLES[kind]}", *(section(table) for table in TABLES if table.kind == kind)]
    return "\n\n".join(parts) + "\n"


def section(table: Table) -> str:
    head = f"### {table.title}\n\n{table.about} {len(table.rows)} rows, `{table.place}`."
    lines = [f"| {cell(sent)} | {cell(answered)} |" for sent, answered in table.rows]
    return "\n".join([head, "", "| tried | answered |", "|---|---|", *lines])


HEAD = """# What was tried, and what was answered

Odd, broken and hostile input at every door, configurations that cannot be meant, plugins with a mistake. Nobody
writes this page: it is made of the rows that tests execute (`pytest tests/test_record.py --write-record`), so each line
is asserted, status and words, whenever the tests run, and a test holds the page to them. Above each table stands the
test that runs it. An ellipsis in an answer stands for words between, or for what differs from case to case: a place, a
number, a name."""


def _places(title: str, _: Any, answers: str) -> tuple[str, str]:
    """A strange column's answer in each of the places of a record."""
    said = {"t": "taken", "r": "bad rows refused alone", "-": "batch refused"}
    places = {
        answer: [place for place, each in zip(test_strange_columns.GOOD, answers, strict=True) if each == answer]
        for answer in said
    }
    return title, "; ".join(f"{said[answer]} as {', '.join(found)}" for answer, found in places.items() if found)


def _attack(row: Http | Put) -> tuple[str, str]:
    answers = f"gRPC status {row.status}" if isinstance(row, Put) else " or ".join(map(str, row.answers))
    return row.title, f"{answers}: {row.words}" if row.words else answers


def _file(row: test_strange_files.Strange) -> tuple[str, str]:
    refused, words = row.said.startswith("!"), plain(row.said.removeprefix("!"))
    return (
        f"{row.by}: {row.title}",
        f"refused: {words}" if refused else f"taken: {words}" if words else "taken, without a word",
    )


def _again(title: str, first: bytes, second: bytes, answered: tuple[int, Any], records: int) -> tuple[str, str]:
    status, duplicate = answered
    known = {None: "conflict", True: "known as a duplicate", False: "taken as new"}[duplicate]
    return title, f"{status}, {known}; the log holds {records}"


def _exposed(settings: Any, allowed: bool) -> tuple[str, str]:
    return written({"serve": settings}), "taken" if allowed else "refused: … insecure …"


FATES = {"refused": "refused at start", "off": "off", "ends": "the learner ends, and is started again"}
TABLES = [
    Table(
        "input",
        "Columns of every Arrow type, in every place of a record",
        "Both doors; the places are input, label, task, id and event time.",
        test_strange_columns.test_a_strange_column,
        _places,
    ),
    Table(
        "input",
        "Event times",
        "In Arrow, both doors; what cannot be held is refused with its row.",
        test_codec.test_an_event_time_keeps_its_value_or_refuses_its_row,
        lambda title, kind, value, held: (
            title,
            f"taken as {held}" if held else "row refused: decode, years 1 to 9999",
        ),
    ),
    Table(
        "input",
        "Arrow batches that do not fit the schema",
        "Refused whole, with the column, what it needs and what came.",
        test_codec.test_a_schema_that_does_not_fit_is_refused_with_column_needed_and_got,
        lambda case: (case, f"column … needed … {test_codec.MISFITS[case][2]}"),
    ),
    Table(
        "input",
        "Arrow rows that cannot be learned",
        "Each is refused alone, and kept as a dead letter with its reason.",
        test_codec.test_a_bad_row_is_refused_alone_with_its_reason,
        lambda case: (case, test_codec.BAD_ROWS[case][3]),
    ),
    Table(
        "input",
        "Bodies of Arrow over HTTP",
        "Refused whole; the next request is served.",
        test_http.test_a_body_that_cannot_be_taken_is_refused_whole,
        lambda case: (case, ": ".join(map(str, filter(None, test_http.REFUSED[case][1:])))),
    ),
    Table(
        "input",
        "Requests refused by their head",
        "By stream, type, encoding and announced size.",
        test_http.test_a_request_can_be_refused_before_its_body,
        lambda stream, headers, status: (f"{code(headers)} to {code(stream)}", str(status or "the body is read")),
    ),
    Table(
        "input",
        "Producers and sequences that are none, over HTTP",
        "Nothing is guessed: that would lose or double a batch.",
        test_http.test_headers_that_are_no_name_are_refused,
        lambda producer, sequence: (
            f"producer {code(producer)}, sequence {code(sequence)}",
            "400: … Streamkd-Sequence …",
        ),
    ),
    Table(
        "input",
        "A number that is used again",
        "A second body under the same producer and sequence.",
        test_receipts.test_a_number_that_is_used_again,
        _again,
    ),
    Table(
        "input",
        "Lines of JSON",
        "Between two good lines, which are taken.",
        test_jsonl.test_a_bad_line_is_refused_alone_with_its_reason,
        lambda line, reason: (code(line), reason),
    ),
    Table(
        "input",
        "Labels of predictions",
        "Kept are `one` of a row, `two` of two rows, and `done`, which has its label.",
        test_labels.test_an_answer_to_labels,
        lambda what, body, status, said: (f"{what}: {code(body)}", f"{status}: {plain(said)}"),
    ),
    Table(
        "input",
        "Values of JSON lines, column by column",
        "In a line that is good otherwise.",
        test_jsonl.test_each_column_refuses_what_is_not_its_own,
        lambda change, reason: (code(change), reason),
    ),
    Table(
        "input",
        "Flight: schemas",
        "Refused whole as INVALID_ARGUMENT.",
        test_flight.test_a_schema_that_does_not_fit_is_refused_whole,
        lambda case: (f"another {case}", "column … needed …"),
    ),
    Table(
        "input",
        "Flight: batch metadata",
        "Refused; nothing is stored.",
        test_flight.test_metadata_that_is_no_name_is_refused,
        lambda note: (code(note), "… batch metadata …"),
    ),
    Table(
        "input",
        "Batches past a limit",
        "The answer names the limit's key.",
        test_intake.test_a_batch_past_a_limit_is_refused_whole,
        lambda limits, said: (f"ten rows under {written(limits)}", f"{said}; stream.limits.{next(iter(limits))}"),
    ),
    Table(
        "input",
        "Whole batches on a running server",
        "Over HTTP (422) and Flight alike.",
        test_bad_input.test_a_batch_that_does_not_fit_is_refused_whole,
        lambda rows, words: (next(row[0] for row in test_bad_input.WHOLE if row[1] is rows), " … ".join(words)),
    ),
    Table(
        "input",
        "Predictions in JSON",
        "Open Inference Protocol; 400 with an id to ask about.",
        test_api.test_a_wrong_request_is_told_what_was_needed,
        lambda name: (name, f"400: {test_api.BAD[name][1]}"),
    ),
    Table(
        "input",
        "Predictions that are no JSON",
        "The same.",
        test_api.test_broken_and_too_deep_json_is_refused,
        lambda content, message: (code(content), f"400: {message}"),
    ),
    Table(
        "input",
        "Predictions with binary tensors",
        "A tensor of 12 bytes.",
        test_api.test_wrong_binary_sizes_are_refused,
        lambda raw, size, length, message: (
            f"{len(raw)} bytes, binary_data_size {size}, JSON of {length or 'its length'}",
            f"400: {message}",
        ),
    ),
    Table(
        "input",
        "Predictions in other encodings",
        "By Content-Encoding.",
        test_api.test_an_encoding_that_cannot_be_read_is_said,
        lambda encoding, content, status: (
            f"{encoding}: {code(content) if content.isascii() else 'a stream that is cut off'}",
            str(status),
        ),
    ),
    Table(
        "input",
        "Large predictions",
        "They are read in another process, which says the same.",
        test_reader.test_what_is_wrong_is_said_as_here,
        lambda body, kind, words: (code(body), f"{kind.__name__}: {words}"),
    ),
    Table(
        "input",
        "Paths",
        "GET.",
        test_api.test_what_is_not_there_is_said_in_json,
        lambda path, status: (code(path), str(status)),
    ),
    Table(
        "input",
        "Rollbacks",
        "The served version stays.",
        test_api.test_a_wrong_rollback_is_said,
        lambda content, status: (code(content), str(status)),
    ),
    Table(
        "input",
        "Tokens in requests",
        "The header Authorization.",
        test_tokens.test_anything_else_is_unknown,
        lambda header: (code(header), "unknown"),
    ),
    Table(
        "input",
        "Token files",
        "The error names the file.",
        test_tokens.test_a_file_that_cannot_be_used_is_said,
        lambda text: ("no file" if text is None else code(text), "refused: … tokens.json …"),
    ),
    Table(
        "input",
        "Tokens to be made",
        "With `streamkd tokens add`, where one is named taken.",
        test_tokens.test_a_token_that_cannot_be_made_is_said,
        lambda name, scopes: (f"name {code(name)}, scopes {code(', '.join(scopes))}", "refused"),
    ),
    Table(
        "input",
        "Files of one's own",
        "`init` writes a configuration for the file, `play` replays it under one.",
        test_strange_files.test_what_is_said_of_a_strange_file,
        _file,
    ),
    Table(
        "input",
        "Where records are pushed to",
        "`streamkd push --to`.",
        test_push.test_urls_that_lead_nowhere_are_refused,
        lambda url, said: (code(url), said),
    ),
    Table(
        "input",
        "Commands and files, as typed",
        "Behind `streamkd`, in a folder of files of every kind; the exit code and words, and nothing is written.",
        test_commands.test_what_is_said_of_a_command,
        lambda typed, code, said: (f"`{typed}`", f"{code}: {said}"),
    ),
    Table(
        "input",
        "Columns that predictions are asked for",
        "`streamkd predict`, with the model's type and the values of a record.",
        test_client.test_a_column_is_sent_as_it_is_or_refused,
        lambda title, datatype, size, column, said: (
            f"{title}: {datatype}, {size} a record",
            said if isinstance(said, str) else "sent as it is",
        ),
    ),
    Table(
        "input",
        "Answers of servers that are none of ours",
        "`streamkd predict --to` somebody else.",
        test_client.test_what_no_server_of_ours_says_is_said,
        lambda title, status, body, said: (f"{title}: {status}, {code(body)}", said),
    ),
    Table(
        "input",
        "Damage to the log",
        "What is before it can be read, and the server says where it is.",
        test_log.test_a_damaged_batch_is_named_and_not_read,
        lambda title, damage, said: (title, said),
    ),
    Table(
        "input",
        "State directories whose parts do not fit",
        "Refused with a line for each part before anything is written; exit code 3.",
        test_coherence.test_parts_that_do_not_fit_are_refused_in_words,
        lambda name: (name, "; ".join(map(plain, test_coherence.MISFITS[name][1]))),
    ),
    Table(
        "input",
        "Published versions that were changed",
        "Not served.",
        test_versions.test_changed_files_are_not_served,
        lambda damage: (damage, "needed sha256 …"),
    ),
    Table(
        "attack",
        "Over HTTP",
        "To one running server: the status that is meant, no traceback, and nobody else notices.",
        test_attacks.test_over_http,
        _attack,
    ),
    Table("attack", "Over Flight", "To the same.", test_attacks.test_over_flight, _attack),
    Table(
        "attack",
        "What is not offered over Flight",
        "UNIMPLEMENTED, without a path of ours.",
        test_flight.test_what_is_not_offered_is_refused_without_a_traceback,
        lambda call: (code(next(name for name in call.__code__.co_names if "_" in name)), "… is not offered …"),
    ),
    Table(
        "attack",
        "A page of another site",
        "Posts to rollback, streams and infer, of type text/plain.",
        test_hosts.test_another_sites_page_cannot_act,
        lambda says: (code(says), "403"),
    ),
    Table(
        "configuration",
        "Mistakes in a file",
        "Each is said with file, line and dotted path.",
        test_config.test_a_mistake_is_refused_with_its_place,
        lambda old, new, where, message, fix: (code(new.strip()), f"{where}: {message}" + (f"; {fix}" if fix else "")),
    ),
    Table(
        "configuration",
        "What is no configuration",
        "The same.",
        test_config.test_what_is_no_configuration_is_refused,
        lambda text, where, message: (code(text[-80:]), f"{where}: {message}"),
    ),
    Table(
        "configuration",
        "Overrides",
        "`--set`.",
        test_config.test_a_bad_override_is_refused,
        lambda override, where, message: (code(override), f"{where}: {message}"),
    ),
    Table(
        "configuration",
        "Documents without end",
        "Said within a second, in a file and after `--set`.",
        test_config.test_a_document_has_an_end,
        lambda text, words: (code(text), words),
    ),
    Table(
        "configuration",
        "Ids of teachers",
        "They are names in metrics and checkpoints.",
        test_config.test_a_teachers_id_is_no_path,
        lambda name: (code(name), "refused"),
    ),
    Table(
        "configuration",
        "What cannot be built",
        "`streamkd check --set`: every part is built once.",
        test_cli.test_check_builds_what_is_named,
        lambda override, message: (code(override), message),
    ),
    Table(
        "configuration",
        "What `check` says",
        "`streamkd check --set`, on the embedded configuration: exit code and words.",
        test_check.test_what_check_says,
        lambda override, code, said: (f"`{override}`", f"{code}: {said}" if code else "fine"),
    ),
    Table(
        "configuration",
        "Sources that contradict themselves",
        "Options of `replay`.",
        test_source.test_options_that_contradict_each_other_are_refused,
        lambda options, said: (written(options), said),
    ),
    Table(
        "configuration",
        "Doors beyond loopback",
        "Refused without TLS and tokens, unless `insecure` takes the risk.",
        test_supervisor.test_a_bind_beyond_loopback_needs_tls_and_tokens,
        _exposed,
    ),
    Table(
        "plugin",
        "Plugins that break their contract",
        "Each is right but for one thing; `streamkd.testing` says the clause, what was seen and how to mend it.",
        test_testing.test_a_mistake_is_found_by_the_clause_that_is_meant,
        lambda mistake: (f"{mistake.group}: {mistake.name}", mistake.clause),
    ),
    Table(
        "plugin",
        "Plugins that go wrong in a learner",
        "What is wrong at once is refused at start; who goes wrong later is off after three times.",
        test_mistakes_at_work.test_a_mistake_is_named_and_harms_nobody,
        lambda group, case: (f"{group}: {case.name}", f"{FATES[case.fate]}: {' … '.join(case.said)}"),
    ),
    Table(
        "plugin",
        "Plugins that bring what is no kind",
        "The plugin is off, and listed with its error.",
        test_plugins.test_what_is_no_kind_is_refused,
        lambda hook, yielded, said: (f"{hook}: {code(re.sub(' at 0x.*?>|<class |>', '', str(yielded)))}", said),
    ),
]
