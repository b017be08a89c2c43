"""Reading a config file, with errors that say where."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from patchmint.errors import ConfigError


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds one mapping. No tags, no code; a key that is given twice is an error.

    Raises:
        ConfigError: the file is missing, isn't YAML, or holds something else.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no config file {file}; check the path (examples/ has configs to start from)"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8 text"
        raise ConfigError(f"the config file {file} can't be read: {reason}") from error
    try:
        settings = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (it is a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: this isn't valid YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: this isn't valid YAML: {error}") from error
    if not isinstance(settings, dict):
        found = "nothing" if settings is None else f"a {type(settings).__name__}"
        raise ConfigError(f"{file} must hold a mapping such as `source: {{kind: coco, uri: data/coco}}`, not {found}")
    return settings


class _StrictLoader(yaml.SafeLoader):
    """Refuses what YAML libraries take in silence: the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
