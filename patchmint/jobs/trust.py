"""`patchmint trust`: how far each label can be relied on, as a column of a finished data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from patchmint.config.build import BuildConfig
from patchmint.datasets.column_writer import Row, plan_column, write_column
from patchmint.datasets.dataset import Dataset, open_dataset
from patchmint.errors import InputError
from patchmint.jobs.columns import ColumnsOption
from patchmint.jobs.extend import settings_of
from patchmint.jobs.printable import many
from patchmint.jobs.progress import say
from patchmint.judging.calibrate import Calibration
from patchmint.judging.trust import Asks, Trust, TrustModel
from patchmint.shards.endings import DOCUMENT
from patchmint.shards.manifest import image_limit
from patchmint.shards.paths import COLUMNS, MANIFEST_PATH, PLAN_PATH, unit_name
from patchmint.shards.plan import Unit, load_plan, write_index
from patchmint.shards.reader import StoredImage, StoredSample
from patchmint.storage import Storage, open_storage, uri_of

NAME = "trust"


def trust_command(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A finished data set: folder or store.")],
    full: Annotated[
        bool,
        typer.Option(
            "--full/--cheap",
            help="Ask the detector thrice more: of the image flipped and smaller, and for phrases alone. --cheap: of "
            "scores, sizes, features and codes, without a model.",
        ),
    ] = False,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the column.")] = NAME,
    columns: ColumnsOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE.json",
            help="Take what `patchmint calibrate --trust` learnt, in the place of planted errors.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where --full runs: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Say of each text's labels how far they can be relied on, 0..1, without any truth, as a column.

    It is the chance that no error of `patchmint judge --plant` is in them, as learnt from such errors in a copy of the
    data set's own labels; with --calibration the F1 that is to be expected of the patches. DATASET/columns/NAME holds
    it, and nothing else; delete that folder to remove it. Use it with `find --where "trust < 0.5"` and
    StageDataset(min_trust=...). The same command resumes.
    """
    opened = open_dataset(dataset, columns=columns)
    opened = replace(opened, columns=tuple(column for column in opened.columns if column.name != name))
    model = None
    if calibration is not None:
        model = Calibration.read(calibration).trust
        if model is None:
            raise InputError(f"{calibration} says nothing of trust; make it with `patchmint calibrate --trust`")
    write_trust(opened, name, full=full, model=model, device=device)
    say(f"column {name} of {dataset}")


def write_trust(
    dataset: Dataset, name: str = NAME, *, full: bool = False, model: TrustModel | None = None, device: str = "auto"
) -> None:
    """Compute the trust of all labels, and write it as a column.

    Args:
        dataset: finished, with labels, read with the columns whose labels are meant.
        name: of the column.
        full: whether the detector is asked again, which loads torch.
        model: what known values mean; None: it is learnt from planted errors.
        device: where that is.

    Raises:
        InputError: there are no labels, or too few to learn from; or a column of that name holds something else.
        WeightsError, PluginError, ConfigError: the detector can't be loaded.
        ShardError, StorageError: the data set can't be read, or the column can't be written.
    """
    manifest = dataset.manifest
    if manifest is None or not dataset.finished:
        raise InputError(f"{dataset.uri} isn't a finished data set; finish its build first")
    storage = open_storage(uri_of(dataset.storage, f"{COLUMNS}/{name}"))
    if storage.exists(MANIFEST_PATH):
        raise _taken(storage, name)
    trust = Trust(dataset, passes_of(dataset, device) if full else None, model)
    say(f"looking through {many(dataset.samples, 'sample')}")
    trust.count()
    if model is None:
        trust.learn()
    assert trust.model is not None
    config = {
        "trust": "full" if full else "cheap",
        "columns": [column.name for column in dataset.columns],
        "model": trust.model.model_dump(mode="json"),
    }
    shards = {shard.unit: number for number, shard in enumerate(dataset.shards) if shard.samples}
    units = [
        Unit(unit, dataset.shards[number].samples, int(dataset.starts[number]), "", 0)
        for unit, number in shards.items()
    ]
    plan = plan_column(dataset, units, config)
    if not storage.create(PLAN_PATH, write_index(plan)):
        begun = load_plan(storage)
        if begun is None or begun.digest != plan.digest:
            raise _taken(storage, name)
    nothing = {"tokens": None, "further_tokens": (), "features": None, "min_coverage": None, "further_grids": ()}
    update = nothing | {"instances": False, "edits": False, "column": True, "trust": True}
    layout = manifest.layout.model_copy(update=update)

    def rows_of(unit: int) -> Iterator[Row]:
        say(f"unit {unit_name(unit)}, of {many(len(units), 'unit')}")
        return _rows(trust, dataset, shards[unit])

    models = {role: model for role, model in manifest.models.items() if full and role in ("detector", "segmenter")}
    write_column(dataset, storage, plan, layout, rows_of, models=models)


def _rows(trust: Trust, dataset: Dataset, shard: int) -> Iterator[Row]:
    start, end = dataset.starts[shard : shard + 2].tolist()
    index, told, values = start, None, list[float]()
    for known in trust.known(np.arange(start, end)):
        if known.index != index and told is not None:
            yield _row(told, values, index)
            values = []
        index, told = known.index, known.image
        values.append(trust.of(known))
    if told is not None:
        yield _row(told, values, index)


def _row(image: StoredImage, trust: list[float], index: int) -> Row:
    told = image.key_json.with_trust(trust)
    return StoredSample(told.key, 0, 0, {DOCUMENT: told.to_bytes()}), index, {}


def passes_of(dataset: Dataset, device: str = "auto") -> Asks:
    """Asks the detector that made the labels; raises as `write_trust`."""
    from patchmint.compute.devices import pick_device  # with torch
    from patchmint.compute.memory import keep_freed_memory
    from patchmint.compute.threads import limit_threads
    from patchmint.judging.again import Passes

    manifest = dataset.manifest
    assert manifest is not None
    limit_threads()
    keep_freed_memory()
    told = settings_of(manifest, dataset.uri, uri_of(dataset.storage, f"{COLUMNS}/{NAME}"), {"labels"})
    config = BuildConfig.load(told, {})
    if config.labels is None or not (config.models.segmenter or config.labels.needs_detector):
        raise InputError(f"no detector made the labels of {dataset.uri}, so none can be asked again; use --cheap")
    return Passes.load(config, image_limit(manifest), pick_device(device))


def _taken(storage: Storage, name: str) -> InputError:
    return InputError(
        f"there is a column {name} already, or one was begun of other labels or settings; delete {storage.uri}, or "
        "choose another --name"
    )
