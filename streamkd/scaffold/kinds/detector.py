"""The detector ``example``: a task begins where the mean of the inputs has moved."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field

from streamkd.api import Kind, Options, Records, hookimpl


class ExampleOptions(Options):
    """When it speaks."""

    far: float = Field(default=1.0, gt=0, description="standard deviations that a batch's mean has to be away")
    grace: int = Field(default=500, ge=0, description="records of a task before another one may begin")


class Example:
    """Running mean and variance of the inputs of the current task (Welford's update)."""

    def __init__(self, options: ExampleOptions) -> None:
        self.options = options
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def begins(self, records: Records, new_labels: list[Any], since_boundary: int) -> str | None:
        """``""`` (the next number) where a task begins with this batch, else ``None``."""
        numbers = np.nan_to_num(np.asarray(records.inputs, np.float64)).reshape(-1)
        moved = len(numbers) > 0 and since_boundary >= self.options.grace and self._far(float(numbers.mean()))
        if moved:
            self.count, self.mean, self.squares = 0, 0.0, 0.0
        for number in numbers.tolist():
            self.count += 1
            apart = number - self.mean
            self.mean += apart / self.count
            self.squares += apart * (number - self.mean)
        return "" if moved else None

    def _far(self, mean: float) -> bool:
        spread = (self.squares / max(self.count, 1)) ** 0.5
        return spread > 0 and abs(mean - self.mean) > self.options.far * spread

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


@hookimpl
def streamkd_detectors() -> Iterator[Kind]:
    """One detector."""
    yield Kind("example", Example, ExampleOptions, "a task begins where the mean of the inputs has moved")
