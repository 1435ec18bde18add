"""A search of stand-ins as a program of its own, to be killed: ``python drive.py OUT TRIALS [resume] [ADDRESS]``."""

import sys

import stand_ins

from streamkd.tune import cluster, slot

if __name__ == "__main__":
    out, trials, *more = sys.argv[1:]
    addresses = [one for one in more if one != "resume"]
    asked = {"trials": int(trials), "concurrency": 2, "resume": "resume" in more}
    if addresses:
        stand_ins.tune(out, cluster.run, stand_ins.Slow, address=addresses[0], **asked)
    else:
        stand_ins.tune(out, slot.run, stand_ins.Slow, **asked)
