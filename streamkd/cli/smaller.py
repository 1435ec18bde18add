"""The command ``distil``."""

import dataclasses
import json
import re
from pathlib import Path

import click
import yaml

from streamkd.cli.options import FOLDER, STATE, folder
from streamkd.cli.terminal import bar, show, table

UNITS = {"": 1, "K": 1_000, "KI": 1_024, "M": 1_000_000, "MI": 1 << 20}


class Bytes(click.ParamType):
    """``100KB``, ``1.5MiB`` or a plain number."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KM]?I?)B?", str(value).upper())
        if found is None:
            self.fail(f"needed a size such as 100KB, got {value!r}", param, ctx)
        return int(float(found[1]) * UNITS[found[2]])


@click.command()
@STATE
@click.option("--out", type=FOLDER, required=True, help="Each student gets a folder in it; distil.json beside them.")
@click.option("--to", "wanted", multiple=True, metavar="YAML", help="A student: {name: mlp, hidden: [32]}. Repeatable.")
@click.option("--bytes", "sizes", multiple=True, type=Bytes(), help="The stream's student, cut to a size. Repeatable.")
@click.option("--steps", default=3_000, show_default=True, type=click.IntRange(1), help="So many for each.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of what is drawn.")
def distil(state: Path, out: Path, wanted: tuple[str, ...], sizes: tuple[int, ...], steps: int, seed: int) -> None:
    """What a state directory serves, as students of other sizes; without any, as the stream's own student.

    Each is a published version of its own: `streamkd export`, `streamkd.load` and the teacher `checkpoint` take it.
    """
    students = [_choice(text) for text in wanted]
    folder(out)
    from streamkd.export import smaller

    with bar("steps", None) as advance:
        found = smaller.distil(state, out, students=students, sizes=sizes, steps=steps, seed=seed, progress=advance)
    told = {
        **dataclasses.asdict(found),
        "students": [{**dataclasses.asdict(s), "path": str(s.path)} for s in found.students],
    }
    (out / "distil.json").write_text(json.dumps(told, indent=1), "utf-8")
    rows = [(one.name, f"{one.bytes:,}", show(one.accuracy), show(one.agreement), one.path) for one in found.students]
    served = (f"served, version {found.version}", f"{found.bytes:,}", show(found.accuracy), show(1.0), "")
    table(("student", "bytes", "accuracy", "agreement", "path"), [*rows, served])
    click.echo(f"accuracy and agreement with what is served: on {found.held_out} held-out records")


def _choice(text: str) -> dict[str, object]:
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError:
        given = None
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise click.BadParameter(
            f"needed a student such as '{{name: mlp, hidden: [32]}}', got {text!r}", param_hint="--to"
        )
    return given
