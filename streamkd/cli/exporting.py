"""The command ``export``."""

from pathlib import Path
from typing import Any

import click

from streamkd.cli.options import EXISTING, FILE, folder
from streamkd.cli.terminal import show, table


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--to", type=FILE, required=True, help="The .onnx file; predict.py and the figures come beside it.")
@click.option(
    "--model", "part", default="served", show_default=True,
    help="served: all that answers; student: the network in it alone; or a student in it by name (average).",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="In int8 where that is no slower and answers alike.")
@click.option("--records", type=EXISTING, help="Labelled records to compare by; default: those of the memory.")
def export(directory: Path, to: Path, part: str, int8: bool, records: Path | None) -> None:
    """A published version as ONNX, for devices: of a state DIRECTORY what it serves, or of a version's own."""
    folder(to.absolute().parent)
    from streamkd.export import artefact

    report = artefact.export(directory, to.absolute(), part=part, int8=int8, records=records)
    head = ("form", "accuracy", "agreement", "greatest difference", "parameters", "bytes", "FLOPs")
    times = [f"{said} at {row['batch']}" for row in report["forms"][0]["latency_seconds"] for said in ("p50", "p95")]
    table((*head, *times), [_row(row) for row in report["forms"]])
    click.echo(f"compared by {report['compared_by']}")
    if (said := report["int8"]) is not None:
        kept = f"int8 is kept: {said['bytes_ratio']:.2f} of the bytes, {said['time_ratio']:.2f} of the time at batch 1"
        click.echo(kept if said["kept"] else f"int8 is not kept, float32 is written: {said['why']}")
    click.echo(f"wrote version {report['version']} ({', '.join(report['parts'])}) to {to}, predict.py beside it")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    quality = (show(row["accuracy"]), f"{row['agreement']:.4f}", f"{row['greatest_difference']:.1e}")
    cost = (f"{row[name]:,}" for name in ("parameters", "bytes", "flops"))
    times = (f"{1e6 * row[p]:.0f} µs" for row in row["latency_seconds"] for p in ("p50", "p95"))
    return (row["form"], *quality, *cost, *times)
