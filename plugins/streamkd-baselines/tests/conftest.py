"""The tests stand in a checkout of streamkd, whose tests lend them oracles, toys, and the registry with this in it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "tests"))
