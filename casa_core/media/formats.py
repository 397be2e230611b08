"""What bytes are that cannot be decoded as a picture: their format by name, and what to do about it."""

from __future__ import annotations

import io
import re
import struct
import zlib

from PIL import Image, TiffImagePlugin

from casa_core.errors import MediaError, cause
from casa_core.media.reader import BoundedReader

# Formats are named so that no plugin that calls another program (EPS → Ghostscript) sees untrusted bytes.
FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO", "TGA", "JPEG2000", "QOI", "SGI", "PCX",
    "DIB",
)  # fmt: skip
_OWN_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"qoif")
_SEEN = "Use PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF."
_CONVERT = "Convert it to JPEG or PNG."
_RENDER = "Convert it to PNG, at the size you want."
_DEVELOP = "Develop it to JPEG or TIFF."
_UNPACK = "Unpack it, and name the pictures in it."
_VIDEO = "Use a reader for videos, `casa caption`, or one of its frames as a picture."
_AGAIN = "Fetch the picture again: something else was saved in its place."

# What a file begins with → its name, and the remedy. Pictures, though none that is decoded here.
_PICTURES: dict[bytes, tuple[str, str]] = {
    b"\xff\x0a": ("JPEG XL", _CONVERT),
    b"\0\0\0\x0cJXL ": ("JPEG XL", _CONVERT),
    b"8BPS": ("Photoshop (PSD)", _CONVERT),
    b"gimp xcf": ("GIMP (XCF)", _CONVERT),
    b"\xd7\xcd\xc6\x9a": ("Windows Metafile (WMF)", _RENDER),
    b"v/1\x01": ("OpenEXR", _CONVERT),
    b"#?RADIANCE": ("Radiance HDR", _CONVERT),
    b"DDS ": ("DirectDraw Surface (DDS)", _CONVERT),
    b"icns": ("Apple icon (ICNS)", _CONVERT),
    b"SIMPLE  =": ("FITS", _CONVERT),
    b"BPG\xfb": ("BPG", _CONVERT),
    b"FUJIFILMCCD-RAW": ("camera raw (RAF)", _DEVELOP),
    b"IIU\0": ("camera raw (RW2)", _DEVELOP),
    b"IIRO": ("camera raw (ORF)", _DEVELOP),
    b"IIRS": ("camera raw (ORF)", _DEVELOP),
    b"MMOR": ("camera raw (ORF)", _DEVELOP),
    b"FOVb": ("camera raw (X3F)", _DEVELOP),
    b"\0MRM": ("camera raw (MRW)", _DEVELOP),
}
_OTHERS: dict[bytes, tuple[str, str]] = {
    b"\x1aE\xdf\xa3": ("a Matroska or WebM video", _VIDEO),
    b"FLV\x01": ("a Flash video", _VIDEO),
    b"\0\0\x01\xba": ("an MPEG video", _VIDEO),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ("a Windows Media video", _VIDEO),
    b"OggS": ("an Ogg file", _VIDEO),
    b"%PDF": ("a PDF document", _RENDER),
    b"%!PS": ("a PostScript document", _RENDER),
    b"\xc5\xd0\xd3\xc6": ("a PostScript document (EPS)", _RENDER),
    b"AT&TFORM": ("a DjVu document", _RENDER),
    b"ID3": ("an MP3 file", _AGAIN),
    b"PK\x03\x04": ("a ZIP archive or an office document", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"\xfd7zXZ\0": ("an xz archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", _UNPACK),
    b"PAR1": ("a parquet file", "Use the reader of its layout."),
    b"\x93NUMPY": ("a NumPy array", _CONVERT),
    b"version https://git-lfs": ("a Git LFS pointer", "Fetch the file it stands for: `git lfs pull`."),
}
_HEIF = frozenset(
    (
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"hevm",
        b"hevs",
        b"mif1",
        b"mif2",
        b"msf1",
        b"miaf",
    )
)
_AVIF = frozenset((b"avif", b"avis"))
_MARKUP = re.compile(
    r"\s*(?:<\?xml.*?\?>|<!--.*?-->|<!DOCTYPE\s+svg[^\[>]*(?:\[.*?\])?\s*>|\s)*<(?:\w+:)?(?P<name>[!?\w]+)",
    re.DOTALL | re.IGNORECASE,
)
_HTML = frozenset(("html", "head", "body", "script", "!doctype", "meta", "title", "p", "div"))
_HEAD = 4096
_TS_PACKET = 188
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 0x111, 0x117, 0x144, 0x145
_REDUCED, _SUB_IFDS, _DNG_VERSION = 0xFE, 0x14A, 0xC612
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown|not available|not implemented|cannot handle|can't handle",
    re.IGNORECASE,
)


def refused_format(data: bytes) -> MediaError | None:
    """The refusal of a file that says at its beginning to be in a format that is not decoded here."""
    if data[4:8] == b"ftyp":
        return _box(data)
    for known, reason in ((_PICTURES, "unsupported_format"), (_OTHERS, "not_an_image")):
        for magic, (name, remedy) in known.items():
            if data.startswith(magic):
                return _refusal(reason, name, remedy)
    if data[:4] in (b"II*\0", b"MM\0*") and data[8:10] == b"CR":
        return _refusal("unsupported_format", "camera raw (CR2)", _DEVELOP)
    if data[:4] == b"RIFF" and data[8:12] in (b"AVI ", b"WAVE"):
        name = "an AVI video" if data[8:12] == b"AVI " else "a WAV file"
        return _refusal("not_an_image", name, _VIDEO)
    return None


def refused_raw(image: Image.Image) -> MediaError | None:
    """The refusal of a TIFF that is a camera's raw file, whose first picture is but a preview (DNG, NEF)."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    if _DNG_VERSION in tags or (tags.get(_REDUCED) == 1 and _SUB_IFDS in tags):
        return _refusal("unsupported_format", "camera raw (DNG, NEF, ARW or the like)", _DEVELOP)
    return None


def unidentified(data: bytes, error: Exception) -> MediaError:
    """What a file is that no decoder took."""
    if data.startswith(b"\x1f\x8b"):
        return _unpacked(data) or _refusal("not_an_image", "a gzip archive", _UNPACK)
    if b"%PDF-" in data[:1024]:
        return _refusal("not_an_image", "a PDF document", _RENDER)
    if data[128:132] == b"DICM":
        return _refusal("unsupported_format", "DICOM", _CONVERT)
    if data[257:262] == b"ustar":
        return _refusal("not_an_image", "a tar archive", _UNPACK)
    if data[:1] == b"G" and data[_TS_PACKET : _TS_PACKET + 1] == b"G":
        return _refusal("not_an_image", "an MPEG-TS video", _VIDEO)
    if data.startswith(_OWN_MAGIC):
        return variant(data) or truncated(data, error)
    if not any(data[:_HEAD]):
        return _refusal("not_an_image", "nothing but zeros", _AGAIN)
    return _text(data[:_HEAD]) or MediaError(
        "not_an_image",
        "The bytes are not an image.",
        f"They begin with {data[:8]!r}, which no supported format does.",
        _SEEN,
    )


def damaged(data: bytes, error: BaseException) -> MediaError:
    """What a decoder's error means for a file: a kind that it does not decode, or damage."""
    if _UNSUPPORTED.search(str(error)):
        return _kind(error)
    return truncated(data, error)


def variant(data: bytes) -> MediaError | None:
    """The refusal of a file in a known format, but of a kind that its decoder does not know."""
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None:
            continue
        try:
            if not accept(data[:16]):
                continue
            factory(BoundedReader(data), "")
        except (SyntaxError, OSError, ValueError) as error:
            if _UNSUPPORTED.search(str(error)) and (name != "TIFF" or _whole_tiff(data)):
                return _kind(error)
        except Exception:
            continue
    return None


def _whole_tiff(data: bytes) -> bool:
    """Whether a TIFF's tags are there, and the pixels they point at; where not, its kind cannot be told."""
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    try:
        file.seek(tags.next)
        tags.load(file)
        places = [tags.get(place, ()) for place in (_STRIPS, _TILES)]
        sizes = [tags.get(size, ()) for size in (_STRIP_SIZES, _TILE_SIZES)]
        ends = [at + size for pair in zip(places, sizes, strict=True) for at, size in zip(*pair, strict=True)]
    except (OSError, ValueError, TypeError, struct.error):
        return False
    return bool(ends) and max(ends) <= len(data)


def truncated(data: bytes, error: BaseException) -> MediaError:
    """The refusal of a file that breaks off or holds nonsense."""
    return MediaError(
        "truncated_image",
        "The image is truncated or damaged.",
        f"It has {len(data)} bytes, and its decoder says {cause(error)}.",
        "Fetch the file again, or leave the record out.",
    )


def unwritten(data: bytes) -> MediaError:
    """The refusal of a file that has zeros in the place of its end."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    return MediaError(
        "truncated_image",
        "The image is truncated or damaged.",
        f"It has {len(data)} bytes, and the last {zeros} are zeros where its pixels should be.",
        "Fetch the file again, or leave the record out.",
    )


def _kind(error: BaseException) -> MediaError:
    what = "The image is of a kind that cannot be decoded, or damaged."
    return MediaError("unsupported_format", what, cause(error), _CONVERT)


def _refusal(reason: str, name: str, remedy: str) -> MediaError:
    if reason == "unsupported_format":
        return MediaError(reason, f"The image is in the format {name}, which is not decoded.", "", remedy)
    return MediaError(reason, f"The file is {name}, not an image.", "", remedy)


def _box(data: bytes) -> MediaError | None:
    """The refusal of a file of the ISO base media family, by its brands; AVIF is decoded."""
    size = min(max(struct.unpack(">I", data[:4])[0], 16), _HEAD) if len(data) >= 16 else 16
    major = data[8:12]
    brands = {major, *(data[at : at + 4] for at in range(16, size, 4))}
    if brands & _AVIF:
        return None
    if brands & _HEIF:
        return _refusal("unsupported_format", "HEIC (HEIF)", _CONVERT)
    if major == b"crx ":
        return _refusal("unsupported_format", "camera raw (CR3)", _DEVELOP)
    return _refusal("not_an_image", "an MP4 or QuickTime video", _VIDEO)


def _unpacked(data: bytes) -> MediaError | None:
    """What a gzip file's text is: SVG is kept so, as .svgz."""
    try:
        return _text(zlib.decompressobj(31).decompress(data, _HEAD))
    except zlib.error:
        return None


def _text(head: bytes) -> MediaError | None:
    """The refusal of a text: a drawing, a page, an answer of a server."""
    coded = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(coded, errors="ignore")
    if not text.strip() or sum(not (c.isprintable() or c.isspace()) for c in text) > len(text) // 50:
        return None
    markup = _MARKUP.match(text)
    name = markup["name"].lower() if markup else ""
    if name == "svg":
        return _refusal("not_an_image", "an SVG drawing", _RENDER)
    if name in _HTML:
        return _refusal("not_an_image", "an HTML page", _AGAIN)
    if markup:
        return _refusal("not_an_image", "an XML text", _AGAIN)
    if text.lstrip()[:1] in "{[":
        return _refusal("not_an_image", "a JSON text", _AGAIN)
    return _refusal("not_an_image", "a text", _AGAIN)
