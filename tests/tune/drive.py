"""A search of stand-ins as a program of its own, to be killed: ``python drive.py OUT TRIALS [resume]``."""

import sys

import stand_ins

from streamkd.tune import seat

if __name__ == "__main__":
    out, trials, *resume = sys.argv[1:]
    stand_ins.tune(out, seat.seats, stand_ins.Slow, trials=int(trials), concurrency=2, resume=bool(resume))
