"""Corrections: what edits make of samples, without a model, and the sparse column that holds it."""

from __future__ import annotations

import getpass
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count, groupby
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from patchmint.datasets.column_writer import plan_column, write_column
from patchmint.datasets.columns import CORRECTIONS, trust_is_of
from patchmint.datasets.dataset import Dataset
from patchmint.datasets.edits import Edit, edited
from patchmint.datasets.reader import iter_stored, sample_at
from patchmint.datasets.rows import positions_of, rows_at
from patchmint.errors import InputError
from patchmint.json_values import canonical_json
from patchmint.labelers.patches import label_texts
from patchmint.shards.codec import encode_array
from patchmint.shards.endings import COVERAGE, DOCUMENT, INSTANCES, SELECTOR, on_grid
from patchmint.shards.paths import COLUMNS, MANIFEST_PATH, PLAN_PATH
from patchmint.shards.plan import Plan, Unit, load_plan, write_index
from patchmint.shards.reader import StoredSample
from patchmint.shards.sample import instances_of
from patchmint.shards.schema import FoundDocument, InstancesDocument, PhraseDocument
from patchmint.storage import Storage, open_storage, uri_of

MOST_TOLD: Final = 20
"""Edits that don't fit are named one by one, up to so many."""

_EDITS = TypeAdapter(tuple[Edit, ...])

Named = tuple[str, Edit]
"""An edit, and where it stands, for errors."""


@dataclass(frozen=True, eq=False)
class Corrected:
    """A sample as edits leave it.

    Attributes:
        index: its position in the data set.
        sample: with KEY.json, labels and instances.
        edits: of it, those of earlier corrections first.
        new: how many of these are new.
        wrong: whether the whole sample is marked.
        corrected: whether its instances are others than those that the build made.
    """

    index: int
    sample: StoredSample
    edits: tuple[Edit, ...]
    new: int
    wrong: bool
    corrected: bool

    @property
    def row(self) -> dict[str, object]:
        """What the sidecar says of it."""
        edits = _EDITS.dump_json(self.edits, exclude_defaults=True).decode()
        return {"wrong": self.wrong, "corrected": self.corrected, "edits": edits}


def correct(dataset: Dataset, edits: Iterable[Named], by: str = "", at: datetime | None = None) -> list[Corrected]:
    """What edits make of the samples that they touch; nothing is written. Those that were applied already are left out.

    Args:
        dataset: finished, with its corrections so far.
        edits: those of one sample in their order.
        by: who, where an edit doesn't say; "": the user's name.
        at: when, where an edit doesn't say; None: now.

    Returns:
        Those that change, in the data set's order.

    Raises:
        InputError: the data set has no instances, or edits don't fit; of these all are named.
        ShardError: a sample is damaged.
        StorageError: one can't be read.
    """
    manifest = dataset.manifest
    if manifest is None or not dataset.finished or not manifest.layout.instances:
        raise InputError(
            f"{dataset.uri} stores no instances that could be corrected; build it with labels.instances: true"
            if manifest is not None and dataset.finished
            else f"{dataset.uri} isn't a finished data set; finish its build first"
        )
    of_key: defaultdict[str, list[Named]] = defaultdict(list)
    for place, edit in edits:
        told = {"by": edit.by or by or _user(), "at": edit.at or at or datetime.now(UTC)}
        of_key[edit.key].append((place, edit.model_copy(update=told)))
    positions = positions_of(dataset, of_key)
    faults = [
        f"{place}: there is no sample {key!r}"
        for key, named in of_key.items()
        if key not in positions
        for place, _ in named
    ]
    changed = []
    order = np.array(sorted(positions.values()), np.int64)
    base = replace(dataset, columns=tuple(column for column in dataset.columns if not column.sparse))
    names = ["key", *(("wrong", "edits") if dataset.has_edits else ())]
    samples = iter_stored(dataset, order, (DOCUMENT, *manifest.layout.made))
    for (index, sample), (_, row) in zip(samples, rows_at(dataset, order, names), strict=True):
        try:
            made = corrected(dataset, base, index, sample, row, of_key[sample.key])
        except _FaultyEditsError as error:
            faults += error.lines
            continue
        if made is not None:
            changed.append(made)
    if faults:
        more = f"\n  and {len(faults) - MOST_TOLD} more" if len(faults) > MOST_TOLD else ""
        shown = "\n  ".join(faults[:MOST_TOLD])
        raise InputError(f"edits don't fit {dataset.uri}, so nothing was written:\n  {shown}{more}")
    return changed


class _FaultyEditsError(InputError):
    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def corrected(
    dataset: Dataset,
    base: Dataset,
    index: int,
    sample: StoredSample,
    row: Mapping[str, Any],
    edits: Sequence[Named],
) -> Corrected | None:
    """A sample after its edits; None if they change nothing.

    Args:
        dataset: with its corrections so far.
        base: the same without them.
        index: the sample's position.
        sample: with KEY.json, labels and instances.
        row: of its sidecar, "wrong" and "edits", if there are such columns.
        edits: in their order; those that stand already (`standing`) are passed over.

    Raises:
        InputError: edits don't fit.
        ShardError, StorageError: as for `correct`.
    """
    past = _EDITS.validate_json(row.get("edits", "[]"))
    stand = standing(row)
    edits = [(place, edit) for place, edit in edits if edit not in stand]
    first = sample_at(base, index) if past else sample
    before, wrong, faults = _found(sample), bool(row.get("wrong")), list[str]()
    after, marked, texts = before, wrong, sample.key_json.texts
    for place, edit in edits:
        try:
            if edit.image >= len(after):
                raise InputError(f"there is no image {edit.image}; the sample has {len(after)}")
            if edit.undo:
                after, marked = _found(first), False
            image = sample.images[edit.image]
            size = image.info.height, image.info.width
            new = edited(after[edit.image], edit, texts, image.texts, size)
        except InputError as error:
            faults.append(f"{place}: {sample.key}: {error}")
            continue
        after = (*after[: edit.image], new, *after[edit.image + 1 :])
        marked = edit.wrong if edit.wrong is not None else marked
    if faults:
        raise _FaultyEditsError(faults)
    if (after, marked) == (before, wrong):
        return None
    back = after == _found(first)
    made = _made(dataset, base, index, (first, sample), after)
    told = (*past, *(edit for _, edit in edits))
    return Corrected(index, made, told, len(edits), marked, not back)


def _made(
    dataset: Dataset,
    base: Dataset,
    index: int,
    states: tuple[StoredSample, StoredSample],
    found: Sequence[Sequence[FoundDocument]],
) -> StoredSample:
    """A sample with other instances; `states` are that of the build, and the present one.

    Trust that was computed after corrections is of what these left, so that state is read again.
    """
    first, sample = states
    trusted = trust_is_of(dataset)
    if first is sample or not first.key_json.trust:
        return first if found == _found(first) else with_instances(dataset, sample, found)
    if trusted:
        seen = tuple(column for column in dataset.columns if not column.sparse or column.name in trusted)
        first = sample_at(replace(base, columns=seen), index)
    return first if found == _found(first) else with_instances(dataset, first, found)


def standing(row: Mapping[str, Any]) -> tuple[Edit, ...]:
    """Edits of a sample that earlier corrections applied and none has undone since, by the row of its sidecar."""
    past = _EDITS.validate_json(row.get("edits", "[]"))
    begun = max((number for number, edit in enumerate(past) if edit.undo), default=-1) + 1
    return past[begun:]


def _found(sample: StoredSample) -> tuple[tuple[FoundDocument, ...], ...]:
    return tuple(image.instances or () for image in sample.images)


def _user() -> str:
    with suppress(OSError, KeyError):  # in a container the user may have no name
        return getpass.getuser()
    return ""


def read_edits_of(dataset: Dataset, index: int) -> tuple[bool, tuple[Edit, ...]]:
    """Whether the sample at a position is marked wrong, and all its edits so far.

    Raises:
        ShardError, StorageError: its sidecar is damaged, or can't be read.
    """
    if not dataset.has_edits:
        return False, ()
    ((_, row),) = rows_at(dataset, np.array([index]), ["wrong", "edits"])
    return row["wrong"], _EDITS.validate_json(row["edits"])


def with_instances(dataset: Dataset, sample: StoredSample, found: Sequence[Sequence[FoundDocument]]) -> StoredSample:
    """A sample with other instances, and with the labels on all grids that a build makes of these.

    `labels.mask_area` and `labels.clip_to_box` judge what models find; what people draw stays as it is. Where there is
    trust, that of a text with other instances is 1: somebody has looked at them.

    Args:
        dataset: whose; it has instances.
        sample: with KEY.json, instances, and all labels.
        found: the instances of each image.

    Raises:
        ShardError: a member is damaged.
    """
    assert dataset.manifest is not None
    assert dataset.manifest.layout.min_coverage is not None
    texts = sample.key_json.texts
    phrases = [
        [
            PhraseDocument(**each.model_dump(exclude={"mask"}), text=texts[each.text_index][each.start : each.end])
            for each in of_image
        ]
        for of_image in found
    ]
    members = dict(sample.members)
    told = sample.key_json.with_phrases(phrases)
    if told.trust:
        of_texts = [(image, text, found[image.number]) for image in sample.images for text in image.texts]
        told = told.with_trust(
            trust if _of_text(image.instances or (), text) == _of_text(drawn, text) else 1.0
            for trust, (image, text, drawn) in zip(told.trust, of_texts, strict=True)
        )
    members[DOCUMENT] = told.to_bytes()
    for image, own, drawn in zip(sample.images, phrases, found, strict=True):
        masks = [each.mask.rle for each in drawn]
        members[image.ending_of(INSTANCES)] = InstancesDocument.of(own, masks).to_bytes()
    changed = replace(sample, members=members)
    for image in changed.images:
        instances = instances_of(image)
        for number, name in enumerate(dataset.grid_names):
            placed = dataset.on_grid(name), changed.on_grid(name) if number else changed
            placement = placed[0].placement(placed[1].images[image.number])
            labels = label_texts(instances, len(image.texts), placement, dataset.manifest.layout.min_coverage)
            for ending, array in ((SELECTOR, labels.selector), (COVERAGE, labels.coverage)):
                members[image.ending_of(on_grid(ending, name) if number else ending)] = encode_array(array)
    return replace(sample, members=members)


def _of_text(found: Iterable[FoundDocument], text: int) -> list[FoundDocument]:
    return [each for each in found if each.text_index == text]


def write_corrections(dataset: Dataset, changed: Sequence[Corrected]) -> str:
    """Write a sparse column, `columns/corrections-NNNN/`, with a build's protocol; a killed one is gone on with.

    Args:
        dataset: as for `correct`.
        changed: what that gave; not empty.

    Returns:
        The column's name.

    Raises:
        InputError: somebody else has corrected the data set since it was opened.
        StorageError: it can't be written.
        ShardError: a sample isn't as the format says.
    """
    base = dataset.manifest
    assert base is not None
    update = {"column": True, "tokens": None, "features": None, "edits": True}
    layout = base.layout.model_copy(update=update)
    units = [(shard, list(own)) for shard, own in groupby(changed, lambda each: dataset.place(each.index)[0])]
    told = [[each.sample.key, each.row] for each in changed]
    config = {
        "corrections": hashlib.sha256(canonical_json(told).encode()).hexdigest(),
        "columns": [column.name for column in dataset.columns],
    }
    images = {shard.unit: sum(len(each.sample.images) for each in own) for shard, own in units}
    plan = plan_column(
        dataset,
        [
            Unit(shard.unit, len(own), own[0].index, "", 0, images[shard.unit] * layout.documents)
            for shard, own in units
        ],
        config,
    )
    name, storage = _claimed(dataset, plan)
    rows = {shard.unit: [(each.sample, each.index, each.row) for each in own] for shard, own in units}
    write_column(dataset, storage, plan, layout, rows.__getitem__, sparse=True)
    return name


def _claimed(dataset: Dataset, plan: Plan) -> tuple[str, Storage]:
    """The next column of corrections, or the unfinished one that has this plan.

    Raises:
        InputError: there is a finished one that wasn't read.
    """
    read = {column.name for column in dataset.columns}
    for number in count(1):
        name = f"{CORRECTIONS}-{number:04d}"
        storage = open_storage(uri_of(dataset.storage, f"{COLUMNS}/{name}"))
        if storage.create(PLAN_PATH, write_index(plan)):
            return name, storage
        if storage.exists(MANIFEST_PATH):
            if name not in read:
                raise InputError(f"{dataset.uri} was corrected by somebody else meanwhile ({name}); correct it again")
        elif (there := load_plan(storage)) is not None and there.digest == plan.digest:
            return name, storage
    raise AssertionError
