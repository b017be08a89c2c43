"""Image files, bytes, PIL images and arrays -> RGB pixels, safely.

- Seven formats and no others: JPEG (with the MPO files that phones write: their first picture), PNG, WebP, GIF and AVIF
  (of an animation the first frame), BMP, TIFF of one page. What a file is called doesn't matter, what it holds does.
- The pixel cap is held against the header, before a decoder allocates anything. Pillow's plug-ins are called directly,
  not through `Image.open`: that warns from 89 megapixels on and refuses from 179 on, limits that are global to the
  process and can't be lifted for one call without a race between threads.
- Pixels are what `exif_transpose` and `.convert("RGB")` give, since that is how the consumers of labels read images
  (transformers' `load_image`, LLaVA): alpha is dropped, colour profiles are ignored. One exception: 16-bit grey keeps
  the highest eight of its significant bits, as Pillow does for 16-bit colour; `.convert` would clip it to white.
- Whatever else is wrong with the image ends in an `ImageDecodeError`: a truncated file too, never half a picture.
  libjpeg makes up what a damaged scan lacks, and Pillow hides its warnings: `images/jpeg` minds them.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from patchmint.errors import ImageDecodeError, ImageError, ImageTooLargeError
from patchmint.images import FileFormat
from patchmint.images.headers import ORIENTATIONS, exif_orientation, gif_size, is_avif, png_significant_bits, webp_size
from patchmint.images.jpeg import decode_jpeg
from patchmint.types import RgbImage, Size

_ALLOWED = "a JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF file"

_TIFF_COMPRESSIONS = frozenset(
    ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "jpeg", "tiff_ccitt", "group3", "group4")
)
"""Those in common use. The others are rare, or whole decoders of their own within libtiff."""

_DARK = 16
"""A 16-bit image whose high bytes are all smaller uses twelve bits or fewer, and shows as black."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An image ready for the models.

    Attributes:
        pixels: HWC uint8 RGB, C-contiguous, writable, EXIF orientation applied; shares no memory with the source.
        format: what the file was; "array" for pixels that were in memory already (arrays and PIL images).
        orientation: EXIF orientation of the source, 1..8; 1 = as stored, also where there is none or it is damaged.
        mode: Pillow's name for the source's pixels, such as "CMYK", "P" or "I;16".
        dark: its file has 16 bits, uses the lowest twelve at most, and doesn't say so: the pixels are nearly black.
    """

    pixels: RgbImage
    format: FileFormat | Literal["array"]
    orientation: int
    mode: str
    dark: bool = False

    @property
    def size(self) -> Size:
        """(height, width) in pixels, after orientation."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class ImageHeader:
    """What the beginning of an image file says: `format`, `mode` and `orientation` as in a `DecodedImage`.

    Attributes:
        size: (height, width) in pixels, after orientation.
    """

    format: FileFormat
    mode: str
    orientation: int
    size: Size


def read_header(data: bytes) -> ImageHeader:
    """Read an image file's header; no pixels are decoded, so they may be damaged.

    Raises:
        ImageDecodeError: it is no image of an allowed format, or its header is damaged.
        ImageTooLargeError: it has more than 1000 megapixels.
    """
    with _opened(io.BytesIO(data), "the image (bytes)", 1e9) as (image, kind):
        orientation = _orientation(image)
        is_turned = orientation >= 5 and kind != "tiff"  # Pillow tells a TIFF's size as it is displayed
        size = (image.width, image.height) if is_turned else (image.height, image.width)
        return ImageHeader(kind, image.mode, orientation, size)


def decode_image(
    source: str | os.PathLike[str] | bytes | bytearray | Image.Image | npt.NDArray[Any], *, max_megapixels: float = 100
) -> DecodedImage:
    """Decode an image.

    Args:
        source: a path; the bytes of a file; a PIL image of any integer mode; or a uint8 array: (H, W, 3) RGB,
            (H, W, 4) RGBA (alpha is dropped) or (H, W) grey.
        max_megapixels: images of more than this many million pixels (width x height) are refused.

    Raises:
        ImageDecodeError: there is no such file, it is no image of an allowed format, it is damaged or cut short, or the
            array isn't as described above.
        ImageTooLargeError: the image has too many pixels.
    """
    limit = max_megapixels * 1e6
    if isinstance(source, np.ndarray):
        return _from_array(source, limit)
    if isinstance(source, Image.Image):
        return _from_pil(source, limit)
    if isinstance(source, bytes | bytearray):
        return _from_file(io.BytesIO(source), "the image (bytes)", limit)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            with _open_file(path) as file:
                return _from_file(file, _named(path), limit)
        except ImageError as error:
            error.path = str(source)
            raise
    raise ImageDecodeError(
        f"can't read an image from {type(source).__name__}; pass a path, bytes, a PIL image or a uint8 array (H, W, 3)"
    )


def _named(path: Path) -> str:
    return f"image {str(path)[-200:]!r}"


def _open_file(path: Path) -> IO[bytes]:
    problem = "can't be read"
    try:
        if path.is_file():
            return path.open("rb")
        if path.is_dir():
            problem = "is a directory; name a file in it"
        elif path.exists():
            problem = "isn't a regular file; save it to disk first"
        elif re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            problem = "is a web address, and nothing is fetched; download it and pass the path"
        else:
            problem = f"doesn't exist; check the path (the current directory is {str(Path.cwd())!r})"
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte
        raise ImageDecodeError(f"{_named(path)} can't be read: {error}") from error
    raise ImageDecodeError(f"{_named(path)} {problem}")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Not needed, and Pillow warns about a damaged EXIF block while it looks."""


_PLUGINS: dict[FileFormat, Callable[[IO[bytes]], ImageFile]] = {
    "jpeg": _Jpeg,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "bmp": BmpImageFile,
    "gif": GifImageFile,
    "tiff": TiffImageFile,
    "avif": AvifImageFile,
}


def _sniff(head: bytes) -> FileFormat | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM"):
        return "bmp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    return "avif" if is_avif(head) else None


@contextmanager
def _opened(file: IO[bytes], name: str, limit: float) -> Iterator[tuple[ImageFile, FileFormat]]:
    """An image file whose header is read, and its format; whatever goes wrong with it becomes an ImageError."""
    kind = None
    try:
        head = file.read(64)
        kind = _sniff(head)
        if kind is None:
            raise ImageDecodeError(f"{name} {_what_else(head)}")
        if kind == "webp":
            _check_size(webp_size(head), limit, name)
        elif kind == "gif":
            _check_size(gif_size(file), limit, name)
        file.seek(0)
        with _PLUGINS[kind](file) as image:
            _check_size((image.height, image.width), limit, name)
            yield image, kind
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"{name} is over Pillow's own limit (Image.MAX_IMAGE_PIXELS): {error}") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        reason = str(error) or type(error).__name__
        raise ImageDecodeError(
            f"{name} is a damaged or incomplete {(kind or 'image').upper()} file ({reason}); get a fresh copy, or open "
            "it in an image editor and save it again"
        ) from error


def _from_file(file: IO[bytes], name: str, limit: float) -> DecodedImage:
    with _opened(file, name, limit) as (image, kind):
        bits = 16
        if isinstance(image, TiffImageFile):
            _check_tiff(image, limit, name)
            bits = max(image.tag_v2.get(BITSPERSAMPLE, (16,)))
        elif kind == "png":
            bits = png_significant_bits(file)
        deep = any(";16" in str(tile.args) for tile in image.tile[:1])
        orientation = _orientation(image)
        turn = 1 if kind == "tiff" else orientation  # Pillow turns a TIFF
        if kind == "jpeg":
            at = file.tell()
            file.seek(0)
            decoded = decode_jpeg(file.read())
            if decoded is not None and image.mode != "CMYK":
                pixels = decoded if turn == 1 else _turned(Image.fromarray(decoded), turn)
                return DecodedImage(pixels, kind, orientation, image.mode)
            file.seek(at)
        image.load()
        pixels = _rgb_pixels(image, turn, name, bits)
        return DecodedImage(pixels, kind, orientation, image.mode, deep and int(pixels.max()) < _DARK)


def _orientation(image: ImageFile) -> int:
    """By the header, before pixels are loaded: that takes it out of a TIFF."""
    if not isinstance(image, TiffImageFile):
        return exif_orientation(image.info)
    value = image.tag_v2.get(ExifTags.Base.Orientation, 1)
    return value if value in ORIENTATIONS else 1


def _what_else(head: bytes) -> str:
    start = head.lstrip().lower()
    if not head:
        return "is empty (zero bytes); the download or copy that made it probably failed"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image; the download probably ended at an error or login page"
    if head[4:8] == b"ftyp" or start.startswith((b"<svg", b"<?xml", b"%pdf")):
        return f"is of a kind that isn't allowed (HEIC, SVG, PDF, a video...); convert it to {_ALLOWED}"
    return f"is not {_ALLOWED}; it begins with {head[:16]!r}"


def _check_size(size: Size, limit: float, name: str) -> None:
    height, width = size
    if min(size) < 1:
        raise ImageDecodeError(f"{name} has no pixels ({width} x {height})")
    if not height * width <= limit:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} = {height * width / 1e6:.1f} megapixels, over the limit of "
            f"{limit / 1e6:g}; make it smaller, or raise the limit (max_megapixels)"
        )


def _check_tiff(image: TiffImageFile, limit: float, name: str) -> None:
    """Refuse what can't be decoded safely, or isn't one picture."""
    tags, compression = image.tag_v2, image.info["compression"]
    if image.is_animated:
        raise ImageDecodeError(
            f"{name} is a TIFF file of several pages or resolutions, and which of them is meant isn't known; save the "
            "one that is as a file of its own"
        )
    if compression not in _TIFF_COMPRESSIONS:
        raise ImageDecodeError(
            f"{name} is a TIFF file compressed as {compression!r}, which isn't read; save it with LZW or deflate"
        )
    if TILEWIDTH in tags or TILELENGTH in tags:  # libtiff has memory for a whole tile, however small the image
        _check_size((tags.get(TILELENGTH, 1), tags.get(TILEWIDTH, 1)), limit, f"a tile of {name}")


def _from_pil(image: Image.Image, limit: float) -> DecodedImage:
    name = "the image (PIL)"
    _check_size((image.height, image.width), limit, name)
    try:
        image.load()
        mode = image.mode
        orientation = _orientation_in_memory(image)
        if "transparency" in image.info:  # taken out below; the caller's image stays as it is
            image = image.copy()
        pixels = _rgb_pixels(image, orientation, name)
        dark = mode.startswith("I;16") and int(pixels.max()) < _DARK
        return DecodedImage(pixels, "array", orientation, mode, dark)
    except ImageError:
        raise
    except Exception as error:  # the image may be a file that isn't loaded yet
        raise ImageDecodeError(f"{name} can't be used: {error}") from error


def _rgb_pixels(image: Image.Image, orientation: int, name: str, bits: int = 16) -> RgbImage:
    # `convert` would translate a transparent colour, and fails or warns where it is out of range or a table.
    image.info.pop("transparency", None)
    match image.mode:
        case "RGB":
            rgb = image
        case "F":
            raise ImageDecodeError(
                f"{name} holds float pixels (mode F) of unknown range; scale them to 0..255 and convert to mode L"
            )
        case "I":
            rgb = _from_integers(np.asarray(image), name)
        case "La":  # Pillow converts it no further than this
            rgb = image.convert("LA").convert("RGB")
        case mode if mode.startswith("I;16"):
            rgb = _from_16_bits(np.asarray(image), bits)
        case _:
            rgb = image.convert("RGB")
    return _turned(rgb, orientation)


def _turned(image: Image.Image, orientation: int) -> RgbImage:
    transpose = _TRANSPOSES.get(orientation)
    return np.array(image if transpose is None else image.transpose(transpose))


def _from_16_bits(values: npt.NDArray[Any], bits: int = 16) -> Image.Image:
    """The highest eight of the bits in use: `bits`, unless a value is larger because it was scaled to 16 already."""
    shift = bits - 8 if 8 <= bits < 16 and not int(values.max()) >> bits else 8
    return Image.fromarray((values >> shift).astype(np.uint8)).convert("RGB")


def _from_integers(values: npt.NDArray[Any], name: str) -> Image.Image:
    """Mode I is 32 bits wide but holds 8-bit or 16-bit images; which, only the values tell."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise ImageDecodeError(
            f"{name} holds integers from {low} to {high} (mode I); scale them to 0..255 and convert to mode L"
        )
    return Image.fromarray(values.astype(np.uint8)).convert("RGB") if high <= 0xFF else _from_16_bits(values)


def _from_array(array: npt.NDArray[Any], limit: float) -> DecodedImage:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3) and shape[2] not in (3, 4):
        raise ImageDecodeError(f"an array of shape {shape} looks channels-first; use array.transpose(1, 2, 0)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (3, 4)):
        raise ImageDecodeError(
            f"an image array must be (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey, not of shape {shape}; "
            "pass the images of a batch one by one"
        )
    _check_size((shape[0], shape[1]), limit, f"the image array of shape {shape}")
    if array.dtype != np.uint8:
        raise ImageDecodeError(f"an image array must be uint8, 0..255, not {array.dtype}; {_dtype_hint(array)}")
    if array.ndim == 2:
        return DecodedImage(np.repeat(array[:, :, None], 3, axis=2), "array", 1, "L")
    mode = "RGB" if shape[2] == 3 else "RGBA"
    return DecodedImage(np.array(array[:, :, :3], order="C", subok=False), "array", 1, mode)


def _dtype_hint(array: npt.NDArray[Any]) -> str:
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            return "it also holds NaN or infinity: find out where they come from first"
        return "if its values are 0..1, multiply by 255 and convert: (array * 255).round().astype('uint8')"
    if array.dtype == np.bool_:
        return "convert: array.astype('uint8') * 255"
    if array.dtype == np.uint16:
        return "if it uses all 16 bits, convert: (array >> 8).astype('uint8')"
    return "if its values are 0..255, convert: array.astype('uint8')"


def _orientation_in_memory(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in ORIENTATIONS else 1
    except Exception:  # a damaged EXIF block is no reason to refuse the picture
        return 1
