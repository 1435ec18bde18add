"""Our learner at its gears: what is changed of the defaults, by the end of a line's name.

A batch of more records is a step for more of them, so all that a step costs is shared; a rehearsal is a step more for
the same; parts that are left out cost nothing. The streams' own memories are of a few hundred records, as papers have
them; 64 MiB are the default.
"""

from streamkd.bench.streams import Tree

WITHOUT_PRESENT = [{"name": name} for name in ("ema", "memory", "analytic", "snapshot")]
GEARS: dict[str, Tree] = {
    "": {},
    ", 64 MiB remembered": {"memory": {"size": None, "bytes": 64 << 20}},
    ", one rehearsal": {"stream": {"batch": {"rehearsals": 1}}},
    ", eight rehearsals": {"stream": {"batch": {"rehearsals": 8}}},
    **{f", batches of {rows}": {"stream": {"batch": {"size": rows}}} for rows in (40, 160)},
    ", no followers of the present": {"teachers": WITHOUT_PRESENT},
    ", no closed form": {"teachers": [t for t in WITHOUT_PRESENT if t["name"] != "analytic"]},
    ", average alone": {
        "teachers": [{"name": "ema"}],
        "gate": {"name": "fixed"},
        "vicinal": {"rows": 0},
        "adapt": {"every": 0, "on_task_steps": 0},
    },
}
DRIFTING = ("", ", one rehearsal", ", batches of 40", ", batches of 160", ", average alone")
"""Those that are run where the world changes."""
