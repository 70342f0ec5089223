"""Which image a mask of --truth belongs to: by path, else by a file name that is unique, else none, and it is said."""

import pyarrow.parquet as pq
import pytest
from labelled import label_all, plan_rows, settings_of
from PIL import Image

from segray.config import load
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.io.pairing import find_images, frame_path, match_masks, pair
from segray.core.labels import parts
from segray.core.labels.plan import load_plans
from segray.core.labels.planning import make_plan
from segray.errors import DataError
from segray.stages.evaluate import evaluate

SPACE = streets.LABEL_SPACE


def matched(masks, images):
    """Image → mask, both as written, and the notes."""
    found = match_masks({frame_path(mask): mask for mask in masks}, ((one, frame_path(one)) for one in images))
    return {image: f"{key}.png" for image, key in found.key_of.items()}, found.notes


DAYS = ["/in/day1/1.jpg", "/in/day2/1.jpg", "/in/day3/1.jpg"]


@pytest.mark.parametrize(
    ("masks", "images", "pairs"),
    [
        (["day1/1.png"], DAYS, {"/in/day1/1.jpg": "day1/1.png"}),
        (["day1/1.png", "day3/1.png"], DAYS, {"/in/day1/1.jpg": "day1/1.png", "/in/day3/1.jpg": "day3/1.png"}),
        (["1.png", "2.png"], ["/in/1.jpg", "/in/2.jpg", "/in/3.jpg"], {"/in/1.jpg": "1.png", "/in/2.jpg": "2.png"}),
        # below the images' common folder first: day2 and day3 have none
        (["1.png", "day1/1.png"], ["/in/1.jpg", *DAYS], {"/in/1.jpg": "1.png", "/in/day1/1.jpg": "day1/1.png"}),
        # the images lie elsewhere, as those of a list do
        (["day1/1.png", "day2/1.png"], ["/a/day1/1.jpg", "/b/c/day2/1.jpg"],
         {"/a/day1/1.jpg": "day1/1.png", "/b/c/day2/1.jpg": "day2/1.png"}),
        (["day1/1_mask.png"], ["/in/day1/1_leftImg8bit.png", "/in/day2/1_leftImg8bit.png"],
         {"/in/day1/1_leftImg8bit.png": "day1/1.png"}),
        (["day4/7.png"], DAYS[:1], {}),
        # the images of one day: their common folder is day1/, and the mask of that path says more than one without
        (["1.png", "day1/1.png"], ["/in/day1/1.jpg", "/in/day1/2.jpg"], {"/in/day1/1.jpg": "day1/1.png"}),
        # an accent is one sign or two, as the file system that a name comes from has it
        (["Stra\u00dfe/\u00e9.png"], ["/in/Stra\u00dfe/e\u0301.jpg", "/in/b.jpg"],
         {"/in/Stra\u00dfe/e\u0301.jpg": "Stra\u00dfe/\u00e9.png"}),
    ],
)  # fmt: skip
def test_masks_pair_by_path(masks, images, pairs):
    assert matched(masks, images) == (pairs, [])
    assert matched(masks[::-1], images[::-1]) == (pairs, [])


def test_a_masks_folder_may_lack_the_folders_below_it():
    images = ["/in/day1/cam/7.jpg", "/in/day2/cam/8.jpg"]
    assert matched(["day1/7.png"], images)[0] == {"/in/day1/cam/7.jpg": "day1/7.png"}
    assert matched(["day1/labels/7.png"], images)[0] == {"/in/day1/cam/7.jpg": "day1/labels/7.png"}


def test_a_name_that_one_mask_and_one_image_have_is_enough_and_said():
    assert matched(["val/7.png"], [*DAYS, "/in/day1/7.jpg"]) == (
        {"/in/day1/7.jpg": "val/7.png"},
        ["Masks that pair by file name alone, as their folders differ: 1, such as val/7.png with /in/day1/7.jpg."],
    )


@pytest.mark.parametrize(
    ("masks", "images"),
    [
        (["1.png"], DAYS),  # several images
        (["a/1.png", "b/1.png"], ["/in/c/1.jpg"]),  # several masks
        (["1.png"], ["/in/1.jpg", "/in/1.png"]),  # two images at one path
        (["day1/1.png"], ["/a/day1/1.jpg", "/b/day1/1.jpg"]),
    ],
)
def test_a_name_that_several_have_pairs_nothing(masks, images):
    text = "Masks that pair with no image, as several images or masks have their file name: "
    note = f"{text}{len(masks)}, such as {masks[0]}. Put masks into folders as their images lie in."
    assert matched(masks, images) == ({}, [note])
    assert matched([*masks, "z/9.png"], [*images, "/in/z/9.jpg"]) == ({"/in/z/9.jpg": "z/9.png"}, [note])


@pytest.mark.parametrize(
    ("masks", "images", "pairs"),
    [
        # the masks have a folder day1, in which there is none of 7
        (["val/7.png", "day1/1.png"], ["/in/day1/1.jpg", "/in/day1/7.jpg"], {"/in/day1/1.jpg": "day1/1.png"}),
        # a mask at the top is none of day1's, also where all images lie in day1
        (["7.png", "day1/1.png"], ["/in/day1/1.jpg", "/in/day1/7.jpg"], {"/in/day1/1.jpg": "day1/1.png"}),
        # the images have a folder day2, in which there is none of 7
        (["day2/7.png", "a/1.png"], ["/in/day1/7.jpg", "/in/day2/2.jpg", "/in/a/1.jpg"], {"/in/a/1.jpg": "a/1.png"}),
        # the same, with a folder a camera in each day's
        (["day2/7.png", "day1/1.png"], ["/in/day1/cam/7.jpg", "/in/day1/1.jpg"], {"/in/day1/1.jpg": "day1/1.png"}),
        (["day2/7.png", "a/1.png"], ["/in/day1/cam/7.jpg", "/in/day2/cam/2.jpg", "/in/a/1.jpg"],
         {"/in/a/1.jpg": "a/1.png"}),
        # the same, with a folder of labels in each day's
        (["day2/labels/7.png", "a/1.png"], ["/in/day1/7.jpg", "/in/day2/2.jpg", "/in/a/1.jpg"],
         {"/in/a/1.jpg": "a/1.png"}),
    ],
)  # fmt: skip
def test_a_mask_of_another_folder_does_not_pair_by_name_where_the_frames_own_is_on_both_sides(masks, images, pairs):
    image = next(one for one in images if one.endswith("7.jpg"))
    text = "Masks that do not pair with the image of their file name, as its folder or theirs is on both sides"
    note = f"{text}: 1, such as {masks[0]} with {image}. Put masks into folders as their images lie in."
    assert matched(masks, images) == (pairs, [note])
    assert matched(masks[::-1], images[::-1]) == (pairs, [note])


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Images day1/1.png, day2/1.png and day3/1.png; a mask of day1's alone."""
    top = tmp_path_factory.mktemp("days")
    for name in ("in/day1", "in/day2", "in/day3", "truth/day1"):
        (top / name).mkdir(parents=True)
        Image.new("L" if "truth" in name else "RGB", (8, 6)).save(top / name / "1.png")
    return top


def test_labelling_scores_the_frame_of_the_masks_folder_alone(days, tmp_path):
    notes = []
    plan = make_plan(str(tmp_path / "out"), settings_of([days / "in"], days / "truth"), SPACE, on_note=notes.append)
    assert notes == ["1 of 3 images have ground truth; the others are labelled without scores."]
    assert {row["uri"]: row["truth_uri"] for row in plan_rows(plan)} == {
        f"{days}/in/day1/1.png": f"{days}/truth/day1/1.png",
        f"{days}/in/day2/1.png": None,
        f"{days}/in/day3/1.png": None,
    }


def test_masks_of_no_folder_that_pair_with_images_of_several_are_counted(days, tmp_path):
    for name in ("in/a/1.png", "in/b/c/2.png", "truth/1.png", "truth/2.png"):
        storage.create(f"{tmp_path}/{name}", storage.read_bytes(f"{days}/truth/day1/1.png"))
    notes = []
    plan = make_plan(
        str(tmp_path / "a"), settings_of([tmp_path / "in"], tmp_path / "truth"), SPACE, on_note=notes.append
    )
    assert [row["truth_uri"] for row in plan_rows(plan)] == [f"{tmp_path}/truth/{i}.png" for i in (1, 2)]
    example = f"{tmp_path}/truth/1.png with {tmp_path}/in/a/1.png"
    assert notes == [f"Masks that pair by file name alone, as their folders differ: 2, such as {example}."]
    make_plan(str(tmp_path / "b"), settings_of([tmp_path / "in/a"], tmp_path / "truth"), SPACE, on_note=notes.append)
    assert len(notes) == 1


def test_masks_that_could_be_of_any_image_are_refused(days, tmp_path):
    storage.create(f"{tmp_path}/truth/1.png", storage.read_bytes(f"{days}/truth/day1/1.png"))
    with pytest.raises(DataError, match=f"several images or masks have their file name: 1, such as {tmp_path}/truth/1"):
        make_plan(str(tmp_path / "out"), settings_of([days / "in"], tmp_path / "truth"), SPACE)


def test_an_image_keeps_its_mask_when_more_images_of_its_name_come_and_when_it_is_tried_again(days, tmp_path):
    for name in ("in/1.png", "truth/1.png", "truth/2.png"):
        storage.create(f"{tmp_path}/{name}", storage.read_bytes(f"{days}/truth/day1/1.png"))
    (tmp_path / "list.txt").write_text("in/1.png\nin/2.png\n")
    settings, notes = settings_of([tmp_path / "list.txt"], tmp_path / "truth"), []
    first = make_plan(str(tmp_path / "out"), settings, SPACE)
    masks = {row["uri"]: row["truth_uri"] for row in plan_rows(first)}
    assert masks == {f"{tmp_path}/in/{i}.png": f"{tmp_path}/truth/{i}.png" for i in (1, 2)}  # also of one that is gone
    settings = settings_of([days / "in"], tmp_path / "truth")
    second = make_plan(str(tmp_path / "out"), settings, SPACE, [first], on_note=notes.append)
    assert [row["truth_uri"] for row in plan_rows(second)] == [None, None, None]
    assert notes == ["0 of 3 images have ground truth; the others are labelled without scores."]
    failed = {row["input_id"]: row for row in plan_rows(first)}
    third = make_plan(str(tmp_path / "out"), first.settings, SPACE, [first, second], failed, on_note=notes.append)
    assert {row["uri"]: row["truth_uri"] for row in plan_rows(third)} == masks
    assert len(notes) == 1


def test_an_evaluation_pairs_as_labelling_does(days, tiny_bundle, tmp_path):
    out = str(tmp_path / "labels")
    plan = make_plan(out, settings_of([days / "in"]), SPACE)
    label_all(plan, Predictor(str(tiny_bundle)))
    parts.finish(load_plans(out), {})
    values = {"evaluate.model": out, "evaluate.truth": str(days / "truth"), "evaluate.pictures": 0}
    result = evaluate(load(None, values | {"evaluate.out": str(tmp_path / "scores")}))
    assert (result["frames"], result["missing"], result["notes"]) == (1, [], [])
    (row,) = pq.read_table(tmp_path / "scores" / "images.parquet").to_pylist()
    assert (row["sample_id"], row["image"]) == ("day1/1", f"{days}/in/day1/1.png")
    storage.create(f"{tmp_path}/flat/1.png", storage.read_bytes(f"{days}/truth/day1/1.png"))
    with pytest.raises(DataError, match="Masks that pair with no image, as several images"):
        evaluate(load(None, values | {"evaluate.truth": f"{tmp_path}/flat", "evaluate.out": str(tmp_path / "b")}))


def test_masks_lie_in_folders_as_deep_as_they_like(tmp_path):
    for name in ("a/b/1.png", "2.png"):
        storage.create(f"{tmp_path}/{name}", b"")
    assert find_images(str(tmp_path)) == {"a/b/1": f"{tmp_path}/a/b/1.png", "2": f"{tmp_path}/2.png"}
    assert find_images(f"{tmp_path}/./a/..//") == find_images(str(tmp_path))


def test_an_accent_in_a_name_is_one_sign_or_two(tmp_path):
    for name in ("images/caf\u00e9.png", "masks/cafe\u0301.png"):
        storage.create(f"{tmp_path}/{name}", b"")
    (ref,), lonely = pair(f"{tmp_path}/images", f"{tmp_path}/masks")
    assert (ref.sample_id, ref.mask, lonely) == ("caf\u00e9", f"{tmp_path}/masks/cafe\u0301.png", [])
