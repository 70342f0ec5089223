"""Bytes ↔ arrays: images to uint8 RGB [H, W, 3], masks to uint8 ids [H, W], ids to palette PNGs.

Right pixels or a DataError; never silently white, black or sideways. EXIF rotation is applied, so an
array is what a viewer shows.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from segray.core.samples import COLOR, IGNORE_INDEX
from segray.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# Pillow knows many more, among them EPS, for which it starts Ghostscript: a suffix does not say what is in a file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
JPEGS = ("JPEG", "MPO")  # Pillow says MPO of a JPEG with a second view or a depth map behind it
# 268 MP: above any road camera, below what fills a laptop's memory: 0.8 GB as RGB, 2.7 while it is decoded (144 MP
# took 1.4: Pillow's 4 bytes a pixel, then the array's 3 twice).
MAX_PIXELS = 1 << 28

# Pillow's own limit only warns up to twice its value; the header is checked against MAX_PIXELS instead.
Image.MAX_IMAGE_PIXELS = None
# Its notes on odd tags: the pixels are judged. Here and not around each call, which threads would undo for each other.
warnings.filterwarnings("ignore", module=r"PIL\.")

# What Pillow raises over damaged files, by cutting and flipping bytes of every format; not all of it is documented.
BROKEN = (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError, struct.error)


def decode_image(data: bytes, source: str = "image") -> np.ndarray:
    """An encoded image → uint8 RGB [H, W, 3], upright after EXIF; the first frame or page of several.

    16 bits a channel become their upper 8; files whose 16 bits hold 12 or fewer, floats and other deep pixels are
    refused. Alpha is left out: a pixel has its own colour, whatever lies behind. `source` names the file in errors.
    """
    image = _open(data, source)
    _check_pixels(image, source)
    deep_rgb = image.mode in ("RGB", "RGBA") and image.format in ("PNG", "TIFF")
    deep_rgb = deep_rgb and any(";16" in str(tile.args) for tile in image.tile)
    try:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            image = Image.fromarray(_upper_bits(image, source))
        elif image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB would warn of transparency
        elif image.mode == "La":
            image = image.convert("LA")
        # torchvision's decode_jpeg measured against this (streets, one thread, the header read by Pillow in both): 1.2
        # to 1.35 times as fast at 1024×2048, 1.1 at 360×480. Not worth a second decoder's mind about cut files.
        image_hwc = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except BROKEN as error:
        raise DataError(f"{source} cannot be decoded: {_one_line(error)}.") from error
    if deep_rgb:
        _check_range(int(image_hwc.max()), source)
    return image_hwc


def decode_mask(data: bytes, source: str = "mask") -> np.ndarray:
    """An encoded mask → the ids that stand in it, [H, W]: uint8 of palette and grey masks, uint16 of deep ones.

    A pixel of an RGB mask has the id of its colour, uint32 (samples.color_id); alpha is left out.
    """
    image = _open(data, source)
    if image.format in JPEGS:
        raise DataError(f"{source} is a JPEG, which invents class ids at edges; store masks as PNG.")
    try:
        if image.mode == "LA":
            image = image.getchannel("L")
        if image.mode in ("P", "L", "1"):
            return np.asarray(image).astype(np.uint8)
        if image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)
        if image.mode in ("RGB", "RGBA"):
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.uint32), -1, 0)
            return COLOR | red << 16 | green << 8 | blue
    except BROKEN as error:
        raise DataError(f"{source} cannot be decoded: {_one_line(error)}.") from error
    raise DataError(f"{source} has {image.mode} pixels; a mask holds a class id of 8 or 16 bits, or a colour, a pixel.")


def encode_mask(mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Class ids uint8 [H, W] → palette PNG: the pixels are ids, and any viewer shows the colours."""
    # Unfiltered rows: a street of 1024×2048 in 3.4 ms on one thread, about what Pillow 13 takes at level 1 with its
    # search for filters (4.0). ISA-L needs 0.4, and gave other bytes for the same pixels now and then (2 masks of 150
    # on a busy machine): two runs would not write the same part.
    height, width = mask_hw.shape
    rows = np.empty((height, width + 1), dtype=np.uint8)
    rows[:, 0] = 0  # PNG, 9.2: filter type None
    rows[:, 1:] = mask_hw
    # All 256 entries: readers may refuse an id without a colour, and 255 is void.
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),  # 8 bits, palette
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", zlib.compress(rows, 1)),
            _chunk(b"IEND", b""),
        )
    )


def encode_image(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or RGB [H, W, 3] → PNG, grey or RGB; little time for a somewhat larger file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def colorize(mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Class ids uint8 [H, W] → RGB uint8 [H, W, 3]; ids beyond the colours (void) are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colors)] = colors
    return table[mask_hw]


def overlay(image_hwc: np.ndarray, mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The mask's colours half over the frame, uint8 [H, W, 3]; void shows the frame alone."""
    mixed = image_hwc // 2 + colorize(mask_hw, colors) // 2
    return np.where((mask_hw == IGNORE_INDEX)[..., None], image_hwc, mixed)


def resize_image(image_hwc: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 [H, W, 3] → [*size, 3]; bilinear over the source's area, so that shrinking does not alias.

    For pictures, without PyTorch; what a model sees is transforms.fit()'s.
    """
    if image_hwc.shape[:2] == tuple(size):
        return image_hwc
    return np.asarray(Image.fromarray(image_hwc).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids uint8 [H, W] → [*size], nearest: no new ids."""
    if mask_hw.shape == tuple(size):
        return mask_hw
    return np.asarray(Image.fromarray(mask_hw).resize((size[1], size[0]), Image.Resampling.NEAREST))


def kind(data: bytes, source: str = "image") -> str:
    """What an encoded image is: jpeg, png, …"""
    return _open(data, source).format.lower()


def _open(data: bytes, source: str) -> Image.Image:
    """The header; no pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        # The header ends where the scans begin, and a scan holds no FF D9 but the last one's end. Zeros in its place,
        # as a copy leaves that gave the file its length first and then broke off, would be drawn as grey.
        ends = image.format not in JPEGS or data.rfind(b"\xff\xd9", image.fp.tell()) >= 0
    except BROKEN as error:
        raise DataError(_tiff_reason(data, source) or f"{source} is not an image: {_one_line(error)}.") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{source} is {image.width}×{image.height}; at most {MAX_PIXELS // 10**6} megapixels are read.")
    if not ends:
        raise DataError(f"{source} cannot be decoded: image file is truncated (a JPEG without its end marker).")
    return image


def _check_pixels(image: Image.Image, source: str) -> None:
    """DataError for the pixels that Pillow reads, or turns to RGB, without complaint and wrong."""
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


def _check_range(highest: int, source: str) -> None:
    """`highest`: the upper 8 of 16 bits, which 12-bit cameras leave at 15 or less."""
    if highest < 16:
        raise DataError(
            f"{source} holds 12-bit values or smaller in 16 bits, which would come out black; scale them to 0..65535."
        )


def _tiff_reason(data: bytes, source: str) -> str | None:
    """Why Pillow does not know this TIFF, where its first directory can be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = "+".join(str(bits) for bits in tags[TiffImagePlugin.BITSPERSAMPLE])
    except BROKEN:
        return None
    return f"{source} is a TIFF of {bits} bits a pixel, a layout that is not read; convert it to 8 bits, grey or RGB."


def _chunk(kind: bytes, body: bytes) -> bytes:
    """PNG, 5.3: length, type, data, checksum of type and data."""
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


def _one_line(error: Exception) -> str:
    """Pillow's reason without the address of the buffer that it was given."""
    text = str(error).split(" <", maxsplit=1)[0].strip().rstrip(".")
    return text or type(error).__name__
