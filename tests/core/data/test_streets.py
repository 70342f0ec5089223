"""Drawn streets: the same every time, exact masks, a world that moves, and nothing that colour alone gives away."""

import functools
import hashlib
import json
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from segray.core.data import streets
from segray.core.io.masks import decode_mask
from segray.errors import DataError, OutputExists, StorageError

NAMES = streets.LABEL_SPACE.names
SMALL = {"train": 2, "val": 1, "video_s": 0.5, "fps": 10, "size": (48, 64)}


@functools.cache
def scenes(count=32):
    return [streets.draw(seed) for seed in range(count)]


def digest(sample):
    return hashlib.sha256(sample.image_hwc.tobytes() + sample.mask_hw.tobytes()).hexdigest()


def test_a_fresh_process_draws_the_same_pixels():
    code = (
        "import hashlib; from segray.core.data import streets; s = streets.draw(7, (60, 80), 1.5);"
        "print(hashlib.sha256(s.image_hwc.tobytes() + s.mask_hw.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(streets.draw(7, (60, 80), 1.5))


def test_another_seed_is_another_street():
    assert digest(streets.draw(1, (60, 80))) != digest(streets.draw(2, (60, 80)))


@pytest.mark.parametrize("size", [(97, 131), (256, 512), (33, 20)])
def test_any_size_is_drawn(size):
    sample = streets.draw(3, size)
    assert (sample.image_hwc.shape, sample.image_hwc.dtype) == ((*size, 3), np.uint8)
    assert (sample.mask_hw.shape, sample.mask_hw.dtype) == (size, np.uint8)


def test_every_class_is_in_a_third_of_the_scenes_and_no_other_id_in_any():
    pixels = np.array([np.bincount(scene.mask_hw.ravel(), minlength=12) for scene in scenes()])
    assert pixels.shape == (32, 12)
    share = dict(zip(NAMES, (pixels[:, :11] >= 50).mean(axis=0), strict=True))
    assert min(share.values()) > 1 / 3, share


def test_small_classes_have_hundreds_of_pixels_where_they_occur():
    pixels = np.array([np.bincount(scene.mask_hw.ravel(), minlength=12) for scene in scenes()])
    typical = {name: np.median(pixels[pixels[:, i] > 0, i]) for i, name in enumerate(NAMES)}
    assert min(typical.values()) > 200, typical


@pytest.mark.parametrize("label", range(12), ids=[*NAMES, "void"])
def test_repainting_a_class_changes_its_pixels_and_no_others(label):
    seed = next(i for i, scene in enumerate(scenes()) if (scene.mask_hw == label).sum() > 200)
    world = streets.world_of(seed)
    clear = world.street._replace(weather=world.street.weather._replace(haze_per_m=0.0))

    def green_where_painted(green):
        paint = np.where((world.label == label)[:, None], (0.0, green, 0.0), world.color)
        image_hwc, mask_hw = streets.render(world._replace(street=clear, color=paint, second=paint), (90, 120))
        return image_hwc[..., 1].astype(int), mask_hw == label

    (dark, marked), (bright, _) = green_where_painted(0.0), green_where_painted(1e5)
    wholly, partly = bright - dark > 240, bright > dark
    # A pixel averages 2 × 2 points, of which the mask takes one: pixels on an edge may fall to either side.
    assert partly[marked].all()
    assert marked[wholly].all()
    assert wholly.any()


def test_frames_of_a_street_agree_and_drift_apart_with_time():
    def agreement(seed, time_s):
        return (streets.draw(seed).mask_hw == streets.draw(seed, time_s=time_s).mask_hw).mean()

    near, far = (np.mean([agreement(seed, time_s) for seed in range(4)]) for time_s in (0.1, 3.0))
    other = np.mean([(scenes()[i].mask_hw == scenes()[i + 4].mask_hw).mean() for i in range(4)])
    assert near > 0.9 > far > other


def colour_miou(cell):
    """mIoU on 8 scenes of the commonest class of each key in 24 others; a key is a pixel's colour and cell."""

    def keys(image_hwc):
        r, g, b = (image_hwc[..., c].astype(int) >> 4 for c in range(3))
        rows, cols = np.indices(r.shape)
        return (((r * 16 + g) * 16 + b) * 64 + (rows // cell) * 8 + cols // cell).ravel()

    votes = np.zeros((16**3 * 64, 12), dtype=int)
    for scene in scenes()[:24]:
        np.add.at(votes, (keys(scene.image_hwc), scene.mask_hw.ravel()), 1)
    matrix = np.zeros((12, 11), dtype=int)
    for scene in scenes()[24:]:
        guess = votes[:, :11].argmax(axis=1)[keys(scene.image_hwc)]
        np.add.at(matrix, (scene.mask_hw.ravel(), guess), 1)
    hits, matrix = np.diag(matrix), matrix[:11]  # void counts nowhere
    return (hits / (matrix.sum(axis=0) + matrix.sum(axis=1) - hits)).mean()


def test_colour_alone_does_not_tell_the_classes():
    assert colour_miou(cell=1000) < 0.3


def test_colour_and_place_tell_a_little_more_and_far_from_all():
    assert colour_miou(cell=1000) < colour_miou(cell=32) < 0.4


def test_write_lays_out_camvid_folders_and_a_video(tmp_path):
    root = streets.write(tmp_path / "streets", **SMALL)
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert found == [
        "streets.json",
        "train/street_000000.jpg",
        "train/street_000001.jpg",
        "trainannot/street_000000.png",
        "trainannot/street_000001.png",
        "val/street_050000.jpg",
        "valannot/street_050000.png",
        "video.mp4",
        *(f"videoannot/{i:06d}.png" for i in range(5)),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["streets"]  # nothing temporary is left


def test_written_masks_are_the_drawn_ids_and_images_the_drawn_pixels(tmp_path):
    root = streets.write(tmp_path / "streets", **SMALL)
    drawn = streets.draw(1, (48, 64))
    assert (decode_mask((root / "trainannot/street_000001.png").read_bytes()) == drawn.mask_hw).all()
    stored = np.asarray(Image.open(root / "train/street_000001.jpg")).astype(int)
    assert np.abs(stored - drawn.image_hwc).mean() < 8  # JPEG at quality 95


def test_the_video_has_a_frame_for_every_mask_and_keyframes_every_ten(tmp_path):
    root = streets.write(tmp_path / "streets", **SMALL | {"video_s": 2.5})
    with av.open(str(root / "video.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == len(list((root / "videoannot").iterdir())) == 25
    assert [float(frame.time) for frame in frames] == pytest.approx([i / 10 for i in range(25)])
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 10, 20]
    last = streets.draw(90_000, (48, 64), 2.4)
    assert (decode_mask((root / "videoannot/000024.png").read_bytes()) == last.mask_hw).all()
    assert np.abs(frames[24].to_ndarray(format="rgb24").astype(int) - last.image_hwc).mean() < 12


def test_writing_again_touches_nothing(tmp_path):
    root = streets.write(tmp_path / "streets", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert streets.write(tmp_path / "streets", **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"not ours")
    with pytest.raises(OutputExists) as error:
        streets.write(tmp_path, **SMALL)
    assert str(error.value) == (
        f"{tmp_path} exists and holds no drawn streets; nothing is overwritten. Choose another folder."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_streets_with_other_settings_are_refused(tmp_path):
    root = streets.write(tmp_path / "streets", **SMALL)
    with pytest.raises(OutputExists, match="holds streets with other settings"):
        streets.write(root, **SMALL | {"val": 2})
    assert json.loads((root / "streets.json").read_text())["val"] == 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/town cannot be written: File exists\. Choose another folder\.$"):
        streets.write(tmp_path / "file" / "town", train=1, val=0, video_s=0)


def test_a_video_of_odd_size_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(DataError, match="size 97×131 is odd"):
        streets.write(tmp_path / "streets", size=(97, 131))
    assert not list(tmp_path.iterdir())


def test_without_a_video_an_odd_size_is_written(tmp_path):
    root = streets.write(tmp_path / "streets", train=1, val=1, video_s=0, size=(97, 131))
    assert Image.open(root / "train/street_000000.jpg").size == (131, 97)
    assert not (root / "video.mp4").exists()
