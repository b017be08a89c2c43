"""Images that annotations name by paths: where these start, and where else an image may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from patchmint.config.sources import ImagesSettings
from patchmint.errors import ImageMissingError
from patchmint.images import IMAGE_ENDINGS
from patchmint.pipeline.sources.base import StoredImages, inner_setting, require_images
from patchmint.pipeline.sources.records import inner_path
from patchmint.samples import WHOLE_FILE, Fault, ImageRef
from patchmint.storage import Storage


class NamedImages(StoredImages):
    """Base of the sources whose annotations name images.

    A plan names each image below the first folder, without a request; whoever reads it and doesn't find it there tries
    the other folders, then other endings.
    """

    def __init__(self, config: ImagesSettings, storage: Storage, default: str = "") -> None:
        """Take the settings.

        Args:
            config: of the source.
            storage: the source's root.
            default: the folder that paths start from where the settings name none.

        Raises:
            ConfigError: a folder is outside of the source.
        """
        super().__init__(storage)
        given = (default,) if config.images is None else config.images
        folders = (given,) if isinstance(given, str) else given
        self._folders = [inner_setting(folder, "source.images") for folder in folders]
        self._prefixes = config.strip_prefix
        self._other_endings = config.other_endings

    def image_at(self, path: object, folder: str | None = None) -> ImageRef | Fault:
        """The image at a path from an annotation, or why there can be none.

        Args:
            path: from the annotation.
            folder: the folder that it starts from; None: the first of the settings.
        """
        if isinstance(path, str):
            prefix = next((prefix for prefix in self._prefixes if path.startswith(prefix)), "")
            path = path.removeprefix(prefix).lstrip("/") if prefix else path
        inner = inner_path(path)
        if isinstance(inner, Fault):
            return inner
        return ImageRef(joined(self._folders[0] if folder is None else folder, inner))

    def check_images(self, setting: str = "source.images", folder: str | None = None) -> None:
        """Check that there is something in a folder of images; None: in each of the settings' folders.

        Raises:
            ConfigError: there isn't.
        """
        for each in self._folders if folder is None else [folder]:
            require_images(self._storage, each, setting)

    def read_image(self, ref: ImageRef) -> bytes:
        """As `Source.read_image`."""
        try:
            return super().read_image(ref)
        except ImageMissingError as missing:
            others = list(self._elsewhere(ref))
            for path in others:
                try:
                    return super().read_image(replace(ref, path=path))
                except ImageMissingError:
                    continue
            if not others:
                if ref.start != WHOLE_FILE:
                    raise
                raise ImageMissingError(
                    f"{missing}. If it has another ending there, such as .gif for .jpg, set source.other_endings",
                    path=ref.path,
                ) from None
            raise ImageMissingError(
                f"{missing}. Nor is it at the other {len(others)} places that source.images and source.other_endings "
                "stand for",
                path=ref.path,
            ) from None

    def _elsewhere(self, ref: ImageRef) -> Iterator[str]:
        if ref.start != WHOLE_FILE:
            return
        first, *others = self._folders
        paths = [ref.path]
        if not first or ref.path.startswith(f"{first}/"):
            paths += [joined(folder, ref.path[len(first) :].lstrip("/")) for folder in others]
        yield from paths[1:]
        if self._other_endings:
            for path in paths:
                stem, _, own = path.rpartition(".")
                yield from (f"{stem}.{ending}" for ending in sorted(IMAGE_ENDINGS - {own}))


def joined(folder: str, path: str) -> str:
    """A path in a folder; "" is the top."""
    return f"{folder}/{path}" if folder else path
