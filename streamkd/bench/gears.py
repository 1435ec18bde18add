"""Our learner at its gears: what is changed of the defaults, by the end of a line's name.

A batch of more records is a step for more of them, so all that a step costs is shared; parts that are left out cost
nothing.
"""

from streamkd.bench.streams import Tree

WITHOUT_PRESENT = [{"name": name} for name in ("ema", "memory", "analytic", "snapshot")]
MORE = ", memory x20"  # the memory of its stream is what it multiplies
GEARS: dict[str, Tree] = {
    "": {},
    MORE: {},
    **{f", batches of {rows}": {"stream": {"batch": {"size": rows}}} for rows in (5, 40, 160)},
    ", no followers of the present": {"teachers": WITHOUT_PRESENT},
    ", no closed form": {"teachers": [t for t in WITHOUT_PRESENT if t["name"] != "analytic"]},
    ", average alone": {
        "teachers": [{"name": "ema"}],
        "gate": {"name": "fixed"},
        "vicinal": {"rows": 0},
        "adapt": {"every": 0, "on_task_steps": 0},
    },
}
DRIFTING = ("", ", batches of 5", ", batches of 40", ", batches of 160", ", average alone")
"""Those that are run where the world changes."""
