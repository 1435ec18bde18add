"""A plugin by its name in a configuration: ``{name: mlp, hidden: [256]}``, whose further keys are its own options."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

logger = logging.getLogger(__name__)


class Choice(BaseModel):
    """A plugin by name, which may stand alone; every further key is one of its options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _its_name_will_do(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def values(self) -> dict[str, Any]:
        """The plugin's own keys, unchecked."""
        return dict(self.__pydantic_extra__ or {})


class GateChoice(Choice):
    """A gate; one that has another name since the last release goes by both."""

    @model_validator(mode="before")
    @classmethod
    def _takes_its_old_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("name") == "arbiter":
            logger.warning("the gate arbiter is called hedge now; the next release refuses the old name")
            return {**given, "name": "hedge"}
        return given


class KeyedChoice(Choice):
    """One of several; two of one kind need different ids."""

    # a label of metrics, a key of checkpoints, the name of a file
    id: str = Field(default="", pattern=r"^([^.\x00-\x1f\x7f/\\][^\x00-\x1f\x7f/\\]{0,127})?$")

    @property
    def key(self) -> str:
        """The name it goes by in metrics, reports and the pool."""
        return self.id or self.name


class Isolation(BaseModel):
    """What a teacher may take, in a process of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    timeout_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False, description="for each answer")
    memory_bytes: int = Field(default=4 << 30, gt=0, description="beyond what the libraries take; Linux only")


class TeacherChoice(KeyedChoice):
    """A teacher; two of one kind need different ids."""

    isolate: Isolation | None = Field(
        default=None, description="true, or these limits: in a process of its own, which may hang, die or lack memory"
    )

    @field_validator("isolate", mode="before")
    @classmethod
    def _true_is_the_defaults(cls, given: Any) -> Any:
        return {} if given is True else None if given is False else given


class RowsChoice(KeyedChoice):
    """A source of further rows; two of one kind need different ids."""


class VicinalChoice(Choice):
    """The built-in source of rows, whose options are keys of its own; ``rows: 0`` is none."""

    name: str = Field(default="vicinal", pattern="^vicinal$")


class LossChoice(Choice):
    """One term of the loss with its weight."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    gate: GateChoice | None = Field(default=None, description="weighs this term's sources; None: the step's gate does")
