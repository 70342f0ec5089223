"""Tables about images, as people and programs write them."""

from segray.core.conditions import read_table


def test_a_csv_cell_is_a_number_only_where_it_is_written_as_one(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("sample_id,drive,brightness,camera\n007,0016E5,0.5,3\n008,05VD,1e-05,\n")
    assert read_table(str(table), [("007", ""), ("008", "")]) == {
        "drive": ["0016E5", "05VD"],  # CamVid's drives: not sixteen hundred thousand
        "brightness": [0.5, 1e-05],
        "camera": [3, None],
    }
