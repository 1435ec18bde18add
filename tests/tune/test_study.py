"""The study: whole lines whoever is killed, one driver, proposals, pruning and importances that Optuna gives."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkd.errors import StateError, StateInUse
from streamkd.tune import study as studies
from streamkd.tune.settings import Settings
from streamkd.tune.space.domains import Categorical, Interval, Parameter
from streamkd.tune.space.space import Space
from streamkd.tune.study import Asked, Study

sys.path.append(str(Path(__file__).parent))
from searches import CONFIG, REGISTRY, SPACE, header, put, read_as, search

RATE = "optimizer.learning_rate"


def ask(study: Study, space: Space = SPACE, **settings: Any) -> Asked | None:
    return study.ask(space, Settings(**{"sampler": "random", **settings}), CONFIG, REGISTRY)


def told(study: Study) -> list[Any]:
    return [(one.number, one.values, one.state, one.reason, one.readings) for one in study.trials()]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Header and trials come back as they were given, by number, also through another object of the same place."""
    study = search(tmp_path / "s", 16)
    again = Study.open(str(tmp_path / "s"))
    assert told(again) == told(study)
    assert again.header == study.header
    assert again.header | header(settings={"trials": 16}) == again.header
    assert [one.number for one in again.trials()] == list(range(16))


def test_trial_0_is_the_configuration_wherever_it_stands(tmp_path: Path) -> None:
    """It is told for those of its values that the space has; outside a domain it is itself all the same."""
    space = Space((Parameter(RATE, Interval(0.1, 1.0, log=True)), Parameter("memory.replay", Interval(10, 120), True)))
    study = Study.create(tmp_path, header())
    asked = ask(study, space)
    assert asked is not None
    assert (asked.number, asked.values) == (0, space.values_of(CONFIG, REGISTRY))
    assert asked.trial.params == {"memory.replay": CONFIG.memory.replay}


def test_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    """A figure that is not finite is none; a trial that ends with it has failed."""
    study = Study.create(tmp_path, header())
    put(study, {}, "finished", read_as([float("nan")]))
    (one,) = Study.open(tmp_path).trials()
    assert (one.state, one.reason, one.objective("accuracy")) == ("failed", "nan: an objective is not finite", None)


def test_a_second_search_in_one_place_is_refused(tmp_path: Path) -> None:
    """A search is begun once; the error says how to go on with it."""
    Study.create(tmp_path, header())
    with pytest.raises(StateInUse, match="--resume"):
        Study.create(tmp_path, header())


def test_what_is_no_search_is_refused(tmp_path: Path) -> None:
    """No journal, and a damaged one: each is said."""
    with pytest.raises(StateError, match="no search directory"):
        Study.open(tmp_path)
    assert not studies.exists(tmp_path)
    search(tmp_path / "s", 3)
    journal = tmp_path / "s" / "journal.log"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:5], lines[5][:20], *lines[6:], ""]))
    with pytest.raises(StateError, match=r"journal.log: is damaged"):
        Study.open(tmp_path / "s")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A file where a folder should be is an error of ours that names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        Study.create(tmp_path / "file" / "s", header())


DRIVER = """
import sys, time
from streamkd.tune.study import Study
with Study.open(sys.argv[1]).driven():
    print("mine", flush=True)
    time.sleep(60)
"""


def test_two_drivers_of_one_search_are_refused(tmp_path: Path) -> None:
    """The second is told the first one's process id; when that is killed, the search is free again."""
    study = Study.create(tmp_path, header())
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "mine\n"
        assert study.driver() == driver.pid
        with pytest.raises(StateInUse, match=f"process {driver.pid} "), study.driven():
            pass
        driver.kill()
        driver.wait()
    with study.driven():
        assert study.driver() == os.getpid()
    assert study.driver() is None


WRITER = """
import sys
sys.path.append(sys.argv[2])
from searches import put
from streamkd.tune.study import Study
study = Study.open(sys.argv[1])
with study.driven():
    print("begun", flush=True)
    while True:
        put(study, {"text": "x" * 20_000}, "finished", {"records": 1, "objectives": {"accuracy": 0.5}, "seconds": 1.0})
        print(sum(one.state == "finished" for one in study.trials()), flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_whole_trials(tmp_path: Path) -> None:
    """Three writers, each killed with -9 at a random moment: the next goes on, and no trial that was over is lost."""
    Study.create(tmp_path, header())
    dice, said = random.Random(5), 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begun\n"
            time.sleep(dice.uniform(0.05, 0.3))
            writer.send_signal(signal.SIGKILL)
            said = max([said, *map(int, writer.stdout.read().split("\n")[:-1])])
        over = [one for one in Study.open(tmp_path).trials() if one.state == "finished"]
        assert len(over) in (said, said + 1)


def test_a_line_that_was_cut_off_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Cut at any place of its end, the journal is read as far as it is whole, and is written on by the next driver."""
    whole = search(tmp_path / "whole", 3).place / "journal.log"
    text = whole.read_bytes()
    ends = [at + 1 for at, sign in enumerate(text) if sign == ord("\n")]
    for cut in range(ends[-2] - 2, len(text), 7):
        place = tmp_path / str(cut)
        shutil.copytree(whole.parent, place)
        (place / "journal.log").write_bytes(text[:cut])
        (place / "journal.log.lock").symlink_to("journal.log")  # Optuna's, which a killed driver held
        study = Study.open(place)
        with study.driven():
            put(study, {}, "finished", read_as([0.5]))
        assert [one.number for one in Study.open(place).trials()] == [0, 1, 2, 3]


def test_what_was_under_way_begins_again(tmp_path: Path) -> None:
    """Its number and values come first, without the readings of before; what was over stays as it was."""
    study = Study.create(tmp_path, header())
    put(study, {}, "finished", read_as([0.5]))
    before = ask(study)
    assert before is not None
    study.read(before, 1, read_as([0.6], 500), prune=False)
    again = Study.open(tmp_path)
    with again.driven():
        assert [(one.number, one.state, one.records) for one in again.trials()] == [
            (0, "finished", 9000),
            (1, "waiting", 0),
        ]
        asked = ask(again)
        assert asked is not None
        assert (asked.number, asked.values) == (before.number, before.values)
        again.end(asked, "failed", "crash: it ended")
        assert (later := ask(again)) is not None
        assert later.number == 2


PARTS = Space(
    (
        Parameter("rate", Interval(1e-4, 1.0, log=True)),
        Parameter("share", Interval(0.0, 1.0, step=0.1)),
        Parameter("every", Interval(1, 256, log=True), integer=True),
        Parameter("kind", Categorical(("a", None, 3))),
        Parameter("depth", Interval(-1.0, 1.0), when={"kind": ("a",)}),
    )
)


def proposed(
    place: Path, figure: Callable[[Mapping[str, Any]], float], count: int = 20, **settings: Any
) -> list[Mapping[str, Any]]:
    """The values of a search in which each proposal is told before the next; trial 0 has none."""
    study = Study.create(place, header())
    put(study, {"rate": 1.0}, "finished", read_as([-9.0]))
    for _ in range(count):
        asked = ask(study, PARTS, **{"trials": count + 1, **settings})
        assert asked is not None
        study.read(asked, 1, read_as([figure(asked.values)]), prune=False)
        study.end(asked, "finished")
    return [one.values for one in study.trials()[1:]]


def test_the_same_seed_proposes_the_same(tmp_path: Path) -> None:
    """Two searches with the same results are the same; another seed gives another search."""
    for sampler in ("optuna", "random"):
        first, again, other = (
            proposed(tmp_path / f"{sampler}{at}", lambda v: -v["rate"], 12, sampler=sampler, seed=seed)
            for at, seed in enumerate((0, 0, 1))
        )
        assert first == again
        assert first != other


def test_optuna_goes_where_the_figures_are_better(tmp_path: Path) -> None:
    """With a figure that is best at one rate, late proposals are nearer to it than random ones (medians)."""

    def figure(values: Mapping[str, Any]) -> float:
        return -abs(float(np.log10(values["rate"])) + 2)

    def late(sampler: str) -> float:
        found = [
            proposed(tmp_path / f"{sampler}{seed}", figure, 36, sampler=sampler, seed=seed)[18:] for seed in range(2)
        ]
        return float(np.median([figure(one) for each in found for one in each]))

    assert late("optuna") > late("random") + 0.2


def test_failures_of_the_values_are_told_as_worse(tmp_path: Path) -> None:
    """Where trials with a high rate gave NaN, few later ones have it."""
    study = Study.create(tmp_path, header())
    put(study, {}, "finished", read_as([0.9]))
    space = Space((Parameter("rate", Interval(1e-4, 1.0, log=True)),))
    rates = [*np.geomspace(1e-4, 1e-3, 10), *np.geomspace(1e-2, 1.0, 10)]
    later = []
    for number in range(1, 31):
        if number <= len(rates):
            study._enqueue(number, {"rate": float(rates[number - 1])}, space)
        asked = ask(study, space, sampler="optuna", trials=60)
        assert asked is not None
        later += [asked.values["rate"]] if number > len(rates) else []
        bad = 10 < number <= 20
        study.read(asked, 1, read_as([0.9], 500), prune=False)
        study.end(asked, "failed" if bad else "finished", "nan: the loss is nan" if bad else "")
    assert sum(rate < 5e-3 for rate in later) >= 8


def test_a_grid_is_walked_whole_and_ends(tmp_path: Path) -> None:
    """Every combination that counts comes once, then there is none; fewer trials have a part of it."""
    space = Space(
        (
            Parameter("gate.name", Categorical(("per-sample", "fixed"))),
            Parameter("gate.hard", Interval(0.1, 0.9, 0.4), when={"gate.name": ("fixed",)}),
            Parameter("vicinal.rows", Interval(0, 120, 60), True),
        )
    )
    for trials, points in ((40, (1 + 3) * 3), (5, 4)):
        study = Study.create(tmp_path / str(trials), header())
        while (asked := ask(study, space, sampler="grid", trials=trials)) is not None:
            study.end(asked, "pruned")
        found = [tuple(one.values.items()) for one in study.trials()[1:]]
        assert len(found) == len(set(found)) == points


def test_nothing_to_search_ends_after_the_configuration(tmp_path: Path) -> None:
    """A space without parameters has no trial but trial 0."""
    study = Study.create(tmp_path, header())
    assert ask(study, Space(())) is not None
    assert ask(study, Space(())) is None


def test_halving_ends_who_is_not_in_the_upper_quarter(tmp_path: Path) -> None:
    """At the first, the fourth and no other reading; trial 0 goes on whatever it has."""
    study = Study.create(tmp_path, header())
    space = Space(SPACE.parameters[:1])
    went: dict[int, list[bool]] = {}
    for number, figure in enumerate((0.1, 0.5, 0.6, 0.55, 0.9)):
        asked = ask(study, space)
        assert asked is not None
        went[number] = []
        for step in range(1, 16):
            went[number].append(study.read(asked, step, read_as([figure], 100 * step), prune=True))
            if not went[number][-1]:
                break
        study.end(asked, "finished" if went[number][-1] else "pruned")
    assert {number: len(steps) for number, steps in went.items()} == {0: 15, 1: 15, 2: 15, 3: 1, 4: 15}
    assert [one.state for one in study.trials()] == ["finished"] * 3 + ["pruned", "finished"]


def test_what_decides_comes_first(tmp_path: Path) -> None:
    """The rate leads, what does nothing is near nothing, shares sum to one; of few trials nothing is said."""
    study = Study.create(tmp_path, header())
    dice = np.random.default_rng(0)
    space = Space((Parameter("rate", Interval(1e-4, 1.0, log=True)), Parameter("idle", Interval(0.0, 1.0))))
    put(study, {}, "finished", read_as([0.0]))
    for number in range(1, 41):
        if number == 6:
            assert study.importances() == {}
        asked = ask(study, space, trials=60)
        assert asked is not None
        study.read(asked, 1, read_as([float(np.log10(asked.values["rate"]) + dice.normal(0, 0.02))]), prune=False)
        study.end(asked, "finished" if number % 3 else "pruned")
    found = study.importances()
    assert [*found] == ["rate", "idle"]
    assert found["rate"] > 0.7
    assert sum(found.values()) == pytest.approx(1.0)


def test_the_documents_python_reads_a_search(tmp_path: Path) -> None:
    """What docs/tune.md says of the journal in Python runs as it stands, and has every trial."""
    search(tmp_path, 3)
    document = (Path(__file__).parents[2] / "docs" / "tune.md").read_text("utf-8")
    code = document.split("```python\n")[1].split("```")[0]
    there: dict[str, Any] = {}
    exec(code.replace("tune/split-mnist-5k", str(tmp_path)), there)
    assert [row["number"] for row in there["rows"]] == [0, 1, 2]


FULL = """
import resource, signal, sys
sys.path.append(sys.argv[2])
from searches import put, read_as
from streamkd.errors import StateError
from streamkd.tune.study import Study
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
study = Study.open(sys.argv[1])
with study.driven():
    put(study, {}, "finished", read_as([0.5]))
    room = (study.place / "journal.log").stat().st_size + 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        put(study, {"text": "x" * 200}, "finished", read_as([0.6]))
    except StateError as fault:
        print(fault)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    put(study, {}, "finished", read_as([0.7]))
"""


def test_a_line_for_which_there_is_no_room_is_not_there_at_all(tmp_path: Path) -> None:
    """A full disk is said with the journal's name; what was written stays whole, and it goes on when there is room."""
    Study.create(tmp_path, header())
    command = [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "journal.log: needed a file that can be written, got: File too large" in done.stdout, done.stderr
    assert [one.objective("accuracy") for one in Study.open(tmp_path).trials()] == [0.5, 0.7]


def test_a_search_that_was_not_quite_begun_is_none(tmp_path: Path) -> None:
    """Killed before its header was written: there is no search to go on with, and one may be begun there."""
    Study.create(tmp_path / "s", header())
    journal = tmp_path / "s" / "journal.log"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    assert not studies.exists(tmp_path / "s")
    assert Study.create(tmp_path / "s", header()).trials() == []
