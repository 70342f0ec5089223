"""What a page keeps of label rows: enough to show them, and no more however many there are."""

import numpy as np
import pyarrow as pa
import pytest

from segray.core.labels import digest
from segray.core.labels.digest import Digest, Track


def rows_of(values, **more):
    """Label rows of 2 classes, ok where nothing else is said, that differ in what is given."""
    plain = {"status": "ok", "class_pixels": [60, 40], "part": "p", "uri": "u"}
    rows = [dict.fromkeys(digest.ROWS.names) | plain | more | row for row in values]
    return pa.Table.from_pylist(rows, digest.ROWS.remove(digest.ROWS.get_field_index("position")))


def digest_of(values, total=None, **more):
    found = Digest(2, total or len(values), frames=3, videos=1)
    for start in range(0, len(values), 10):  # as if from several parts
        found.add(rows_of(values[start : start + 10], **more))
    return found


def ids(rows):
    return [row["input_id"] for row in rows]


def test_sums_and_errors_are_those_of_all_rows():
    values = [{"input_id": str(i), "miou": 0.5} for i in range(25)]
    failed = [{"status": "error", "error_code": code, "uri": code + str(i)} for i in range(2) for code in "ab"]
    found = digest_of([*values, *failed, failed[0]])
    assert (found.rows, found.ok, found.miou_sum) == (30, 25, 12.5)
    assert found.class_pixels.tolist() == [1500, 1000]
    assert [(row["error_code"], row["count"], row["uri"]) for row in found.errors.values()] == [
        ("a", 3, "a0"),
        ("b", 2, "b0"),
    ]


def test_best_worst_and_listed_frames_come_from_all_parts():
    values = [{"input_id": str(i), "miou": (i * 7 % 40) / 40} for i in range(40)]
    found = digest_of(values)
    assert [row["miou"] for row in found.gallery("best")] == [39 / 40, 38 / 40, 37 / 40, 36 / 40]
    assert [row["miou"] for row in found.gallery("worst")] == [0, 1 / 40, 2 / 40, 3 / 40]
    assert found.score == "miou"
    assert [row["miou"] for row in found.listed.to_pylist()] == [0, 1 / 40, 2 / 40]


@pytest.mark.parametrize("mious", [[0.5], [0.1, 0.2, 0.3], [0.0] * 3, [0.0] * 8, [0.1, 0.1, 0.1, 0.9, 0.1]])
def test_of_few_frames_none_is_both_best_and_worst(mious):
    found = digest_of([{"input_id": str(i), "miou": miou} for i, miou in enumerate(mious)])
    best, worst = ids(found.gallery("best")), ids(found.gallery("worst"))
    assert sorted(best + worst) == [str(i) for i in range(len(mious))]


def test_frames_without_truth_are_listed_by_confidence():
    found = digest_of([{"input_id": str(i), "confidence_mean": i / 30} for i in range(30)][::-1])
    assert found.score == "confidence_mean"
    assert ids(found.listed.to_pylist()) == ["0", "1", "2"]
    assert found.gallery("best") == []


def test_uncertain_frames_are_taken_apart_from_each_other():
    assert digest.apart([50, 51, 49, 10, 90], most=3, total=100) == [50, 10, 90]
    values = [{"input_id": str(i), "entropy_mean": 1 - abs(i - 500) / 1000} for i in range(1000)]
    found = digest_of(values)
    positions = [int(one) for one in ids(found.gallery("uncertain"))]
    assert positions[0] == 500
    assert len(positions) == digest.EACH
    assert min(abs(a - b) for a in positions for b in positions if a != b) > 1000 // (4 * digest.EACH)


def test_a_spread_is_even():
    found = digest_of([{"input_id": str(i)} for i in range(1000)])
    assert ids(found.gallery("spread")) == ["0", "250", "500", "750"]


def test_what_is_kept_does_not_grow_with_the_rows():
    few, many = (digest_of([{"input_id": str(i), "miou": 0.5} for i in range(n)]) for n in (200, 5000))

    def size(found):
        return sum(table.nbytes for table in (*found.picked.values(), found.listed))

    assert size(many) < 1.2 * size(few)


@pytest.mark.parametrize("frames", [5, 2 * digest.MOMENTS, 10 * digest.MOMENTS + 3])
def test_a_track_keeps_every_pixel_and_the_highest_flicker(frames):
    values = [
        {"time_s": i / 10, "flicker_share": 0.9 if i == frames // 2 else 0.1, "class_pixels": [i, 1]}
        for i in range(frames)
    ]
    track = Track(2)
    for start in range(0, frames, 7):
        track.add(rows_of(values[start : start + 7]))
    known = np.isfinite(track.time_s)
    assert min(frames, digest.MOMENTS) <= known.sum() <= 2 * digest.MOMENTS
    assert track.time_s[known].tolist() == [i / 10 for i in range(0, frames, track.step)]
    assert track.pixels.sum(0).tolist() == [sum(range(frames)), frames]
    assert track.flicker[known].argmax() == frames // 2 // track.step
    assert np.nanmax(track.flicker) == 0.9


def test_only_the_first_videos_are_followed():
    values = [{"video_uri": f"v{i % 3}", "time_s": i / 10, "frame_index": i} for i in range(30)]
    found = digest_of(values)
    assert list(found.tracks) == ["v0"]
    assert found.tracks["v0"].frames == 10
    assert found.more_videos


def test_classes_of_a_frame_are_those_that_it_shows_or_misses():
    row = {"class_pixels": [9_990, 9, 0, 11], "class_iou": [0.9, 0.5, 0.0, None]}
    assert digest.classes_in(row) == [0, 2, 3]  # 1 has less than a thousandth; 2 is in the truth alone
    assert digest.classes_in(row | {"class_iou": None}) == [0, 3]


def test_quartiles_are_right_to_a_thousandth():
    values = np.random.default_rng(0).uniform(size=5000)
    found = digest.quartiles(digest.miou_histogram(pa.array(values)))
    assert found == pytest.approx(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), abs=2e-3)
