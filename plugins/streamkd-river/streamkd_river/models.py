"""The River classifiers that may be named, and how each is built: by River's own names for classes and parameters.

    ("forest.ARFClassifier", {"n_models": 5}, seed) ─► the model

On the list is what ``streamkd_river.codec`` brings back bit for bit, and what does not grow with every record.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from river import base, compose, ensemble, forest, linear_model, multiclass, naive_bayes, neighbors, preprocessing, tree
from river.utils.math import minkowski_distance

from streamkd.api import PluginError

Parameter = bool | int | float | str | None


def _neighbours(window_size: int = 500, **parameters: Any) -> compose.Pipeline:
    engine = neighbors.LazySearch(window_size=window_size, dist_func=partial(minkowski_distance, p=2))
    return _scaled(neighbors.KNNClassifier(engine=engine, **parameters))


def _logistic(**parameters: Any) -> compose.Pipeline:
    return _scaled(multiclass.OneVsRestClassifier(linear_model.LogisticRegression(**parameters)))


def _scaled(model: base.Classifier) -> compose.Pipeline:
    return compose.Pipeline(preprocessing.StandardScaler(), model)


MODELS: dict[str, tuple[Callable[..., Any], type[base.Classifier]]] = {
    "ensemble.SRPClassifier": (ensemble.SRPClassifier, ensemble.SRPClassifier),
    "forest.ARFClassifier": (forest.ARFClassifier, forest.ARFClassifier),
    "linear_model.LogisticRegression": (_logistic, linear_model.LogisticRegression),
    "naive_bayes.GaussianNB": (naive_bayes.GaussianNB, naive_bayes.GaussianNB),
    "neighbors.KNNClassifier": (_neighbours, neighbors.KNNClassifier),
    "tree.ExtremelyFastDecisionTreeClassifier": (
        tree.ExtremelyFastDecisionTreeClassifier,
        tree.ExtremelyFastDecisionTreeClassifier,
    ),
    "tree.HoeffdingAdaptiveTreeClassifier": (
        tree.HoeffdingAdaptiveTreeClassifier,
        tree.HoeffdingAdaptiveTreeClassifier,
    ),
    "tree.HoeffdingTreeClassifier": (tree.HoeffdingTreeClassifier, tree.HoeffdingTreeClassifier),
}
"""Who builds it, and the class whose parameters it takes."""


def build(name: str, parameters: Mapping[str, Parameter], seed: int, where: str) -> Any:
    """The model of that name, which draws from ``seed`` where it draws at all.

    Raises:
        PluginError: no such model, or parameters that it does not take; the known ones are named.
    """
    if name not in MODELS:
        raise PluginError(f"there is no model {name!r}", where=where, fix=_nearest(name, MODELS))
    make, _ = MODELS[name]
    known = parameters_of(name)
    for given in parameters:
        if given not in known:
            raise PluginError(f"{name} takes no parameter {given!r}", where=where, fix=_nearest(given, known))
    drawn = {"seed": seed} if "seed" in inspect.signature(make).parameters else {}
    try:
        tried = make(**drawn, **parameters)
        for label in (0, 1):  # River looks at some of them only when it learns
            tried.learn_one(dict.fromkeys(range(8), float(label)), label)
        tried.predict_proba_one(dict.fromkeys(range(8), 0.5))
        return make(**drawn, **parameters)
    except Exception as fault:  # River's own refusal
        raise PluginError(f"{name} refuses its parameters: {fault}", where=where) from fault


def parameters_of(name: str) -> list[str]:
    """The parameters that are numbers, words or switches; the seed is the teacher's own option."""
    make, of = MODELS[name]
    taken = [
        key
        for key, parameter in (inspect.signature(of).parameters | inspect.signature(make).parameters).items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and isinstance(parameter.default, Parameter)
    ]
    return sorted(set(taken) - {"seed"})


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"
