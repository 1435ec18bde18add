"""The table of an export (``streamkd.export``): each form beside its version, for a terminal and for a page."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("form", "accuracy", "agreement", "greatest difference", "parameters", "bytes", "FLOPs")


def table(exported: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows of what ``streamkd export`` has told."""
    times = [f"{said} at {row['batch']}" for row in exported["forms"][0]["latency_seconds"] for said in ("p50", "p95")]
    return (*HEAD, *times), [_row(form) for form in exported["forms"]]


def _row(form: Mapping[str, Any]) -> tuple[str, ...]:
    accuracy = "-" if form["accuracy"] is None else f"{form['accuracy']:.3f}"
    quality = (accuracy, f"{form['agreement']:.4f}", f"{form['greatest_difference']:.1e}")
    cost = (f"{form[name]:,}" for name in ("parameters", "bytes", "flops"))
    times = (f"{1e6 * row[p]:.0f} µs" for row in form["latency_seconds"] for p in ("p50", "p95"))
    return (form["form"], *quality, *cost, *times)


def told(exported: Mapping[str, Any]) -> Sequence[str]:
    """What was exported, by what it was compared, and what became of int8."""
    said = [f"version {exported['version']} ({', '.join(exported['parts'])})", f"compared by {exported['compared_by']}"]
    if (int8 := exported["int8"]) is None:
        return said
    times = f"{int8['bytes_ratio']:.2f} of the bytes, {int8['time_ratio']:.2f} of the time at batch 1"
    kept = f"int8 is kept: {times}" if int8["kept"] else f"int8 is not kept, float32 is written: {int8['why']}"
    return [*said, kept]
