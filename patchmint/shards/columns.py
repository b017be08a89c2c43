"""Columns: data added to a finished data set, in `columns/NAME/`, and samples put together with them.

A column is an output like that of a build, with the units and the keys of its data set, its base. Its samples hold what
was added, and a KEY.json of what that changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from patchmint.errors import ShardError
from patchmint.shards.endings import DOCUMENT, told_tokens, unnumbered
from patchmint.shards.layout import Layout, joined_notice
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import KeyJson
from patchmint.shards.versions import schema_name

SCHEMA = schema_name("column")


def column_json(told: KeyJson, layout: Layout) -> bytes:
    """A column's KEY.json: what its members change in that of its base.

    Args:
        told: KEY.json as if the column were the whole sample.
        layout: of the column.
    """
    labels, features = layout.min_coverage is not None, layout.features is not None
    fields = {"phrases_json": labels, "tokens": layout.tokens is not None, "features_json": features}
    fields |= {"trust": layout.trust}
    of_image = {"grid": labels or features, "further_grids": bool(layout.further_grids)}
    whole = told.model_dump()
    changes: dict[str, Any] = {"schema": SCHEMA} | ({"notice": layout.notice} if layout.notice else {})
    changes |= {name: whole[name] for name, made in fields.items() if made}
    changes |= {"further_tokens": whole["further_tokens"]} if layout.further_tokens else {}
    images = [{name: image[name] for name, made in of_image.items() if made} for image in whole.get("images", [whole])]
    if layout.documents:
        changes |= {"images": images} if any(of_image.values()) else {}
    else:
        changes |= images[0]
    return json.dumps(changes, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class Joiner:
    """Puts samples of a base and of its columns together.

    Args:
        layout: of the samples that this makes.

    Attributes:
        members: their endings, without images' numbers.
    """

    def __init__(self, layout: Layout) -> None:
        self.members = layout.members
        self._order = {ending: place for place, ending in enumerate(self.members)}
        self._grids = [grid.name for grid in layout.further_grids]
        self._tokens = [tokens.member for tokens in layout.all_tokens]
        self._known: dict[tuple[str, ...], list[str]] = {}  # samples have the same endings over and over

    def join(self, sample: StoredSample, parts: Iterable[StoredSample]) -> StoredSample:
        """A sample with what columns have of it: later members take the place of earlier ones of the same ending.

        Members that the layout hasn't, such as codes that others replace, are left out. Of KEY.json fields at the top
        do so; further grids and tokenizers are added, by name.

        Raises:
            ShardError: a part is of another sample, or a KEY.json isn't what it must be.
        """
        members, changes = dict(sample.members), []
        for part in parts:
            if part.key != sample.key:
                raise ShardError(f"a column has sample {part.key!r} where there should be {sample.key!r}; run verify")
            members |= part.members
            changes.append(part.members.get(DOCUMENT, b""))
        if DOCUMENT in sample.members:
            members[DOCUMENT] = self._merged(sample, changes)
        endings = tuple(members)
        if endings not in self._known:
            self._known[endings] = self._sorted(endings)
        kept = {ending: members[ending] for ending in self._known[endings]}
        return StoredSample(sample.key, sample.offset, sample.size, kept)

    def _sorted(self, endings: tuple[str, ...]) -> list[str]:
        """Those that there are in the layout, in its order."""

        def place(ending: str) -> tuple[int, int]:
            number, _, _ = ending.partition(".")
            return self._order[unnumbered(ending)], int(number) if number.isdecimal() else 0

        return sorted((ending for ending in endings if unnumbered(ending) in self._order), key=place)

    def _merged(self, sample: StoredSample, changes: Sequence[bytes]) -> bytes:
        try:
            told = from_json(sample.members[DOCUMENT])  # three times as fast as json
            for change in changes:
                told = self._changed(told, from_json(change)) | {"schema": told["schema"]}
            return to_json(told)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ShardError(f"KEY.json of {sample.key!r}, or a column's, isn't of its form: {error!r}") from error

    def _changed(self, told: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
        changed = {**told, **change}
        if "images" in change:
            changed["images"] = [self._changed(*pair) for pair in zip(told["images"], change["images"], strict=True)]
        if change.get("notice"):
            changed["notice"] = joined_notice(told["notice"], change["notice"])
        grids = {grid["name"]: grid for each in (told, change) for grid in each.get("further_grids", ())}
        if grids:
            changed["further_grids"] = [grids[name] for name in self._grids if name in grids]
            if not changed["further_grids"]:
                del changed["further_grids"]
        if "tokens" in change:
            tokens = {each["member"]: each for own in (told, change) for each in told_tokens(own)}
            first, *others = (tokens[member] for member in self._tokens if member in tokens)
            changed = {**changed, "tokens": first} | ({"further_tokens": others} if others else {})
            if not others:
                changed.pop("further_tokens", None)
        return changed
