"""Masks as stored, or made again from the stored boxes; pictures from the codes; both by the build's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from patchmint.config import UNTRAINED, LabelsConfig, ModelsConfig, TokensConfig
from patchmint.config.annotator import role_of
from patchmint.config.parsing import parse_settings
from patchmint.datasets.dataset import Dataset
from patchmint.errors import InputError, ShardError, WeightsCorruptError, WeightsMissingError
from patchmint.geometry.rle import bounding_box, box_of
from patchmint.images.reading import upright_mask
from patchmint.inspection.gallery.thumbnails import framed, masks_png, small
from patchmint.inspection.show.labels import phrase_colours, phrases_of_text
from patchmint.interfaces import Masker, Tokenizer, Tokens
from patchmint.plugins import group_of, is_outside, plugin_names
from patchmint.shards.codec import Array
from patchmint.shards.endings import tokenizer_name
from patchmint.shards.manifest import Manifest, codes_made_by, made_by
from patchmint.shards.paths import MANIFEST_PATH
from patchmint.shards.reader import StoredImage
from patchmint.shards.schema import round_box
from patchmint.types import Box, Precision, RgbImage, Rle, Size
from patchmint.weights.checksums import recorded_sha256, sha256_of
from patchmint.weights.registry import CHECKPOINTS
from patchmint.weights.store import locate


@dataclass(frozen=True)
class Offer:
    """Whether something can be made again.

    Attributes:
        settings: what its model is built from, () where it needs none; None where it can't be made.
        remark: why it can't, and what to do; or what to know of it; empty where there is nothing to say.
    """

    settings: Any
    remark: str = ""

    @property
    def available(self) -> bool:
        """Whether it can be made."""
        return self.settings is not None


def has_instances(dataset: Dataset) -> bool:
    """Whether instances are stored; of a data set without dataset.json nobody knows, so it hasn't."""
    return dataset.manifest is not None and dataset.manifest.layout.instances


def offer_masks(dataset: Dataset, wanted: bool) -> Offer:
    """Whether the masks of the labels are stored, or can be made again on this machine."""
    if wanted and has_instances(dataset):
        return Offer(())
    return _offer_masker(dataset, drawn=True) if wanted else Offer(None, "left out (--no-masks)")


def offer_outlines(dataset: Dataset, masker: str | None = None) -> Offer:
    """Whether boxes that somebody draws can get masks on this machine.

    Args:
        dataset: whose boxes.
        masker: name or path of the masker; None: the one of the labels.
    """
    if masker is not None:
        return _offer(None, "masker", masker, (ModelsConfig(masker=masker), LabelsConfig(), "auto"))
    return _offer_masker(dataset, drawn=False)


def _offer_masker(dataset: Dataset, *, drawn: bool) -> Offer:
    """The masker of the labels; none is needed where annotators drew all masks, and only these are wanted."""
    found = _maker(dataset, "labels", "masks")
    if isinstance(found, Offer):
        return found
    manifest, config = found
    models = parse_settings(ModelsConfig, config["models"])
    if models.segmenter is not None:
        return Offer(None, f"the segmenter {models.segmenter!r} made them; its masks aren't stored")
    labels = parse_settings(LabelsConfig, config["labels"])
    # The same number format as the build's, as far as this machine has it.
    settings = (models, labels, _precision(config))
    if drawn and not labels.needs_masker:
        return Offer(settings)
    if models.masker is None:
        return Offer(None, "there are none: the labels are those of the boxes' areas (models.masker: null)")
    return _offer(manifest, "masker", models.masker, settings)


def offer_decoded(dataset: Dataset, wanted: bool) -> Offer:
    """Whether the codes can be drawn on this machine."""
    found = _maker(dataset, "tokens", "codes") if wanted else Offer(None, "left out (--no-decoded)")
    if isinstance(found, Offer):
        return found
    manifest, config = found
    models, tokens = parse_settings(ModelsConfig, config["models"]), manifest.layout.tokens
    role = role_of("tokenizer", tokenizer_name(tokens.member if tokens else ""))
    return _offer(manifest, role, models.tokenizer, (models, parse_settings(TokensConfig, config["tokens"])))


def _maker(dataset: Dataset, section: str, what: str) -> tuple[Manifest, Mapping[str, Any]] | Offer:
    """The settings of the build that made labels or tokens; or why they aren't known."""
    manifest = dataset.manifest
    if manifest is None:
        return Offer(None, f"only a finished build ({MANIFEST_PATH}) says which model made its {what}")
    if (manifest.layout.min_coverage if section == "labels" else manifest.layout.tokens) is None:
        return Offer(None, f"this data set has no {'labels' if section == 'labels' else 'codes'}")
    tokens = manifest.layout.tokens if section == "tokens" else None
    config = codes_made_by(manifest.config, tokens.member) if tokens else made_by(manifest.config, section)
    if config is None or config.get("models") is None:
        return Offer(None, f"{MANIFEST_PATH} doesn't say which model made its {what}")
    models = {role: name for role, name in config["models"].items() if "." not in role}  # `tokens` has the others
    return manifest, {**config, "models": models}


class Remaker:
    """Makes masks and decoded pictures; models are loaded when they are first needed, and used by one thread a time."""

    def __init__(self, masks: Offer, decoded: Offer) -> None:
        """Take over what is offered."""
        self.masks_offer = masks
        self.decoded_offer = decoded
        self._lock = Lock()

    def masks(self, images: Sequence[RgbImage], stored: Sequence[StoredImage], longest: int) -> list[list[bytes]]:
        """Masks of every text that labels some images.

        Args:
            images: HWC uint8 RGB.
            stored: what is known of them.
            longest: longest side of the pictures in pixels.

        Returns:
            For each image a transparent PNG for each of its texts; empty bytes for a text without phrases.

        Raises:
            ShardError: stored instances can't be used.
            WeightsError, PluginError: the masker can't be used.
        """
        drawn = [drawn_masks(image) for image in stored]
        others = [
            np.array([p.box for number, p in enumerate(image.phrases) if number not in own], np.float32).reshape(-1, 4)
            for image, own in zip(stored, drawn, strict=True)
        ]
        made: Sequence[Sequence[Rle]] = [()] * len(images)
        if any(map(len, others)):
            from patchmint.labelers.grounded_sam import masks_of

            with self._lock:
                made = [masks.rles() for masks in masks_of(self._masker, images, others)]
        pictures = []
        for pixels, image, own, rles in zip(images, stored, drawn, made, strict=True):
            rest = iter(rles)
            whole = [own[number] if number in own else next(rest) for number in range(len(image.phrases))]
            pictures.append(_of_texts(image, whole, small((pixels.shape[0], pixels.shape[1]), longest)))
        return pictures

    def decoded(self, codes: Sequence[Array], sizes: Sequence[Size]) -> list[RgbImage]:
        """Pictures of codes, cut and scaled to the proportions of the images that they were made of.

        Args:
            codes: as stored.
            sizes: (height, width) of the images.

        Raises:
            WeightsError, PluginError: the tokenizer can't be loaded.
            InputError: the codes aren't its.
        """
        for grid in codes:
            if grid.dtype.kind != "u":
                raise InputError(f"codes are unsigned integers, not {grid.dtype}; run `patchmint inspect verify`")
        with self._lock:
            books = len(self._tokenizer.spec.codebook_sizes)
            tokens = [Tokens((grid[..., None] if books == 1 else grid).astype(np.int32)) for grid in codes]
            pictures = self._tokenizer.decode(tokens)
            cells = self._tokenizer.spec.cells
        return [framed(picture, cells, size) for picture, size in zip(pictures, sizes, strict=True)]

    @cached_property
    def _masker(self) -> Masker:
        return _load_masker(self.masks_offer)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from patchmint.compute.devices import pick_device
        from patchmint.tokenizers.build import build_tokenizer

        models, tokens = self.decoded_offer.settings
        return build_tokenizer(models, tokens, pick_device("auto"))


class Outliner:
    """Makes the masks of boxes that somebody draws; the masker is loaded once. Safe across threads, one at a time."""

    def __init__(self, offer: Offer) -> None:
        """Take over what `offer_outlines` offers; where that is nothing, a box stays a box."""
        self._offer = offer
        self._lock = Lock()
        self._last: tuple[RgbImage, Any] | None = None

    def load(self) -> None:
        """Load the masker ahead, where there is one. Raises as `outline`."""
        with self._lock:
            if self._offer.available:
                _ = self._masker

    def outline(self, image: RgbImage, boxes: Sequence[Box]) -> list[Rle | None]:
        """The mask of what each box (XYXY in pixels of the image) holds; None where there is none.

        The image of the last call stays encoded by patchmint's own SAM: several boxes are drawn on one.

        Raises:
            WeightsError: the masker's weights can't be used.
        """
        if not self._offer.available:
            return [None] * len(boxes)
        from patchmint.labelers.grounded_sam import masks_of
        from patchmint.labelers.sam.masker import SamMasker

        given = [np.array(boxes, np.float32)]
        with self._lock:
            masker = self._masker
            if isinstance(masker, SamMasker):
                if self._last is None or not np.array_equal(self._last[0], image):
                    self._last = image, masker.encode(image)
                (masks,) = masker.masks([image], given, encoded=self._last[1])
            else:
                (masks,) = masks_of(masker, [image], given)
        return [rle if any(box_of(rle)) else None for rle in masks.rles()]

    @cached_property
    def _masker(self) -> Masker:
        return _load_masker(self._offer)


def _load_masker(offer: Offer) -> Masker:
    from patchmint.compute.devices import pick_device
    from patchmint.labelers.grounded_sam import build_masker

    models, labels, precision = offer.settings
    return build_masker(models, labels, pick_device("auto"), precision)


def drawn_masks(image: StoredImage) -> dict[int, Rle]:
    """The stored masks of labels, by the number of their phrase: of instances all, else those of annotators.

    Raises:
        ShardError: its instances aren't those of its phrases, or not of its size.
    """
    size = (image.info.height, image.info.width)
    if (instances := image.instances) is not None:
        masks = [each.mask.rle for each in instances]
        if len(masks) != len(image.phrases) or any(tuple(mask["size"]) != size for mask in masks):
            raise ShardError("its instances don't fit its phrases or its size; run `patchmint inspect verify`")
        return dict(enumerate(masks))
    waiting: dict[tuple[int, tuple[float, ...]], list[int]] = {}
    for number, phrase in reversed(list(enumerate(image.phrases))):
        if phrase.origin == "annotator":
            waiting.setdefault((phrase.text_index, phrase.box), []).append(number)
    found: dict[int, Rle] = {}
    if not waiting:
        return found
    for text, said in enumerate(image.key_json.annotators):
        for mask in (each.mask for each in said.drawn if each.mask is not None):
            upright = upright_mask(mask, image.info.orientation, size)
            # in their order, where several have one box
            if numbers := waiting.get((text, round_box(bounding_box(upright)))):
                found[numbers.pop()] = upright
    return found


def _of_texts(image: StoredImage, rles: Sequence[Rle], size: Size) -> list[bytes]:
    pictures = []
    for text in image.texts:
        phrases = phrases_of_text(image, text)
        colours = phrase_colours(phrase.text for phrase in phrases)
        own = [rle for rle, phrase in zip(rles, image.phrases, strict=True) if phrase.text_index == text]
        pictures.append(masks_png(own, [colours[phrase.text] for phrase in phrases], size) if own else b"")
    return pictures


def _precision(config: Mapping[str, Any]) -> Precision:
    """`auto` where it isn't said, or is float16, which isn't for CPUs."""
    said = config.get("precision")
    return "float32" if said == "float32" else "bfloat16" if said == "bfloat16" else "auto"


def _offer(manifest: Manifest | None, role: str, name: str, settings: object) -> Offer:
    if name == UNTRAINED:
        return Offer(settings, "by untrained weights, as in the build: they mean nothing")
    if is_outside(role, name):
        return Offer(settings, f"by the {role} plug-in {name!r} installed here")
    try:
        path = locate(name)
    except (WeightsMissingError, WeightsCorruptError):
        return Offer(None, _way_out(role, name))
    known = CHECKPOINTS[name].sha256 if name in CHECKPOINTS else None
    stored = manifest.models[role].sha256 if manifest is not None and role in manifest.models else ""
    if stored and (known or recorded_sha256(path) or sha256_of(path)) != stored:
        return Offer(
            settings, f"by a {role} of another sha256 than that of the build, so that they may differ from what it saw"
        )
    return Offer(settings)


def _way_out(role: str, name: str) -> str:
    """What to do, without this machine's paths: the gallery may be shown to others."""
    if name in CHECKPOINTS and CHECKPOINTS[name].bundled:
        return f"the file of {name!r} that comes with patchmint is missing or damaged; install patchmint again"
    if name in CHECKPOINTS:
        return f"its weights aren't on this machine: run `patchmint models pull {name}`, then make the gallery again"
    group = group_of(role)
    offered = ", ".join(plugin_names(group)) if group is not None else ""
    plugins = f" (installed {role} plug-ins: {offered})" if offered else ""
    return f"{name.rpartition('/')[2]!r} is neither a file on this machine nor a known name{plugins}"
