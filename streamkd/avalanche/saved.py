"""What the plugin gives to be saved, as ``torch.load(weights_only=True)`` reads it, and what is asked of it later."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from streamkd.errors import StateConflict, StateError
from streamkd.replay.table import StoredRows

FORM = 1
WHERE = "MatchGateDistillation.load_state_dict"


def plain(tree: Any) -> Any:
    """Mappings, lists, tensors and numbers alone, whose tensors are copies: what they come from moves on."""
    match tree:
        case Tensor():
            return tree.detach().clone()
        case StoredRows():
            return plain(tree.columns)
        case Mapping():
            return {key: plain(value) for key, value in tree.items()}
        case list() | tuple():
            return [plain(value) for value in tree]
    return tree


def check(state: Any, made_with: Mapping[str, Any]) -> None:
    """Whether a plugin that is made with these options can go on from there.

    Raises:
        StateError: it is no state of the plugin. StateConflict: of one that was made with others.
    """
    if not isinstance(state, Mapping) or state.get("form") != FORM:
        got = f"one of form {state['form']}" if isinstance(state, Mapping) and "form" in state else "something else"
        raise StateError(
            f"needed what state_dict() of a plugin gives, got {got}", where=WHERE, fix="save teach.state_dict()"
        )
    other = {name: then for name, then in state["made_with"].items() if then != made_with[name]}
    if other:
        told = [f"{name}={then}, got {made_with[name]}" for name, then in other.items()]
        raise conflict(f"needed {'; '.join(told)}")


def conflict(message: str) -> StateConflict:
    """The error where a state and a plugin do not belong together."""
    return StateConflict(message, where=WHERE, fix="make the plugin as the saved one was made, and load first")
