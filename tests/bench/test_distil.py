"""Students of several sizes: distilled beside learned, measured once and drawn."""

from pathlib import Path

import pytest

from streamkd.bench import distil, scatter, streams
from streamkd.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche warns of itself


def test_a_small_run_is_measured_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of digits: the distilled student is better than the one learned; a second call runs nothing."""
    monkeypatch.setattr(distil, "PARTS", (0.1,))
    small = streams._replay(200, [100], dataset="digits", classes_per_task=2, per_class=80)
    monkeypatch.setitem(streams.STREAMS, "digits", small)
    result = distil.measure(["digits"], [0], tmp_path, steps=300)
    kept = (tmp_path / "distil.jsonl").read_bytes()
    assert distil.measure(["digits"], [0], tmp_path, steps=300)["figures"] == result["figures"]
    assert (tmp_path / "distil.jsonl").read_bytes() == kept
    (line,) = distil.table(result["rows"])[1]
    distilled, learned, served = map(float, line[2:])
    assert learned < distilled < served
    (plot,) = scatter.write(distil.points(result["rows"]), tmp_path, ("KB of a student",))
    assert plot.read_text().count("<circle") == 3
    with pytest.raises(ConfigError, match="no stream 'river'"):
        distil.measure(["river"], [0], tmp_path)
