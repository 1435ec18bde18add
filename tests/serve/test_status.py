"""How the learner stands, in metrics."""

from streamkd import config as configuration
from streamkd.learner import Learner
from streamkd.plugins import Registry
from streamkd.serve.status import Gauges, status_of
from streamkd.telemetry import Exposition
from streamkd.wiring import open_source, schema_of


def test_the_arbiters_policies_are_told() -> None:
    """Once it was adapted, how far each policy is trusted stands in a gauge; the five sum to 1."""
    registry = Registry.load()
    config = configuration.from_tree(
        {
            "stream": {"source": {"name": "replay", "dataset": "digits", "limit": 200}},
            "student": {"name": "mlp", "hidden": [8]},
            "memory": {"size": 60, "replay": 10},
            "adapt": {"every": 2},
            "gate": {"name": "arbiter", "gate": {"name": "scalar"}},
            "device": "cpu",
        },
        registry,
    )
    schema = schema_of(config, registry)
    learner = Learner(config, registry, open_source(config, registry, schema)[0], schema)
    gauges, exposition = Gauges(learner.recorder, learner), Exposition()
    while learner.advance():
        pass
    gauges.record(status_of(learner, 0.0, None, None), learner)
    exposition.apply(learner.recorder.drain())
    policies = ("adapted", "frozen", "likelihood", "uniform", "hard-only")
    told = [exposition.value("gate_policy_ratio", policy=policy) for policy in policies]
    assert None not in told
    assert abs(sum(filter(None, told)) - 1) < 1e-5
