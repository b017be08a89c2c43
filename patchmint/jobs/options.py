"""Every setting as a command-line option, made from the settings' models.

`labels.box_threshold` is `--labels.box-threshold`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from patchmint.config.parsing import Settings, members, sections
from patchmint.errors import ConfigError

Command = Callable[..., None]


@dataclass(frozen=True)
class _Setting:
    """A key that may be set.

    Attributes:
        key: dotted, as in `BuildConfig.load`'s overrides.
        fields: what it may be: of a union several, by the kind that has it.
        former: the option's old name, where this stands for that.
    """

    key: str
    fields: dict[str, FieldInfo]
    former: str = ""

    @property
    def option(self) -> str:
        return self.former or "--" + self.key.replace("_", "-")

    @property
    def parameter(self) -> str:
        return ("former__" if self.former else "set__") + self.key.replace(".", "__")

    @property
    def takes_text(self) -> bool:
        """Whether what is typed is the value itself: "012" stays text, and is no number."""
        return all(_is_text(member) for field in self.fields.values() for member in members(field))

    @property
    def takes_names(self) -> bool:
        """Whether what is typed is a name, unless it is a list of names."""
        return all(_is_text(member) or _is_names(member) for field in self.fields.values() for member in members(field))

    def value(self, typed: str) -> Any:
        """The value that was typed."""
        if self.takes_text:
            nullable = any(type(None) in get_args(field.annotation) for field in self.fields.values())
            return None if nullable and typed == "null" else typed
        try:
            value = yaml.safe_load(typed)
            is_list = isinstance(value, list | None) and bool(typed)  # "" is a name, null is none
            return value if is_list or not self.takes_names else typed
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{self.option} {typed!r}: this isn't a YAML value; write a plain word or number, null, or a mapping "
                "such as '{rows: 24, cols: 24}'"
            ) from error


def with_settings(
    model: type[Settings], *, but: Sequence[str] = (), former: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Command], Command]:
    """Make a function with a parameter `settings` into a Typer command with an option for each setting of a model.

    Sections named in `but` get none. `former` has old names of options and the keys that they set: they aren't in the
    help, and a warning on stderr names the new one.

    Its other parameters are Typer's, as always. `settings` gets those settings that were given, by their dotted keys:
    `--labels.box-threshold 0.3 --tokens null` becomes `{"labels.box_threshold": 0.3, "tokens": None}`. They aren't
    validated yet: that is the work of whoever puts them over a config file's.

    Raises (when called):
        ConfigError: a value can't be read.
    """
    by_key = {setting.key: setting for setting in _settings(model) if setting.key.split(".")[0] not in but}
    settings = [replace(by_key[key], former=option) for option, key in former.items()] + list(by_key.values())

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)

        @wraps(function)
        def command(**arguments: Any) -> None:
            given = {}
            for setting in settings:
                if (typed := arguments.pop(setting.parameter, None)) is None:
                    continue
                if setting.former:
                    new = by_key[setting.key].option
                    typer.echo(
                        f"warning: {setting.former} is now {new}; the old name works in this release only", err=True
                    )
                given[setting.key] = setting.value(typed)
            function(**arguments, settings=given)

        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters += [_parameter(setting) for setting in settings]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
        del command.__wrapped__  # Typer would look behind the signature
        return command

    return decorate


def _settings(model: type[Settings]) -> Iterator[_Setting]:
    for section, field in model.model_fields.items():
        yield _Setting(section, {"": field})
        fields: dict[str, dict[str, FieldInfo]] = {}
        for kind, inner in sections(field).items():
            for name, inner_field in inner.model_fields.items():
                fields.setdefault(name, {})[kind if field.discriminator else ""] = inner_field
        for name, kinds in fields.items():
            same = len(kinds) == len(sections(field)) and len(set(map(described, kinds.values()))) == 1
            yield _Setting(f"{section}.{name}", {"": next(iter(kinds.values()))} if same and name != "kind" else kinds)


def _parameter(setting: _Setting) -> inspect.Parameter:
    option = typer.Option(
        setting.option,
        help=_help(setting),
        metavar=_metavar(setting),
        rich_help_panel=setting.key.split(".")[0],
        show_default=False,
        hidden=bool(setting.former),
    )
    return inspect.Parameter(
        setting.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _help(setting: _Setting) -> str:
    if setting.key.endswith(".kind"):
        return f"One of {', '.join(setting.fields)}."
    texts: dict[str, list[str]] = {}
    for kind, field in setting.fields.items():
        texts.setdefault(described(field), []).append(kind)
    lines = [f"{', '.join(kinds)}: {text}" if any(kinds) else text for text, kinds in texts.items()]
    return " ".join(lines).replace("[", r"\[")  # Typer's help is Rich markup


def described(field: FieldInfo) -> str:
    """What a setting's help says: its description, its choices and its default."""
    choices = [str(choice) for member in members(field) if get_origin(member) is Literal for choice in get_args(member)]
    text = field.description or ""
    if choices:
        text += f" One of {', '.join(choices)}."
    if field.default is not PydanticUndefined:
        text += f" Default: {_yaml(field.default)}."
    return text.strip()


def _yaml(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return "[" + ", ".join(value) + "]"
        case _:
            return str(value) or '""'


def _metavar(setting: _Setting) -> str:
    if setting.takes_text:
        return "TEXT"
    numbers = all(member in (int, float) for field in setting.fields.values() for member in members(field))
    return "NUMBER" if numbers else "YAML"


def _is_names(member: Any) -> bool:
    inner = get_args(member)[0] if get_origin(member) is Annotated else member
    return get_origin(inner) is tuple and get_args(inner)[0] is str


def _is_text(member: Any) -> bool:
    return member is str or (get_origin(member) is Literal and all(isinstance(arg, str) for arg in get_args(member)))
