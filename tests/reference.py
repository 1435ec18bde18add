"""The pages of docs/reference/ that nobody writes: of the models, the commands, the hooks, the metrics, the errors.

``PAGES`` has a function for each; ``test_reference.py`` holds the files to them, and with ``--write-reference`` writes
them.
"""

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from streamkd import errors, hookspecs, records, telemetry, testing
from streamkd.cli import cli
from streamkd.config import EMBEDDED, Config
from streamkd.hookspecs import Group, Kind
from streamkd.plugins import SINGULAR, Registry

from .streams.files.kinds import KINDS

PACKAGE = Path(__file__).parent.parent / "streamkd"
FOLDER = PACKAGE.parent / "docs" / "reference"
MADE = "Made of {} by `pytest tests/test_reference.py --write-reference`; a test holds it to them."
NUMBER = (ast.Constant, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load)
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}  # JSON schema's words


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *escaped))


def configuration() -> str:
    """Every key of the tree, node by node, then the options of every built-in kind."""
    schema = Config.model_json_schema()
    titles = _titles(schema)
    parts = ["# Configuration", MADE.format("the configuration's models"), _begin()]
    parts += ["## The tree", _keys(schema, titles)]
    for name, title in titles.items():
        node = schema["$defs"][name]
        parts += [f"## {title}", node.get("description", "").partition("\n\n")[0], _keys(node, titles)]
    parts += [part for group, kinds in _built_in() for part in (f"## The {group}", *map(_kind, kinds)) if kinds]
    return _page(parts)


def commands() -> str:
    """What ``--help`` says of each command and each of its subcommands."""
    parent = click.Context(cli, info_name="streamkd", terminal_width=100, help_option_names=["-h", "--help"])
    texts = [f"## {context.command_path}\n\n```text\n{context.get_help()}\n```" for context in _contexts(parent)]
    return _page(["# Commands", MADE.format("the commands' own help"), EXIT_CODES, *texts])


def hooks() -> str:
    """Every hook with how its kinds are built, its contract check, and the kinds that come with the package."""
    parts = ["# Hooks", MADE.format("`streamkd/hookspecs.py` and what is registered"), inspect.getdoc(hookspecs) or ""]
    for group, kinds in _built_in():
        said = inspect.getdoc(getattr(hookspecs, f"streamkd_{group}")) or ""
        check = f"check_{SINGULAR[group]}"
        assert callable(getattr(testing, check))
        table = rows(("built in", "is"), [(f"`{kind.name}`", kind.summary) for kind in kinds])
        brought = table if kinds else "None is built in."
        parts += [f"## `streamkd_{group}`", said, f"Checked by `streamkd.testing.{check}`.", brought]
    return _page(parts)


def metrics() -> str:
    """Every family of ``/metrics``."""
    lines = [
        (f"`{telemetry.PREFIX}{name}`", family.type, ", ".join(f"`{label}`" for label in family.labels), family.help)
        for name, family in telemetry.FAMILIES.items()
    ]
    about = f"All families together have at most {telemetry.SERIES} series."
    table = rows(("metric", "type", "labels", "is"), lines)
    return _page(["# Metrics", MADE.format("`streamkd/families.py`"), about, table])


def mistakes() -> str:
    """The tree of errors, what each means with its exit code, and the reasons for which a row is refused."""
    tree = inspect.getdoc(errors) or ""
    found = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, errors.StreamkdError)]
    lines = [(f"`{e.__name__}`", str(e.exit_code), (inspect.getdoc(e) or "").partition("\n\n")[0]) for e in found]
    reasons = ", ".join(f"`{reason}`" for reason in get_args(records.RejectReason))
    drawn = "```text\n" + tree.partition("::\n\n")[2].strip() + "\n```"
    table = rows(("error", "exit code", "means"), lines)
    refused = f"A row that cannot be learned is a dead letter with one of these reasons: {reasons}."
    return _page(["# Errors", MADE.format("`streamkd/errors.py`"), drawn, table, refused])


def constants() -> str:
    """The numbers in the rooms that learn, with what their comments say and the decisions of their modules."""
    about = (
        "Numbers that stand in a module, because nobody is meant to set them; those that one may set are in "
        "[configuration](configuration.md). The pages are the [decisions](../decisions/README.md) about the module: "
        "where there is none, its numbers have no figures."
    )
    lines = [
        (f"`{names}`", f"`{value}`", said, f"`{module}`", _decisions(module))
        for room in LEARNING
        for file in sorted((PACKAGE / room).rglob("*.py"))
        for module in (file.relative_to(PACKAGE.parent).as_posix(),)
        for names, value, said in _numbers(file.read_text("utf-8"))
    ]
    table = rows(("constant", "value", "is", "module", "pages"), lines)
    return _page(["# Constants", MADE.format("the modules"), about, table])


def files() -> str:
    """Files as people have them, and what `streamkd init` says of each."""
    lines = [(kind.title, "refused" if kind.refused else "taken", kind.said) for kind in KINDS]
    about = (
        "Each is made small in `tests/streams/files/kinds.py`, described, played, pushed and asked about: the student "
        "must see the same numbers by all three ways, and no record may be lost but those without a label. What is no "
        "stream of classes is refused with one sentence. [Files as they are](../how-to/files.md) has the whole story."
    )
    return _page(
        [
            "# Files that were tried",
            MADE.format("`tests/streams/files/kinds.py`"),
            about,
            rows(("file", "it is", "init says or writes"), lines),
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "commands.md": commands,
    "hooks.md": hooks,
    "metrics.md": metrics,
    "errors.md": mistakes,
    "constants.md": constants,
    "files.md": files,
}
LEARNING = (
    "students",
    "gates",
    "losses",
    "replay",
    "teachers",
    "analytic",
    "learning",
    "meta",
    "avalanche",
    "pretraining",
)
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 a state directory whose parts do not fit, "
    "130 stopped."
)


def _begin() -> str:
    return f"Without a file `streamkd serve` takes this one:\n\n```yaml\n{EMBEDDED}```"


def _page(parts: Sequence[str]) -> str:
    """Parts with a blank line between, code in single marks as Markdown has it."""
    return re.sub(r"(?<!`)``(?!`)", "`", "\n\n".join(part for part in parts if part)) + "\n"


def _titles(schema: dict[str, Any]) -> dict[str, str]:
    """Of each node below the tree, in order: the path at which it stands, or its name where it stands at several."""
    places: dict[str, list[str]] = {}

    def look(node: dict[str, Any], path: str) -> None:
        for key, field in node.get("properties", {}).items():
            for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(field)):
                places.setdefault(name, []).append(f"{path}{key}")
                look(schema["$defs"][name], f"{path}{key}.")

    look(schema, "")
    return {name: f"`{found[0]}`" if len(set(found)) == 1 else name for name, found in places.items()}


def _keys(node: dict[str, Any], titles: Mapping[str, str]) -> str:
    needed = node.get("required", [])
    lines = [
        (f"`{key}`", _type(field, titles), "needed" if key in needed else _default(field), field.get("description", ""))
        for key, field in node.get("properties", {}).items()
    ]
    return rows(("key", "takes", "default", "means"), lines) if lines else "It has no options."


def _type(field: dict[str, Any], titles: Mapping[str, str]) -> str:
    """What a value may be, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        anchor = re.sub(r"[^a-z0-9_-]", "", titles.get(name, "").lower())
        return f"[{titles[name]}](#{anchor})" if anchor else name
    if "anyOf" in field:
        return " or ".join(_type(each, titles) for each in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{each}`" for each in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field['items'], titles)}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {_type(inner, titles)}" if isinstance(inner, dict) else "mapping"
    bounds = " and ".join(f"{sign} {_number(field[name])}" for name, sign in BOUNDS.items() if name in field)
    return f"{'whole number' if field['type'] == 'integer' else field['type']} {bounds}".strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(field: dict[str, Any]) -> str:
    """The default as one writes it, of a choice its name; of a node its own keys say it."""
    value = field.get("default")
    if "default" not in field or (isinstance(value, dict) and value and "name" not in value):
        return ""
    named = [
        each["name"] for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict) and each
    ]
    return ", ".join(f"`{name}`" for name in named) or f"`{json.dumps(value, ensure_ascii=False)}`"


def _built_in() -> Iterator[tuple[Group, list[Kind]]]:
    """The kinds that come with the package itself, group by group, whatever else is installed."""
    registry = Registry.load()
    own = {name for status in registry.report() if status.distribution == "streamkd" for name in status.kinds}
    for group in get_args(Group):
        yield group, [registry.kind(group, name) for name in registry.names(group) if f"{group}/{name}" in own]


def _kind(kind: Kind) -> str:
    schema = kind.options.model_json_schema()
    said = f"{kind.summary[:1].upper()}{kind.summary[1:]}."
    return "\n\n".join([f"### `{kind.name}`", said, _keys(schema, {})])


def _numbers(source: str) -> Iterator[tuple[str, str, str]]:
    """Names, value and comment of each constant of a module that is a number, or some."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not all(isinstance(part, NUMBER) for part in ast.walk(node.value)):
            continue
        names, _, value = (ast.get_source_segment(source, node) or "").partition(" = ")
        if names.isupper() and not re.search("[\"']", value):
            above = lines[node.lineno - 2]
            beside = lines[node.lineno - 1].partition("  # ")[2]
            yield names, value, beside or (above.removeprefix("# ") if above.startswith("# ") else "")


def _decisions(module: str) -> str:
    """Links to the pages that say that they decide a module."""
    pages = sorted((FOLDER.parent / "decisions").glob("0*.md"))
    heads = {page: page.read_text("utf-8").partition("\n## ")[0] for page in pages}
    return ", ".join(f"[{p.name[:4]}](../decisions/{p.name})" for p, head in heads.items() if f"`{module}`" in head)


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name, command in sorted(context.command.commands.items()):
            yield from _contexts(click.Context(command, context, name, terminal_width=100))
