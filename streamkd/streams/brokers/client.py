"""Kafka's client: its settings from a configuration or an address, and what it says in our words.

    options ─► "env:NAME" from the environment ─► ours beside them ─► Consumer | Producer of ``confluent_kafka``

Every setting of librdkafka may be given (SASL, TLS, sizes), but for those that would take the offsets out of our hands.
A secret is never written down: it is named, and read from the environment.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from streamkd import extras, logs
from streamkd.errors import ConfigError, first_line

Setting = str | bool | int | float
ENVIRONMENT = "env:"
OURS = (
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "metadata.broker.list",
)
QUIET = 2  # of syslog: what happens comes through a callback, as ours
logger = logging.getLogger(__name__)


def load(what: str) -> Any:
    """The module ``confluent_kafka``, which ``what`` needs.

    Raises:
        MissingExtra: it is not installed.
    """
    return extras.load("confluent_kafka", what)


def check_settings(given: Mapping[str, Setting]) -> Mapping[str, Setting]:
    """Settings that may be given.

    Raises:
        ValueError: one is ours, or a secret is written out.
    """
    for name, value in given.items():
        if name in OURS:
            raise ValueError(f"{name} is not to be set: offsets and order depend on it")
        if re.search(r"password|secret", name) and not str(value).startswith(ENVIRONMENT):
            raise ValueError(f"{name} needs {ENVIRONMENT}NAME, a variable of the environment, instead of the secret")
    return given


def settings(given: Mapping[str, Setting], ours: Mapping[str, Setting]) -> dict[str, Any]:
    """What a client is made with.

    Raises:
        ConfigError: a variable of the environment is not set.
    """
    read = {name: value_of(name, value) for name, value in given.items()}
    return {"client.id": "streamkd", "log_level": QUIET, **read, **ours}


def value_of(name: str, value: Setting) -> Setting:
    """A setting as it stands there, or that of the environment.

    Raises:
        ConfigError: the variable of the environment is not set.
    """
    if not isinstance(value, str) or not value.startswith(ENVIRONMENT):
        return value
    variable = value.removeprefix(ENVIRONMENT)
    if variable not in os.environ:
        said = f"{name} needs {variable} of the environment, which is not set"
        raise ConfigError(said, where="kafka", fix=f"export {variable}=...")
    return os.environ[variable]


def make(build: Callable[[dict[str, Any]], Any], configured: dict[str, Any], where: str) -> Any:
    """A consumer or producer.

    Raises:
        ConfigError: a setting is unknown, or has no such value.
    """
    try:
        return build(configured)
    except Exception as fault:  # noqa: BLE001 - KafkaException, ValueError or TypeError, by the setting
        raise ConfigError(f"Kafka's client refuses a setting: {said(fault)}", where=where) from None


def said(fault: Any) -> str:
    """What the client says, in a line: an error of its, or an exception with one."""
    error = fault.args[0] if isinstance(fault, Exception) and fault.args else fault
    return str(error.str()) if hasattr(error, "str") else first_line(Exception(error))


class ClientFaults(logs.Seldom):
    """What the client says goes wrong: each is counted, and each kind logged once a minute."""

    def __init__(self, count: Callable[[], None]) -> None:
        super().__init__(logger)
        self._count = count

    def tell(self, fault: Any, where: str = "kafka") -> None:
        """One more, an error of the client's or an exception with one."""
        self._count()
        error = fault.args[0] if isinstance(fault, Exception) else fault
        self.say(where, error.name(), f"{said(error)}; it is tried again")
