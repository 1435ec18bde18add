"""The loop as Avalanche knows it, where Avalanche can be imported."""

import logging
from collections.abc import Sequence
from typing import Any

from streamkd.errors import ConfigError, first_line

FIX = "install torch and torchvision of one index: CPU builds both, or neither"
logger = logging.getLogger(__name__)


def strategy(asked: Sequence[Any] = ()) -> Any:
    """The module ``streamkd.avalanche.strategy``; ``None``, said in the log, where steps must do without.

    Raises:
        ConfigError: Avalanche cannot be imported, and plugins or metrics of it are ``asked`` for.
    """
    try:
        from streamkd.avalanche import strategy
    except (ImportError, RuntimeError) as fault:  # torchvision beside a torch of another build
        said = first_line(fault)
        if asked:
            raise ConfigError(f"Avalanche cannot be imported: {said}", where="avalanche", fix=FIX) from None
        logger.warning("steps are taken without Avalanche, to the same bits (%s); %s", said, FIX)
        return None
    return strategy
