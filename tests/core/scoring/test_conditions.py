"""Tables about images, as people and programs write them."""

import json
import math
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core import metrics
from segray.core.scoring.conditions import notes, read_table, scores
from segray.errors import DataError

FRAMES = [(f"{i:02}", f"/data/val/{i:02}.png") for i in range(12)]
ROW = metrics.packed(np.eye(2, 3, dtype=np.int64))


def frames_by_value(values):
    """Column → frames by value."""
    table = {"x": values}
    return {value: found["frames"] for value, found in scores(table, [ROW] * len(values), 2)["x"].items()}


def jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_csv_cell_is_a_number_only_where_it_is_written_as_one(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("sample_id,drive,brightness,camera\n007,0016E5,0.5,3\n008,05VD,1e-05,\n")
    assert read_table(str(table), [("007", ""), ("008", "")]) == {
        "drive": ["0016E5", "05VD"],  # CamVid's drives: not sixteen hundred thousand
        "brightness": [0.5, 1e-05],
        "camera": [3, None],
    }


def test_numbers_that_are_close_keep_their_quartiles_apart():
    """Unix times, odometers: none of the frames is lost."""
    times = [1_700_000_000 + i for i in range(12)]
    assert frames_by_value(times) == {
        "1700000000 to 1700000002": 3,
        "1700000003 to 1700000005": 3,
        "1700000006 to 1700000008": 3,
        "1700000009 to 1700000011": 3,
    }
    assert frames_by_value([time + 0.5 for time in times]) == {
        "1700000000.5 to 1700000002.5": 3,
        "1700000003.5 to 1700000005.5": 3,
        "1700000006.5 to 1700000008.5": 3,
        "1700000009.5 to 1700000011.5": 3,
    }
    assert sum(frames_by_value([1623173424123456789 + i for i in range(12)]).values()) == 12  # ROS's nanoseconds


def test_a_value_of_many_frames_is_a_quartile_of_its_own():
    assert frames_by_value([0] * 20 + list(range(1, 10))) == {"0": 20, "1 to 2": 2, "3 to 9": 7}


@pytest.mark.parametrize("odd", [math.nan, None])
def test_a_frame_without_a_number_is_in_no_quartile(odd, tmp_path):
    rows = [{"image": f"{i:02}.png", "x": odd if i == 5 else i / 4} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    for place in (jsonl(tmp_path / "table.jsonl", rows), str(tmp_path / "table.parquet")):
        table = read_table(place, FRAMES)
        assert table["x"][4:7] == [1.0, None, 1.5]
        assert frames_by_value(table["x"]) == {"0 to 0.5": 3, "0.75 to 1.5": 3, "1.75 to 2.25": 3, "2.5 to 2.75": 2}


def test_infinity_is_a_number():
    assert sum(frames_by_value([math.inf, -math.inf, *range(10)]).values()) == 12


def test_cells_that_are_no_plain_values_are_texts_and_a_column_is_of_one_kind(tmp_path):
    rows = [{"image": "00", "tags": ["rain", "night"], "mixed": 1, "flag": True, "big": 2**70, "share": 1}]
    rows += [{"image": "01", "tags": [], "mixed": "a", "flag": None, "big": 3, "share": 0.5, "late": "x"}]
    table = read_table(jsonl(tmp_path / "table.jsonl", rows), FRAMES[:2])
    assert table == {
        "tags": ['["rain", "night"]', "[]"],
        "mixed": ["1", "a"],
        "flag": [True, None],
        "big": [float(2**70), 3.0],
        "share": [1.0, 0.5],
        "late": [None, "x"],  # a column that the first row lacks
    }
    pa.Table.from_pylist([{name: values[i] for name, values in table.items()} for i in range(2)])
    assert frames_by_value(table["tags"]) == {'["rain", "night"]': 1, "[]": 1}
    assert frames_by_value(table["mixed"]) == {"1": 1, "a": 1}


def test_a_parquet_table_may_hold_dates(tmp_path):
    pq.write_table(pa.table({"image": ["00", "01"], "day": [date(2026, 1, 2), None]}), tmp_path / "t.parquet")
    assert read_table(str(tmp_path / "t.parquet"), FRAMES[:2]) == {"day": ["2026-01-02", None]}


def test_a_number_that_is_none_is_missing_in_a_csv_too(tmp_path):
    (tmp_path / "t.CSV").write_text("image,x\n00,NaN\n01,1.5\n02,nan\n")
    assert read_table(str(tmp_path / "t.CSV"), FRAMES[:3]) == {"x": [None, 1.5, None]}


@pytest.mark.parametrize("missing", ["NA", "N/A", "nan", "NULL", "null", "None", ""])
def test_a_word_for_no_number_among_numbers_is_a_missing_one_and_is_counted(tmp_path, missing):
    """With it the column was one of texts, and 0.10 and 0.1 were two conditions."""
    (tmp_path / "t.csv").write_text(f"image,lux,region\n00,0.10,NA\n01,{missing},EU\n02,0.1,NA\n")
    rows = [{"image": "00", "lux": 0.1, "region": "NA"}, {"image": "01", "lux": missing or None, "region": "EU"}]
    rows.append({"image": "02", "lux": 0.1, "region": "NA"})
    for place in (str(tmp_path / "t.csv"), jsonl(tmp_path / "t.jsonl", rows)):
        table = read_table(place, FRAMES[:3])
        assert table == {"lux": [0.1, None, 0.1], "region": ["NA", "EU", "NA"]}  # there it is North America
        assert notes(table) == ["Frames left out of a condition, as they have no value there: lux 1."]


def test_texts_may_hold_any_sign_and_numbers_be_of_any_size(tmp_path):
    rows = [{"image": "00", "x": 10**400, "place": "a\u2028b"}, {"image": "01", "x": 1, "place": "c\x85d"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_table(str(tmp_path / "t.jsonl"), FRAMES[:2]) == {
        "x": [str(10**400), "1"],  # no column holds it as a number
        "place": ["a\u2028b", "c\x85d"],
    }
    (tmp_path / "t.csv").write_text(f"image,x\n00,{10**400}\n01,1.5\n")
    assert read_table(str(tmp_path / "t.csv"), FRAMES[:2]) == {"x": [str(10**400), "1.5"]}


def test_frames_without_a_row_and_columns_of_too_many_values_are_said():
    table = {"weather": [None, *["rain"] * 60], "name": [None, *map(str, range(60))], "place": [None] * 61}
    assert notes(table) == [
        "Frames of which no condition is known: 1 of 61.",
        "Conditions left out, as they have more than 50 values: name.",
    ]
    assert notes({"weather": ["rain", "sun"], "time": ["noon", "dusk"]}) == notes({}) == []


def test_a_number_among_texts_stays_as_it_is_written(tmp_path):
    (tmp_path / "t.csv").write_text("image,x\n00,1e-3\n01,high\n")
    assert read_table(str(tmp_path / "t.csv"), FRAMES[:2]) == {"x": ["1e-3", "high"]}


DAYS = [("day1/0001", "/data/images/day1/0001.jpg"), ("day2/0001", "/data/images/day2/0001.jpg")]


@pytest.mark.parametrize("name", ["{}", "{}.jpg", "images/{}.jpg", "/data/images/{}.jpg", "s3://old/{}.png"])
def test_frames_of_one_name_have_the_rows_of_their_folders(name, tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(["image,x", *(f"{name.format(f'day{i}/0001')},{i}" for i in (2, 1))]))
    assert read_table(str(tmp_path / "t.csv"), DAYS) == {"x": [1, 2]}


def test_a_row_at_the_top_is_no_frames_whose_folder_has_rows_of_its_own(tmp_path):
    """day2/0001 has no row; 0001 is another frame, which is not scored."""
    names = [(name, f"/data/{name}.png") for name in ("day2/0001", "day2/0002")]
    table = tmp_path / "table.csv"
    table.write_text("image,x\n0001,9\nday2/0002,2\n")
    assert read_table(str(table), names) == {"x": [None, 2]}


def test_a_row_is_no_other_folders(tmp_path):
    (tmp_path / "t.csv").write_text("image,x\nday1/0001.jpg,1\n")
    assert read_table(str(tmp_path / "t.csv"), DAYS) == {"x": [1, None]}
    (tmp_path / "t.csv").write_text("image,x\nday3/0001.jpg,1\nday2/0001,2\n")
    assert read_table(str(tmp_path / "t.csv"), DAYS) == {"x": [None, 2]}
    cameras = [(f"day{i}/cam/000{i}", f"/data/day{i}/cam/000{i}.jpg") for i in (1, 2)]
    (tmp_path / "t.csv").write_text("image,x\nday2/0001.jpg,1\nday2/0002.jpg,2\n")
    assert read_table(str(tmp_path / "t.csv"), cameras) == {"x": [None, 2]}
    (tmp_path / "t.csv").write_text("image,x\n/other/disk/0001.jpg,1\n")  # unique on both sides
    assert read_table(str(tmp_path / "t.csv"), DAYS[:1]) == {"x": [1]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "image,x\n0001,1\n",
            "{} has one row, 0001, for day1/0001 and day2/0001; give a row each, with the full image.",
        ),
        ("image,x\na/0001,1\nb/0001,2\n", "No row of {} is of a scored frame: its image is such as a/0001, a frame's"),
        ("image,x\nday1/0001,1\nday1/0001,2\n", "{} has two rows for 0001; give the full image, such as day1/0001."),
        ("image,x\nday1/0001,1\n,2\n", "Row 2 of {} has no image; it names the row's image."),
        ("image,x,x\n00,1,2\n", "{} has 2 columns called x; rename all but one of them."),
        ("name,x\na,1\n", "{} has no column image, file_name or sample_id; one of them names each row's image."),
        (f"image,x\na,{'b' * 200_000}\n", "{} cannot be read: field larger than field limit (131072)."),
    ],
)
def test_a_table_that_cannot_be_used_says_why(text, says, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_table(str(path), DAYS)
    assert str(error.value).startswith(says.format(path))


def test_a_line_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"t\.jsonl has the row \[1, 2\]; a row is an object of columns\.$"):
        read_table(jsonl(tmp_path / "t.jsonl", [{"image": "a"}, [1, 2]]), DAYS)
