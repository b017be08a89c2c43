"""Where a run is, and whether that belongs to the run that is to go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchmint.errors import ConfigError
from patchmint.json_values import differences


def checked_state(state: Mapping[str, Any], identity: Mapping[str, Any], counter: str) -> tuple[int, int]:
    """Epoch and place in it, of a state that belongs here.

    Args:
        state: as `state_dict` gave it.
        identity: what the run that is to go on is about.
        counter: name of what is counted within an epoch.

    Raises:
        ConfigError: it is no state, or belongs to other data or settings; the message names what differs.
    """
    epoch, place, of = (state.get(name) for name in ("epoch", counter, "of"))
    if not isinstance(epoch, int) or not isinstance(place, int) or not isinstance(of, Mapping) or min(epoch, place) < 0:
        raise ConfigError(f"this is no state of this kind (epoch, {counter}, of); give what state_dict() returned")
    wrong = differences(of, identity)
    if wrong:
        raise ConfigError(
            f"the state belongs to another run: {'; '.join(wrong)}. Go on with the data and settings it was taken "
            "with, or start anew without it"
        )
    return epoch, place
