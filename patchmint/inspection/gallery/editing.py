"""The page's requests to change something: boxes become masks, edits go into their file."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from threading import Lock
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patchmint.datasets.edits import Drawn, Edit
from patchmint.errors import InputError, PatchmintError
from patchmint.images.decode import decode_image
from patchmint.inspection.gallery.edits import EditedReader, PendingEdits
from patchmint.inspection.gallery.remake import Outliner
from patchmint.inspection.gallery.site import Site
from patchmint.shards.reader import StoredSample
from patchmint.shards.schema import MaskDocument, first_error

_Drawn = TypeVar("_Drawn", bound=Drawn)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    position: int = Field(ge=0, description="Of the sample in the gallery.")
    seen: int = Field(description="Edits of the sample that the page knows of.")
    edit: dict[str, Any] | None = Field(description="An edit without its key, author and date; null: undo the last.")
    outline: bool = Field(default=False, description="Whether the masker outlines boxes that have no mask.")


class Editing:
    """Answers the page's requests to change something, one at a time: all threads share one masker."""

    def __init__(self, site: Site, pending: PendingEdits, author: str) -> None:
        """Take what edits are made with.

        Args:
            site: what the page shows.
            pending: where edits are kept, and the site has them from.
            author: who edits.
        """
        self.token = secrets.token_urlsafe()
        """Only requests that have it change anything."""
        self._site = site
        self._pending = pending
        self._outliner = Outliner(site.outlines)
        self._author = author
        self._reader = EditedReader(site.dataset, pending)
        self._lock = Lock()

    def load_ahead(self) -> None:
        """Load the masker while the page is still looked at; what is wrong with it is said when it is needed."""
        with suppress(PatchmintError):
            self._outliner.load()

    def answer(self, body: bytes) -> dict[str, Any]:
        """Do what a request asks for, and say how its sample is shown from now on.

        Returns:
            `sample`: as the sample's file has it; `undone`: the edit that was taken back, else None.

        Raises:
            InputError: it isn't a request, the sample was changed meanwhile, or the edit doesn't fit it.
            ShardError, StorageError, WeightsError: as for `Site.file`.
        """
        try:
            request = _Request.model_validate_json(body)
        except ValidationError as error:
            raise InputError(f"that isn't a request: {first_error(error)}") from error
        if request.position >= len(self._site.positions):
            raise InputError(f"there is no sample {request.position} in this gallery")
        with self._lock:
            try:
                undone = self._change(int(self._site.positions[request.position]), request)
            finally:
                self._site.forget()  # also where another process has changed the edits
        taken = undone and undone.model_dump(mode="json", exclude={"key", "by", "at"}, exclude_defaults=True)
        return {"sample": self._site.described(request.position), "undone": taken}

    def _change(self, index: int, request: _Request) -> Edit | None:
        """Add the edit, or take the last one back; that is the answer."""
        now = self._reader.read(index)
        if len(now.edits) != request.seen:
            raise InputError("this sample was changed in another window meanwhile; reload the page")
        if request.edit is not None:
            edit = self._edit(now.sample, request)
            self._reader.read(index, [edit])  # does it fit?
            self._pending.append(edit)
            return None
        if not now.edits:
            raise InputError(
                "this sample has no edit that isn't applied yet; `patchmint correct --undo` takes others back"
            )
        self._pending.drop(now.edits[-1])
        return now.edits[-1]

    def _edit(self, sample: StoredSample, request: _Request) -> Edit:
        said = {"key": sample.key, "by": self._author, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
        try:
            edit = Edit.model_validate_json(json.dumps((request.edit or {}) | said))
        except ValidationError as error:
            raise InputError(f"that isn't an edit: {first_error(error)}") from error
        drawn = [one for one in (*edit.change, *edit.add) if _is_box(one)]
        if not (request.outline and drawn and edit.image < len(sample.images)):
            return edit
        pixels = decode_image(sample.images[edit.image].data, max_megapixels=self._site.dataset.max_megapixels).pixels
        masks = iter(self._outliner.outline(pixels, [one.box for one in drawn if one.box is not None]))

        def outlined(one: _Drawn) -> _Drawn:
            mask = next(masks) if _is_box(one) else None
            return one if mask is None else one.model_copy(update={"mask": MaskDocument.of(mask)})

        return edit.model_copy(
            update={"change": tuple(map(outlined, edit.change)), "add": tuple(map(outlined, edit.add))}
        )


def _is_box(drawn: Drawn) -> bool:
    return drawn.box is not None and drawn.mask is None
