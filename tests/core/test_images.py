import io
import zlib

import numpy as np
import pytest
from PIL import Image

from segray.core.images import decode_image, decode_mask, encode_mask, resize_image, resize_mask
from segray.core.samples import color_id, id_text
from segray.errors import DataError

RED = (200, 30, 30)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_common_formats_give_their_pixels(kind):
    image = decode_image(encoded(Image.new("RGB", (8, 4), RED), kind))
    assert (image.shape, image.dtype) == ((4, 8, 3), np.uint8)
    assert np.abs(image.astype(int) - RED).max() <= 6


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK"])
def test_odd_modes_are_neither_black_nor_white_by_accident(mode):
    grey = Image.new("L", (4, 4), 0)
    grey.putpixel((0, 0), 255)
    image = decode_image(encoded(grey.convert(mode), "TIFF" if mode == "CMYK" else "PNG"))
    assert image[0, 0].tolist() == [255] * 3
    assert image[3, 3].tolist() == [0] * 3


def test_sixteen_bits_are_scaled_not_clipped():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert decode_image(encoded(deep))[0, :, 0].tolist() == [0, 100, 255]


def test_floats_are_refused_by_name():
    deep = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    with pytest.raises(DataError, match=r"^a.tif has F pixels \(32 bits a channel\); convert it to 8 or 16 bits\.$"):
        decode_image(encoded(deep, "TIFF"), "a.tif")


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x112] = 6
    picture = Image.new("RGB", (8, 4), RED)
    assert decode_image(encoded(picture, "JPEG", exif=exif)).shape == (8, 4, 3)


def test_broken_bytes_are_a_data_error_that_names_the_file():
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    for data in (b"", b"text", whole[: len(whole) * 6 // 10]):
        with pytest.raises(DataError, match=r"^a\.jpg (is not an image|cannot be decoded): [^<\n]*\.$"):
            decode_image(data, "a.jpg")


def test_a_bomb_is_stopped_by_its_header():
    header = bytearray(encoded(Image.new("L", (1, 1))))
    header[16:24] = (40000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"^a\.png is 40000×40000; at most 268 megapixels are read\.$"):
        decode_image(bytes(header), "a.png")


def test_every_id_survives_the_palette_png():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = encode_mask(ids, [(9, 9, 9)] * 3)
    assert np.array_equal(decode_mask(data), ids)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert Image.open(io.BytesIO(data)).convert("RGB").getpixel((2, 0)) == (9, 9, 9)


def test_masks_that_would_invent_ids_are_refused():
    with pytest.raises(DataError, match=r"^m.jpg is a JPEG, which invents class ids at edges; store masks as PNG\.$"):
        decode_mask(encoded(Image.new("L", (8, 8)), "JPEG"), "m.jpg")
    with pytest.raises(DataError, match=r"^m\.tif has F pixels; a mask holds a class id of 8 or 16 bits, or a colour"):
        decode_mask(encoded(Image.new("F", (8, 8)), "TIFF"), "m.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_colour_masks_ids_are_its_colours(mode):
    mask = decode_mask(encoded(Image.new(mode, (3, 2), (128, 0, 64))), "m.png")
    assert (mask == color_id(128, 0, 64)).all()
    assert mask.shape == (2, 3)
    assert id_text(int(mask[0, 0])) == "#800040"


def test_a_deep_mask_keeps_ids_above_255():
    ids = np.array([[0, 300], [65535, 7]], np.uint16)
    assert np.array_equal(decode_mask(encoded(Image.fromarray(ids)), "m.png"), ids)


def test_resizing_a_mask_invents_no_id():
    mask = np.array([[0, 7], [7, 0]], dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    assert set(np.unique(resize_mask(mask, (7, 3)))) == {0, 7}
    assert resize_image(np.zeros((4, 6, 3), np.uint8), (2, 3)).shape == (2, 3, 3)
