"""A search of stand-ins as a program of its own, to be killed: ``python drive.py OUT TRIALS [resume]``."""

import sys

import stand_ins

from streamkd.plugins import Registry
from streamkd.search import driver
from streamkd.search.local import LocalEngine
from streamkd.search.settings import Settings

if __name__ == "__main__":
    out, trials, *resume = sys.argv[1:]
    driver.tune(
        stand_ins.config(),
        Registry.load(),
        stand_ins.GOOD,
        Settings(trials=int(trials), engine="local", concurrency=2, sampler="random"),
        out,
        {"local": LocalEngine},
        make=stand_ins.Slow,
        resume=bool(resume),
    )
