"""Stream learners of other packages, a record at a time: run by a Python of their own, which has River or CapyMOA.

    PYTHON online_peers.py --list                             what this Python can run, as JSON
    PYTHON online_peers.py STREAM.npz NAME DELAY SEED OUT.npz

STREAM.npz has x [n, inputs] and y [n], classes counted from 0; OUT.npz gets ``predicted`` [n] (-1: none), and the CPU
seconds of learning and answering. Each record is predicted when it comes, and its label learned when ``DELAY`` more
have come. Nothing of streamkd is imported here: that Python need not have it.
"""

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

FITTED = 1_000  # records that mean and deviation of the inputs are taken from, as for our student
TREES = 10


class Peer(Protocol):
    """Learns and answers a record at a time."""

    def form(self, x: np.ndarray) -> Any:
        """A record's inputs [inputs] as the package takes them; not timed."""

    def predict(self, x: Any, y: int) -> int | None:
        """A class, ``None``: it does not say. ``y`` is not for the answer; MOA's SAM-kNN keeps score with it."""

    def learn(self, x: Any, y: int) -> None: ...


class NoChange:
    """The last label that is known."""

    def __init__(self) -> None:
        self.last: int | None = None

    def form(self, x: np.ndarray) -> None: ...

    def predict(self, x: Any, y: int) -> int | None:
        return self.last

    def learn(self, x: Any, y: int) -> None:
        self.last = y


class Majority:
    """The label that has come most often."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def form(self, x: np.ndarray) -> None: ...

    def predict(self, x: Any, y: int) -> int | None:
        return self.counts.most_common(1)[0][0] if self.counts else None

    def learn(self, x: Any, y: int) -> None:
        self.counts[y] += 1


class River:
    """A classifier of River, which takes records as dictionaries."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def form(self, x: np.ndarray) -> dict[str, float]:
        return {f"x{number}": value for number, value in enumerate(x.tolist())}

    def predict(self, x: dict[str, float], y: int) -> int | None:
        return self.model.predict_one(x)

    def learn(self, x: dict[str, float], y: int) -> None:
        self.model.learn_one(x, y)


class CapyMoa:
    """A classifier of CapyMOA, which has to know inputs and classes beforehand."""

    def __init__(self, make: Callable[..., Any], inputs: int, classes: int, **settings: Any) -> None:
        from capymoa.stream import Schema

        names = [f"x{number}" for number in range(inputs)]
        known = {"label": [str(number) for number in range(classes)]}
        self.schema = Schema.from_custom([*names, "label"], "label", known)
        self.model = make(schema=self.schema, **settings)

    def form(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray, y: int) -> int | None:
        return self.model.predict(self._instance(x, 0))

    def learn(self, x: np.ndarray, y: int) -> None:
        self.model.train(self._instance(x, y))

    def _instance(self, x: np.ndarray, y: int) -> Any:
        from capymoa.core import LabeledInstance

        return LabeledInstance.from_array(self.schema, x, y)


class SamKnn(CapyMoa):
    """It counts, while it predicts, which of its memories was right: by the label, which it does not answer by.

    Where labels are late it knows that early, which is in its favour.
    """

    def predict(self, x: np.ndarray, y: int) -> int | None:
        return self.model.predict(self._instance(x, y))


def _river(name: str, seed: int) -> River:
    from river import ensemble, forest, linear_model, multiclass, preprocessing, tree

    made = {
        "logistic": lambda: (
            preprocessing.StandardScaler() | multiclass.OneVsRestClassifier(linear_model.LogisticRegression())
        ),
        "hat": lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=seed),
        "arf-10": lambda: forest.ARFClassifier(n_models=TREES, seed=seed),
        "srp-10": lambda: ensemble.SRPClassifier(n_models=TREES, seed=seed),
    }
    return River(made[name]())


def _capymoa(name: str, seed: int, inputs: int, classes: int) -> CapyMoa:
    from capymoa import classifier

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "hat": ("HoeffdingAdaptiveTree", {}),
        "arf-10": ("AdaptiveRandomForestClassifier", {"ensemble_size": TREES}),
        "srp-10": ("StreamingRandomPatches", {"ensemble_size": TREES}),
        "sam-knn": ("SAMkNN", {}),
    }
    kind, settings = kinds[name]
    wrapper = SamKnn if name == "sam-knn" else CapyMoa
    return wrapper(getattr(classifier, kind), inputs, classes, random_seed=seed + 1, **settings)


PACKAGES = {
    "no-change": (),
    "majority": (),
    "logistic": ("river",),
    "hat": ("capymoa", "river"),
    "arf-10": ("capymoa", "river"),
    "srp-10": ("capymoa", "river"),
    "sam-knn": ("capymoa",),
}
"""By name, the packages that have it; the first that is here runs it."""


def available() -> dict[str, str]:
    """By name of a peer, the package and version that would run it; the two that need none have an empty one."""
    found = {}
    for name, packages in PACKAGES.items():
        here = next((package for package in packages if find_spec(package)), None)
        if here or not packages:
            found[name] = f"{here} {version(here)}" if here else ""
    return found


def peer(name: str, seed: int, inputs: int, classes: int) -> Peer:
    """A fresh one."""
    if name in ("no-change", "majority"):
        return NoChange() if name == "no-change" else Majority()
    if available()[name].startswith("river"):
        return _river(name, seed)
    return _capymoa(name, seed, inputs, classes)


def run(learner: Peer, x: np.ndarray, y: np.ndarray, delay: int) -> dict[str, Any]:
    """Predict every record as it comes, learn it ``delay`` records later."""
    predicted, waiting = np.full(len(y), -1), deque[tuple[Any, int]]()
    seconds, answering = 0.0, 0.0
    for at, label in enumerate(y.tolist()):
        record = learner.form(x[at])
        begun = time.process_time()
        said = learner.predict(record, label)
        answered = time.process_time()
        predicted[at] = -1 if said is None else said
        waiting.append((record, label))
        if len(waiting) > delay:
            learner.learn(*waiting.popleft())
        answering += answered - begun
        seconds += time.process_time() - begun
    return {"predicted": predicted, "seconds": seconds, "answer_seconds": answering}


def standardised(x: np.ndarray) -> np.ndarray:
    """By mean and deviation of the first records: trees do not mind, neighbours would."""
    first = x[:FITTED].astype(np.float64)
    return (x - first.mean(0)) / np.maximum(first.std(0), 1e-6)


def main(arguments: list[str]) -> None:
    """``--list``: who there is, as JSON; else: a stream's file, a peer, delay, seed, where its predictions go."""
    if arguments == ["--list"]:
        sys.stdout.write(json.dumps(available()))
        return
    stream, name, delay, seed, out = arguments
    data = np.load(stream)
    x, y = standardised(data["x"]), data["y"]
    np.savez(out, **run(peer(name, int(seed), x.shape[1], int(y.max()) + 1), x, y, int(delay)))


if __name__ == "__main__":
    main(sys.argv[1:])
