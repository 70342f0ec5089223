"""Bytes ↔ arrays: images to uint8 RGB [H, W, 3], masks to uint8 ids [H, W], ids to palette PNGs.

Right pixels or a DataError; never silently white, black or sideways. EXIF rotation is applied, so an
array is what a viewer shows.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from segray.core.samples import COLOR
from segray.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 1 << 28  # 268 MP: above any road camera, below what fills a laptop's memory (0.8 GB as RGB)

# Pillow's own limit only warns up to twice its value; the header is checked against MAX_PIXELS instead.
Image.MAX_IMAGE_PIXELS = None


def decode_image(data: bytes, source: str = "image") -> np.ndarray:
    """An encoded image → uint8 RGB [H, W, 3], upright after EXIF.

    16-bit grey is scaled to 8 bits; float and other deep modes are refused. `source` names it in errors.
    """
    image = _open(data, source)
    try:
        # A palette image with transparency would warn on its way to RGB; RGBA first keeps the colours.
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise DataError(f"{source} has {image.mode} pixels (32 bits a channel); convert it to 8 or 16 bits.")
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P":
            upright = upright.convert("RGBA")
        return np.asarray(upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{source} cannot be decoded: {_one_line(error)}.") from error


def decode_mask(data: bytes, source: str = "mask") -> np.ndarray:
    """An encoded mask → the ids that stand in it, [H, W]: uint8 of palette and grey masks, uint16 of deep ones.

    A pixel of an RGB mask has the id of its colour, uint32 (samples.color_id); alpha is left out.
    """
    image = _open(data, source)
    if image.format == "JPEG":
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
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{source} cannot be decoded: {_one_line(error)}.") from error
    raise DataError(f"{source} has {image.mode} pixels; a mask holds a class id of 8 or 16 bits, or a colour, a pixel.")


def encode_mask(mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Class ids uint8 [H, W] → palette PNG: the pixels are ids, and any viewer shows the colours."""
    image = Image.fromarray(np.ascontiguousarray(mask_hw, dtype=np.uint8))
    # All 256 entries: with a short palette Pillow stores fewer bits a pixel, and 255 (void) would come back as 3.
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    image.putpalette(palette.tobytes())
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=1)
    return out.getvalue()


def colorize(mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Class ids uint8 [H, W] → RGB uint8 [H, W, 3]; ids beyond the colours (void) are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colors)] = colors
    return table[mask_hw]


def resize_image(image_hwc: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 [H, W, 3] → [*size, 3]; bilinear over the source's area, so that shrinking does not alias.

    Training and labelling both resize here, so that a model sees the same pixels in both.
    """
    if image_hwc.shape[:2] == tuple(size):
        return image_hwc
    return np.asarray(Image.fromarray(image_hwc).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids uint8 [H, W] → [*size], nearest: no new ids."""
    if mask_hw.shape == tuple(size):
        return mask_hw
    return np.asarray(Image.fromarray(mask_hw).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _open(data: bytes, source: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd EXIF; the pixels are judged, not the tags
            image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{source} is not an image: {_one_line(error)}.") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{source} is {image.width}×{image.height}; at most {MAX_PIXELS // 10**6} megapixels are read.")
    return image


def _one_line(error: Exception) -> str:
    """Pillow's reason without the address of the buffer that it was given."""
    text = str(error).split(" <", maxsplit=1)[0].strip().rstrip(".")
    return text or type(error).__name__
