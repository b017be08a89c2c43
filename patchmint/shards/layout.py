"""What every sample of one data set has in common: its grid, its members, their types and shapes."""

from __future__ import annotations

import math
import re
from functools import cached_property, lru_cache
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from patchmint.config.grids import MAX_GRID_NAME
from patchmint.errors import InputError
from patchmint.geometry import Fit, Grid, PatchGrid, coverage_to_uint8
from patchmint.geometry.native import NativeGrid, native_of
from patchmint.geometry.presets import grid_of_settings, grid_settings, has_fixed_cells, is_one_input
from patchmint.interfaces import FeatureSpec, TokenizerSpec
from patchmint.shards.endings import (
    CAPTION,
    COVERAGE,
    DOCUMENT,
    FEATURES,
    IMAGE,
    INSTANCES,
    SELECTOR,
    longest_key,
    numbered,
    on_grid,
    sample_endings,
    tokenizer_name,
    unnumbered,
)
from patchmint.types import Size

_UINT16_CODES = 1 << 16
# Far above what models have; what a damaged or hostile dataset.json says is made room for, so it has to end somewhere.
_MAX_SIDE = 1024
_MAX_AXES = 4
_MAX_CELLS = 1 << 20
_MAX_BOOKS = 1024
_MAX_CODES = 1 << 24

_PREPROCESSING = re.compile(r"(pad|crop|squash)-([0-9]{1,5})-[a-z0-9]+", re.ASCII)


class _Layout(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GridLayout(_Layout):
    """The grid."""

    rows: int = Field(ge=0, le=_MAX_SIDE, description="Rows of one view; 0: they depend on the image.")
    cols: int = Field(ge=0, le=_MAX_SIDE, description="Columns; 0: they depend on the image.")
    patch_px: int = Field(ge=1, le=_MAX_SIDE, description="Side of a cell in pixels of the encoder's input.")
    fit: str = Field(description="How an image becomes the input: pad, crop, squash, anyres, tiles or native.")
    settings: dict[str, Any] = Field(
        default={},
        exclude_if=lambda settings: not settings,
        description="The grid's kind and numbers, where its cells or their tokens depend on the image; else absent.",
    )

    @classmethod
    def of(cls, grid: Grid, **name: str) -> Self:
        """The layout of a grid; of a `FurtherGridLayout` also its `name`."""
        rows, cols = (grid.rows, grid.cols) if has_fixed_cells(grid) else (0, 0)
        return cls(
            rows=rows,
            cols=cols,
            patch_px=grid.patch_px if isinstance(grid, PatchGrid) else grid.patch_px * grid.merge,
            fit=str(grid.fit),
            settings={} if is_one_input(grid) else grid_settings(grid),
            **name,
        )

    @cached_property
    def grid(self) -> Grid | None:
        """The grid that `settings` describe; None without them.

        Raises:
            ConfigError: they describe none.
        """
        return grid_of_settings(self.settings) if self.settings else None


class FurtherGridLayout(GridLayout):
    """A grid on which there are labels as well: `KEY.selector.NAME.npy`, `KEY.coverage.NAME.npy`."""

    name: str = Field(pattern=rf"^[a-z0-9_-]{{1,{MAX_GRID_NAME}}}$", description="In the members' names.")


class TokensLayout(_Layout):
    """A tokenizer's codes."""

    member: str = Field(
        pattern=r"^([a-z0-9_-]{1,15}|codes\.[a-z][a-z0-9_]{0,17})$",
        description="Name of the member: KEY.MEMBER.npy; of several tokenizers codes.NAME.",
    )
    grid: tuple[Annotated[int, Field(ge=0, le=_MAX_CELLS)], ...] = Field(
        min_length=1,
        max_length=_MAX_AXES,
        description="Shape of the codes; (rows, cols), or (length,); 0, 0: it depends on the image.",
    )
    codebook_sizes: tuple[Annotated[int, Field(ge=1, le=_MAX_CODES)], ...] = Field(
        min_length=1, max_length=_MAX_BOOKS, description="Number of codes in each codebook."
    )
    preprocessing: str = Field(description="How pixels were prepared; only codes with the same may be mixed.")
    rule: str = Field(
        default="",
        description="How a code was chosen: nearest, dot, cosine or logit; absent where a plug-in doesn't tell.",
        exclude_if=lambda rule: not rule,
    )

    @classmethod
    def of(cls, member: str, spec: TokenizerSpec) -> Self:
        """The layout of a tokenizer's codes."""
        return cls(
            member=member,
            grid=spec.grid_shape,
            codebook_sizes=spec.codebook_sizes,
            preprocessing=spec.preprocessing,
            rule=spec.rule,
        )

    @field_validator("grid")
    @classmethod
    def _check_cells(cls, grid: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(grid) > _MAX_CELLS:
            raise ValueError(f"it has more than {_MAX_CELLS} cells")
        if not all(grid) and grid != (0, 0):
            raise ValueError("it has no cells; 0, 0 where they depend on the image")
        return grid

    @field_validator("codebook_sizes")
    @classmethod
    def _check_codes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if sum(sizes) > _MAX_CODES:
            raise ValueError(f"there are more than {_MAX_CODES} codes in all codebooks")
        return sizes

    @property
    def name(self) -> str:
        """The tokenizer's name; its member's, where it is the only one."""
        return tokenizer_name(self.member) or self.member

    @property
    def varies(self) -> bool:
        """Whether the grid depends on the image."""
        return not all(self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on disk: the grid, with a last axis of codebooks where there are several."""
        return self.shape_of(self.grid)

    def shape_of(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Shape on disk of codes with this grid."""
        codebooks = len(self.codebook_sizes)
        return grid if codebooks == 1 else (*grid, codebooks)

    def grid_on(self, image_size: Size) -> tuple[int, ...] | None:
        """The grid on an image (height, width); None where it depends on the image, and `cells` isn't known.

        Raises:
            InputError: the image is too long and narrow for it.
        """
        if not self.varies:
            return self.grid
        return None if self.cells is None else self.cells.place(image_size).shape

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type on disk, little-endian: uint16, or uint32 where a codebook has more codes than that holds."""
        return np.dtype("<u2" if max(self.codebook_sizes) <= _UINT16_CODES else "<u4")

    @cached_property
    def cells(self) -> PatchGrid | NativeGrid | None:
        """How the codes' grid lies on an image, by what `preprocessing` says ("pad-256-bicubic", "smart-8-...").

        None where that can't be told: an outside tokenizer with words of its own, or one without rows.
        """
        if self.varies:
            return native_of(self.preprocessing)
        match = _PREPROCESSING.fullmatch(self.preprocessing)
        if match is None or len(self.grid) != 2:
            return None
        rows, cols = self.grid
        size = int(match[2])
        cell = size // rows
        if not cell or (rows * cell, cols * cell) != (size, size):
            return None
        return PatchGrid(rows, cols, cell, Fit(match[1]))

    def shown(self, image_size: Size) -> npt.NDArray[np.bool_] | None:
        """Which cells show any of an image, rather than nothing but padding: bool (rows, cols); None: not known.

        Args:
            image_size: (height, width) of the image.
        """
        return None if self.cells is None else _shown(self.cells, image_size)


class Layout(_Layout):
    """What every sample of a data set has.

    Raises:
        pydantic.ValidationError: a number is out of range, or a name is unlawful.
    """

    grid: GridLayout = Field(description="The patch grid; of several the first.")
    further_grids: tuple[FurtherGridLayout, ...] = Field(
        default=(), exclude_if=lambda grids: not grids, description="The others; absent where there are none."
    )
    min_coverage: float | None = Field(ge=0, lt=1, description="A patch is kept above this share; null: no labels.")
    tokens: TokensLayout | None = Field(description="Null: no codes; of several tokenizers the first.")
    further_tokens: tuple[TokensLayout, ...] = Field(
        default=(), exclude_if=lambda tokens: not tokens, description="The others; absent where there are none."
    )
    features: FeatureSpec | None = Field(default=None, description="Null: no features.")
    notice: str = Field(description="A warning that belongs on every use (untrained or demo models); else empty.")
    instances: bool = Field(
        default=False,
        exclude_if=lambda instances: not instances,
        description="True: labels come with the instances that they were made of; absent: without.",
    )
    documents: bool = Field(
        default=False,
        exclude_if=lambda documents: not documents,
        description="True: a sample is a document, of one or more images; absent: a picture.",
    )
    column: bool = Field(
        default=False,
        exclude_if=lambda column: not column,
        description="True: a sample holds only what was added to one of another data set; absent: it is whole.",
    )
    edits: bool = Field(
        default=False,
        exclude_if=lambda edits: not edits,
        description="True: sidecars tell what somebody corrected by hand; absent: nobody did.",
    )
    trust: bool = Field(
        default=False,
        exclude_if=lambda trust: not trust,
        description="True: KEY.json and sidecars tell how far labels can be relied on; absent: nobody asked.",
    )

    @property
    def threshold(self) -> int | None:
        """`selector = coverage > threshold`, in the levels that are stored; None where there are no labels."""
        return None if self.min_coverage is None else _level(self.min_coverage)

    @property
    def made(self) -> tuple[str, ...]:
        """Endings of what was made of each image, in the order in which it is written."""
        labels = () if self.min_coverage is None else (SELECTOR, COVERAGE)
        further = tuple(on_grid(ending, each.name) for each in self.further_grids for ending in (SELECTOR, COVERAGE))
        instances = (INSTANCES,) if self.instances else ()
        tokens = (f"{each.member}.npy" for each in self.all_tokens)
        features = (FEATURES,) if self.features else ()
        return (*labels, *further, *instances, *tokens, *features)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Those of them that are arrays."""
        return tuple(ending for ending in self.made if ending != INSTANCES)

    @property
    def members(self) -> tuple[str, ...]:
        """Endings of a sample's members in their order; of a document without the images' numbers."""
        return (DOCUMENT, *self.made) if self.column else (IMAGE, DOCUMENT, CAPTION, *self.made)

    def members_of(self, images: int) -> tuple[str, ...]:
        """Endings of the members of a sample of so many images, in the order in which they are written."""
        endings = sample_endings(self.made, images, documents=self.documents)
        return tuple(ending for ending in endings if unnumbered(ending) in self.members) if self.column else endings

    def with_column(self, column: Layout) -> Layout:
        """The layout of its samples with those of a column.

        Raises:
            InputError: labels would lie on one grid, and features on another.
        """
        labels, features = column.min_coverage is not None, column.features is not None
        update: dict[str, Any] = {"notice": joined_notice(self.notice, column.notice)}
        if labels:
            update |= {name: getattr(column, name) for name in ("min_coverage", "further_grids", "instances")}
        elif column.further_grids:
            update["further_grids"] = (*self.further_grids, *column.further_grids)
        # those with names are put beside what there is; of those without there is one
        tokens = {tokenizer_name(each.member): each for own in (self, column) for each in own.all_tokens}
        update |= {"tokens": next(iter(tokens.values()), None), "further_tokens": tuple(tokens.values())[1:]}
        update |= {"features": column.features} if features else {}
        update |= {"trust": True} if column.trust else {}
        if labels or features:
            kept = (self.features is not None and not features) or (self.min_coverage is not None and not labels)
            if kept and column.grid != self.grid:
                raise InputError(
                    f"labels and features must lie on one grid; there are {self.grid!r} and {column.grid!r}. Choose "
                    "columns that go together (--columns, or columns=)"
                )
            update["grid"] = column.grid
        return self.model_copy(update=update)

    @property
    def longest_key(self) -> int:
        """Characters that a sample's key may have."""
        return longest_key(self.arrays, documents=self.documents)

    def on_grid(self, name: str) -> Self:
        """The layout of its samples as if their labels were on one of the further grids alone, without features."""
        grid = next(each for each in self.further_grids if each.name == name)
        alone = GridLayout(**grid.model_dump(exclude={"name"}))
        return self.model_copy(update={"grid": alone, "further_grids": (), "features": None})

    @property
    def all_tokens(self) -> tuple[TokensLayout, ...]:
        """The codes of each tokenizer."""
        return () if self.tokens is None else (self.tokens, *self.further_tokens)

    def with_codes(self, name: str) -> Self:
        """The layout of its samples as if the codes of one of its tokenizers were the only ones."""
        tokens = next(each for each in self.all_tokens if each.name == name)
        return self.model_copy(update={"tokens": tokens, "further_tokens": ()})

    def ending_of(self, image: int, ending: str) -> str:
        """Ending of a member that belongs to one image of a sample."""
        return numbered(image, ending) if self.documents else ending


def joined_notice(*notices: str) -> str:
    """Several notices as one, each part once."""
    return " | ".join(dict.fromkeys(part for notice in notices for part in notice.split(" | ") if part))


@lru_cache(maxsize=4096)
def _shown(cells: PatchGrid | NativeGrid, image_size: Size) -> npt.NDArray[np.bool_]:
    return cells.place(image_size).inside > 0


@lru_cache(maxsize=8)
def _level(min_coverage: float) -> int:
    return int(coverage_to_uint8(np.array(min_coverage)))
