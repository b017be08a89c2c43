"""All figures of a demo: its shards against the truth, and what shards don't hold.

That is the masker on true boxes, and pictures drawn from the shards' codes. Loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

from patchmint.compute.memory import keep_freed_memory
from patchmint.compute.threads import limit_threads
from patchmint.config import LabelsConfig, ModelsConfig, TokensConfig
from patchmint.datasets.dataset import Dataset
from patchmint.demo import score
from patchmint.demo.dataset import Truth
from patchmint.demo.documents import DocumentTruth
from patchmint.demo.score import DOCUMENT_LIMITS, ShardFigures, judged_documents, judged_samples
from patchmint.errors import ShardError
from patchmint.geometry import fit_image
from patchmint.geometry.rle import Masks, bounding_box, decode_mask
from patchmint.images.decode import decode_image
from patchmint.interfaces import Tokens
from patchmint.judging.calibrate import calibrate
from patchmint.judging.trust import Trust
from patchmint.judging.truth import TrueImage
from patchmint.judging.truth import Truth as TruthOfImages
from patchmint.labelers.grounded_sam import build_masker, masks_of
from patchmint.shards.reader import StoredSample
from patchmint.storage import Storage
from patchmint.tokenizers.build import build_tokenizer
from patchmint.types import RgbImage

_MASKED, _DRAWN = 50, 24
# So many scenes settle these two means to the second digit.
_BATCH = 16
_WARRANTED = 100
# In fewer scenes calibration and trust are mostly chance.
_PLANTED = 0.2

Step = Callable[[int], None]


def judge_dataset(
    storage: Storage,
    truth: Truth,
    models: ModelsConfig,
    tokens: TokensConfig,
    *,
    written: int,
    progress: Callable[[str, int], AbstractContextManager[Step]],
) -> dict[str, float]:
    """Compare a finished build of scenes with the truth.

    Args:
        storage: of the build.
        truth: of its scenes.
        models: that it was built with.
        tokens: likewise.
        written: how many samples the build says that it wrote.
        progress: opened for each part, with what it is and of how many samples; gives what takes the number so far.

    Returns:
        The figures by the names of `patchmint.demo.score.LIMITS`; NaN where there was nothing to judge. Of
        `mask_iou` and `psnr` the first 50 and 24 samples.

    Raises:
        ShardError: the shards are damaged, were built from other scenes, or hold more or less than was written.
        StorageError, WeightsError, ImageError: as their names say.
    """
    limit_threads()
    keep_freed_memory()
    figures = ShardFigures()
    kept: list[tuple[StoredSample, TrueImage]] = []
    judged = 0
    with progress("judging labels", written) as step:
        for judged, (sample, scene) in enumerate(judged_samples(storage, truth), start=1):
            figures.add(sample, scene)
            if judged <= max(_MASKED, _DRAWN):
                kept.append((sample, scene))
            step(judged)
    _check_written(storage, judged, written)
    with progress("judging the masker", len(kept[:_MASKED])) as step:
        mask_iou = masker_iou(models, kept[:_MASKED], step)
    with progress("judging the tokenizer", len(kept[:_DRAWN])) as step:
        codes = codes_psnr(models, tokens, [sample for sample, _ in kept[:_DRAWN]], step)
    return figures.summary() | {"mask_iou": mask_iou, "psnr": codes}


def judge_documents(
    storage: Storage,
    truth: DocumentTruth,
    *,
    written: int,
    progress: Callable[[str, int], AbstractContextManager[Step]],
) -> dict[str, float]:
    """Compare a finished build of documents with the truth; as `judge_dataset`, which says what is raised.

    Returns:
        The figures by the names of `patchmint.demo.score.DOCUMENT_LIMITS`; NaN where there was nothing to judge.
    """
    figures = ShardFigures()
    judged = 0
    with progress("judging documents", written) as step:
        for judged, (sample, scenes) in enumerate(judged_documents(storage, truth.documents), start=1):
            figures.add(sample, *scenes)
            step(judged)
    _check_written(storage, judged, written)
    summary = figures.summary()
    return {name: summary[name.removeprefix("documents_")] for name in DOCUMENT_LIMITS}


def judge_warrant(
    dataset: Dataset, truth: TruthOfImages, *, progress: Callable[[str, int], AbstractContextManager[Step]]
) -> dict[str, float]:
    """What scores and trust say of labels, against the truth, as `patchmint calibrate` and `judge --plant` have it.

    Args:
        dataset: a finished build of scenes.
        truth: of its images.
        progress: as for `judge_dataset`.

    Returns:
        `ece`, of scores that were calibrated on other scenes, and `trust_auroc`, of cheap trust on errors planted into
        a fifth of the texts; NaN with fewer than 100 scenes.

    Raises:
        ShardError, StorageError: the data set can't be read.
    """
    if dataset.samples < _WARRANTED:
        return {"ece": float("nan"), "trust_auroc": float("nan")}
    with progress("calibrating scores", dataset.samples) as step:
        ece = calibrate(dataset, truth, lambda done, _: step(done)).ece_after
    with progress("planting errors, and looking for them", dataset.samples) as step:
        trust = Trust(dataset)
        trust.count(lambda done, _: step(done))
        found = trust.trial(_PLANTED).auroc
    return {"ece": ece, "trust_auroc": float("nan") if found is None else found}


def _check_written(storage: Storage, judged: int, written: int) -> None:
    if judged != written:
        raise ShardError(
            f"the shards in {storage.uri} hold {judged} samples, but the build wrote {written}; run "
            "`patchmint inspect verify` on it"
        )


def masker_iou(models: ModelsConfig, judged: Sequence[tuple[StoredSample, TrueImage]], progress: Step) -> float:
    """Mean IoU of the masks of true boxes with what is seen of the things in them; NaN without samples.

    Args:
        models: among them the masker.
        judged: samples and their truth.
        progress: called with the number of samples done.

    Raises:
        WeightsError: the masker's weights can't be used.
        ShardError, ImageError: a sample's image can't be read.
    """
    masker = build_masker(models, LabelsConfig(), "cpu")
    ious: list[float] = []
    for start in range(0, len(judged), _BATCH):
        batch = judged[start : start + _BATCH]
        found = masks_of(masker, [_pixels(sample) for sample, _ in batch], [true_boxes(scene) for _, scene in batch])
        for masks, (_, scene) in zip(found, batch, strict=True):
            ious += mask_ious(masks, scene)
        progress(start + len(batch))
    return float(np.mean(ious)) if ious else float("nan")


def true_boxes(scene: TrueImage) -> npt.NDArray[np.float32]:
    """What is seen of each thing: float32 (N, 4), XYXY in pixels, right and bottom exclusive."""
    return np.array([bounding_box(mask) for mask in scene.objects], dtype=np.float32).reshape(-1, 4)


def mask_ious(masks: Masks, scene: TrueImage) -> list[float]:
    """IoU of one mask for each of the scene's things, in order, with what is seen of it."""
    return score.mask_ious(masks, (decode_mask(true) > 0 for true in scene.objects))


def codes_psnr(models: ModelsConfig, tokens: TokensConfig, samples: Sequence[StoredSample], progress: Step) -> float:
    """Mean PSNR, in dB, of pictures drawn from samples' codes against the images as the tokenizer saw them.

    NaN without samples.

    Args:
        models: among them the tokenizer.
        tokens: its settings.
        samples: with codes.
        progress: called with the number of samples done.

    Raises:
        WeightsError: the tokenizer's weights can't be used.
        ShardError, ImageError: a sample's codes or image can't be read.
        InputError: codes of another tokenizer.
    """
    tokenizer = build_tokenizer(models, tokens, "cpu")
    cells = tokenizer.spec.cells
    assert cells is not None, "a VQGAN's codes have places"
    values: list[float] = []
    for number, sample in enumerate(samples, start=1):
        (picture,) = tokenizer.decode([_tokens(sample)])
        values.append(score.psnr(picture, fit_image(_pixels(sample), cells)[0]))
        progress(number)
    return float(np.mean(values)) if values else float("nan")


def _tokens(sample: StoredSample) -> Tokens:
    if sample.codes is None:
        raise ShardError(f"sample {sample.key!r} has no codes; delete the data set and run the demo again")
    return Tokens(sample.codes.astype(np.int32)[..., None])


def _pixels(sample: StoredSample) -> RgbImage:
    return decode_image(sample.image).pixels
