"""What two data sets say of themselves, setting by setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from patchmint.datasets.dataset import Dataset
from patchmint.shards.manifest import held_settings

# What the members are follows from the layout, and the config's digest from the config.
_DERIVED = {"schema", "members", "config_digest"}


@dataclass(frozen=True)
class Change:
    """A field of dataset.json that two builds have otherwise.

    Attributes:
        field: its name, with dots: "config.labels.box_threshold".
        values: under "a" and "b" what each says; without what it doesn't have.
    """

    field: str
    values: Mapping[str, object]


def compare_settings(a: Dataset, b: Dataset) -> list[Change]:
    """Config, models, versions, layout and totals, in the order of their names; nothing where one has no manifest.

    The config is that which made what the shards hold (`held_settings`), whichever command did.
    """
    if a.manifest is None or b.manifest is None:
        return []
    sides = {name: dict(_flat(dataset)) for name, dataset in (("a", a), ("b", b))}
    changes = []
    for field in sorted(sides["a"].keys() | sides["b"].keys()):
        values = {name: side[field] for name, side in sides.items() if field in side}
        if len(values) < len(sides) or values["a"] != values["b"]:
            changes.append(Change(field, values))
    return changes


def describe_gaps(a: Dataset, b: Dataset) -> list[str]:
    """What can't be compared since a build isn't finished, or is one tar."""
    gaps = [f"{dataset.uri} isn't finished; units left: {dataset.unbuilt}" for dataset in (a, b) if dataset.unbuilt]
    without = [dataset.uri for dataset in (a, b) if dataset.manifest is None]
    if without:
        gaps.append(f"settings aren't compared: no dataset.json in {' and '.join(without)}")
    return gaps


def _flat(dataset: Dataset) -> Iterator[tuple[str, object]]:
    if dataset.manifest is not None:
        document = dataset.manifest.model_dump(mode="json") | {"config": held_settings(dataset.manifest)}
        yield from _leaves("", {name: value for name, value in document.items() if name not in _DERIVED})


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{prefix}.{name}" if prefix else str(name), inner)
    else:
        yield prefix, value
