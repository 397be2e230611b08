"""Real pictures' oddities: a corpus's file, a data URI in it and one sent to the endpoint give one result."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from casa_core.errors import MediaError
from casa_core.media.data_uri import from_data_uri, to_data_uri
from casa_core.media.decode import decode_image, decode_images, verify_image
from casa_core.processing.picture_sources import picture_to_rgb
from pipelines.data.clean.records import clean_record
from pipelines.data.read import Record
from pipelines.data.read.corpora.image_text import ImageTextReader
from pipelines.data.store.quarantine import Rejected
from pipelines.data.store.rows import CleanSample
from serve.api.errors import ApiError
from serve.api.request_conversion import to_generation_requests
from serve.api.request_images import images_named
from serve.api.schemas import ChatCompletionRequest
from tests.support.data.corpus import read_all, write_jsonl
from tests.support.data.media import encode, scene
from tests.support.serve.server import MODEL, settings_with

RED = (200, 30, 30)


def of_a_corpus(data: bytes, folder: Path, *, as_uri: bool) -> np.ndarray | Rejected:
    """Pixels of a picture of a corpus, after cleaning; or why it was set aside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jpg").write_bytes(data)
    image = to_data_uri(data, "image/jpeg") if as_uri else "a.jpg"
    write_jsonl(folder / "train.jsonl", [{"image": image, "caption": "a picture"}], seeks=False)
    (record,) = read_all(ImageTextReader, folder)
    found = clean_record(record) if isinstance(record, Record) else record
    if isinstance(found, Rejected):
        return found
    assert isinstance(found, CleanSample)
    pixels = decode_image(found.media[0].data or b"")
    assert pixels.shape[:2] == (found.media[0].height, found.media[0].width)
    return pixels


def served(data: bytes, media_type: str = "image/jpeg") -> np.ndarray:
    """Pixels of a picture in a chat request, as the engine decodes it."""
    picture = {"type": "image_url", "image_url": {"url": to_data_uri(data, media_type)}}
    content = [picture, {"type": "text", "text": "what is it?"}]
    body = ChatCompletionRequest.model_validate(
        {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    )
    [request] = asyncio.run(to_generation_requests(body, settings_with(), "r"))
    with images_named(body.messages):  # as the route tells what the engine finds
        (pixels,) = decode_images(request.sample)
    return pixels


def everywhere(data: bytes, folder: Path) -> np.ndarray:
    """The pixels, which are the same by every way in."""
    pixels = served(data)
    for as_uri in (False, True):
        found = of_a_corpus(data, folder, as_uri=as_uri)
        assert isinstance(found, np.ndarray), found
        np.testing.assert_array_equal(found, pixels)
    found = verify_image(data)
    assert (found.height, found.width) == pixels.shape[:2]
    return pixels


def refused(data: bytes, folder: Path) -> tuple[str, str]:
    """Reason and text of a refusal, which are the same by every way in."""
    with pytest.raises(MediaError) as caught:
        decode_image(data)
    with pytest.raises(MediaError) as verified:
        verify_image(data)
    assert verified.value.args == caught.value.args
    error = caught.value
    text = " ".join(filter(None, (error.what, error.why, error.remedy)))
    for as_uri in (False, True):
        found = of_a_corpus(data, folder, as_uri=as_uri)
        assert isinstance(found, Rejected)
        assert found.reason == error.reason
        assert found.detail.endswith(text)
    with pytest.raises(ApiError) as answered:
        served(data)
    assert str(answered.value.message) == f"{text} ({error.reason})"
    return error.reason, text


def near(pixels: np.ndarray, colour: tuple[int, int, int] = RED, within: int = 4) -> bool:
    return bool(np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= within)


def photo(height: int = 480, width: int = 640) -> Image.Image:
    """A smooth picture with some noise."""
    noise = np.random.default_rng(0).integers(0, 12, (height, width, 3), np.uint8)
    return Image.fromarray(np.clip(scene(height, width).astype(int) + noise, 0, 255).astype(np.uint8))


# M5: files that break off


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}], ids=str
)
def test_a_jpeg_without_its_end_is_shown_and_half_of_one_is_not(tmp_path, options):
    whole = encode(photo(), "JPEG", quality=90, **options)
    pixels = decode_image(whole)
    np.testing.assert_array_equal(everywhere(whole[:-2], tmp_path), pixels)
    short = everywhere(whole[:-20], tmp_path)
    np.testing.assert_array_equal(short[: 480 - 32], pixels[: 480 - 32])
    assert refused(whole[: len(whole) // 2], tmp_path)[0] == "truncated_image"
    assert refused(whole[: len(whole) * 9 // 10], tmp_path)[0] == "truncated_image"


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_zeros_in_the_place_of_a_jpegs_end_are_no_picture(tmp_path, options):
    blocks = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    whole = encode(Image.fromarray(blocks), "JPEG", quality=90, **options)
    half = whole[: len(whole) // 2]
    assert refused(half + bytes(len(half)), tmp_path)[0] == "truncated_image"
    np.testing.assert_array_equal(everywhere(whole[:-20] + bytes(20), tmp_path), decode_image(whole[:-20]))
    np.testing.assert_array_equal(everywhere(whole + bytes(999), tmp_path), decode_image(whole))


def test_of_a_small_jpeg_only_the_end_mark_may_be_missing(tmp_path):
    whole = encode(photo(32, 32), "JPEG", quality=95)
    np.testing.assert_array_equal(everywhere(whole[:-2], tmp_path), decode_image(whole))
    assert refused(whole[:-40], tmp_path)[0] == "truncated_image"


@pytest.mark.parametrize(("format", "mark"), [("PNG", 12), ("GIF", 1)])
def test_a_missing_end_mark_of_other_formats_loses_no_pixel(tmp_path, format, mark):
    whole = encode(photo(40, 60), format)
    np.testing.assert_array_equal(everywhere(whole[:-mark], tmp_path), decode_image(whole))
    assert refused(whole[: len(whole) * 3 // 4], tmp_path)[0] == "truncated_image"


# M6: other formats, by name


def brand(major: bytes, *others: bytes) -> bytes:
    """The first box of a file of the ISO base media family."""
    body = b"ftyp" + major + bytes(4) + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + bytes(64)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>'
FOREIGN = {
    "HEIC": (brand(b"heic", b"mif1", b"heic"), "unsupported_format", "HEIC", "Convert it to JPEG"),
    "HEIF": (brand(b"mif1", b"heic"), "unsupported_format", "HEIC", "Convert it to JPEG"),
    "a sequence": (brand(b"msf1", b"hevc"), "unsupported_format", "HEIC", "Convert it to JPEG"),
    "bare HEIC": (brand(b"heix")[:16], "unsupported_format", "HEIC", "Convert it to JPEG"),
    "bare HEIF": (b"\0\0\0\x18ftypmif1", "unsupported_format", "HEIC", "Convert it to JPEG"),
    "CR3": (brand(b"crx "), "unsupported_format", "CR3", "JPEG"),
    "SVG": (SVG, "not_an_image", "SVG", "PNG"),
    "SVG, prolog": (b'<?xml version="1.0"?>\n<!-- x -->\n' + SVG, "not_an_image", "SVG", "PNG"),
    "SVG, mark": (b"\xef\xbb\xbf  \n" + SVG, "not_an_image", "SVG", "PNG"),
    "SVG, doctype": (b'<!DOCTYPE svg PUBLIC "-//W3C" "x.dtd">' + SVG, "not_an_image", "SVG", "PNG"),
    "SVG, UTF-16": (SVG.decode().encode("utf-16"), "not_an_image", "SVG", "PNG"),
    "SVGZ": (gzip.compress(SVG), "not_an_image", "SVG", "PNG"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\n", "not_an_image", "PDF", "PNG"),
    "PDF behind a line": (b"\n\n%PDF-1.4\n", "not_an_image", "PDF", "PNG"),
    "JPEG XL": (b"\xff\x0a\xfa\x1f", "unsupported_format", "JPEG XL", "Convert it to JPEG"),
    "JPEG XL, boxed": (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported_format", "JPEG XL", "Convert it to JPEG"),
    "PSD": (b"8BPS\0\1" + bytes(20), "unsupported_format", "PSD", "Convert it to JPEG"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(20), "unsupported_format", "CR2", "JPEG"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image", "an HTML page", "again"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "not_an_image", "XML", "again"),
    "JSON": (json.dumps({"error": "rate limit"}).encode(), "not_an_image", "a JSON text", "again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "not_an_image", "Git LFS", "git lfs"),
    "MP4": (brand(b"isom", b"mp41"), "not_an_image", "MP4", "video"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(40), "not_an_image", "WebM", "video"),
    "AVI": (b"RIFF\x10\0\0\0AVI LIST", "not_an_image", "AVI", "video"),
    "ZIP": (b"PK\x03\x04" + bytes(40), "not_an_image", "ZIP", "Unpack"),
    "zeros": (bytes(4096), "not_an_image", "zeros", "again"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_decoded_is_refused_by_its_name_with_a_remedy(tmp_path, name):
    data, reason, called, remedy = FOREIGN[name]
    found, text = refused(data, tmp_path)
    assert found == reason
    assert called in text
    assert remedy in text


def test_a_cameras_raw_file_is_not_taken_for_its_preview(tmp_path):
    preview = encode(photo(16, 16), "TIFF", tiffinfo={0xFE: 1, 0xC612: b"\1\4\0\0"})
    reason, text = refused(preview, tmp_path)
    assert reason == "unsupported_format"
    assert "DNG" in text


@pytest.mark.parametrize("format", ["AVIF", "WEBP", "QOI", "SGI", "PCX", "DIB"])
def test_formats_that_are_decoded_work_everywhere(tmp_path, format):
    assert near(everywhere(encode(Image.new("RGB", (40, 30), RED), format), tmp_path))


# M7: colours


def wide_gamut(colour: tuple[int, int, int] = RED) -> tuple[Image.Image, bytes]:
    """A picture in a space whose red and green are exchanged, and its profile; in sRGB it is ``colour``."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    entries = [profile[132 + 12 * n : 144 + 12 * n] for n in range(count)]
    places = {bytes(entry[:4]): entry[4:] for entry in entries}
    exchange = {b"rXYZ": places[b"gXYZ"], b"gXYZ": places[b"rXYZ"]}
    for number, entry in enumerate(entries):
        tag = bytes(entry[:4])
        profile[132 + 12 * number : 144 + 12 * number] = tag + exchange.get(tag, places[tag])
    red, green, blue = colour
    return Image.new("RGB", (40, 30), (green, red, blue)), bytes(profile)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_embedded_colour_profile_is_followed(tmp_path, format):
    picture, profile = wide_gamut()
    options = {"quality": 100} if format in ("JPEG", "WEBP") else {}
    assert near(everywhere(encode(picture, format, icc_profile=profile, **options), tmp_path))


def test_a_profile_applies_below_transparency_and_to_palettes(tmp_path):
    picture, profile = wide_gamut()
    clear = picture.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    pixels = everywhere(encode(clear, "PNG", icc_profile=profile), tmp_path)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert near(pixels[1:])
    assert near(everywhere(encode(picture.quantize(4), "PNG", icc_profile=profile), tmp_path))


def test_profiles_that_change_nothing_or_cannot_be_read_change_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = everywhere(encode(photo(40, 60), "PNG"), tmp_path)
    for profile in (srgb, b"no profile", srgb[:200], b"\0" * 128):
        data = encode(photo(40, 60), "PNG", icc_profile=profile)
        np.testing.assert_array_equal(everywhere(data, tmp_path), plain)
    grey = encode(photo(40, 60).convert("L"), "JPEG", icc_profile=wide_gamut()[1])
    assert everywhere(grey, tmp_path).shape == (40, 60, 3)


def test_lab_pictures_come_out_as_the_colour_management_library_shows_them(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = Image.new("RGB", (40, 30), RED)
    stored = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    assert stored is not None
    assert near(everywhere(encode(stored, "TIFF"), tmp_path))


def without_adobes_mark(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def test_cmyk_is_shown_as_browsers_show_it_with_adobes_mark_or_without(tmp_path):
    inks = encode(Image.new("RGB", (40, 30), RED).convert("CMYK"), "JPEG", quality=100)
    assert near(everywhere(inks, tmp_path))
    assert near(everywhere(without_adobes_mark(inks), tmp_path))
    assert near(everywhere(encode(Image.new("RGB", (40, 30), RED).convert("CMYK"), "TIFF"), tmp_path))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_deep_grey_keeps_its_upper_byte(tmp_path, mode, format):
    deep = np.arange(0, 65536, 37, dtype=">u2" if mode == "I;16B" else "<u2")[:1700].reshape(34, 50)
    picture = Image.frombytes(mode, (50, 34), deep.tobytes())
    if format == "PNG" and mode == "I;16B":
        picture = picture.convert("I").convert("I;16")
    pixels = everywhere(encode(picture, format), tmp_path)
    np.testing.assert_array_equal(pixels[..., 0], deep.astype(int) >> 8)


def test_32_bit_grey_of_a_tiff_counts_as_8_bit_where_it_stays_within(tmp_path):
    levels = np.arange(1700, dtype=np.int32).reshape(34, 50)
    few, many = (
        everywhere(encode(Image.fromarray(each), "TIFF"), tmp_path) for each in (levels % 256, levels)
    )
    np.testing.assert_array_equal(few[..., 0], levels % 256)
    np.testing.assert_array_equal(many[..., 0], levels >> 8)


def test_a_transparent_level_of_16_bit_grey_is_white(tmp_path):
    deep = np.full((34, 50), 20_000, np.uint16)
    deep[:10] = 0
    pixels = everywhere(encode(Image.fromarray(deep), "PNG", transparency=0), tmp_path)
    assert (pixels[:10] == 255).all()
    assert (pixels[10:] == 20_000 >> 8).all()


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
def test_gaps_in_floating_point_grey_do_not_change_its_range(tmp_path, gap):
    grey = np.linspace(0, 1, 1700, dtype=np.float32).reshape(34, 50)
    whole = everywhere(encode(Image.fromarray(grey), "TIFF"), tmp_path)
    grey[3, 4] = gap
    pixels = everywhere(encode(Image.fromarray(grey), "TIFF"), tmp_path)
    whole[3, 4] = pixels[3, 4]
    np.testing.assert_array_equal(pixels, whole)


def test_a_kind_of_tiff_that_is_not_decoded_is_not_called_truncated(tmp_path):
    data = bytearray(encode(photo(16, 16), "TIFF"))
    at = data.index(struct.pack("<HHIH", 0x106, 3, 1, 2))  # photometric interpretation: RGB
    data[at + 8] = 10  # ITU L*a*b*
    reason, text = refused(bytes(data), tmp_path)
    assert reason == "unsupported_format"
    assert "truncated" not in text


# Data URIs, memory, callers' own pictures


@pytest.mark.parametrize(
    "change",
    [
        lambda uri: uri,
        lambda uri: uri.replace("data:image/png", "DATA:image/png;charset=utf-8"),
        lambda uri: uri.replace("image/png", ""),
        lambda uri: uri.replace("image/png", "application/octet-stream"),
        lambda uri: "\n".join(uri[at : at + 76] for at in range(0, len(uri), 76)),
        lambda uri: uri.rstrip("="),
        lambda uri: uri[:22] + uri[22:].replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ],
)
def test_data_uris_are_read_as_browsers_read_them(change):
    data = bytes(range(256)) + b"x"
    assert from_data_uri(change(to_data_uri(data, "image/png"))) == data


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64,%%%", "data:image/png,raw", "data:text/html;base64,AAAA", "image.png"]
)
def test_other_data_uris_are_refused_with_the_reason(uri):
    with pytest.raises(MediaError) as caught:
        from_data_uri(uri)
    assert caught.value.reason == "bad_data_uri"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("mode", "most"), [("P", 6), ("RGBA", 9)])
def test_memory_for_a_picture_is_bounded_per_pixel(mode, most):
    side = 3000
    picture = Image.new("RGBA" if mode == "RGBA" else "P", (side, side))
    program = (
        "import sys; from pathlib import Path\n"
        "from casa_core.media.decode import decode_image\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "data = sys.stdin.buffer.read(); before = peak(); decode_image(data); print(peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], input=encode(picture, "PNG"), capture_output=True, check=True
    )
    assert int(run.stdout) * 1024 / side**2 < most


def test_a_pillow_image_gives_the_pixels_of_its_file():
    picture, profile = wide_gamut()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture, "JPEG", icc_profile=profile, exif=exif, quality=100)
    np.testing.assert_array_equal(picture_to_rgb(Image.open(io.BytesIO(data)), "a"), decode_image(data))
