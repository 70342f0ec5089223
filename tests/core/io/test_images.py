import base64
import io
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from segray.core.io import images
from segray.core.io.images import decode_image, resize_image, upright_size
from segray.core.io.masks import colorize, decode_mask, encode_mask, resize_mask
from segray.core.samples import color_id, id_text
from segray.errors import DataError

RED = (200, 30, 30)

# pytest puts its own filters in the place of the one that images sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(pixels, photometric, planar=1, sample_format=1, extra=None):
    """Raw TIFF of one strip (planar 1) or a strip a channel (2), in the byte order of the array: what Pillow does
    not write."""
    order = ">" if pixels.dtype.str[0] == ">" else "<"
    height, width, channels = pixels.shape
    planes = [pixels.tobytes()] if planar == 1 else [pixels[..., i].tobytes() for i in range(channels)]
    tags = {256: ("L", width), 257: ("L", height), 258: ("H", *[8 * pixels.itemsize] * channels), 259: ("H", 1)}
    tags |= {262: ("H", photometric), 273: ("L", *[0] * len(planes)), 277: ("H", channels), 278: ("L", height)}
    tags |= {279: ("L", *map(len, planes)), 284: ("H", planar)}
    tags |= {} if extra is None else {338: ("H", extra)}
    tags |= {339: ("H", *[sample_format] * channels)}
    end = 8 + 2 + 12 * len(tags) + 4

    def packed():
        entries, blob = b"", b""
        for tag, (kind, *values) in tags.items():
            data = struct.pack(f"{order}{len(values)}{kind}", *values)
            entries += struct.pack(f"{order}HHL", tag, {"H": 3, "L": 4}[kind], len(values))
            if len(data) > 4:
                entries += struct.pack(f"{order}L", end + len(blob))
                blob += data
            else:
                entries += data.ljust(4, b"\0")
        return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + blob

    begin = 8 + len(packed())
    tags[273] = ("L", *[begin + i * len(planes[0]) for i in range(len(planes))])
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8) + packed() + b"".join(planes)


def png(pixels, color_type):
    """PNG of 16 bits a channel, [H, W, C] big-endian: what Pillow does not write in colour."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000"])
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


DEEP = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2800  # 0..64400


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_become_their_upper_eight(kind, compression):
    options = {"compression": compression} if kind == "TIFF" else {}
    image = decode_image(encoded(Image.fromarray(DEEP), kind, **options))
    assert np.array_equal(image, np.stack([DEEP >> 8] * 3, axis=-1))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_either_byte_order_and_of_colour_become_their_upper_eight(order):
    grey = DEEP.astype(f"{order}u2")
    assert np.array_equal(decode_image(tiff(grey[..., None], 1))[..., 1], DEEP >> 8)
    rgb = np.dstack([grey, grey // 2, grey // 3]).astype(grey.dtype)
    assert np.array_equal(decode_image(tiff(rgb, 2)), rgb >> 8)
    rgba = np.dstack([rgb, np.full_like(grey, 7)]).astype(grey.dtype)
    assert np.array_equal(decode_image(tiff(rgba, 2, extra=2)), rgb >> 8)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_a_png_become_their_upper_eight_and_alpha_is_left_out(color_type, channels):
    pixels = np.dstack([DEEP, DEEP // 2, DEEP // 3, DEEP // 4])[..., :channels]
    colors = pixels[..., :3] if channels >= 3 else pixels[..., :1].repeat(3, axis=-1)
    assert np.array_equal(decode_image(png(pixels, color_type)), colors >> 8)


def test_a_deep_tiff_whose_zero_is_white_is_no_negative():
    assert np.array_equal(decode_image(tiff(DEEP[..., None], 0))[..., 0], 65535 - DEEP >> 8)
    assert decode_image(tiff(np.full((2, 2, 1), 65535, np.uint16), 0)).max() == 0


LOW = np.full((4, 6, 3), 4095, dtype=np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(LOW[..., 0])),
        encoded(Image.fromarray(LOW[..., 0]), "TIFF"),
        tiff(LOW[..., :1], 0),
        tiff(LOW[..., :1].astype(">u2"), 1),
        tiff(LOW, 2),
        png(LOW, 2),
        png(LOW[..., :2], 4),
        png(LOW.astype(np.uint16) // 16, 2),
    ],
)
def test_twelve_bits_in_sixteen_are_refused_instead_of_black(data):
    with pytest.raises(
        DataError,
        match=r"^a holds 12-bit values or smaller in 16 bits, which would come out black; scale them to 0\.\.65535\.$",
    ):
        decode_image(data, "a")


def test_a_colour_jpeg_2000_of_more_than_8_bits_is_refused():
    """Its white would be black."""
    white = av.VideoFrame.from_ndarray(np.full((8, 8, 3), 65535, np.uint16), format="rgb48le")
    encoder = av.CodecContext.create("jpeg2000", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 8, 8, "rgb48le", Fraction(1, 1)
    data = b"".join(bytes(packet) for packet in [*encoder.encode(white), *encoder.encode()])
    with pytest.raises(DataError) as error:
        decode_image(data, "a.jp2")
    assert str(error.value) == (
        "a.jp2 is a JPEG 2000 of 16 bits a channel, which is not read; convert it to 8 bits, grey or RGB."
    )
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    assert (decode_image(encoded(deep, "JPEG2000")) == 255).all()
    assert (decode_image(encoded(Image.new("RGBA", (8, 8), (255, 254, 1, 9)), "JPEG2000")) == (255, 254, 1)).all()


def test_dark_pixels_of_eight_bits_are_no_twelve_of_sixteen():
    dark = Image.new("RGB", (4, 4), (3, 2, 1))
    assert decode_image(encoded(dark))[0, 0].tolist() == [3, 2, 1]
    assert decode_image(encoded(dark, "TIFF", compression="tiff_lzw"))[0, 0].tolist() == [3, 2, 1]
    header = struct.pack(
        "<2sLLLLllHHLLllLL3L", b"BM", 70, 0, 66, 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F
    )
    assert decode_image(header + struct.pack("<HH", 1, 0))[0, 0].tolist() == [0, 0, 8]  # 16 bits a pixel: 5, 6, 5


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (encoded(Image.new("F", (2, 2)), "TIFF"), "holds floats"),
        (encoded(Image.new("I", (2, 2)), "TIFF"), "holds signed or 32-bit integers"),
        (tiff(DEEP.astype("<i2")[..., None], 1, sample_format=2), "holds signed or 32-bit integers"),
        (tiff(DEEP.astype("i1")[..., None], 1, sample_format=2), "holds signed integers"),
        (tiff(LOW * 16, 2, planar=2), "holds 16-bit channels in planes of their own"),
        (tiff(np.dstack([LOW, DEEP]), 5), "holds 16-bit CMYK"),
        (tiff(np.ones((2, 2, 3), np.uint8), 6), "holds subsampled raw YCbCr"),
    ],
)
def test_pixels_that_pillow_would_get_wrong_are_refused_by_name(data, what):
    with pytest.raises(DataError, match=rf"^a\.tif {what}; convert it to 8 bits a channel, grey or RGB\.$"):
        decode_image(data, "a.tif")


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (tiff(LOW.astype(np.float32), 2, sample_format=3), r"32\+32\+32"),
        (tiff(LOW[..., :1].astype(np.float64), 1, sample_format=3), "64"),
        (tiff(LOW[..., :2], 1, extra=2), r"16\+16"),
        (tiff(LOW[..., :1].astype(">u2"), 0), "16"),
    ],
)
def test_a_tiff_that_pillow_cannot_open_says_so(data, bits):
    with pytest.raises(
        DataError,
        match=rf"^a\.tif is a TIFF of {bits} bits a pixel, a layout that is not read; convert it to 8 bits, grey or RGB\.$",
    ):
        decode_image(data, "a.tif")


PICTURE = Image.new("RGB", (6, 4), RED)
PICTURE.paste((255, 255, 255), (0, 0, 3, 2))
PICTURE.paste((0, 0, 0), (3, 2, 6, 4))


def lab(picture):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")


def see_through(picture):
    """Every colour of the palette with another alpha."""
    picture = picture.quantize(8)
    picture.info["transparency"] = bytes([0, 128, 255])
    return picture


@pytest.mark.parametrize(
    ("kind", "picture", "options"),
    [
        ("PNG", PICTURE.convert("RGBA"), {}),
        ("PNG", see_through(PICTURE), {}),
        ("PNG", PICTURE.quantize(3), {"bits": 2}),
        ("PNG", PICTURE, {"transparency": (255, 255, 255)}),
        ("TIFF", PICTURE.quantize(8), {}),
        ("TIFF", PICTURE.quantize(8).convert("PA"), {}),
        ("TIFF", PICTURE.convert("RGBA"), {}),
        ("TIFF", PICTURE.convert("CMYK"), {}),
        ("TIFF", PICTURE.convert("YCbCr"), {}),
        ("TIFF", lab(PICTURE), {}),
        ("TIFF", PICTURE, {"compression": "packbits"}),
        ("TIFF", PICTURE.resize((48, 32), 0), {"compression": "jpeg", "quality": 100}),
        ("WEBP", PICTURE, {"lossless": True}),
        ("WEBP", PICTURE.resize((96, 64), 0), {"quality": 100}),
        ("WEBP", PICTURE.convert("RGBA"), {"lossless": True}),
        ("GIF", PICTURE, {}),
        ("BMP", PICTURE, {}),
        ("BMP", PICTURE.convert("RGBA"), {}),
        ("BMP", PICTURE.quantize(8), {}),
        ("JPEG", PICTURE.resize((48, 32), 0), {"quality": 100}),
        ("JPEG", PICTURE.resize((48, 32), 0).convert("CMYK"), {"quality": 100}),  # inverted, as Adobe writes it
        ("JPEG", PICTURE.resize((48, 32), 0), {"quality": 100, "progressive": True}),
    ],
)
def test_every_way_to_store_a_colour_gives_that_colour(kind, picture, options):
    image = decode_image(encoded(picture, kind, **options))
    height, width = image.shape[:2]
    near = image[[1, 1, -2, -2], [1, width - 2, 1, width - 2]].astype(int)
    assert np.abs(near - [(255, 255, 255), RED, RED, (0, 0, 0)]).max() <= 6
    assert (width, height) == picture.size


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_is_grey_in_all_three_channels(kind, mode):
    grey = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert(mode)
    assert decode_image(encoded(grey, kind)).tolist() == [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]


@pytest.mark.parametrize(("alpha", "kept"), [(1, [200, 100]), (2, [100, 50])])
def test_a_greys_alpha_is_left_out_and_undone_where_it_is_multiplied_in(alpha, kept):
    pixels = np.array([[[100, 128], [50, 128]]], np.uint8)
    assert np.abs(decode_image(tiff(pixels, 1, extra=alpha))[0, :, 0].astype(int) - kept).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_the_first_frame_or_page_of_several_is_the_image(kind):
    other = Image.new("RGB", (6, 4), (30, 30, 200))
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(PICTURE, kind, save_all=True, append_images=[other], **options))
    assert np.array_equal(image, np.asarray(PICTURE))


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "deep PNG", "deep TIFF", "grey JPEG"])
def test_an_image_is_upright_after_exif(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = np.kron(np.array([[0, 80], [160, 240]]), np.ones((8, 16), int)).astype(np.uint8)
    picture = Image.fromarray(stored if "grey" in kind else np.stack([stored] * 3, axis=-1))
    if "deep" in kind:
        picture = Image.fromarray(stored.astype(np.uint16) * 257)
    kind = kind.split()[-1]
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    options = options.get(kind, {})
    data = encoded(picture, kind, exif=exif, **options)
    image, right = decode_image(data), UPRIGHT[orientation](stored)
    assert upright_size(data) == right.shape
    assert image.shape == (*right.shape, 3)
    assert np.abs(image[..., 0].astype(int) - right).max() <= 2


LYING = struct.pack("<2sHLHHHLL", b"II", 42, 8, 1, 0x112, 3, 1, 6)  # a whole block that says 6
DAMAGED = {
    "no TIFF": b"Exif\0\0garbage, and more of it",
    "empty": b"Exif\0\0",
    "header alone": b"Exif\0\0II*\0\x08\0\0\0",
    "cut before the tag": b"Exif\0\0II*\0\x08\0\0\0\x05\0" + struct.pack("<HHLL", 0x100, 3, 1, 6),
    "directory outside": b"Exif\0\0MM\0*\x7f\0\0\0",
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_pixels_beside_a_damaged_exif_block_are_read_and_it_is_told(kind, damage):
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[kind]
    notes = []
    image = decode_image(encoded(PICTURE, kind, exif=DAMAGED[damage], **options), "a", notes.append)
    assert np.array_equal(image, decode_image(encoded(PICTURE, kind, **options)))
    assert notes == [
        "a has a damaged EXIF block, which may say that it is rotated; its pixels are taken as stored."
    ] * (damage != "empty")
    if kind == "PNG":
        mask = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
        assert decode_mask(encoded(mask, kind, exif=DAMAGED[damage])).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "head", [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), (b"iCCP", b"ink\0\0")]
)
def test_a_png_may_have_a_long_text_or_profile(head):
    data, (kind, begin) = io.BytesIO(), head
    Image.new("RGB", (3, 2), (1, 2, 3)).save(data, "PNG")
    at = data.getvalue().index(b"IDAT") - 4
    body = kind + begin + zlib.compress(bytes(2 << 20))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    longer = data.getvalue()[:at] + chunk + data.getvalue()[at:]
    assert decode_image(longer)[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + LYING + bytes(8), b"Exif\0\0" + LYING.replace(b"\x01\0\x12", b"\x09\0\x12")]
)
def test_a_rotation_that_can_be_read_is_applied_whatever_is_cut_behind_it(exif):
    notes = []
    image = decode_image(encoded(PICTURE, "PNG", exif=exif), "a", notes.append)
    assert np.array_equal(image, np.rot90(np.asarray(PICTURE), -1))
    assert notes == []


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF"])
def test_the_smallest_and_the_longest_image_are_read(kind, size):
    image = decode_image(encoded(Image.new("RGB", size, RED), kind))
    assert image.shape == (size[1], size[0], 3)
    assert np.abs(image.astype(int) - RED).max() <= 6


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        encoded(NOISE, "PPM"),
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"GIF89a",
        b"BM",
    ],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_image_is_a_data_error_that_names_the_file(data):
    with pytest.raises(DataError, match=r"^a\.jpg (is not an image|cannot be decoded): [^<\n]*\.$"):
        decode_image(data, "a.jpg")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("GIF", {}),
        ("BMP", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
    ],
    ids=str,
)
def test_a_cut_file_is_a_data_error_wherever_it_is_cut(kind, options):
    data = encoded(NOISE.crop((0, 0, 24, 20)), kind, **options)
    whole = decode_image(data)
    for end in range(0, len(data), 1 + len(data) // 300):
        try:
            image = decode_image(data[:end], "a.jpg")
        except DataError:
            continue
        assert np.array_equal(image, whole), f"cut at {end} of {len(data)}"  # only the file's last marks are gone


def test_a_jpeg_that_ends_in_zeros_is_not_filled_with_grey():
    data = encoded(NOISE, "JPEG", exif=b"Exif\0\0" + b"\xff\xd9")  # a thumbnail's end is not the image's
    cut = data[: len(data) // 2] + bytes(1 << 16)
    with pytest.raises(DataError, match=r"^a\.jpg cannot be decoded: image file is truncated \(a JPEG without its end"):
        decode_image(cut, "a.jpg")
    assert np.array_equal(decode_image(data + bytes(4096)), decode_image(data))  # zeros behind the end are padding


def test_damaged_bytes_give_pixels_or_a_data_error():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000"):
        whole = np.frombuffer(encoded(NOISE.crop((0, 0, 24, 20)), kind), np.uint8)
        for _ in range(100):
            data = whole.copy()
            data[rng.integers(0, min(len(data), 300), 4)] = rng.integers(0, 256, 4)
            for decode in (decode_image, decode_mask):
                try:
                    decode(data.tobytes(), "a")
                except DataError:
                    continue


@pytest.mark.parametrize("read", [decode_image, decode_mask, upright_size])
def test_a_tiff_is_not_taken_for_the_small_copy_that_it_begins_with(read):
    small, large = (Image.new("L", (side, side), 3) for side in (8, 64))
    first = encoded(small, "TIFF", tiffinfo={254: 1}, save_all=True, append_images=[large])
    with pytest.raises(DataError, match=r"a\.tif is a TIFF that begins with a small copy of its picture"):
        read(first, "a.tif")
    read(encoded(small, "TIFF", tiffinfo={254: 1}), "a.tif")  # which stands alone


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_a_png_whose_pixels_are_damaged_is_refused_by_its_checksums(decode):
    """Pillow does not look at them: of 150 flipped bits in a mask, 17 gave other ids."""
    ids_hw = np.kron(np.random.default_rng(0).integers(0, 4, (12, 16)), np.ones((8, 8))).astype(np.uint8)
    data = encoded(Image.fromarray(ids_hw))
    begin, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    says = f"a.png cannot be decoded: its pixels are damaged, as the checksum at byte {end} says."
    for at in range(begin, end):
        with pytest.raises(DataError, match=re.escape(says)):
            decode(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :], "a.png")
    with pytest.raises(DataError, match="image file is truncated"):
        decode(data[: begin - 8] + b"\1" + data[begin - 7 :], "a.png")


def test_notes_on_odd_tags_stay_silent():
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"  # 65535 tags, none there
    code = f"from segray.core.io.images import decode_image; decode_image({encoded(PICTURE, 'JPEG', exif=exif)!r})"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("side", [20000, 40000])
def test_a_bomb_is_stopped_by_its_header(side):
    header = bytearray(encoded(Image.new("L", (1, 1))))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    for decode in (decode_image, decode_mask):
        with pytest.raises(DataError, match=rf"^a\.png is {side}×{side}; at most 268 megapixels are read\.$"):
            decode(bytes(header), "a.png")


def webp_header(chunk, width, height):
    """The first bytes of a WebP of that size, as libwebp looks at them."""
    if chunk == b"VP8X":
        body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif chunk == b"VP8L":
        body = b"/" + (width - 1 | height - 1 << 14).to_bytes(4, "little") + bytes(8)
    else:
        body = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(8)
    return b"RIFF" + struct.pack("<L", len(body) + 12) + b"WEBP" + chunk + struct.pack("<L", len(body)) + body


@pytest.mark.parametrize(("chunk", "size"), [(b"VP8L", 16383), (b"VP8 ", 16383), (b"VP8X", 60000)])
def test_a_webp_bomb_is_stopped_before_it_has_a_canvas(chunk, size):
    for decode in (decode_image, decode_mask):
        with pytest.raises(DataError, match=rf"^a is {size}×{size}; at most 134 megapixels are read\.$"):
            decode(webp_header(chunk, size, size), "a")


@pytest.mark.parametrize(("most", "at_once"), [(1 << 25, 4), (1, 1)])
def test_large_pictures_are_decoded_one_at_a_time(monkeypatch, most, at_once):
    """As all threads of a process together might take all memory."""
    monkeypatch.setattr(images, "LARGE_PIXELS", most)
    together, now, seen = threading.Barrier(4), [], []

    def decoding(image):
        now.append(image)
        if at_once > 1:
            together.wait(10)
        seen.append(len(now))
        time.sleep(0.01)
        now.pop()
        return 1

    monkeypatch.setattr(images, "loaded_orientation", decoding)
    data = [encoded(PICTURE, kind) for kind in ("PNG", "WEBP", "JPEG", "BMP")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_image, data))
    assert max(seen) == at_once


def deflated_tiff(tags, data):
    """RGB in one strip or tile (273 or 324), whose place is filled in."""
    tags = tags | {258: (8, 8, 8), 259: 8, 262: 2, 277: 3}
    end = 8 + 2 + 12 * len(tags) + 4
    tags |= {tag: end + 6 for tag in (273, 324) if tag in tags}
    entries = b""
    for tag, value in sorted(tags.items()):
        entries += struct.pack("<HHL", tag, 3, 3) + struct.pack("<L", end) if tag == 258 else b""
        entries += struct.pack("<HHLL", tag, 4, 1, value) if tag != 258 else b""
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + struct.pack("<HHH", 8, 8, 8) + data


def bomb(kind):
    """A file of a few bytes whose header speaks of 250 to 1,000 megapixels somewhere else than in its size."""
    if kind == "animated WebP":
        small = encoded(PICTURE, "WEBP", lossless=True, save_all=True, append_images=[PICTURE.rotate(90)])
        at = small.index(b"ANMF") + 8
        return small[: at + 6] + b"\xfe\x3f\0\xfe\x3f\0" + small[at + 12 :]
    if kind == "GIF":
        small = bytearray(encoded(PICTURE, "GIF"))
        at = small.index(b",", 13) + 5
        small[at : at + 4] = struct.pack("<HH", 16383, 16383)
        return bytes(small)
    row = zlib.compress(bytes(999))
    if kind == "tiled TIFF":
        return deflated_tiff({256: 16, 257: 16, 322: 24000, 323: 24000, 324: 0, 325: len(row)}, row)
    if kind == "TIFF of one wide row":  # libtiff has no buffer for it
        return deflated_tiff({256: 200_000_000, 257: 1, 273: 0, 278: 1, 279: len(row)}, row)
    return deflated_tiff({256: 16, 257: 16, 273: 0, 278: 4_000_000_000, 279: len(row)}, row)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["animated WebP", "GIF", "tiled TIFF", "TIFF of one strip", "TIFF of one wide row"])
def test_a_bomb_behind_a_small_size_takes_no_memory(kind, tmp_path):
    (tmp_path / "bomb").write_bytes(bomb(kind))
    code = f"""
import pathlib
from segray.core.io.images import decode_image
from segray.errors import DataError
def memory(kind):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))
before = memory("VmRSS")
try:
    decode_image(pathlib.Path({str(tmp_path / "bomb")!r}).read_bytes())
except DataError as error:
    print(error)
assert memory("VmHWM") - before < 300_000, memory("VmHWM") - before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_id_survives_the_palette_png():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = encode_mask(ids, [(9, 9, 9)] * 3)
    assert np.array_equal(decode_mask(data), ids)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert Image.open(io.BytesIO(data)).convert("RGB").getpixel((2, 0)) == (9, 9, 9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 1), (2, 3), (17, 31), (256, 256), (360, 480)])
def test_a_palette_png_has_the_pixels_of_pillows(shape):
    ids = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    colors = [tuple(color) for color in np.random.default_rng(1).integers(0, 256, (256, 3)).tolist()]
    reference = Image.fromarray(ids)
    reference.putpalette(np.array(colors, np.uint8).tobytes())
    data = encode_mask(ids, colors)
    image = Image.open(io.BytesIO(data))
    assert (image.mode, image.size) == ("P", shape[::-1])
    assert np.array_equal(np.asarray(image), ids)
    assert image.getpalette() == reference.getpalette()
    Image.open(io.BytesIO(data)).verify()  # checksums
    assert np.array_equal(decode_image(data), colorize(ids, colors))
    (frame,) = av.CodecContext.create("png", "r").decode(av.Packet(data))  # FFmpeg's own reader
    read, palette = frame.to_ndarray()
    assert np.array_equal(read, ids)
    assert np.array_equal(palette[:, 1:], colors)


def test_a_mask_need_not_lie_in_one_piece():
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode_mask(encode_mask(ids[::2, ::-3].T, [RED])), ids[::2, ::-3].T)


def test_masks_that_would_invent_ids_are_refused():
    lossy = encoded(PICTURE, "WEBP", quality=90)
    with pytest.raises(DataError, match=r"^m is a lossy WebP, which invents class ids at edges; store masks as PNG\.$"):
        decode_mask(lossy, "m")
    with pytest.raises(DataError, match=r"^m is a TIFF with lossy compression, which invents class ids"):
        decode_mask(encoded(PICTURE, "TIFF", compression="jpeg"), "m")
    with pytest.raises(DataError, match=r"^m.jpg is a JPEG, which invents class ids at edges; store masks as PNG\.$"):
        decode_mask(encoded(Image.new("L", (8, 8)), "JPEG"), "m.jpg")
    with pytest.raises(DataError, match=r"^m.jpg is a JPEG, which invents"):
        decode_mask(encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE]), "m.jpg")
    with pytest.raises(
        DataError, match=r"^m\.png is an? AVIF, which invents class ids at edges; store masks as PNG\.$"
    ):
        decode_mask(encoded(Image.new("L", (8, 8)), "AVIF"), "m.png")
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


SYNTHIA = np.zeros((2, 4, 3), np.uint16)  # class, instance, 0
SYNTHIA[..., 0], SYNTHIA[..., 1] = [1, 2, 3, 300], [[257], [0]]


def test_a_deep_colour_mask_is_read_by_a_named_channel_and_never_reduced_to_8_bits():
    for data in (png(SYNTHIA, 2), png(np.dstack([SYNTHIA, SYNTHIA[..., :1]]), 6), tiff(SYNTHIA, 2)):
        with pytest.raises(DataError) as error:
            decode_mask(data, "m.png")
        assert str(error.value) == (
            "m.png holds 16 bits a channel, more than a colour has here; name the channel that holds the class, red, "
            "green or blue: --set data.mask_channel=red."
        )
    for data in (
        *(png(SYNTHIA, 2), png(np.dstack([SYNTHIA, SYNTHIA[..., :1]]), 6)),
        *(tiff(SYNTHIA, 2), tiff(SYNTHIA.astype(">u2"), 2)),
    ):
        assert decode_mask(data, "m.png", "red").tolist() == [[1, 2, 3, 300]] * 2
        assert decode_mask(data, "m.png", "green").tolist() == [[257] * 4, [0] * 4]
        assert decode_mask(data, "m.png", "blue").max() == 0


# SYNTHIA as tifffile 2026.3.3 writes it with these options, base85.
TIFFS = {
    "zlib with differences": (
        "Nl7XI2mk;84*&oG1ONd5000C4000321ONd500062000630{{a6006=O000940{{U4000O8000I70{{U400062000pI1ONd5008g+"
        "000#M0{{U400093000&N1ONd500062000*O1ONd5000;O000^R1pom60077U000{S1pom6007Vc000~T0{{U400031001Zf0{{U4"
        "00031001!o0sssE007tk002D!0{{U40006200000000mG5C9MW0RR910RR910RR910RR91bZKU0W@&6?E^v7O000000000000000"
        "c${NoU}R)q03rq$smX|7V~PU+2PFVq"
    ),
    "LZW with differences, big-endian": (
        "O-%qQ0000801p8G00aO40096100aR600aO40096100IF500RI300RI30Kx$S00RI3009660003700RI3009630003I00aO400961"
        "0Pq1700RI3009640003N00aO40096100IFQ00aO40096102u)q00jU5009610LTFw00jU5009610MG#(00RI3009620003f00RI3"
        "009620003o00IC201N;C0N4RN00RI300963000000000G01yBW00001000010000100001bZKU0W@&6?E^v7O000000000000000"
        "fB*n6Fa#6>1%yH2BA7%P8v=*IpwP%f1O"
    ),
    "packbits in strips": (
        "Nl7XI2mk;84gdfF1ONd5000C4000321ONd500062000630{{a6006cC000940{{U4000Gm000I70{{U400062000pI1ONg6006uI"
        "000#M0{{U400093000&N1ONd500031000*O0{{X5000>P5dazi1pom6006`Q000{S1pom6007JY000~T0{{U400031001Zf0{{U4"
        "00031001!o0sssE007hg00000000mG5C9MW-~a#s`2YX_0RR910RR910RR910RR91bZKU0W@&6?E^v7O7XbhP0RR930099200RI4"
        "0RR9j0RaI30005}0008~000C000Ark{Qv"
    ),
    "tiles": (
        "Nl7XI2mk;84*&oG1ONd5000C4000321ONd500062000630{{a6006=O000940{{U4000O8000I70{{U400062000#M0{{U400093"
        "000^R1pom60077U000{S1pom6007Vc000~T0{{U400031001Zf0{{U400031001!o0sssE007tk002S(1ONd5000mG002V)1ONd5"
        "000mG002Y*1ONd5008g+002b+1ONd5001ih00000000mG5C9MW0RR910RR910RR910RR91bZKU0W@&6?E^v7O000000000000000"
        "c%1FbK@k8T5C9=o>)1b^9UPxW08%W)R-DQ=fdw`=ANMiF7_TmW>;P{"
    ),
    "packbits with differences": (
        "Nl7XI2mk;84*&oG1ONd5000C4000321ONd500062000630{{a6006=O000940{{U4000Gm000I70{{U400062000pI1ONd5008g+"
        "000#M0{{U400093000&N1ONd500062000*O1ONd5001Qb000^R1pom60077U000{S1pom6007Vc000~T0{{U400031001Zf0{{U4"
        "00031001!o0sssE007tk002D!0{{U40006200000000mG5C9MW0RR910RR910RR910RR91bZKU0W@&6?E^v7O000000000000000"
        "0RaI20sjC10sH^}0sH^~DFOWe00H~}00H~}00H~}0Vx6f00"
    ),
}


@pytest.mark.parametrize("how", TIFFS)
def test_deep_tiffs_of_another_program_are_read_right_or_refused(how):
    """FFmpeg, which reads them, takes tiles for strips, and leaves packbits' differences as they are."""
    data = base64.b85decode(TIFFS[how])
    if how in ("tiles", "packbits with differences"):
        with pytest.raises(DataError, match=r"^m holds 16 bits a channel in a way that is not read; store the mask"):
            decode_mask(data, "m", "red")
    else:
        for channel, name in enumerate(("red", "green", "blue")):
            assert decode_mask(data, "m", name).tolist() == SYNTHIA[..., channel].tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_colour_masks_channel_can_hold_its_ids(mode):
    """As CARLA's cameras store the class: in red, the others black."""
    data = encoded(Image.new(mode, (3, 2), (7, 0, 255)), "PNG")
    assert decode_mask(data, "m.png", "red").tolist() == [[7] * 3] * 2
    assert decode_mask(data, "m.png", "blue").tolist() == [[255] * 3] * 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encoded(Image.new("L", (2, 2))), "m has L pixels and no red channel; leave data.mask_channel out."),
        (encoded(Image.new("P", (2, 2))), "m has P pixels and no red channel; leave data.mask_channel out."),
        (tiff(SYNTHIA, 2, planar=2), "m holds 16 bits a channel in a way that is not read; store the mask as PNG."),
        (png(SYNTHIA[..., :2], 4), "m holds grey of 16 bits with alpha; store it without alpha."),
        (png(SYNTHIA, 2)[:-30], "m cannot be decoded: image file is truncated."),
    ],
    ids=["grey", "palette", "deep TIFF in planes", "deep grey and alpha", "cut"],
)
def test_a_mask_without_the_named_channel_is_refused(data, says):
    with pytest.raises(DataError) as error:
        decode_mask(data, "m", "red")
    assert str(error.value) == says


def grey_png(bits, ids):
    """Grey of 1, 2 or 4 bits, of one row."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = "".join(f"{i:0{bits}b}" for i in ids)
    header = struct.pack(">IIBBBBB", len(ids), 1, bits, 0, 0, 0, 0)
    body = zlib.compress(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def grey_tiff(bits, photometric, ids):
    """One row of 1, 2 or 4 bits a pixel."""
    row = "".join(f"{i:0{bits}b}" for i in ids)
    body = int(row, 2).to_bytes(len(row) // 8, "big")
    tags = {256: len(ids), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(body)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + body


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_tiffs_grey_of_few_bits_holds_ids(bits, photometric):
    ids = [i % 2**bits for i in range(16)]
    assert decode_mask(grey_tiff(bits, photometric, ids)).tolist() == [ids]


def palette_bmp(bits, palette, ids):
    """One row of a Windows BMP; Pillow writes 8 bits with 256 colours alone."""
    colors = b"".join(bytes((blue, green, red, 0)) for red, green, blue in palette)
    row = "".join(f"{i:0{bits}b}" for i in ids)
    row = row.ljust(-(-len(row) // 32) * 32, "0")
    body = int(row, 2).to_bytes(len(row) // 8, "big")
    header = struct.pack("<LllHHLLllLL", 40, len(ids), 1, 1, bits, 0, len(body), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<LHHL", 54 + len(colors) + len(body), 0, 0, 54 + len(colors)) + header + colors + body


BLACK, WHITE = (0,) * 3, (255,) * 3


@pytest.mark.parametrize(
    ("bits", "palette"),
    [
        (1, [BLACK, WHITE]),
        (1, [WHITE, BLACK]),
        (8, [WHITE, BLACK]),
        (8, [(i,) * 3 for i in range(16)]),
        (4, [(17 * i,) * 3 for i in range(16)]),
    ],
)
def test_a_bmps_ids_are_as_stored(bits, palette):
    assert decode_mask(palette_bmp(bits, palette, [0, 1, 1, 0, 1])).tolist() == [[0, 1, 1, 0, 1]]


@pytest.mark.parametrize(("bits", "palette"), [(8, [BLACK, WHITE]), (4, [(i,) * 3 for i in range(16)])])
def test_a_bmp_that_pillow_would_get_wrong_is_refused(bits, palette):
    for decode in (decode_image, decode_mask):
        with pytest.raises(DataError) as error:
            decode(palette_bmp(bits, palette, [0, 1, 1, 0, 1]), "a.bmp")
        assert str(error.value) == (
            f"a.bmp is a BMP of {bits} bits with a palette of grey, which is not read; store it as PNG."
        )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_holds_ids_and_no_shares_of_white(bits):
    ids = [i % 2**bits for i in range(16)]
    assert decode_mask(grey_png(bits, ids)).tolist() == [ids]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("zero_is", ["white", "black"])
@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_a_tiffs_ids_are_as_stored_whichever_colour_its_zero_has(mode, zero_is, compression):
    """tifffile writes bool arrays with a zero that is white."""
    ids = np.array([[0, 1, 1, 0]] if mode == "1" else [[0, 1, 7, 200]])
    image = Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.uint8) * (255 if mode == "1" else 1))
    if zero_is == "white" and mode != "I;16":  # Pillow turns the pixels too, and back as it reads them
        image = Image.fromarray(255 - np.asarray(image))
    photometric = {262: 0} if zero_is == "white" else {}
    data = encoded(image.convert(mode), "TIFF", compression=compression, tiffinfo=photometric)
    assert decode_mask(data).tolist() == ids.tolist()
    if mode != "1":
        pixels = ids[..., None].astype(np.uint8 if mode == "L" else np.uint16)
        assert decode_mask(tiff(pixels, 0 if zero_is == "white" else 1)).tolist() == ids.tolist()


def test_a_palette_with_alpha_holds_ids():
    ids = np.array([[0, 3], [2, 1]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 9])
    for data in (encoded(image, transparency=b"\x00\x10"), encoded(image.convert("PA"), "TIFF")):
        assert decode_mask(data).tolist() == ids.tolist()


def test_a_grey_gif_whose_numbers_are_not_its_shades_is_refused():
    """Pillow writes the shades in use, renumbered: ids 0, 7 and 11 are 0, 1 and 2 in the file."""
    with pytest.raises(DataError) as error:
        decode_mask(encoded(Image.fromarray(np.array([[0, 7, 11]], np.uint8)), "GIF"), "m.gif")
    assert str(error.value) == (
        "m.gif is a GIF in shades of grey, of which number 1 is 7: which is the class id is not known, as programs "
        "renumber grey when they write GIFs. Store masks as PNG."
    )


@pytest.mark.parametrize(
    ("ids", "palette", "found"),
    [
        ([0, 1, 2], None, [0, 1, 2]),
        ([0, 1, 2], [BLACK, (0, 0, 128), WHITE], [0, 1, 2]),  # in colour, as VOC's: numbers are ids
        ([0, 255], None, [0, 1]),  # black and white, as Carvana's
    ],
)
def test_a_gif_of_ids_in_order_in_colour_or_of_two_is_read(ids, palette, found):
    image = Image.fromarray(np.array([ids], np.uint8))
    if palette:
        image.putpalette(np.array(palette, np.uint8).tobytes())
    assert decode_mask(encoded(image, "GIF")).tolist() == [found]


def test_a_black_and_white_gif_may_be_white_alone():
    image = Image.fromarray(np.ones((1, 2), np.uint8))
    image.putpalette(np.array([BLACK, WHITE], np.uint8).tobytes())
    assert decode_mask(encoded(image, "GIF", optimize=False)).tolist() == [[1, 1]]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_a_mask_of_several_frames_is_refused(kind):
    first, second = Image.new("L", (4, 4), 1), Image.new("L", (4, 4), 2)
    options = {"lossless": True} if kind == "WEBP" else {}
    with pytest.raises(DataError, match=r"^m has several pages or frames; a mask has one\.$"):
        decode_mask(encoded(first, kind, save_all=True, append_images=[second], **options), "m")


def test_a_tiffs_smaller_copies_are_no_pages():
    """As GeoTIFFs and whole-slide images carry them."""
    small = Image.new("L", (2, 2), 7)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = encoded(Image.new("L", (4, 4), 7), "TIFF", save_all=True, append_images=[small])
    assert decode_mask(data).tolist() == [[7] * 4] * 4


def test_a_signed_mask_is_refused():
    with pytest.raises(DataError, match=r"^m holds signed integers; store a mask's class ids unsigned, with 255"):
        decode_mask(tiff(np.full((2, 2, 1), -1, np.int8), 1, sample_format=2), "m")


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "deep PNG"])
def test_a_mask_is_upright_after_exif_as_its_image_is(kind, orientation):
    ids = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    exif = Image.Exif()
    exif[0x112] = orientation
    image = Image.fromarray(ids) if kind != "WEBP" else Image.fromarray(np.stack([ids] * 3, axis=-1))
    if kind == "deep PNG":
        image = Image.fromarray(ids.astype(np.uint16))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_mask(encoded(image, kind.split()[-1], exif=exif, **options))
    assert (found & 255).tolist() == UPRIGHT[orientation](ids).tolist()


def test_resizing_a_mask_invents_no_id():
    mask = np.array([[0, 7], [7, 0]], dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    assert set(np.unique(resize_mask(mask, (7, 3)))) == {0, 7}
    assert resize_image(np.zeros((4, 6, 3), np.uint8), (2, 3)).shape == (2, 3, 3)
