"""The command ``export``."""

from pathlib import Path

import click

from streamkd.cli.options import EXISTING, FILE, FOLDER, folder
from streamkd.cli.terminal import table


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--to", type=FILE, required=True, help="The .onnx file; predict.py and the figures come beside it.")
@click.option(
    "--model", "part", default="served", show_default=True,
    help="served: all that answers; student: the network in it alone; or a student in it by name (average).",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="In int8 where that is no slower and answers alike.")
@click.option("--records", type=EXISTING, help="Labelled records to compare by; default: those of the memory.")
@click.option("--report", type=FOLDER, help="What `streamkd run --report` has filled: the table is put there as well.")
def export(directory: Path, to: Path, part: str, int8: bool, records: Path | None, report: Path | None) -> None:
    """A published version as ONNX, for devices: of a state DIRECTORY what it serves, or of a version's own."""
    folder(to.absolute().parent)
    from streamkd.evaluate import exported
    from streamkd.evaluate import report as reports
    from streamkd.export import artefact

    kept = None if report is None else reports.read(report)
    done = artefact.export(directory, to.absolute(), part=part, int8=int8, records=records)
    table(*exported.table(done))
    version, *said = exported.told(done)
    click.echo("\n".join(said))
    click.echo(f"wrote {version} to {to}, predict.py beside it")
    if report is not None and kept is not None:
        reports.put(report, {**kept, "export": done})
        click.echo(f"wrote the table into {report / 'report.html'}")
