"""streamkd-river as a user gets it: a wheel with its package and its entry point."""

import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import OFFLINE, run

RIVER = Path(__file__).parents[2] / "plugins" / "streamkd-river"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """Tests stay out of site-packages; the teacher is offered to streamkd, and River is asked for."""
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", tmp_path, RIVER)
    [built] = tmp_path.glob("*.whl")
    wheel = zipfile.ZipFile(built)
    packed = [name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")]
    assert {name.split("/")[0] for name in packed} == {"streamkd_river"}
    assert "streamkd_river/py.typed" in packed
    about = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info" in name}
    assert about["entry_points.txt"].split("\n")[:2] == ["[streamkd]", "river = streamkd_river.teacher"]
    assert "Requires-Dist: river==0.23.*" in about["METADATA"]
