"""Images of every kind → uint8 RGB [H, W, 3], and arrays → PNGs.

Right pixels or a DataError; never silently white, black or sideways. EXIF rotation is applied, so an
array is what a viewer shows.
"""

from __future__ import annotations

import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from segray.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    }
)
# Pillow knows many more, among them EPS, for which it starts Ghostscript: a suffix does not say what is in a file.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")
JPEGS = ("JPEG", "MPO")  # Pillow says MPO of a JPEG with a second view or a depth map behind it
PNG_EXIF = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile")  # chunks, and keys of text chunks, that may hold a rotation
NEW_SUBFILE_TYPE, REDUCED, SUB_IFDS = 254, 1, 330  # TIFF 6.0, section 8, and its supplement 1
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.32, Orientation: what puts a picture upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
SIDEWAYS = (5, 6, 7, 8)  # those that exchange height and width
PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
# The first bytes of picture files, by which a picture under a video's suffix is recognized.
SIGNATURES = {
    PNG_BEGIN: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF",
    b"MM\0*": "TIFF", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000",
}  # fmt: skip
# Formats that phones and programs write and Pillow cannot read, by their first bytes: ISO/IEC 23008-12, 10.2 and
# 18181-2.
HEIC = frozenset(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
# 268 megapixels are more than any road camera has. They take 0.8 GB as RGB, and while they are decoded 2.7 GB (4.3 GB
# with a palette), as Pillow holds 4 bytes a pixel and the array 3 twice. Bytes a pixel at most, seen with files of one
# colour: JPEG, also progressive, 10, CMYK 14; PNG 10, RGBA 14; TIFF 12, RGBA 15; palettes in PNG, GIF, BMP and TIFF 16;
# AVIF 13; as masks 17.
MAX_PIXELS = 1 << 28
MAX_TILE_PIXELS = 1 << 24  # pixels of a tile in a TIFF that is smaller than one tile; libtiff allocates a whole one
# Decoders that take more: WebP takes 17 for its canvases, and 21 as a mask, JPEG 2000 takes 20 for 32 bits a channel,
# and 25 with alpha.
MAX_PIXELS_OF = {"WEBP": 1 << 27, "JPEG2000": 1 << 27}
# Larger ones are decoded one at a time in a process, whose threads could together take all memory. 8K has 33.2 million.
LARGE_PIXELS = 1 << 25
_one_large = threading.RLock()

# Pillow's own limit only warns up to twice its value; the header is checked against MAX_PIXELS instead.
Image.MAX_IMAGE_PIXELS = None
# Pillow refuses a packed text or colour profile in a PNG above 1 MB; all together may have 64 MB, so one may, too.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Pillow warns of odd tags, which say nothing about the pixels. The filter is set once: threads that set it around their
# calls would undo it for each other.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What Pillow was seen to raise when bytes of every format were cut and flipped; not all of it is documented.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,  # AVIF
    struct.error,
)


def decode_image(data: bytes, source: str = "image", note: Callable[[str], None] | None = None) -> np.ndarray:
    """Decode an image to uint8 RGB [H, W, 3], upright after EXIF; of several frames or pages, the first.

    Channels of 16 bits are reduced to their upper 8; files whose 16 bits hold 12 or fewer, floats and other deep pixels
    are refused. Alpha is ignored: a pixel has its own colour, whatever is behind it. `source` names the file in errors.
    note: called with a sentence about what is not known of the pixels, such as the rotation where EXIF is damaged.
    """
    with opened_in_turn(data, source) as file:
        return _decoded(file, data, source, note)


def _decoded(file: ImageFile.ImageFile, data: bytes, source: str, note: Callable[[str], None] | None) -> np.ndarray:
    _check_pixels(file, source)
    bits = _jpeg2000_bits(data) if file.format == "JPEG2000" else 8
    if bits > (16 if file.mode.startswith("I;16") else 8):
        # Pillow rounds what it takes off: white would be black.
        raise DataError(
            f"{source} is a JPEG 2000 of {bits} bits a channel, which is not read; convert it to 8 bits, grey or RGB."
        )
    deep_rgb = file.mode in ("RGB", "RGBA") and file.format in ("PNG", "TIFF")
    deep_rgb = deep_rgb and any(";16" in str(tile.args) for tile in file.tile)
    image: Image.Image = file
    try:
        image.load()
        turned = loaded_orientation(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray(_upper_bits(image, source))
        elif image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB would warn of transparency
        elif image.mode == "La":
            image = image.convert("LA")
        # torchvision's decode_jpeg was 1.2 to 1.35 times as fast at 1024×2048 and 1.1 times at 360×480 (drawn streets,
        # one thread, the header read by Pillow in both). That is not worth a second decoder, which treats cut files
        # in its own way.
        image_hwc = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except BROKEN as error:
        raise DataError(f"{source} cannot be decoded: {reason_of(error)}.") from error
    if deep_rgb:
        _check_range(int(image_hwc.max()), source)
    if turned is None and note is not None:
        note(f"{source} has a damaged EXIF block, which may say that it is rotated; its pixels are taken as stored.")
    return turn_upright(image_hwc, turned)


def is_lossless_webp(data: bytes) -> bool:
    return data.find(b"VP8L", 12) >= 0


def loaded_orientation(image: Image.Image) -> int | None:
    """Return a loaded image's orientation from EXIF or XMP, 1 without; None where EXIF is too damaged to tell."""
    if image.format == "TIFF":  # turned by Pillow as it is loaded
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found or (1 if _is_whole(image.info.get("exif") or b"") else None)
    except BROKEN:
        return None


def orientation(data: bytes, source: str = "image") -> int | None:
    """Return an encoded image's EXIF orientation, a key of TURNS or 1; None where EXIF is too damaged to tell."""
    image = open_image(data, source)
    if image.format == "PNG" and not any(mark in data for mark in PNG_EXIF):
        return 1
    try:
        if image.format == "TIFF":
            tag: int = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation, 1)
            return tag
        if image.format == "PNG":  # whose EXIF may stand behind the pixels
            image.load()
        return loaded_orientation(image)
    except BROKEN:
        return None


def upright_size(data: bytes, source: str = "image") -> tuple[int, int]:
    """Return the (height, width) that decode_image() gives, from the header and EXIF."""
    image = open_image(data, source)
    width, height = image.size
    sideways = image.format != "TIFF" and orientation(data, source) in SIDEWAYS  # Pillow turns a TIFF's size itself
    return (width, height) if sideways else (height, width)


def _is_whole(exif: bytes) -> bool:
    """Say whether the block has all the tags of its first directory; Pillow ignores tags that are missing."""
    exif = exif.removeprefix(b"Exif\0\0")
    if not exif:
        return True
    order = ">" if exif.startswith(b"MM") else "<"
    (first,) = struct.unpack_from(f"{order}L", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, first)
    return bool(first + 2 + 12 * count <= len(exif))


def turn_upright(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    turn = TURNS.get(orientation or 1)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def encode_image(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or RGB [H, W, 3] as PNG, grey or RGB; fast, for a somewhat larger file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def upright(data: bytes, source: str = "image") -> bytes:
    """Return an encoded image that stands upright without EXIF: unchanged, or encoded again where EXIF turns it.

    A reader that ignores EXIF then sees what its mask was made of. JPEGs are written with quality 95, and
    so are WebPs, but for lossless ones. DataError for one that has to be turned and cannot be decoded.
    """
    turned = orientation(data, source)
    if turned not in TURNS:
        return data
    image = open_image(data, source)
    sink, kept = io.BytesIO(), {"icc_profile": image.info.get("icc_profile")}
    if image.format == "WEBP":
        kept["lossless"] = is_lossless_webp(data)
    image_hwc = decode_image(data, source)
    Image.fromarray(image_hwc).save(sink, "JPEG" if image.format in JPEGS else image.format, quality=95, **kept)
    return sink.getvalue()


def resize_image(image_hwc: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize RGB uint8 [H, W, 3] to [*size, 3]; bilinear over the source's area, so that shrinking does not alias.

    For pictures, without PyTorch; a model's input is resized by transforms.fit().
    """
    if image_hwc.shape[:2] == tuple(size):
        return image_hwc
    return np.asarray(Image.fromarray(image_hwc).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def still_kind(head: bytes) -> str | None:
    """Name the picture format of a file by its first 16 bytes or more; None for what may be a video."""
    if head[4:12] in (b"ftypavif", *HEIC):
        return "AVIF" if head[8:12] == b"avif" else "HEIC"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((name for begin, name in SIGNATURES.items() if head.startswith(begin)), None)


def kind(data: bytes, source: str = "image") -> str:
    """Name the format of an encoded image: jpeg, png, …"""
    return (open_image(data, source).format or "").lower()


@contextmanager
def opened_in_turn(data: bytes, source: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image as open_image() does, to be decoded inside: a large one when no other thread is at one."""
    with _turn(*(_webp_size(data) or (0, 0))):
        image = open_image(data, source)
        if image.format == "PNG":
            _check_sums(data, source)
        with _turn(*image.size):
            yield image


def _turn(width: int, height: int) -> AbstractContextManager[Any]:
    return _one_large if width * height > LARGE_PIXELS else nullcontext()


def open_image(data: bytes, source: str) -> ImageFile.ImageFile:
    """Open an image's header, without decoding a pixel or taking memory for more than MAX_PIXELS."""
    if size := _webp_size(data):  # libwebp takes a canvas when it is opened
        _check_size(*size, "WEBP", source)
    try:
        file = io.BytesIO(data)
        image = Image.open(file, formats=PICTURE_FORMATS)
        # The header ends where the scans begin, and a scan holds no FF D9 but the last one's end. Zeros in its place,
        # as a copy leaves that gave the file its length first and then broke off, would be drawn as grey.
        ends = image.format not in JPEGS or data.rfind(b"\xff\xd9", file.tell()) >= 0
    except BROKEN as error:
        unread = "HEIC" if data[4:12] in HEIC else "JPEG XL" if data.startswith(JPEG_XL) else None
        if unread:
            raise DataError(f"{source} is {unread}, which is not read; convert it to JPEG or PNG.") from error
        raise DataError(_tiff_reason(data, source) or f"{source} is not an image: {reason_of(error)}.") from error
    _check_size(*image.size, image.format, source)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        sides = [image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if math.prod(sides) > max(MAX_TILE_PIXELS, image.width * image.height):
            raise DataError(
                f"{source} is {image.width}×{image.height} in tiles of {sides[0]}×{sides[1]}; it is damaged."
            )
        tags, page = image.tag_v2, image.tag_v2.get(NEW_SUBFILE_TYPE)  # which in a damaged file may be anything
        if isinstance(page, int) and page & REDUCED and (SUB_IFDS in tags or image.is_animated):
            raise DataError(
                f"{source} is a TIFF that begins with a small copy of its picture, as cameras write raw files; convert "
                "the picture itself to PNG or to a TIFF of one page."
            )
    if image.format == "BMP" and image.mode in (
        "1",
        "L",
    ):  # a palette of grey, whose pixels Pillow takes for 1 or 8 bits
        at = 24 if data[14] == 12 else 28  # OS/2's header, or Windows'
        if (bits := int.from_bytes(data[at : at + 2], "little")) != {"1": 1, "L": 8}[image.mode]:
            raise DataError(
                f"{source} is a BMP of {bits} bits with a palette of grey, which is not read; store it as PNG."
            )
    if not ends:
        raise DataError(f"{source} cannot be decoded: image file is truncated (a JPEG without its end marker).")
    return image


def _check_sums(data: bytes, source: str) -> None:
    """Raise DataError for a PNG whose pixels are damaged, by checksums (PNG, 5.3) that Pillow does not look at."""
    at, pixels = len(PNG_BEGIN), memoryview(data)
    while len(head := data[at : at + 8]) == 8:
        end = at + 8 + int.from_bytes(head[:4])
        if head[4:] == b"IDAT":
            if end + 4 > len(data):
                raise DataError(f"{source} cannot be decoded: image file is truncated.")
            if zlib.crc32(pixels[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
                told = f"its pixels are damaged, as the checksum at byte {end} says"
                raise DataError(f"{source} cannot be decoded: {told}.")
        at = end + 4


def _check_size(width: int, height: int, kind: str | None, source: str) -> None:
    most = MAX_PIXELS_OF.get(kind or "", MAX_PIXELS)
    if width * height > most:
        raise DataError(f"{source} is {width}×{height}; at most {most // 10**6} megapixels are read.")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) from a WebP's header (RFC 9649, sections 2.5 to 2.7 and 3.4)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_pixels(image: Image.Image, source: str) -> None:
    """Raise DataError for pixels that Pillow reads, or converts to RGB, wrongly and without complaint."""
    kind = {"I": "signed or 32-bit integers", "F": "floats"}.get(image.mode)  # convert("RGB") would clip them
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        deep = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) == 16
        if deep and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and len(image.getbands()) > 1:
            kind = "16-bit channels in planes of their own"  # read as if they had 8 bits
        elif deep and image.mode == "CMYK":
            kind = "16-bit CMYK"  # 12 bits of ink in 16 would be white
        elif image.mode == "L" and 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
            kind = "signed integers"  # -1 would be white
        elif image.mode == "YCbCr" and image.info["compression"] == "raw":
            # TIFF 6.0, section 21: 2×2 is the default. Pillow reads four samples as if they were one pixel's.
            kind = None if tags.get(TiffImagePlugin.YCBCRSUBSAMPLING, (2, 2)) == (1, 1) else "subsampled raw YCbCr"
    if kind:
        raise DataError(f"{source} holds {kind}; convert it to 8 bits a channel, grey or RGB.")


def _upper_bits(image: Image.Image, source: str) -> np.ndarray:
    values = np.asarray(image)
    _check_range(int(values.max()) >> 8, source)
    if (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    ):
        values = 65535 - values  # Pillow inverts 8 bits and fewer only
    return (values >> 8).astype(np.uint8)


def _jpeg2000_bits(data: bytes) -> int:
    """Return the most bits of a channel, from the SIZ marker (ISO/IEC 15444-1, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51")
    channels = int.from_bytes(data[at + 40 : at + 42], "big")
    return max((size % 128 + 1 for size in data[at + 42 : at + 42 + 3 * channels : 3]), default=8)


def _check_range(highest: int, source: str) -> None:
    """Check the `highest` of the upper 8 of 16 bits, which 12-bit cameras leave at 15 or less. DataError for such."""
    if highest < 16:
        raise DataError(
            f"{source} holds 12-bit values or smaller in 16 bits, which would come out black; scale them to 0..65535."
        )


def _tiff_reason(data: bytes, source: str) -> str | None:
    """Explain why Pillow does not know this TIFF, where its first directory can be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = "+".join(str(bits) for bits in tags[TiffImagePlugin.BITSPERSAMPLE])
    except BROKEN:
        return None
    return f"{source} is a TIFF of {bits} bits a pixel, a layout that is not read; convert it to 8 bits, grey or RGB."


def reason_of(error: Exception) -> str:
    """Return Pillow's reason without the address of the buffer that it was given."""
    text = str(error).split(" <", maxsplit=1)[0].strip().rstrip(".")
    return text or type(error).__name__
