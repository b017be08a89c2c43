"""Reading images: what comes out of every kind of source, and a named error for everything that is no image."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from patchmint.errors import ImageDecodeError, ImageError, ImageTooLargeError
from patchmint.images.decode import decode_image

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[:120:2, :160:2])
"""60 x 80 pixels of a cat."""

FILE_FORMATS = ("jpeg", "png", "webp", "bmp", "gif", "tiff", "avif")

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}
"""How stored pixels become upright ones (EXIF 2.32, tag 0x0112)."""


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, data):
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png(width, height, *extra, depth=8, colour=2, data=b""):
    header = struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(data)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture(scope="module")
def files():
    photo = Image.fromarray(PHOTO)
    return {kind: encode(photo, kind) for kind in FILE_FORMATS}


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_every_format_gives_pillows_pixels(kind, files):
    decoded = decode_image(files[kind])
    with Image.open(io.BytesIO(files[kind])) as image:
        mode = image.mode
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(decoded.pixels, expected)
    assert (decoded.format, decoded.mode, decoded.orientation, decoded.size) == (kind, mode, 1, (60, 80))
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable


def test_path_string_bytes_and_pil_agree_whatever_the_extension(tmp_path, files):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(files["png"])
    for source in (path, str(path), files["png"], bytearray(files["png"]), Image.fromarray(PHOTO), PHOTO):
        assert np.array_equal(decode_image(source).pixels, PHOTO)
    assert decode_image(path).format == "png"
    assert decode_image(PHOTO).format == "array"


def test_the_first_frame_of_an_animation():
    red, blue = (Image.new("RGB", (9, 7), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    for kind in ("gif", "webp", "png", "avif"):
        decoded = decode_image(encode(red, kind, save_all=True, append_images=[blue], duration=50))
        assert decoded.size == (7, 9)
        assert (decoded.pixels[..., 0] > 240).all()
        assert (decoded.pixels[..., 2] < 15).all()


def test_a_phones_mpo_file_is_a_jpeg_even_where_its_index_is_damaged():
    mpo = encode(Image.fromarray(PHOTO), "mpo", save_all=True, append_images=[Image.new("RGB", (80, 60))])
    with Image.open(io.BytesIO(mpo)) as image:
        assert image.format == "MPO"
        expected = np.array(image)
    at = mpo.index(b"MPF\0") + 4
    decoded, damaged = decode_image(mpo), decode_image(mpo[:at] + b"\xff" * 4 + mpo[at + 4 :])
    assert decoded.format == "jpeg"
    assert np.array_equal(decoded.pixels, expected)
    assert damaged.size == (60, 80)


def test_decoding_in_threads(files):
    with ThreadPoolExecutor(8) as pool:
        for decoded in pool.map(decode_image, [files["png"]] * 64):
            assert np.array_equal(decoded.pixels, PHOTO)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg", "tiff", "avif", "pil"])
def test_orientation_is_applied(kind, orientation):
    image = Image.fromarray(PHOTO)
    options = {"webp": {"lossless": True}, "jpeg": {"quality": 100, "subsampling": 0}}.get(kind, {})
    plain = decode_image(image if kind == "pil" else encode(image, kind, **options)).pixels
    exif = image.getexif()
    exif[0x0112] = orientation
    decoded = decode_image(image if kind == "pil" else encode(image, kind, exif=exif, **options))
    assert decoded.orientation == orientation
    assert np.array_equal(decoded.pixels, TURNS[orientation](plain))
    assert decoded.pixels.flags.c_contiguous
    assert np.array_equal(np.array(image), PHOTO)  # the caller's image is as it was


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("code", "kind"), [("H", 3), ("L", 4)])
def test_orientation_in_either_byte_order_and_any_integer_type(order, code, kind):
    entry = struct.pack(f"{order}HHL{code}", 0x0112, kind, 1, 6).ljust(12, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    block = magic + struct.pack(f"{order}LH", 8, 1) + entry + bytes(4)
    data = png(2, 1, png_chunk(b"eXIf", block), data=bytes(7))
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x0112] == 6
    assert decode_image(data).size == (2, 1)


def test_orientation_from_xmp_and_from_imagemagicks_text_chunk():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode_image(encode(Image.fromarray(PHOTO), "jpeg", xmp=xmp)).size == (80, 60)
    exif = Image.Exif()
    exif[0x0112] = 8
    block = exif.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
    assert decode_image(encode(Image.fromarray(PHOTO), "png", pnginfo=info)).size == (80, 60)
    broken = PngImagePlugin.PngInfo()
    broken.add_text("Raw profile type exif", "\nexif\n 4\nnot hexadecimal\n")
    assert decode_image(encode(Image.fromarray(PHOTO), "png", pnginfo=broken)).orientation == 1


def _damaged_exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a camera with a long name", 72.0
    whole = exif.tobytes()
    yield from (b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, whole[:14], whole[:20])
    yield whole[:10] + b"\xff\xff\xff\xff" + whole[14:]  # the directory begins past the end
    for at in range(6, len(whole)):
        yield whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_a_damaged_exif_block_neither_kills_the_image_nor_warns(kind):
    # Warnings are errors here, and Pillow warns about such blocks, a JPEG's as soon as it opens it.
    for block in _damaged_exif():
        decoded = decode_image(encode(Image.fromarray(PHOTO[:6, :8]), kind, exif=block))
        assert sorted(decoded.size) == [6, 8]
        with warnings.catch_warnings(action="ignore"):
            try:
                with Image.open(io.BytesIO(encode(Image.new("L", (1, 1)), kind, exif=block))) as image:
                    expected = image.getexif().get(0x0112, 1)
            except (SyntaxError, struct.error):
                expected = 1
        assert decoded.orientation == (expected if expected in range(1, 9) else 1)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_of_a_pil_image(mode):
    photo = Image.fromarray(PHOTO)
    between = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}.get(mode, "RGB")
    image = photo.quantize(256) if mode == "P" else photo.convert(between).convert(mode)
    assert image.mode == mode
    decoded = decode_image(image)
    assert decoded.mode == mode
    assert decoded.pixels.shape == (60, 80, 3)
    if mode in ("1", "L", "LA", "La"):
        grey = np.array(photo.convert("L"), dtype=float)
        assert np.abs(decoded.pixels.mean(axis=2).mean() - grey.mean()) < 4
    else:
        # Palettes and colour spaces lose a little; a wrong conversion would be far off.
        assert np.abs(decoded.pixels.astype(float) - PHOTO).mean() < 12


def test_alpha_is_dropped_as_consumers_do():
    colours = np.array([[[200, 10, 30, 0], [1, 2, 3, 255], [9, 8, 7, 128]]], dtype=np.uint8)
    for decoded in (decode_image(encode(Image.fromarray(colours), "png")), decode_image(colours)):
        assert np.array_equal(decoded.pixels, colours[..., :3])
        assert decoded.mode == "RGBA"


@pytest.mark.parametrize("transparency", [b"\x00\x80\xff", 1])
def test_a_palette_with_transparency(transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    data = encode(image, "png", transparency=transparency)
    expected = [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert decode_image(data).pixels.tolist() == expected
    with Image.open(io.BytesIO(data)) as opened:
        assert decode_image(opened).pixels.tolist() == expected
        assert "transparency" in opened.info  # the caller's image is as it was


def test_a_transparent_colour_out_of_range_is_ignored():
    data = png(1, 1, png_chunk(b"tRNS", b"\xff\xff\xff\xff\xff\xff"), data=b"\0\x0a\x14\x1e")
    assert decode_image(data).pixels.tolist() == [[[10, 20, 30]]]


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16)
    grey = Image.fromarray(values)
    assert grey.mode == "I;16"
    for source in (grey, encode(grey, "png")):
        assert decode_image(source).pixels.tolist() == [[[v] * 3 for v in (0, 0, 1, 128, 255)]]
        assert decode_image(source).mode == "I;16"
    # The same numbers in a 16-bit colour file, which Pillow scales by itself.
    samples = np.repeat(values.astype(">u2")[..., None], 3, axis=2).tobytes()
    assert decode_image(png(5, 1, depth=16, data=b"\0" + samples)).pixels[..., 0].tolist() == [[0, 0, 1, 128, 255]]


def test_16_bit_files_that_say_how_many_bits_are_in_use():
    def decoded(bits, *values, colour=0):
        samples = np.array(values, ">u2").repeat(3 if colour == 2 else 1).tobytes()
        chunk = [png_chunk(b"sBIT", bytes([bits] * (3 if colour == 2 else 1)))] if bits else []
        image = decode_image(png(len(values), 1, *chunk, depth=16, colour=colour, data=b"\0" + samples))
        return image.pixels[0, :, 0].tolist(), image.dark

    assert decoded(10, 0, 512, 1023) == ([0, 128, 255], False)
    assert decoded(12, 0, 2048, 4095) == ([0, 128, 255], False)
    assert decoded(12, 0, 0x8000, 0xFFF0) == ([0, 128, 255], False), "scaled, as the specification asks"
    assert decoded(0, 0, 0x8000, 0xFFFF) == ([0, 128, 255], False)
    assert decoded(0, 0, 2048, 4095) == ([0, 8, 15], True), "nothing says that this is 12 bits"
    assert decoded(0, 0, 2048, 4095, colour=2) == ([0, 8, 15], True)
    assert decode_image(Image.fromarray(np.array([[0, 4095]], np.uint16))).dark
    assert not decode_image(Image.new("RGB", (2, 2))).dark


def tiff(values, *entries, bits=8, compression=1):
    """A grey TIFF file of one strip; entries are more of its tags, (tag, value)."""
    height, width = values.shape
    fields = [(256, width), (257, height), (258, bits), (259, compression), (262, 1), (273, 0), (277, 1), (278, height)]
    fields = sorted({**dict(fields), **dict(entries)}.items())
    start = 8 + 2 + 12 * len(fields) + 4
    found = [struct.pack("<HHLL", tag, 4, 1, start if tag == 273 else value) for tag, value in fields]
    return b"II*\0" + struct.pack("<LH", 8, len(fields)) + b"".join(found) + bytes(4) + values.tobytes()


def test_a_tiff_of_12_bits_floats_or_cmyk():
    packed = np.array([[0x80, 0x0F, 0xFF]], np.uint8)  # 2048 and 4095
    twelve = tiff(packed, (256, 2), bits=12)
    assert decode_image(twelve).pixels[0, :, 0].tolist() == [128, 255]
    photo = Image.fromarray(PHOTO)
    cmyk = decode_image(encode(photo.convert("CMYK"), "tiff", compression="tiff_lzw"))
    assert (cmyk.mode, cmyk.format) == ("CMYK", "tiff")
    assert np.abs(cmyk.pixels.astype(int) - PHOTO).mean() < 4
    with pytest.raises(ImageDecodeError, match="float pixels"):
        decode_image(encode(photo.convert("F"), "tiff"))


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_compressions_of_tiff(compression):
    decoded = decode_image(encode(Image.fromarray(PHOTO), "tiff", compression=compression)).pixels
    assert np.abs(decoded.astype(int) - PHOTO).mean() < (4 if compression == "jpeg" else 0.001)


def test_tiff_that_isnt_read():
    photo = Image.fromarray(PHOTO)
    with pytest.raises(ImageDecodeError, match="several pages"):
        decode_image(encode(photo, "tiff", save_all=True, append_images=[photo]))
    for compression in ("zstd", "lzma"):
        with pytest.raises(ImageDecodeError, match=f"compressed as '{compression}'"):
            decode_image(encode(photo, "tiff", compression=compression))
    grey = np.zeros((16, 16), np.uint8)
    with pytest.raises(ImageTooLargeError, match=r"a tile of .* 60000 x 60000"):
        decode_image(tiff(grey, (322, 60000), (323, 60000), (324, 8), (325, 1), compression=5))


def scans(quality, **options):
    data = encode(Image.fromarray(PHOTO), "jpeg", quality=quality, **options)
    return data, data.index(b"\xff\xda") + 14


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_a_jpeg_whose_scan_is_holed_or_cut_and_closed_again(options):
    data, start = scans(90, **options)
    middle = (start + len(data)) // 2
    for harmed in (data[:middle] + b"\xff\xd9", data[:middle] + data[middle + 300 :]):
        with Image.open(io.BytesIO(harmed)) as image:
            image.load()  # Pillow says nothing
        with pytest.raises(ImageDecodeError, match=r"damaged or incomplete JPEG file .*a part of the picture"):
            decode_image(harmed)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_sound_jpegs_stay_whatever_encoders_and_cameras_do(mode):
    photo = Image.fromarray(PHOTO).convert(mode)
    kinds = [{"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"keep_rgb": mode == "RGB"}]
    for quality, options in product((1, 30, 75, 100), kinds):
        data = encode(photo, "jpeg", quality=quality, **options)
        with Image.open(io.BytesIO(data)) as image:
            expected = np.array(image.convert("RGB"))
        other_version = data.replace(b"JFIF\0\1", b"JFIF\0\7", 1)
        for kept in (data, data + bytes(5000) + data, data[:-2] + b"\0\0" + data[-2:], other_version):
            assert np.array_equal(decode_image(kept).pixels, expected)


def test_32_bit_integers_hold_8_or_16_bits():
    def decoded(*values):
        return decode_image(Image.fromarray(np.array([values], dtype=np.int32))).pixels[0, :, 0].tolist()

    assert decoded(0, 7, 255) == [0, 7, 255]
    assert decoded(0, 256, 65535) == [0, 1, 255]
    for values in ((-1, 5), (0, 65536)):
        with pytest.raises(ImageDecodeError, match="mode I"):
            decoded(*values)


def test_an_adobe_cmyk_jpeg():
    data = encode(Image.fromarray(PHOTO).convert("CMYK"), "jpeg", quality=95)
    assert b"Adobe" in data  # and so stored inverted
    decoded = decode_image(data)
    assert decoded.mode == "CMYK"
    assert np.abs(decoded.pixels.astype(int) - PHOTO).mean() < 4


def test_arrays_of_grey_or_of_odd_memory_layout_are_copied():
    assert np.array_equal(decode_image(PHOTO[..., 0]).pixels, np.repeat(PHOTO[..., :1], 3, axis=2))
    for view in (PHOTO[::-2, ::3], np.asfortranarray(PHOTO), PHOTO[..., ::-1]):
        pixels = decode_image(view).pixels
        assert np.array_equal(pixels, view)
        assert pixels.flags.c_contiguous
    array = PHOTO.copy()
    decoded = decode_image(array)
    array[:] = 0
    assert np.array_equal(decoded.pixels, PHOTO)  # it is copied


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (Image.new("F", (4, 4), 0.5), r"scale them to 0\.\.255"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (np.zeros((4, 4, 3)), r"\(array \* 255\)"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), np.inf, dtype=np.float16), "NaN or infinity"),
        (np.zeros((4, 4, 3), dtype=np.uint16), ">> 8"),
        (np.zeros((4, 4, 3), dtype=bool), r"\* 255"),
        (np.zeros((4, 4, 3), dtype=np.int64), r"astype\('uint8'\)"),
        (np.zeros((4, 4, 3), dtype=object), "uint8"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no pixels"),
        (np.zeros((4, 0), dtype=np.uint8), "no pixels"),
        (np.zeros((3, 4, 5), dtype=np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), "one by one"),
        (np.zeros((4, 4, 2), dtype=np.uint8), r"\(H, W, 3\)"),
        (np.zeros((4,), dtype=np.uint8), r"\(H, W, 3\)"),
        (np.array(7, dtype=np.uint8), r"\(H, W, 3\)"),
    ],
)
def test_wrong_arrays_and_images_say_what_to_do(source, hint):
    with pytest.raises(ImageDecodeError, match=hint):
        decode_image(source)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "zero bytes"),
        (b"a cat on a sofa\n", "not a JPEG"),
        (b"\n <!DOCTYPE HTML><html><body>404</body></html>", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "isn't allowed"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "isn't allowed"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "damaged or incomplete AVIF"),
        (b"II*\0", "damaged or incomplete TIFF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "isn't allowed"),
        (encode(Image.new("RGB", (2, 2)), "ppm"), "not a JPEG"),
        (encode(Image.new("RGB", (2, 2)), "ico"), "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged or incomplete PNG"),
        (b"\xff\xd8\xff", "damaged or incomplete JPEG"),
        (b"BM", "damaged or incomplete BMP"),
        (b"GIF89a", "damaged or incomplete GIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "damaged or incomplete WEBP"),
        (b"GIF89a\x05\0\x05\0\0\0\0;", "no picture"),
        (png(0, 5), "PNG"),
    ],
)
def test_what_is_no_image_is_named(content, hint, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageDecodeError, match=hint):
        decode_image(content)
    with pytest.raises(ImageDecodeError, match=r"photo\.jpg"):
        decode_image(path)


def test_paths_that_cant_be_read(tmp_path):
    cases = [
        (tmp_path, "directory"),
        (tmp_path / "none.jpg", "doesn't exist"),
        ("https://example.org/a.jpg", "web address"),
        ("/dev/null", "a regular file"),
        ("x" * 5000, "can't be read"),
        ("a\0b.jpg", "doesn't exist"),
        ("", "directory"),
        (None, "NoneType"),
        ([PHOTO], "list"),
    ]
    for source, hint in cases:
        with pytest.raises(ImageDecodeError, match=hint):
            decode_image(source)


def test_control_characters_in_a_path_are_escaped():
    with pytest.raises(ImageDecodeError) as caught:
        decode_image("\x1b[31mred\n.jpg")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lazily_opened_truncated_pil_image(files):
    with Image.open(io.BytesIO(files["jpeg"][:-300])) as image, pytest.raises(ImageDecodeError, match="truncated"):
        decode_image(image)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_a_text_chunk_that_explodes(name):
    packed = zlib.compress(bytes(2**23))
    text = b"key\0" + (b"\0" if name == b"zTXt" else b"\1\0\0\0") + packed
    with pytest.raises(ImageDecodeError, match="MAX_TEXT_CHUNK"):
        decode_image(png(1, 1, png_chunk(name, text), data=bytes(4)))


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_a_truncated_file_never_gives_part_of_a_picture(kind, files):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data, whole = files[kind], decode_image(files[kind]).pixels
    refused = 0
    lengths = [*range(0, len(data), max(len(data) // 60, 1)), *range(len(data) - 12, len(data))]
    for length in lengths:
        try:
            # What follows the last pixel may be missing.
            assert np.array_equal(decode_image(data[:length]).pixels, whole), length
        except ImageDecodeError:
            refused += 1
    assert refused >= len(lengths) - 14


@pytest.mark.parametrize("kind", FILE_FORMATS)
@given(data=st.data())
@settings(max_examples=120, derandomize=True)
def test_bytes_flipped_and_cut_give_an_image_or_a_named_error(kind, files, data):
    content = bytearray(files[kind])
    # Most flips hit the header, where the structure is.
    places = st.one_of(st.integers(0, min(len(content), 700) - 1), st.integers(0, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    _check_image_or_named_error(bytes(content[:cut]))


@given(content=st.binary(max_size=200), start=st.sampled_from([b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF1234WEBPVP8X"]))
@settings(max_examples=150, derandomize=True)
def test_noise_after_a_magic_number(content, start):
    _check_image_or_named_error(start + content)


def _check_image_or_named_error(content):
    try:
        pixels = decode_image(content, max_megapixels=1).pixels
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= 1e6


def test_the_cap_counts_pixels_and_includes_the_limit(files):
    sources = [*files.values(), PHOTO, Image.fromarray(PHOTO)]
    for source in sources:
        assert decode_image(source, max_megapixels=0.0048).size == (60, 80)
        with pytest.raises(ImageTooLargeError, match="80 x 60"):
            decode_image(source, max_megapixels=0.0047)


def test_the_cap_is_ours_not_pillows(monkeypatch, files):
    # As if the images were large: over Pillow's limit for a warning (an error here), and over that for refusing.
    for limit in (4000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for kind in ("jpeg", "png", "bmp", "gif"):
            assert decode_image(files[kind]).size == (60, 80)
    with pytest.raises(ImageTooLargeError, match="Pillow's own limit"):
        decode_image(files["webp"])


def test_a_gif_whose_frame_is_larger_than_its_screen(files):
    gif = bytearray(files["gif"])
    gif[6:10] = struct.pack("<HH", 10, 10)
    assert decode_image(bytes(gif)).size == (60, 80)
    with pytest.raises(ImageTooLargeError, match="80 x 60"):
        decode_image(bytes(gif), max_megapixels=0.001)


def _bombs():
    def patched(kind, at, layout, **options):
        def build():
            content = bytearray(encode(Image.new("P" if kind == "gif" else "RGB", (64, 64)), kind, **options))
            place = content.index(b"\xff\xc0") + 5 if kind == "jpeg" else at
            struct.pack_into(layout, content, place, 9000, 9000)
            if kind == "gif":  # the frame too, and a disposal for which Pillow fills a frame on opening
                frame = content.index(b",\0\0\0\0")
                struct.pack_into("<HH", content, frame + 5, 9000, 9000)
                content[frame:frame] = b"!\xf9\x04\x08\0\0\0\0"
            return bytes(content)

        return build

    def webp_lossless():
        content = bytearray(encode(Image.new("RGB", (64, 64)), "webp", lossless=True))
        (bits,) = struct.unpack_from("<L", content, 21)
        struct.pack_into("<L", content, 21, (bits & ~0xFFFFFFF) | 8999 << 14 | 8999)
        return bytes(content)

    def avif():
        content = bytearray(encode(Image.new("RGB", (64, 64)), "avif"))
        struct.pack_into(">LL", content, content.index(b"ispe") + 8, 9000, 9000)
        return bytes(content)

    return {
        "tiff": lambda: tiff(np.zeros((9000, 9000), np.uint8)[:1], (257, 9000), (278, 9000)),
        "avif": avif,
        "png": lambda: png(20000, 20000, data=bytes(10**6)),
        "jpeg": patched("jpeg", 0, ">HH"),
        "bmp": patched("bmp", 18, "<LL"),
        "gif": patched("gif", 6, "<HH"),
        "webp lossy": patched("webp", 26, "<HH"),
        "webp lossless": webp_lossless,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", _bombs())
def test_a_bomb_is_refused_before_memory_is_taken(name, tmp_path):
    (tmp_path / "bomb").write_bytes(_bombs()[name]())
    # Address space, not resident memory: what a decoder allocates but doesn't touch yet counts too.
    program = """
import sys
from pathlib import Path
from patchmint.errors import ImageTooLargeError
from patchmint.images.decode import decode_image
def peak():
    return int(Path("/proc/self/status").read_text().split("VmPeak:")[1].split()[0])
before = peak()
try:
    decode_image(sys.argv[1], max_megapixels=50)
except ImageTooLargeError:
    print(peak() - before)
"""
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "bomb")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout, "not refused"
    assert int(done.stdout) < 20_000, "kilobytes"
    assert not done.stderr


def test_decoding_needs_no_torch():
    program = "import sys, patchmint.images.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
