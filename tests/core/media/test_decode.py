"""Pictures and frames are read the same way everywhere, whatever their files look like."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from casa_core.errors import MediaError
from casa_core.media.decode import (
    decode_image,
    image_dimensions,
    image_header,
    pillow_to_rgb,
    verify_image,
)
from casa_core.media.reader import BoundedReader
from tests.support.data.media import encode, png_claiming, reason_if_any, reason_of, scene

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "TGA", "QOI", "SGI", "PCX", "DIB")
REFUSALS = ("not_an_image", "unsupported_format", "truncated_image", "decompression_bomb")
UPRIGHT = {  # EXIF orientation → what turns the stored picture upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_pictures_come_back_bit_for_bit(format):
    decoded = decode_image(encode(Image.fromarray(scene()), format))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, scene())


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_lossy_pictures_come_back_nearly(format):
    data = encode(Image.fromarray(scene()), format, **({"quality": 95} if format != "JPEG2000" else {}))
    difference = np.abs(decode_image(data).astype(int) - scene())
    assert difference.mean() < 6


def xmp(form: str) -> bytes:
    """A packet that states orientation 6, as an attribute or an element."""
    attribute = ' tiff:Orientation="6"' if form == "attribute" else ""
    element = "<tiff:Orientation>6</tiff:Orientation>" if form == "element" else ""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{element}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


@pytest.mark.parametrize("form", ["attribute", "element"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_orientation_in_xmp_alone_turns_nothing_as_in_browsers(format, form):
    options: dict[str, Any] = {"xmp": xmp(form)}
    if format == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp(form).decode())
        options = {"pnginfo": text}
    elif format == "TIFF":
        options = {"tiffinfo": {700: xmp(form)}}
    picture = Image.fromarray(scene())
    data, plain = encode(picture, format, **options), encode(picture, format)
    assert b"tiff:Orientation" in data
    assert np.array_equal(decode_image(data), decode_image(plain))
    assert np.array_equal(pillow_to_rgb(Image.open(io.BytesIO(data))), decode_image(plain))
    assert image_dimensions(data) == decode_image(plain).shape[:2]
    seen = verify_image(data)
    assert (seen.height, seen.width) == decode_image(plain).shape[:2]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_decides_where_xmp_says_otherwise(format):
    exif = Image.Exif()
    exif[0x0112] = 3
    options: dict[str, Any] = {"exif": exif, "xmp": xmp("attribute")}
    assert np.array_equal(
        decode_image(encode(Image.fromarray(scene()), format, **options)),
        decode_image(encode(Image.fromarray(scene()), format, exif=exif)),
    )


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation_is_applied_and_known_from_the_header(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = encode(Image.fromarray(scene()), format)
    data = encode(Image.fromarray(scene()), format, exif=exif)
    upright = UPRIGHT[orientation](decode_image(plain))
    np.testing.assert_array_equal(decode_image(data), upright)
    assert image_dimensions(data) == upright.shape[:2]


def test_transparency_lies_on_white():
    rgba = np.dstack([scene(), np.full(scene().shape[:2], 255, np.uint8)])
    rgba[:, :20, 3] = 0
    for data in (encode(Image.fromarray(rgba), "PNG"), encode(Image.fromarray(rgba), "WEBP", lossless=True)):
        decoded = decode_image(data)
        assert (decoded[:, :20] == 255).all()
        np.testing.assert_array_equal(decoded[:, 20:], scene()[:, 20:])


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((3, 1), 1)
    opaque = decode_image(encode(palette, "PNG"))
    assert opaque[0, 0].tolist() == [255, 0, 0]
    assert opaque[1, 3].tolist() == [0, 0, 255]
    see_through = decode_image(encode(palette, "PNG", transparency=0))
    assert see_through[0, 0].tolist() == [255, 255, 255]
    assert see_through[1, 3].tolist() == [0, 0, 255]


def test_a_transparent_colour_of_a_plain_rgb_png_lies_on_white():
    data = encode(Image.fromarray(scene()), "PNG", transparency=(0, 0, 0))
    decoded = decode_image(data)
    assert (decoded[0, 0] == 255).all()
    assert (decoded[-1, -1] == scene()[-1, -1]).all()


def test_cmyk_and_grey_pictures_become_rgb():
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    cmyk = decode_image(encode(red.convert("CMYK"), "TIFF"))
    assert np.abs(cmyk[4, 4].astype(int) - [200, 30, 30]).max() <= 2
    jpeg = decode_image(encode(red.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(jpeg[4, 4].astype(int) - [200, 30, 30]).max() <= 12
    grey = decode_image(encode(Image.fromarray(scene()[..., 0]), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(scene()[..., :1], 3, axis=2))
    bits = decode_image(encode(Image.fromarray(scene()[..., 0] > 128), "PNG"))
    assert set(np.unique(bits)) == {0, 255}


def test_sixteen_bit_grey_keeps_its_upper_bits():
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        decoded = decode_image(encode(Image.fromarray(deep), format))
        np.testing.assert_array_equal(decoded[..., 0], np.arange(256).reshape(16, 16))
        assert (decoded[..., 0] == decoded[..., 2]).all()


def test_floating_point_grey_is_scaled_where_it_stays_below_one():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_array_equal(
        decode_image(encode(Image.fromarray(ramp), "TIFF"))[..., 1], (ramp * 255).astype(np.uint8)
    )
    np.testing.assert_array_equal(
        decode_image(encode(Image.fromarray(ramp * 255), "TIFF"))[..., 1], (ramp * 255).astype(np.uint8)
    )


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format):
    first, second = Image.new("RGB", (16, 16), (0, 0, 0)), Image.new("RGB", (16, 16), (255, 255, 255))
    data = encode(first, format, save_all=True, append_images=[second])
    assert decode_image(data).max() <= 8


def test_empty_bytes_and_other_files_are_named_as_such():
    assert reason_of(decode_image, b"") == "empty_file"
    assert reason_of(image_dimensions, b"") == "empty_file"
    for junk in (b"<html>404 not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\nquit", bytes(range(256))):
        assert reason_of(decode_image, junk) == "not_an_image"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_picture_cut_anywhere_is_refused(format):
    whole = encode(Image.fromarray(scene()), format)
    for length in range(8, len(whole) // 2, max(1, len(whole) // 60)):
        assert reason_of(decode_image, whole[:length]) == "truncated_image"


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"BM", b"RIFF", b"II*\0", b"GIF8", b"qoif", b"\x1f\x8b"])
def test_no_beginning_of_a_file_is_too_short_to_be_refused(start):
    for length in range(1, len(start) + 1):
        assert reason_if_any(decode_image, start[:length]) in REFUSALS


def test_a_picture_too_large_is_refused_before_it_is_decoded():
    assert reason_of(decode_image, png_claiming(60_000, 60_000)) == "decompression_bomb"
    assert reason_of(image_dimensions, png_claiming(12_000, 15_000)) == "decompression_bomb"
    assert reason_of(decode_image, encode(Image.fromarray(scene()), "PNG"), max_pixels=100) == (
        "decompression_bomb"
    )


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_a_media_error(data):
    for read in (decode_image, image_dimensions):
        assert reason_if_any(read, data) in (
            None,
            "empty_file",
            "not_an_image",
            "truncated_image",
            "unsupported_format",
        )


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_never_raise_anything_else():
    rng = random.Random(0)
    picture = Image.fromarray(scene())
    files = [
        encode(picture, format) for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "ICO", "AVIF", "JPEG2000")
    ]
    for _ in range(400):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), rng.choice((40, 10_000))))] = rng.randrange(256)
        reason = reason_if_any(decode_image, bytes(data), max_pixels=1_000_000)
        assert reason in (None, *REFUSALS)


# Verification: what decoding would say, without the array


def verdict(read, data: bytes) -> str | tuple[int, int]:
    """The size that a reader finds, or the reason why it finds none."""
    try:
        found = read(data, max_pixels=1_000_000)
    except MediaError as error:
        return error.reason
    return (found.height, found.width) if read is verify_image else found.shape[:2]


def every_kind() -> dict[str, bytes]:
    rgb = Image.fromarray(scene(90, 130))
    exif = Image.Exif()
    exif[0x0112] = 8
    deep = Image.fromarray((np.arange(90 * 130, dtype=np.uint16) * 5).reshape(90, 130))
    kinds = {format: encode(rgb, format) for format in (*LOSSLESS, "JPEG", "WEBP", "GIF", "JPEG2000", "AVIF")}
    return kinds | {
        "progressive": encode(rgb, "JPEG", progressive=True),
        "full colour": encode(rgb, "JPEG", subsampling=0, restart_marker_rows=1),
        "grey JPEG": encode(rgb.convert("L"), "JPEG"),
        "CMYK JPEG": encode(rgb.convert("CMYK"), "JPEG"),
        "turned JPEG": encode(rgb, "JPEG", exif=exif),
        "turned PNG": encode(rgb, "PNG", exif=exif),
        "turned TIFF": encode(rgb, "TIFF", exif=exif),
        "two in one JPEG": encode(rgb, "MPO", save_all=True, append_images=[rgb]),
        "palette": encode(rgb.convert("P"), "PNG"),
        "see-through palette": encode(rgb.convert("P"), "PNG", transparency=4),
        "see-through": encode(rgb.convert("RGBA"), "PNG"),
        "deep": encode(deep, "PNG"),
        "bits": encode(rgb.convert("1"), "TIFF"),
        "animated": encode(rgb, "GIF", save_all=True, append_images=[rgb.rotate(20)]),
        "icon": encode(rgb, "ICO", sizes=[(64, 64)]),
    }


@pytest.mark.parametrize(("kind", "data"), every_kind().items(), ids=every_kind().keys())
def test_verifying_finds_the_size_and_the_looks_that_decoding_gives(kind, data):
    pixels, found = decode_image(data), verify_image(data, thumbnail=(9, 6))
    assert (found.height, found.width) == pixels.shape[:2]
    assert found.thumbnail.shape == (9, 6)
    averages = Image.fromarray(pixels).resize((6, 9), Image.Resampling.BOX).convert("L")
    difference = np.abs(found.thumbnail.astype(int) - np.asarray(averages))
    assert difference.mean() < 3
    assert difference.max() < 12


@pytest.mark.filterwarnings("ignore")
def test_verifying_refuses_what_decoding_refuses_and_nothing_else():
    rng = random.Random(1)
    files = list(every_kind().values())
    refused = 0
    for _ in range(600):
        data = bytearray(rng.choice(files))
        if rng.random() < 0.5:
            del data[rng.randrange(8, len(data)) :]
        for _ in range(rng.randint(0, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        expected = verdict(decode_image, bytes(data))
        assert verdict(verify_image, bytes(data)) == expected
        refused += isinstance(expected, str)
    assert 150 < refused < 550


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_large_jpeg_is_verified_in_a_fraction_of_the_memory_that_its_pixels_take():
    data = encode(Image.fromarray(scene(3000, 4000)), "JPEG")
    program = (
        "import sys; from pathlib import Path\n"
        "from casa_core.media.decode import decode_image, verify_image\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "data = sys.stdin.buffer.read(); before = peak(); globals()[sys.argv[1]](data)\n"
        "print(peak() - before)"
    )
    used = {
        name: int(subprocess.run([sys.executable, "-c", program, name], input=data, capture_output=True,
                                 check=True).stdout)
        for name in ("decode_image", "verify_image")
    }  # fmt: skip
    assert used["verify_image"] < 6_000 < 36_000 < used["decode_image"]  # KiB


def test_a_header_tells_format_and_pixels_and_refuses_bombs():
    assert image_header(encode(Image.fromarray(scene()), "WEBP")) == ("WEBP", 24 * 40)
    assert reason_of(image_header, png_claiming(60_000, 60_000)) == "decompression_bomb"


def test_text_and_profiles_that_unpack_without_end_are_bombs():
    for kind, head in ((b"zTXt", b"key\0\0"), (b"iTXt", b"key\0\1\0\0\0"), (b"iCCP", b"name\0\0")):
        body = kind + head + zlib.compress(bytes(2 << 20))
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        png = encode(Image.fromarray(scene()), "PNG")
        for read in (decode_image, verify_image):
            assert reason_of(read, png[:33] + chunk + png[33:]) == "decompression_bomb"


def test_what_is_said_of_a_damaged_picture_is_the_same_in_every_run():
    """It is written into artifacts, whose bytes must not hold an object's address."""
    with pytest.raises(MediaError) as caught:
        decode_image(encode(Image.fromarray(scene()), "JPEG")[:89])
    said = "its decoder says UnidentifiedImageError: cannot identify image file."
    assert caught.value.why == f"It has 89 bytes, and {said}"


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_pieces(kind: str, piece: bytes, count: int) -> bytes:
    """A good file with many small pieces behind its header."""
    data = encode(Image.fromarray(scene()), kind)
    at = {"PNG": 33, "JPEG": 2, "GIF": data.find(b",")}[kind]
    return data[:at] + piece * count + data[at:]


FLOODS = {
    "empty chunks": lambda count: with_pieces("PNG", chunk(b"abCd"), count),
    "texts": lambda count: with_pieces("PNG", chunk(b"tEXt", b"k\0v"), count),
    "comments of a JPEG": lambda count: with_pieces("JPEG", b"\xff\xfe\0\2", count),
    "applications' segments": lambda count: with_pieces("JPEG", b"\xff\xe1\0\2", count),
    "fill bytes": lambda count: with_pieces("JPEG", b"\xff", 4 * count),
    "comments of a GIF": lambda count: with_pieces("GIF", b"!\xfe\0", count),
    "blanks of a PPM": lambda count: b"P6" + b" " * (4 * count),
    "comments of a PPM": lambda count: b"P6\n" + b"# a\n" * count,
    "boxes of a JPEG 2000": lambda count: (
        b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 8, b"free") * count
    ),
}


@pytest.mark.parametrize("case", FLOODS)
def test_files_of_hundreds_of_thousands_of_empty_pieces_are_refused_soon(case):
    data = FLOODS[case](300_000)
    for read in (decode_image, image_dimensions, image_header):
        with pytest.raises(MediaError) as caught:
            read(data)
        assert caught.value.reason in ("decompression_bomb", "truncated_image")


def test_a_file_is_read_a_bounded_number_of_times():
    reader, reads = BoundedReader(bytes(6400)), 20_000 + 100
    for _ in range(reads):
        reader.seek(0)
        assert reader.read(1) == b"\0"
    with pytest.raises(MediaError, match="too many small pieces"):
        reader.read(1)


def test_a_picture_of_small_chunks_and_hundreds_of_texts_is_read():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    whole = encode(Image.fromarray(pixels), "PNG")
    start = whole.find(b"IDAT") - 4
    packed = whole[start + 8 : start + 8 + int.from_bytes(whole[start : start + 4], "big")]
    rest = whole[start + 12 + len(packed) :]
    pieces = b"".join(chunk(b"IDAT", packed[at : at + 512]) for at in range(0, len(packed), 512))
    data = whole[:start] + chunk(b"tEXt", b"k\0v") * 500 + pieces + rest
    np.testing.assert_array_equal(decode_image(data), pixels)


@pytest.mark.filterwarnings("ignore")
def test_a_tiff_of_sixty_thousand_odd_tags_is_refused():
    tags = b"".join(struct.pack("<HHII", 300 + n, 4, 3_000_000, 8) for n in range(60_000))
    data = b"II*\0" + struct.pack("<IH", 8, 60_000) + tags + bytes(8)
    assert reason_of(image_header, data) == "decompression_bomb"
