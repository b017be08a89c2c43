"""Settings from outside: validated, and refused with one line for each thing that is wrong."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from patchmint.errors import ConfigError, did_you_mean


class Settings(BaseModel):
    """Base of all settings: immutable, and no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ONE_OR_TWO = BeforeValidator(
    lambda value: (value, value) if isinstance(value, int) else value,
    json_schema_input_type=int | tuple[int, int] | None,
)
"""Two numbers, or one that stands for both."""

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
        problems = tuple(_explanations(error, model))
        raise ConfigError("\n".join(problems), problems=problems) from error


def members(field: FieldInfo) -> tuple[Any, ...]:
    """The types that a field may have: those of a union, without None."""
    is_union = get_origin(field.annotation) in (Union, UnionType)
    union = get_args(field.annotation) if is_union else (field.annotation,)
    plain = (get_args(member)[0] if get_origin(member) is Annotated else member for member in union)
    return tuple(member for member in plain if member is not NoneType)


def sections(field: FieldInfo) -> dict[str, type[Settings]]:
    """The settings models that a field may hold: by their `kind` where the field has one, else by class name."""
    models = [member for member in members(field) if isinstance(member, type) and issubclass(member, Settings)]
    if field.discriminator is None:
        return {model.__name__: model for model in models}
    return {kind: model for model in models for kind in get_args(model.model_fields["kind"].annotation)}


def _explanations(error: ValidationError, root: type[Settings]) -> Iterator[str]:
    items = error.errors()
    for item in items:
        # a mapping that was also tried as a string: what is wrong inside the mapping says more
        if item["type"] == "string_type" and isinstance(item["input"], Mapping) and len(items) > 1:
            continue
        yield _explain(item, root)


def _explain(item: Any, root: type[Settings]) -> str:
    keys, model, field = _follow(root, item["loc"])
    place = ".".join(keys)
    match item["type"]:
        case "extra_forbidden":
            known = list(model.model_fields)
            parent = _follow(root, item["loc"][:-1])[2]
            siblings = sections(parent) if parent is not None and parent.discriminator else {}
            others = [kind for kind, other in siblings.items() if keys[-1] in other.model_fields]
            hint = f"; kinds that have it: {', '.join(others)}" if others else did_you_mean(keys[-1], known)
            return f"{place}: there is no such setting{hint} (known: {', '.join(known)})"
        case "union_tag_invalid" | "union_tag_not_found" if field is not None:
            kinds = list(sections(field))
            tag = item["ctx"].get("tag")
            problem = f"there is no kind {tag!r}{did_you_mean(tag, kinds)}" if tag else "it must be given"
            return f"{place}.kind: {problem} (kinds: {', '.join(kinds)})"
        case "missing":
            return f"{place}: it must be given"
        case "model_type" | "model_attributes_type" if field is not None:
            known = list(dict.fromkeys(key for section in sections(field).values() for key in section.model_fields))
            return f"{place}: it must be a mapping (keys: {', '.join(known)})"
        case "tuple_type":
            return f"{place}: it must be a list, in brackets"
        case _:
            message = str(item["msg"]).removeprefix("Value error, ")
            return f"{place}: {message}" if place else message


def _follow(
    root: type[Settings], location: tuple[int | str, ...]
) -> tuple[list[str], type[Settings], FieldInfo | None]:
    """The keys as the user wrote them, without the names of unions' branches; the last one's model and field."""
    keys: list[str] = []
    model = inner = root
    field: FieldInfo | None = None
    parts = iter(location)
    for part in parts:
        keys.append(str(part))
        if isinstance(part, int) and field is not None and get_origin(field.annotation) is tuple:
            field = FieldInfo.from_annotation(get_args(field.annotation)[0])
        else:
            model = inner
            field = model.model_fields.get(str(part))
        if field is None:
            continue
        found = sections(field)
        branch = str(next(parts, "")) if len(members(field)) > 1 else ""
        inner = found.get(branch) or next(iter(found.values()), model)
    return keys, model, field


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
