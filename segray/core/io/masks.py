"""Masks → class ids [H, W], as they stand in the file, and ids → palette PNGs and colours.

Right ids or a DataError. A mask is turned as EXIF says, like its image.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from segray.core.io.images import (
    BROKEN,
    JPEGS,
    NEW_SUBFILE_TYPE,
    REDUCED,
    is_lossless_webp,
    loaded_orientation,
    open_image,
    opened_in_turn,
    reason_of,
    turn_upright,
)
from segray.core.samples import CHANNELS, COLOR, IGNORE_INDEX, MaskChannel
from segray.errors import DataError

MASK_FORMATS = ("PNG", "TIFF", "GIF", "BMP", "WEBP")
MAX_COPIES = 32  # of GeoTIFF's overviews, so many at most


def decode_mask(data: bytes, source: str = "mask", channel: MaskChannel | None = None) -> np.ndarray:
    """Decode a mask to the ids stored in it, [H, W]: uint8 for palette and grey masks, uint16 for deep ones.

    A pixel of an RGB mask has the id of its colour, uint32 (samples.color_id), or with `channel` the value of that
    channel; alpha is left out. Ids are the values as stored: no scaling of 2 or 4 bits to 8, no inversion where a
    TIFF's zero is white. Upright after EXIF, as its image. Nothing is reduced: colours of more than 8 bits are
    refused without `channel`, and so are lossy files and files of several pages.
    """
    with opened_in_turn(data, source) as image:
        return _decoded(image, data, source, channel)


def _decoded(image: ImageFile.ImageFile, data: bytes, source: str, channel: MaskChannel | None) -> np.ndarray:
    try:
        _check_mask(image, data, source)
        stored, deep = _stored_as(image), _is_deep(image)
        image.load()
        if stored.startswith("LA;16"):
            raise DataError(f"{source} holds grey of 16 bits with alpha; store it without alpha.")
        if channel is not None:
            ids = _channel(image, data, source, channel, deep=deep)
        elif deep:
            raise DataError(
                f"{source} holds 16 bits a channel, more than a colour has here; name the channel that holds the "
                "class, red, green or blue: --set data.mask_channel=red."
            )
        elif image.mode in ("P", "PA", "L", "LA", "1"):
            ids = _as_stored(np.asarray(image.getchannel(0) if len(image.mode) == 2 else image), stored)
            if image.format == "GIF" and image.mode == "P":
                _check_numbers(ids, image.getpalette() or [], source)
        elif image.mode.startswith("I;16"):
            ids = np.asarray(image).astype(np.uint16)
        elif image.mode in ("RGB", "RGBA"):
            ids = _color_ids(np.asarray(image))
        else:
            raise DataError(
                f"{source} has {image.mode} pixels; a mask holds a class id of 8 or 16 bits, or a colour, a pixel."
            )
        return turn_upright(ids, loaded_orientation(image))
    except BROKEN as error:
        raise DataError(f"{source} cannot be decoded: {reason_of(error)}.") from error


def palette_of(data: bytes, source: str = "mask") -> dict[int, tuple[int, int, int]]:
    """Return the colour of each id in a palette mask; {} for any other."""
    image = open_image(data, source)
    if image.mode not in ("P", "PA"):
        return {}
    try:
        colors = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
    except BROKEN as error:
        raise DataError(f"{source} cannot be decoded: {reason_of(error)}.") from error
    return {i: (int(red), int(green), int(blue)) for i, (red, green, blue) in enumerate(colors)}


def _check_mask(image: Image.Image, data: bytes, source: str) -> None:
    """Raise DataError for a mask whose ids are not those that somebody drew."""
    lossy = image.format if image.format not in MASK_FORMATS else None
    if image.format == "WEBP" and not is_lossless_webp(data):
        lossy = "lossy WebP"
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    if tags is not None and image.info.get("compression") in ("jpeg", "webp"):
        lossy = "TIFF with lossy compression"
    if lossy:
        kind = "a JPEG" if lossy in JPEGS else "an AVIF" if lossy == "AVIF" else f"a {lossy}"
        raise DataError(f"{source} is {kind}, which invents class ids at edges; store masks as PNG.")
    if tags is not None and image.mode == "L" and 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
        raise DataError(f"{source} holds signed integers; store a mask's class ids unsigned, with 255 for void.")
    if _has_pages(image):
        raise DataError(f"{source} has several pages or frames; a mask has one.")


def _check_numbers(ids_hw: np.ndarray, palette: Sequence[int], source: str) -> None:
    """Raise DataError for a GIF whose shades of grey differ from their positions in the palette.

    Pillow renumbers the shades in use when it writes grey as GIF. Black and white are 0 and 1.
    """
    colors = np.array(palette, np.uint8).reshape(-1, 3)
    used = np.unique(ids_hw)
    shades = colors[used[used < len(colors)]]
    grey = shades[:, 0].tolist()
    if colors[:2].tolist() == [[0] * 3, [255] * 3] and used.max(initial=0) <= 1:
        return
    if len(shades) == len(used) and (shades == shades[:, :1]).all() and grey != used.tolist() and grey != [0, 255]:
        other = next(i for i, shade in enumerate(grey) if shade != used[i])
        raise DataError(
            f"{source} is a GIF in shades of grey, of which number {used[other]} is {grey[other]}: which is the "
            "class id is not known, as programs renumber grey when they write GIFs. Store masks as PNG."
        )


def _has_pages(image: Image.Image) -> bool:
    """Say whether there is more than one full page; smaller copies of the first in a TIFF do not count."""
    if not getattr(image, "is_animated", False):
        return False
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    more = False
    try:
        for page in range(1, MAX_COPIES):
            image.seek(page)
            more = more or not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED
    except EOFError:
        pass
    image.seek(0)
    return more


def _stored_as(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name for the layout of the stored pixels, such as L;4, 1;I or RGB;16B."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Say whether Pillow keeps only 8 of 16 bits per channel."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        return max(bits) == 16 and len(image.getbands()) > 1  # planes of their own are read as if they had 8 bits
    return image.format == "PNG" and ";16" in _stored_as(image) and not image.mode.startswith("I;16")


def _as_stored(values_hw: np.ndarray, stored: str) -> np.ndarray:
    """Turn Pillow's grey into uint8 as stored in the file: Pillow scales 2 and 4 bits, and inverts TIFFs."""
    kind, _, how = stored.partition(";")
    values_hw = values_hw.astype(np.uint8)
    if kind == "1":
        return 1 - values_hw if "I" in how else values_hw
    if kind == "L":
        values_hw = 255 - values_hw if "I" in how else values_hw
        return values_hw // {"2": 85, "4": 17}.get(how[:1], 1)
    return values_hw


def _color_ids(image_hwc: np.ndarray) -> np.ndarray:
    ids = np.full(image_hwc.shape[:2], COLOR >> 24, np.uint32)  # in place: a frame of 268 MP has 1 GB of them
    for channel in range(3):
        ids <<= 8
        ids |= image_hwc[..., channel]
    return ids


def _channel(image: Image.Image, data: bytes, source: str, channel: MaskChannel, *, deep: bool) -> np.ndarray:
    """Read one channel of a colour mask: uint8, or uint16 of a deep PNG or TIFF."""
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(f"{source} has {image.mode} pixels and no {channel} channel; leave data.mask_channel out.")
    index = CHANNELS.index(channel)
    if not deep:
        return np.asarray(image.getchannel(index))
    import av  # Pillow has no mode for it; whether the file is whole, it has just seen

    unread = DataError(f"{source} holds 16 bits a channel in a way that is not read; store the mask as PNG.")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and not _is_plain(image):
        raise unread
    try:
        with av.open(io.BytesIO(data), mode="r", format=f"{(image.format or '').lower()}_pipe") as file:
            pixels: np.ndarray = next(file.decode(video=0)).to_ndarray()
    except (av.FFmpegError, StopIteration, ValueError) as error:
        raise unread from error
    values_hw: np.ndarray = pixels[..., index].astype(np.uint16)
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # which Pillow has turned
        values_hw = turn_upright(values_hw, _tiff_orientation(data))
    # Of what both read, Pillow has the upper 8 bits.
    if values_hw.shape != (image.height, image.width) or (values_hw >> 8 != np.asarray(image.getchannel(index))).any():
        raise unread
    return values_hw


def _is_plain(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Say whether FFmpeg reads a TIFF's 16 bits right: in strips, of all channels together, and without loss.

    It takes tiles for strips, and leaves packbits' differences as they are, without reporting it.
    """
    tags = image.tag_v2
    packed = image.info.get("compression")
    told = packed in ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate") or (
        packed == "packbits" and tags.get(TiffImagePlugin.PREDICTOR, 1) == 1
    )
    return told and TiffImagePlugin.TILEWIDTH not in tags and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 1


def _tiff_orientation(data: bytes) -> int | None:
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        turned: int | None = image.getexif().get(ExifTags.Base.Orientation)
        return turned


def encode_mask(mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode class ids uint8 [H, W] as palette PNG: the pixels are ids, and any viewer shows the colours."""
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
            _chunk(b"IDAT", zlib.compress(rows.data, 1)),
            _chunk(b"IEND", b""),
        )
    )


def colorize(mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Colour class ids uint8 [H, W] as RGB uint8 [H, W, 3]; ids beyond the colours (void) are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colors)] = colors
    rgb_hwc: np.ndarray = table[mask_hw]
    return rgb_hwc


def overlay(image_hwc: np.ndarray, mask_hw: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Blend the mask's colours half over the frame, uint8 [H, W, 3], and fully at the outlines of its regions.

    Void shows the frame alone. Without outlines, a class whose colour is near the frame's would not be seen.
    """
    rgb_hwc = colorize(mask_hw, colors)
    edge = np.zeros(mask_hw.shape, bool)
    edge[:-1] = mask_hw[:-1] != mask_hw[1:]
    edge[:, :-1] |= mask_hw[:, :-1] != mask_hw[:, 1:]
    mixed = np.where(edge[..., None], rgb_hwc, image_hwc // 2 + rgb_hwc // 2)
    return np.where((mask_hw == IGNORE_INDEX)[..., None], image_hwc, mixed)


def resize_mask(mask_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize ids uint8 [H, W] to [*size] by nearest neighbour, which makes no new ids."""
    if mask_hw.shape == tuple(size):
        return mask_hw
    return np.asarray(Image.fromarray(mask_hw).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _chunk(kind: bytes, body: bytes) -> bytes:
    """Build a PNG chunk (PNG, 5.3): length, type, data, checksum of type and data."""
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))
