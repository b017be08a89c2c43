"""Models from outside packages, found through entry points.

A package offers a segmenter, a tokenizer or a vision encoder by an entry point in the group `patchmint.segmenters`,
`patchmint.tokenizers` or `patchmint.encoders`, which names a callable that takes `device: str` and returns the model.
An encoder's takes `grid` as well.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from patchmint.errors import ConfigError, PluginError, did_you_mean

Group = Literal["patchmint.segmenters", "patchmint.tokenizers", "patchmint.encoders"]


def plugin_names(group: Group) -> list[str]:
    """Names that installed packages offer, in alphabetical order."""
    return sorted(point.name for point in entry_points(group=group))


def is_outside_tokenizer(name: str) -> bool:
    """Whether a tokenizer of the config comes from an outside package, rather than from a checkpoint."""
    return name in plugin_names("patchmint.tokenizers")


def is_outside_encoder(name: str) -> bool:
    """Whether a vision encoder of the config comes from an outside package."""
    return name in plugin_names("patchmint.encoders")


def find_plugin(group: Group, name: str) -> EntryPoint:
    """The entry point of an outside model; nothing of it is imported.

    Raises:
        PluginError: no installed package offers it.
    """
    for point in entry_points(group=group, name=name):
        return point
    offered = plugin_names(group)
    raise PluginError(
        f"no installed package offers {name!r} in the entry point group {group}{did_you_mean(name, offered)} "
        f"(offered: {', '.join(offered) or 'none'}); install the package that does, on every machine of a build, or "
        "give the name or path of a checkpoint",
        name=name,
    )


def load_plugin(group: Group, name: str, interface: type, device: str, **given: object) -> object:
    """Build an outside model and check that it has the interface's methods.

    Args:
        group: the entry points' group.
        name: the entry point's name.
        interface: the runtime-checkable protocol that it must satisfy.
        device: handed to the model's callable.
        given: what else is.

    Raises:
        PluginError: nobody offers it, it fails to load, or it lacks a method.
        ConfigError: the model refuses what it was given.
    """
    point = find_plugin(group, name)
    try:
        model: object = point.load()(device=device, **given)
    except ConfigError:
        raise
    except Exception as error:
        message = f"the plug-in {name!r} ({point.value}) failed to build: {error!r}"
        raise PluginError(message, name=name) from error
    if not isinstance(model, interface):
        raise PluginError(
            f"the plug-in {name!r} ({point.value}) gave a {type(model).__name__}, "
            f"which lacks a method of {interface.__module__}.{interface.__name__}",
            name=name,
        )
    return model
