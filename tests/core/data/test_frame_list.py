"""What a run keeps of its frames, and how others differ from them."""

from segray.core.data.frame_list import differences, frame_list
from segray.core.samples import LabelSpace, SampleRef

SPACE = LabelSpace(("road", "car"), ((1, 2, 3), (4, 5, 6)))


def listed(root, names, mask=b"mask", space=SPACE):
    """Frames of these names below `root`, as their files are now."""
    for name in names:
        (root / f"{name}.jpg").write_bytes(b"image")
        (root / f"{name}.png").write_bytes(mask)
    refs = [SampleRef(name, f"{root}/{name}.jpg", f"{root}/{name}.png") for name in names]
    return frame_list({"train": refs, "val": refs[:1]}, space)


def test_frames_are_counted_that_were_added_removed_or_changed(tmp_path):
    before = listed(tmp_path, ["a", "b", "c"])
    assert before.splitlines()[1:] == [
        b'["train", "a", 5, 4]', b'["train", "b", 5, 4]', b'["train", "c", 5, 4]', b'["val", "a", 5, 4]'
    ]  # fmt: skip
    assert differences(before, listed(tmp_path, ["a", "b", "c"])) == []
    assert differences(before, listed(tmp_path, ["a", "b"])) == ["frames: 1 removed"]
    assert differences(before, listed(tmp_path, ["a", "b", "c", "d"])) == ["frames: 1 added"]
    assert differences(before, listed(tmp_path, ["a", "b", "c"], mask=b"other")) == ["frames: 4 changed"]


def test_other_ids_of_the_classes_are_other_data(tmp_path):
    swapped = LabelSpace(SPACE.names, SPACE.colors, {0: 1, 1: 0})
    before = listed(tmp_path, ["a"])
    assert differences(before, listed(tmp_path, ["a"], space=swapped)) == ["the ids of its classes changed"]


def test_places_that_cannot_be_listed_and_names_of_any_bytes_count_as_they_are():
    refs = [SampleRef("day\udcff\t1", "/none/a.mp4#frame=3", "/none/part.parquet#row=7")]
    kept = frame_list({"train": refs}, SPACE)
    assert kept.splitlines()[1] == b'["train", "day\\udcff\\t1", null, null]'
    assert differences(kept, kept) == []


def test_a_frame_of_a_file_of_many_has_the_files_size(tmp_path):
    (tmp_path / "part.parquet").write_bytes(b"123456")
    refs = [SampleRef("a", f"{tmp_path}/a.mp4#frame=3", f"{tmp_path}/part.parquet#row=7,0.8")]
    assert frame_list({"train": refs}, SPACE).splitlines()[1] == b'["train", "a", null, 6]'
