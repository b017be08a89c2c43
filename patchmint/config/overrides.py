"""Single settings put over those of a config file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchmint.config.annotator import MODEL_PRESETS
from patchmint.config.parsing import Settings, sections
from patchmint.errors import ConfigError


def apply_overrides(model: type[Settings], settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Put single settings over others.

    Args:
        model: what the settings are of.
        settings: as a config file has them; not changed.
        overrides: dotted keys and their values. Whole sections (`labels`) go before keys in them.

    Returns:
        The settings, not validated yet.

    Raises:
        ConfigError: a key is overridden in a section that is overridden with something that has no keys.
    """
    merged = dict(settings)
    for dotted in sorted(overrides, key=lambda key: (key.count("."), not key.endswith(".kind"), key)):
        section, _, key = dotted.partition(".")
        if not key:
            merged[section] = overrides[dotted]
            continue
        inner = _keys_of(section, merged.get(section))
        if inner is None:
            if section in overrides:
                raise ConfigError(
                    f"{dotted} and {section} = {overrides[section]!r} contradict each other; give one of them"
                )
            inner = {}
        if key == "kind" and inner.get("kind", overrides[dotted]) != overrides[dotted]:
            inner = _known_to(model, section, overrides[dotted], inner)
        merged[section] = inner | {key: overrides[dotted]}
    return merged


def _keys_of(section: str, value: object) -> dict[str, Any] | None:
    if section == "models" and isinstance(value, str) and value in MODEL_PRESETS:
        return MODEL_PRESETS[value].model_dump()
    return dict(value) if isinstance(value, Mapping) else None


def _known_to(model: type[Settings], section: str, kind: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    field = model.model_fields.get(section)
    chosen = sections(field).get(str(kind)) if field is not None else None
    known = chosen.model_fields if chosen is not None else settings
    return {key: value for key, value in settings.items() if key in known}
