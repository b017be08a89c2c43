"""Models from outside packages, found through entry points.

A package offers a detector, masker, segmenter, tokenizer or vision encoder by an entry point in the group of its role
(`GROUPS`), which names a callable that takes `device: str` and returns the model. It may take more, each by its name:
`precision` (of the settings), `checkpoint` (a path, or None), `settings` (a mapping, or what its own pydantic model
`Settings` makes of it); an encoder's the `grid`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, distributions
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from patchmint.errors import ConfigError, PluginError, did_you_mean

Group = Literal[
    "patchmint.detectors", "patchmint.maskers", "patchmint.segmenters", "patchmint.tokenizers", "patchmint.encoders"
]

GROUPS: Mapping[str, Group] = MappingProxyType(
    {
        "detector": "patchmint.detectors",
        "masker": "patchmint.maskers",
        "segmenter": "patchmint.segmenters",
        "tokenizer": "patchmint.tokenizers",
        "vit": "patchmint.encoders",
    }
)
"""Of each role that a plug-in can have its group of entry points."""


@cache
def _installed(path: tuple[str, ...]) -> Mapping[str, Mapping[str, EntryPoint]]:
    """What the packages of a `sys.path` offer, by group and name. All are read for it, which takes 10 ms: once."""
    found: dict[str, dict[str, EntryPoint]] = {group: {} for group in GROUPS.values()}
    for package in distributions(path=list(path)):
        for point in package.entry_points:
            if point.group in found:
                found[point.group].setdefault(point.name, point)
    return found


def _offered(group: Group) -> Mapping[str, EntryPoint]:
    return _installed(tuple(sys.path))[group]


def plugin_names(group: Group) -> list[str]:
    """Names that installed packages offer, in alphabetical order."""
    return sorted(_offered(group))


def group_of(role: str) -> Group | None:
    """The group of a role, also of one of several tokenizers ("tokenizer.fine"); None where it has no plug-ins."""
    return GROUPS.get(role.partition(".")[0])


def is_outside(role: str, name: str) -> bool:
    """Whether a model of the config comes from an outside package, rather than from a checkpoint.

    No segmenter of ours has a name of its own, so whatever isn't a path, URI or `hub:` name is another's.
    """
    group = group_of(role)
    if group is None or re.search(r"[:/\\]", name):
        return False
    return group == GROUPS["segmenter"] or name in _offered(group)


def find_plugin(group: Group, name: str) -> EntryPoint:
    """The entry point of an outside model; nothing of it is imported.

    Raises:
        PluginError: no installed package offers it.
    """
    if (point := _offered(group).get(name)) is not None:
        return point
    offered = plugin_names(group)
    raise PluginError(
        f"no installed package offers {name!r} in the entry point group {group}{did_you_mean(name, offered)} "
        f"(offered: {', '.join(offered) or 'none'}); install the package that does, on every machine of a build, or "
        "give the name or path of a checkpoint",
        name=name,
    )


def package_of(point: EntryPoint) -> tuple[str, str]:
    """The package of an entry point, with its version ("toy-models 1"), and its licence as it states that, or ""."""
    if point.dist is None:
        return point.value, ""
    stated = point.dist.metadata.json
    licence = str(stated.get("license_expression") or stated.get("license") or "")
    return f"{point.dist.name} {point.dist.version}", licence


def shown(role: str, name: str) -> str:
    """A model as users read of it: its name, and of an outside model that is installed the package."""
    group = group_of(role)
    if group is not None and name in _offered(group) and is_outside(role, name):
        return f"{name} ({package_of(find_plugin(group, name))[0]})"
    return name


@contextmanager
def named(model: str | None) -> Iterator[None]:
    """Give a `PluginError` that leaves the block the name of its model, if it has none."""
    try:
        yield
    except PluginError as error:
        error.name = error.name or model
        raise


def check_plugin(group: Group, name: str, **given: Any) -> None:
    """Check that an outside model is there and can take what it is given; it is imported only where that is something.

    Args:
        group: the entry points' group.
        name: the entry point's name.
        given: as for `load_plugin`.

    Raises:
        PluginError: nobody offers it, it can't be imported, or takes no such thing.
        ConfigError: its settings are wrong.
    """
    point = find_plugin(group, name)
    if any(given.values()):
        _arguments(_imported(point), name, given)


def load_plugin(group: Group, name: str, interface: type | tuple[type, ...], device: str, **given: Any) -> object:
    """Build an outside model and check that it has an interface's methods.

    Args:
        group: the entry points' group.
        name: the entry point's name.
        interface: the runtime-checkable protocol that it must satisfy, or several of which it must one.
        device: handed to the model's callable.
        given: what else is, where it takes it.

    Raises:
        PluginError: nobody offers it, it fails to load, it takes no such thing, or it lacks a method.
        ConfigError: its settings are wrong, or the model refuses them or the grid.
    """
    point = find_plugin(group, name)
    make = _imported(point)
    arguments = _arguments(make, name, given)
    try:
        model: object = make(device=device, **arguments)
    except ConfigError:
        raise
    except Exception as error:
        message = f"the plug-in {name!r} ({point.value}) failed to build: {error!r}"
        raise PluginError(message, name=name) from error
    if not isinstance(model, interface):
        protocols = interface if isinstance(interface, tuple) else (interface,)
        raise PluginError(
            f"the plug-in {name!r} ({point.value}) gave a {type(model).__name__}, which lacks a method of "
            f"{' and of '.join(f'{each.__module__}.{each.__name__}' for each in protocols)}",
            name=name,
        )
    return model


def _imported(point: EntryPoint) -> Callable[..., object]:
    try:
        made: Callable[..., object] = point.load()
    except Exception as error:
        message = f"the plug-in {point.name!r} ({point.value}) failed to build: {error!r}"
        raise PluginError(message, name=point.name) from error
    return made


def _arguments(make: Callable[..., object], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is given, what the callable takes; its settings as its own model of them."""
    parameters = signature(make).parameters
    open_ended = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {key: value for key, value in given.items() if open_ended or key in parameters}
    for key in ("checkpoint", "settings"):
        if given.get(key) and key not in taken:
            raise PluginError(f"the plug-in {name!r} takes no {key}; leave it out of models.plugins.{name}", name=name)
    model = getattr(make, "Settings", None)
    if "settings" in taken and isinstance(model, type) and issubclass(model, BaseModel):
        try:
            taken["settings"] = model.model_validate(dict(taken["settings"]))
        except ValidationError as error:
            wrong = (
                f"models.plugins.{name}.settings.{'.'.join(map(str, each['loc']))}: {each['msg']}"
                for each in error.errors()
            )
            raise ConfigError("\n".join(wrong)) from error
    return taken
