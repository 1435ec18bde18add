"""``streamkd export``: a published version as files that a device runs without torch and without streamkd.

    version ─► graph (ONNX) ─► run, compared with the version ─┬─► model.onnx, predict.py, model.report.json
                           └─► int8 ─► run, compared, timed ───┘   (the form that is kept)

The artefact is put into place once it answers as its version does: what lay there before stays until then.
"""

import json
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from streamkd import extras
from streamkd.errors import PluginError, StateError, StreamkdError
from streamkd.export import evidence as gathering
from streamkd.export import figures, graph
from streamkd.export.evidence import Evidence
from streamkd.export.figures import Answer
from streamkd.export.published import ABOUT, Published, load
from streamkd.export.quantized import quantize
from streamkd.students.networks import Student
from streamkd.teachers.served import Model, Served, weighted

FORMS = ("float32", "int8")
LOADER = Path(__file__).with_name("loader.py")
AGREE = 0.99  # of the records have the version's label, or the form is not kept
SLOWER = 1.05  # times the p50 of float32 at batch 1 is slower; less is not told from noise


def export(
    directory: Path, to: Path, *, part: str = "served", int8: bool = False, records: Path | None = None
) -> dict[str, Any]:
    """Write the version of a directory to ``to``, ``predict.py`` and the figures (also given back) beside it.

    ``part`` is ``served``: all of it, ``student``: the network that lies in it by itself, or the name of another
    student in it (``average``). With ``int8`` that form is kept if it is no slower and answers alike.

    Raises:
        StateError: there is no version, or none of that name in it. PluginError: it is no tensor programme, or its
            graph answers otherwise. RecordError: ``records`` cannot be read. MissingExtra: ``export`` is not installed.
        StreamkdError: the files cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        extras.need(package, "streamkd export")
    published = load(directory)
    published.model, names = _chosen(published, part)
    with_records = gathering.gather(directory, published, records)
    about = {"schema": 1, **graph.about(published), "model": part, "parts": names, "compared_by": with_records.told}
    try:
        _refuse_foreign(to)
        with TemporaryDirectory(dir=to.parent, prefix=".export-") as folder:
            forms, said = _forms(Path(folder), published, with_records, int8)
            report = {**about, "int8": said, "forms": forms}
            (Path(folder) / "int8.onnx" if said and said["kept"] else Path(folder) / "float32.onnx").replace(to)
        copyfile(LOADER, to.with_name("predict.py"))
        to.with_name(f"{to.stem}.report.json").write_text(json.dumps(report, indent=1), "utf-8")
    except OSError as fault:
        raise StreamkdError(f"cannot be written: {fault.strerror}", where=str(to), fix="name another") from None
    return report


def _chosen(published: Published, part: str) -> tuple[Model, list[str]]:
    """What is exported of a version, and the names of its parts."""
    model = published.model
    if not isinstance(model, Served):
        if part in ("served", "student"):
            return model, ["student"]
        raise StateError(f"the version is one network alone, got {part!r}", where="--model", fix="leave it out")
    if part == "served":
        return model, list(model.names)
    students = {name: each for name, each in zip(model.names, model.parts, strict=True) if isinstance(each, Student)}
    chosen = students.get(model.names[0] if part == "student" else part)
    if chosen is None:
        there = ", ".join(("served", "student", *students))
        raise StateError(f"the version has no student {part!r}", where="--model", fix=f"it has: {there}")
    weights = model.how.get("class_weights")
    name = next(name for name, each in students.items() if each is chosen)
    return (chosen if weights is None else weighted(chosen, weights)), [name]


def _forms(
    folder: Path, published: Published, evidence: Evidence, int8: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Write the graphs into the folder; a row of figures for each form, and what became of int8."""
    answer = {"version": figures.eager(published.model), "float32": _written(folder / "float32.onnx", published)}
    wanted = figures.answers(answer["version"], evidence.x)
    if int8:
        plain, rounded = (folder / f"{form}.onnx" for form in FORMS)
        quantize(plain, rounded, published.model, evidence.sample, graph.about(published))
        answer["int8"] = _session(rounded)
    cost = {"version": figures.cost(published.model, evidence.x)}
    cost |= {
        form: figures.graph_cost(folder / f"{form}.onnx", cost["version"]["flops"])
        for form in answer
        if form not in cost
    }
    quality = {form: figures.quality(each, wanted, evidence) for form, each in answer.items()}
    if (agreed := quality["float32"]["agreement"]) < AGREE:
        raise PluginError(
            f"the graph answers otherwise than its version: they agree on {agreed:.1%} of {len(wanted)} records",
            where="streamkd export",
            fix="export --model student",
        )
    timed = figures.latencies(answer, evidence.x)
    rows = [{"form": f, **quality[f], **cost[f], "latency_seconds": timed[f]} for f in answer]
    return rows, judged(rows[1], rows[2]) if int8 else None


def judged(plain: dict[str, Any], int8: dict[str, Any]) -> dict[str, Any]:
    """Whether int8 is kept, and why."""
    times = int8["latency_seconds"][0]["p50"] / plain["latency_seconds"][0]["p50"]
    reasons = []
    if int8["agreement"] < AGREE:
        reasons.append(f"it agrees with the version on {int8['agreement']:.1%} of the records, needed {AGREE:.0%}")
    if times > SLOWER:
        reasons.append(f"it takes {times:.2f} times as long at batch 1")
    ratio = int8["bytes"] / plain["bytes"]
    return {"kept": not reasons, "why": "; ".join(reasons), "bytes_ratio": ratio, "time_ratio": times}


def _written(path: Path, published: Published) -> Answer:
    graph.write(published, path)
    return _session(path)


def _session(path: Path) -> Answer:
    """The answers of an artefact, by the loader that goes with it."""
    from streamkd.export import loader  # onnxruntime is there by now

    model = loader.Exported(path)
    return lambda records: np.asarray(model.answer(records))


def _refuse_foreign(to: Path) -> None:
    """A published version, and a ``predict.py`` of somebody else, are left as they are."""
    loader = to.with_name("predict.py")
    if (to.parent / ABOUT).exists():
        raise StreamkdError("is the folder of a published version", where=str(to.parent), fix="export into another")
    if loader.is_file() and not loader.read_bytes().startswith(LOADER.read_bytes()[:40]):
        raise StreamkdError("there is another predict.py", where=str(loader), fix="export into a folder of its own")
