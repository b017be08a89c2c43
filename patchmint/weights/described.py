"""Models that run in transformers' own class, as `config.json` describes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from patchmint.errors import WeightsMismatchError
from patchmint.weights.loading import StateFile, load_into

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4
    from transformers.modeling_utils import no_init_weights


def load_described(make: Callable[[], Any], state: StateFile, *, what: str, ignored: tuple[str, ...] = ()) -> Any:
    """Make a model and load it, every tensor accounted for; shapes are compared before memory is taken.

    Args:
        make: makes it, from a config.
        state: its weights, by the names of the class.
        what: as for `load_into`.
        ignored: likewise.

    Returns:
        The model, for inference.

    Raises:
        WeightsMismatchError: tensors are missing, left over or misshapen, or the config describes another model.
    """
    try:
        with no_init_weights():
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that nothing is copied
                load_into(make(), state, what=what, ignored=ignored)
            model = make()
    except WeightsMismatchError:
        raise
    except Exception as error:  # strict configs raise errors of their own
        message = f"{state.path}: the config.json beside it describes no {what}: {error}"
        raise WeightsMismatchError(message) from error
    load_into(model, state, what=what, ignored=ignored)
    return model.eval().requires_grad_(False)
