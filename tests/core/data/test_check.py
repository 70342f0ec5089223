"""`data check` on masks that somebody's tool has spoilt: few lines, and the cause by its name."""

import io

import numpy as np
import pytest
from PIL import Image

from segray.cli.data import show_check
from segray.config import load, parse_override
from segray.core.data import open_dataset, streets
from segray.core.data.camvid import LABEL_SPACE
from segray.core.data.check import boundaries, check
from segray.core.io.masks import colorize
from segray.sections.training import DataSection

SIZE = (90, 120)


def spoilt(mask_hwc, how, quality=90):
    """A drawn mask, of ids or colours, as tools may leave it."""
    image = Image.fromarray(mask_hwc)
    if how == "interpolated":
        return image.resize((SIZE[1] // 2, SIZE[0] // 2), Image.Resampling.BILINEAR)
    if how == "enlarged":
        return image.resize((SIZE[1] // 3, SIZE[0] // 3), 0).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    if how == "smooth":  # a polygon drawn with anti-aliasing
        large = image.resize((SIZE[1] * 4, SIZE[0] * 4), 0)
        return large.resize(SIZE[::-1], Image.Resampling.BOX, box=(2, 2, SIZE[1] * 4 - 2, SIZE[0] * 4 - 2))
    if how == "jpeg":
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data)
    return image


def checked(root, masks, classes=None):
    """The result for a folder of two frames with these masks."""
    names = LABEL_SPACE.names if classes is None else classes
    lines = [f"{name},{','.join(map(str, LABEL_SPACE.colors[i]))}" for i, name in enumerate(names[:11])]
    lines += [f"{name},,," for name in names[11:]]
    (root / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]))
    for split, mask in zip(("train", "val"), masks, strict=True):
        for folder, image in (("images", Image.new("RGB", mask.size)), ("masks", mask)):
            (root / folder / split).mkdir(parents=True)
            image.save(root / folder / split / "a.png")
    dataset = open_dataset(DataSection(format="folder", root=str(root)))
    return check(dataset, ("train", "val")), dataset.label_space


MASKS = [streets.draw(seed, SIZE).mask_hw for seed in (1, 2)]
COLORED = [colorize(mask, LABEL_SPACE.colors) for mask in MASKS]


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("smooth", "the masks were resized with interpolation, or drawn with smooth edges."),
        ("interpolated", "the masks were resized with interpolation, or drawn with smooth edges."),
        ("jpeg", "Most are close to the colour of a class: the masks were JPEGs once, which changes colours."),
    ],
)
def test_colours_without_number_are_one_line_with_their_cause(tmp_path, capsys, how, cause):
    result, space = checked(tmp_path, [spoilt(mask, how) for mask in COLORED])
    assert len(result.problems) == 1
    assert "ids are unknown, in " in result.problems[0]
    assert cause in result.problems[0]
    show_check(result, space)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60
    assert any(line.startswith("… and ") and "more unknown ids, in " in line for line in lines)
    pixels = sum(height * width * frames for (height, width), frames in result.sizes.items())
    assert result.pixels.total() + result.other_pixels == pixels


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpegs_of_any_quality_are_recognised(tmp_path, quality):
    result, _ = checked(tmp_path, [spoilt(mask, "jpeg", quality) for mask in COLORED])
    assert "the masks were JPEGs once" in result.problems[0]


@pytest.mark.parametrize("how", ["interpolated", "enlarged", "smooth", "jpeg"])
def test_grey_ids_made_by_interpolation_are_named_even_where_all_are_known(tmp_path, how):
    masks = [spoilt(mask * 20, how).convert("L") for mask in MASKS]
    result, _ = checked(tmp_path, masks, [f"class {i}" for i in range(250)])
    assert result.ok
    assert any("made by resizing with interpolation; resize masks with nearest neighbour" in n for n in result.notes)


@pytest.mark.parametrize("how", ["drawn", "interpolated"])
def test_grey_ids_that_no_class_has_are_one_line(tmp_path, how):
    result, _ = checked(tmp_path, [spoilt(mask * 20, how).convert("L") for mask in MASKS])
    if how == "drawn":
        assert 5 < len(result.problems) <= 20
        assert result.problems[0].startswith("id 20 is unknown; the label space knows 0–10, 255. In ")
    else:
        assert len(result.problems) == 1
        assert "Resize them with nearest neighbour, and draw them without anti-aliasing" in result.problems[0]


def test_drawn_masks_are_not_taken_for_interpolated():
    for mask in [*MASKS, streets.draw(3, (360, 480)).mask_hw]:
        count, between = boundaries(mask)
        assert between < 0.1 * count
    assert boundaries(np.array([[0, 0, 7, 7], [0, 3, 7, 7]])) == (4, 1)
    stripes = np.arange(600)[:, None] % 3 * 10 + np.zeros(3, int)  # 0, 10, 20, 0, …: one of three is between
    assert boundaries(stripes) == (598 * 3, 200 * 3)


def test_a_palette_in_another_order_than_the_classes_is_noted(tmp_path):
    """As an optimiser leaves colour masks: the pixels are right for who looks, and the ids are any."""
    masks = [Image.fromarray(mask).quantize(16) for mask in COLORED]
    result, _ = checked(tmp_path, masks)
    notes = [note for note in result.notes if "may be of colours in any order, and not of ids; store it as RGB" in note]
    assert len(notes) == 2
    assert notes[0].startswith(f"{tmp_path}/masks/train/a.png shows id ")


@pytest.mark.parametrize("palette", [LABEL_SPACE.colors, [(i, i, i) for i in range(256)]])
def test_a_palette_of_the_classes_or_of_grey_is_not(tmp_path, palette):
    masks = [Image.fromarray(np.minimum(mask, 10)) for mask in MASKS]
    for mask in masks:
        mask.putpalette(np.array(palette, np.uint8).tobytes())
    assert not any("store it as RGB" in note for note in checked(tmp_path, masks)[0].notes)


def test_ids_in_the_red_channel_are_recognised(tmp_path):
    masks = [Image.fromarray(np.dstack([mask, mask * 0, mask * 0])) for mask in MASKS]
    result, _ = checked(tmp_path, masks)
    assert result.problems[-1].endswith("(colours of red alone may hold ids: --set data.mask_channel=red)")


def test_ids_in_shades_of_grey_of_colour_masks_are_recognised(tmp_path):
    result, _ = checked(tmp_path, [Image.fromarray(np.dstack([mask] * 3)) for mask in MASKS])
    assert result.problems[-1].endswith(" (shades of grey may be ids: --set data.mask_channel=red)")


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
@pytest.mark.parametrize(("turn", "size"), [(3, (8, 6)), (6, (6, 6))])
def test_images_that_exif_turns_without_their_masks_are_noted(tmp_path, kind, turn, size):
    """By 180°, or where it is square, a mask has its image's size either way. One that is turned as well is right."""
    exif, mask = Image.Exif(), Image.new("L", size)
    exif[274] = turn
    for name, masks_exif in (("a", None), ("b", exif)):
        for folder in ("images", "masks"):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
        mask.convert("RGB").save(tmp_path / "images" / "train" / f"{name}.{kind}", exif=exif, lossless=True)
        mask.save(tmp_path / "masks" / "train" / f"{name}.png", exif=masks_exif)
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    dataset = open_dataset(DataSection(format="folder", root=str(tmp_path)))
    assert check(dataset, ()).notes[1:] == [
        f"EXIF turns or mirrors 1 image to the same size, such as {tmp_path}/images/train/a.{kind}, and not their "
        "masks: these have to be drawn on the picture as a viewer shows it"
    ]


def town(root, frames):
    """A folder of frames, by path: an image and a mask of ids."""
    (root / "classes.csv").write_text("name\nroad\ncar\nsky\n")
    for path, (image, mask) in frames.items():
        for folder, picture in (("images", image), ("masks", mask)):
            file = root / folder / f"{path}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    config = DataSection(format="folder", root=str(root))
    return check(open_dataset(config), ("train", "val"), root=str(root))


def scene(seed, ids=(0, 1)):
    """A street, and a mask of these ids side by side."""
    return streets.draw(seed, (48, 64)).image_hwc, np.repeat(np.array([ids], np.uint8), 64 // len(ids), 1).repeat(48, 0)


def test_frames_of_both_splits_that_look_alike_are_named_with_what_helps(tmp_path):
    again = np.asarray(Image.fromarray(scene(1)[0]).resize((32, 24))).clip(3, 240)
    small = np.zeros((24, 32), np.uint8)
    dark = np.zeros((48, 64, 3), np.uint8), scene(1)[1]  # looks like every dark frame, and is not known by that
    result = town(
        tmp_path,
        {"train/a": scene(1), "train/b": scene(2), "train/dark": dark, "val/c": (again, small), "val/d": scene(3), "val/dark": dark},
    )  # fmt: skip
    (said,) = [note for note in result.notes if "looks like" in note]
    assert said == (
        "1 frame of val looks like one of train, such as val/c and train/a: scores are better than on new frames; keep "
        "each drive in one split, by folders or lists (train.txt, val.txt)"
    )


def test_classes_of_one_split_alone_are_named(tmp_path):
    result = town(tmp_path, {"train/a": scene(1, (0, 1)), "val/b": scene(2, (0, 2))})
    assert "train has no pixel of sky, which the other split has: it cannot be learned" in result.notes
    assert "val has no pixel of car, which the other split has: it is not scored" in result.notes


def test_frames_that_teach_little_or_cannot_be_read_come_with_the_setting_that_leaves_them_out(tmp_path):
    frames = {"train/a": scene(1), "train/b": scene(2), "train/c": scene(4, (0, 255, 255, 255)), "val/d": scene(3)}
    result = town(tmp_path, frames)
    assert result.notes[-1] == (
        "1 frame with more than half of the pixels void; to leave out: --set 'data.exclude=[\"images/train/c.png\"]'"
    )
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no picture")
    again = check(open_dataset(DataSection(root=str(tmp_path))), ("train", "val"), root=str(tmp_path))
    assert not again.ok
    assert any(
        "1 frame that cannot be read; to leave out: --set 'data.exclude=[\"images/train/b.png\"]'" in note
        for note in again.notes
    )
    config = load(
        None, dict([parse_override('data.exclude=["images/train/b.png"]')]) | {"data.root": str(tmp_path)}
    ).data
    assert check(open_dataset(config), ("train", "val")).ok


def test_masks_of_four_bits_that_were_scaled_to_eight_are_named(tmp_path):
    result = town(tmp_path, {"train/a": scene(1, (0, 17)), "val/b": scene(2, (17, 34))})
    assert (
        "every id is a multiple of 17, as of masks of 4 bits that were scaled to 8; if so: "
        "--set 'data.id_map={17: car, 34: sky}'"
    ) in result.notes
