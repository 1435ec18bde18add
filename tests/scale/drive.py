"""A search of toys on Ray as a program of its own: ``python drive.py OUT SETTINGS``, with settings as JSON.

It goes on where there is a search already. ``rates`` are the trials'; ``address`` names a Ray to run on, else two CPUs
are declared to one of its own.
"""

import json
import sys

import toy_trials

from streamkd.errors import StreamkdError
from streamkd.scale.tune import RayEngine

if __name__ == "__main__":
    out, given = sys.argv[1], json.loads(sys.argv[2])
    search = toy_trials.search(out, given.pop("rates"), toy_trials.Slow, **given)
    on_another = "address" in given
    engine = RayEngine(search.settings, schedule_seconds=2.0) if on_another else RayEngine(search.settings, cpus=2)
    try:
        engine.run(search)
    except StreamkdError as fault:
        sys.exit(str(fault))
    finally:
        search.leave()
