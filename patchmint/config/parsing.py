"""Settings from outside: validated, and refused with one line for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from patchmint.errors import ConfigError


class Settings(BaseModel):
    """Base of all settings: immutable, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySettings = TypeVar("AnySettings", bound=Settings)


def parse_settings(model: type[AnySettings], settings: Mapping[str, Any]) -> AnySettings:
    """Validate settings from outside.

    Raises:
        ConfigError: one line for each thing that is wrong; an unknown key gets the nearest right one.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(
            f"settings must be a mapping, not a {type(settings).__name__}; read YAML with yaml.safe_load first"
        )
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, model) for item in error.errors())) from error


def _explain(item: Any, root: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{place}: {item['msg'].removeprefix('Value error, ')}" if place else str(item["msg"])
    known = list(_fields_at(root, item["loc"][:-1]))
    near = get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{place}: there is no such setting{hint} (known: {', '.join(known)})"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> Mapping[str, Any]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # the name of a branch of a union, not a key
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return model.model_fields
