"""What a user names becomes rows of a plan: every kind of input, on a disk and on S3, once each."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote_plus

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled import label_all, plan_rows, settings_of
from PIL import Image
from videos import write as write_video

from segray.core.data import streets
from segray.core.infer.decode import encoded
from segray.core.infer.predictor import Predictor
from segray.core.io import inputs, locators, storage
from segray.core.io import s3 as s3_requests
from segray.core.io.cells import read_images
from segray.core.io.pairing import find_images
from segray.core.io.video import index_video
from segray.core.labels import parts, planning
from segray.core.labels.folder import LabelFolder, read_summary
from segray.core.labels.plan import PlanReader, check_same, load_plans
from segray.core.labels.planning import make_plan
from segray.core.models.bundle import read_info
from segray.core.prefetch import ahead
from segray.errors import DataError, OutputExists, SegrayError, StorageError

SPACE = streets.LABEL_SPACE
NAMES = ("a.png", "b/c.JPG", "b/d d.png", "b/.hidden.png", "b/notes.md", "e/f.mp4")


def picture(value=0, kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(out, kind)
    return out.getvalue()


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A folder with NAMES in it, on a disk or in a bucket."""
    top = str(tmp_path / "in") if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}/in"
    for i, name in enumerate(NAMES):
        storage.create(f"{top}/{name}", picture(i))
    return top


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return Predictor(str(tiny_bundle))


def found(*places, notes=None):
    """The names of what is taken; `notes` gets what is said."""
    files = inputs.find_inputs([str(place) for place in places], on_note=[].append if notes is None else notes.append)
    return [os.fsdecode(file.name) for file in files]


def planned(out, *places, **more):
    return make_plan(str(out), settings_of(places, **more), SPACE)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.png", "b/c.JPG", "b/d d.png", "e/f.mp4"]),
        ("/b", ["b/c.JPG", "b/d d.png"]),
        ("/a.png", ["a.png"]),
        ("/*.png", ["a.png"]),
        ("/**/*.png", ["a.png", "b/d d.png"]),
        ("/?/[c-e]*", ["b/c.JPG", "b/d d.png"]),
    ],
)
def test_folders_files_and_globs(root, pattern, names):
    assert found(root + pattern) == [f"{root}/{name}" for name in names]


def test_images_come_before_videos_and_each_once(root):
    assert found(f"{root}/e", f"{root}/a.png", root) == [
        *(f"{root}/{name}" for name in ("a.png", "b/c.JPG", "b/d d.png")), f"{root}/e/f.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("mark", ["_segray", "_export"])
def test_a_folder_that_segray_wrote_is_no_input_wherever_it_lies(root, mark):
    for name in ("A.png", "labels/part.png", f"{mark}/about.json"):  # some are listed before it is seen what it is
        storage.create(f"{root}/b/out/{name}", picture())
    names, notes = [f"{root}/{name}" for name in ("a.png", "b/c.JPG", "b/d d.png", "e/f.mp4")], []
    assert found(root, notes=notes) == names
    assert notes[-1] == f"Skipped, as segray wrote them: {root}/b/out."
    assert found(f"{root}/**/*.png") == [f"{root}/a.png", f"{root}/b/d d.png"]
    assert found(f"{root}/b/out/A.png") == [f"{root}/b/out/A.png"]  # what is named is taken
    with pytest.raises(DataError, match=f"^{root}/b/out was written by segray and is no input; give the folder"):
        found(f"{root}/b/out")


@pytest.mark.parametrize("place", ["labels", "labels/", "labels/part-0.parquet", "labels/*.parquet", "_segray"])
def test_the_labels_of_an_output_are_no_input(root, place):
    for name in ("labels/part-0.parquet", "_segray/plan-00000.json"):
        storage.create(f"{root}/out/{name}", b"")
    with pytest.raises(DataError) as error:
        found(f"{root}/out/{place}")
    says = "was written by segray and is no input; give the folder of the images themselves."
    assert str(error.value) == f"{root}/out/{place} {says}"
    assert found(f"{root}/out/*/*.parquet", notes=(notes := [])) == []
    assert notes[-1] == f"Skipped, as segray wrote them: {root}/out."


def test_labels_that_a_list_names_have_a_row_that_says_what_they_are(tmp_path):
    for name in ("out/labels/part-0.parquet", "out/_segray/plan-00000.json", "in/labels/a.png"):
        storage.create(f"{tmp_path}/{name}", picture())
    (tmp_path / "list.txt").write_text("out/labels/part-0.parquet\nin/labels/a.png\n")
    text = f"{tmp_path}/out/labels/part-0.parquet is of the labels that segray wrote into {tmp_path}/out, and no input."
    assert [file.error for file in inputs.find_inputs([f"{tmp_path}/list.txt"])] == [None, text]


def test_two_links_to_one_folder_are_its_files_once_and_it_is_said(tmp_path):
    (tmp_path / "store" / "day1").mkdir(parents=True)
    for name in ("a.png", "day1/b.png"):
        (tmp_path / "store" / name).touch()
    (tmp_path / "in").mkdir()
    for link in ("last", "link"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "store")
    notes = []
    assert found(tmp_path / "in", notes=notes) == [f"{tmp_path}/in/last/{name}" for name in ("a.png", "day1/b.png")]
    assert notes == ["Found again in folders to which several links lead, and labelled once: 2."]
    both = [str(tmp_path / "in" / "link"), str(tmp_path / "store")]  # the folder's own name comes first
    assert found(*both) == [f"{tmp_path}/store/{name}" for name in ("a.png", "day1/b.png")]


def test_a_link_to_the_output_is_no_way_into_it(tmp_path):
    (tmp_path / "labels" / "_segray").mkdir(parents=True)
    (tmp_path / "labels" / "mask.png").write_bytes(picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    (tmp_path / "in" / "last").symlink_to(tmp_path / "labels")
    assert found(tmp_path / "in") == [f"{tmp_path}/in/a.png"]


def test_a_name_with_signs_of_a_glob_is_a_name(tmp_path):
    (tmp_path / "a[1]*.png").write_bytes(picture())
    (tmp_path / "a1.png").write_bytes(picture())
    assert found(f"{tmp_path}/a[1]*.png") == [f"{tmp_path}/a[1]*.png"]


def test_what_is_named_has_a_row_whatever_it_is(tmp_path, predictor):
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    files = {
        "a.jpg": picture(kind="JPEG"), "b.jfif": picture(kind="JPEG"), "c.avif": picture(kind="AVIF"),
        "d.jp2": picture(kind="JPEG2000"), "e": picture(), ".f.png": picture(), "g.heic": heic, "h.jpg": heic,
        "i.jxl": b"\xff\x0a" + bytes(40), "j.dng": picture(kind="TIFF"), "k.csv": b"uri\na.jpg\n", "l.bin": b"?",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    plan = planned(tmp_path / "out", *(tmp_path / name for name in files))
    label_all(plan, predictor)
    parts.finish([plan], {})
    rows = pq.read_table(tmp_path / "out" / "labels").to_pylist()
    said = {row["uri"].rpartition("/")[2]: row["error_message"] for row in rows}
    assert {name: text and text.removeprefix(f"{tmp_path}/") for name, text in said.items()} == {
        **dict.fromkeys(("a.jpg", "b.jfif", "c.avif", "d.jp2", "e", ".f.png")),
        "g.heic": "g.heic is HEIC, which is not read; convert it to JPEG or PNG.",
        "h.jpg": "h.jpg is HEIC, which is not read; convert it to JPEG or PNG.",
        "i.jxl": "i.jxl is JPEG XL, which is not read; convert it to JPEG or PNG.",
        "j.dng": "j.dng is a camera's raw file, which holds a small preview; develop it to JPEG, PNG or TIFF.",
        "k.csv": "k.csv is no list that is read; give .txt with a path a line, .jsonl or .parquet.",
        "l.bin": "l.bin is not an image: cannot identify image file.",
    }


def test_what_a_folder_holds_and_is_not_taken_is_counted_in_a_line(root, tmp_path):
    for name in ("g.heic", "h.HEIC", "b/i.jxl", "README", "b/.ipynb_checkpoints/a.png", "@eaDir/a.png/thumb.jpg"):
        storage.create(f"{root}/{name}", picture())
    notes = []
    names = ["a.png", "b/c.JPG", "b/d d.png", "e/f.mp4"]
    assert found(root, notes=notes) == [f"{root}/{name}" for name in names]
    (note,) = notes
    assert note.startswith("Skipped: 2 .heic, ")
    assert set(note.removeprefix("Skipped: ").removesuffix(".").split(", ", 5)) == {
        "2 .heic", "1 .jxl", "1 without suffix", "1 .md", "1 hidden files",
        "2 folders of systems and tools (.ipynb_checkpoints, @eaDir)",
    }  # fmt: skip


def test_folders_of_systems_and_tools_are_passed_over_unless_a_glob_names_them(root):
    hidden = [
        ".thumbnails",
        "$RECYCLE.BIN",
        "__MACOSX",
        "b/lost+found",
        "#recycle",
        "#snapshot",
        "b/.ipynb_checkpoints",
    ]
    for name in hidden:
        storage.create(f"{root}/{name}/x.png", picture())
    names = [f"{root}/{name}" for name in ("a.png", "b/d d.png")]
    assert found(root) == [names[0], f"{root}/b/c.JPG", names[1], f"{root}/e/f.mp4"]
    assert found(f"{root}/**/*.png") == names
    assert found(f"{root}/.thumbnails/*.png") == found(f"{root}/.thumb*/*") == [f"{root}/.thumbnails/x.png"]
    assert found(f"{root}/b/.ipynb_checkpoints") == [f"{root}/b/.ipynb_checkpoints/x.png"]


def test_what_is_said_can_be_printed(tmp_path):
    for name in (b".\xff/a.png", b"\xffout/_segray/plan.json", b"\xff/notes.\xff"):
        storage.create(os.fsdecode(bytes(tmp_path) + b"/in/" + name), picture())
    notes = []
    assert found(tmp_path / "in", os.fsdecode(bytes(tmp_path) + b"/in/\xff"), notes=notes) == []
    assert [note.replace(str(tmp_path), "") for note in notes] == [
        "/in holds nothing to label.",
        r"/in/\udcff holds nothing to label.",
        r"Skipped: 2 without suffix, 1 folder of systems and tools (.\udcff).",
        r"Skipped, as segray wrote them: /in/\udcffout.",
    ]


def test_files_of_names_with_many_suffixes_do_not_fill_the_line(tmp_path):
    for i in range(40):
        (tmp_path / f"scan.x{i:03}").touch()
        (tmp_path / f"scan.{i:03}").touch()
    (tmp_path / "a.png").touch()
    notes = []
    found(tmp_path, notes=notes)
    assert notes[0].startswith("Skipped: 40 without suffix, 1 .x")
    assert notes[0].endswith(", 29 with other suffixes.")


def test_a_named_place_that_holds_nothing_is_said(root):
    storage.create(f"{root}/notes/readme.md", b"")
    notes, places = [], [f"{root}/notes", f"{root}/*.jgp", f"{root}/a.png"]
    assert found(*places, notes=notes) == [f"{root}/a.png"]
    assert notes == [
        f"{root}/notes holds nothing to label.",
        f"{root}/*.jgp holds nothing to label.",
        "Skipped: 1 .md.",
    ]


def test_links_to_nothing_pipes_and_links_to_what_is_listed_anyway_are_counted(tmp_path):
    (tmp_path / "in" / "day1" / ".store").mkdir(parents=True)
    (tmp_path / "in" / "day1" / "a.png").touch()
    (tmp_path / "in" / "day1" / ".store" / "b.png").touch()
    os.mkfifo(tmp_path / "in" / "pipe.png")
    for name, target in {"gone.png": "nowhere.png", "turn.png": "turn.png", "last": "day1"}.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "in" / "day2").symlink_to("day1/.store")
    (tmp_path / "in" / "a.png").symlink_to("day1/a.png")  # a name of its own
    notes = []
    assert found(tmp_path / "in", notes=notes) == [
        f"{tmp_path}/in/{name}" for name in ("a.png", "day1/a.png", "day2/b.png")
    ]
    counts = "1 pipes, sockets or devices, 2 links to nothing, 1 links to folders that are listed anyway"
    assert sorted(notes[0].removeprefix("Skipped: ").removesuffix(".").split(", ")) == sorted(
        [*counts.split(", "), "1 folder of systems and tools (.store)"]
    )


def test_a_folder_that_may_not_be_listed_is_said_and_the_others_are_taken(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png", "private/3.png"):
        storage.create(f"{tmp_path}/in/{name}", picture())
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for place in (tmp_path / "in", f"{tmp_path}/in/**/*.png"):
        notes = []
        assert found(place, notes=notes) == [f"{tmp_path}/in/a/1.png", f"{tmp_path}/in/b/2.png"]
        assert notes == [f"{tmp_path}/in/private cannot be listed: Permission denied. What is in it is not labelled."]
    assert found(f"{tmp_path}/in/[ab]/*.png", notes=notes) == [f"{tmp_path}/in/a/1.png", f"{tmp_path}/in/b/2.png"]
    assert len(notes) == 1
    with pytest.raises(StorageError, match="private cannot be listed"):
        found(tmp_path / "in" / "private")
    with pytest.raises(StorageError, match="private cannot be listed"):
        list(storage.iter_files(str(tmp_path / "in")))  # of masks, none may be missing


def test_a_glob_lists_the_folders_that_can_match_and_no_others(tmp_path, monkeypatch):
    for name in ("1.png", "a/2.png", "a/b/3.png", "c/d/e/4.png"):
        storage.create(f"{tmp_path}/in/{name}", picture())
    scandir, listed = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    for pattern, names in {"*.png": ["in"], "?/*.png": ["in", "in/a", "in/c"], "a/**": ["in/a", "in/a/b"]}.items():
        listed.clear()
        found(f"{tmp_path}/in/{pattern}")
        assert sorted(listed) == [f"{tmp_path}/{name}" for name in names]


def test_a_glob_of_one_level_on_s3_lists_that_level_alone(s3, monkeypatch):
    for i in range(3):
        storage.create(f"{s3}/level/{i}.png", b"")
        storage.create(f"{s3}/level/deep/{i}.png", b"")
    asked, request = [], s3_requests.request
    monkeypatch.setattr(
        s3_requests, "request", lambda what, **more: asked.append((what, more)) or request(what, **more)
    )
    assert found(f"{s3}/level/*.png") == [f"{s3}/level/{i}.png" for i in range(3)]
    assert [more["Delimiter"] for what, more in asked if what == "list_objects_v2" and more["MaxKeys"] > 1] == ["/"]


def test_stars_inside_a_name_are_one_line(tmp_path):
    with pytest.raises(
        DataError, match=r"\*\*\.jpg: \*\* stands for folders, as a whole part of the path: drives/\*\*/\*"
    ):
        found(f"{tmp_path}/**.jpg")


def test_one_file_of_several_spellings_is_one_row_and_said(tmp_path):
    for name in ("a/f.png", "a/g.png", "b/a/f.png"):
        storage.create(f"{tmp_path}/{name}", picture())
    (tmp_path / "link").symlink_to("b/a")
    (tmp_path / "list.txt").write_text("a/f.png\n./a//f.png\na/../a/f.png\nlink/../a/f.png\n")
    notes, one = [], f"{tmp_path}/a/f.png"
    listed = found(tmp_path / "list.txt", notes=notes)
    assert listed == [one, f"{tmp_path}/b/a/f.png"]  # above a link is what holds its target
    assert notes == ["Named more than once, and labelled once: 2."]
    assert storage.absolute(f"{tmp_path}/b/../a/./f.png") == one
    notes.clear()
    assert found(tmp_path / "a", one, notes=notes) == [one, f"{tmp_path}/a/g.png"]
    assert notes == ["Named more than once, and labelled once: 1."]


def test_empty_steps_in_the_keys_of_s3_are_steps(s3):
    root = f"{s3}/steps"
    names = ["/a.png", "//b.png", "day1//c.png", "d.png"]
    for name in names:
        storage.create(f"{root}/{name}", b"")
    assert sorted(found(root)) == sorted(f"{root}/{name}" for name in names)


def test_a_relative_place_in_a_list_on_s3_may_go_up(s3):
    storage.create(f"{s3}/up/a.png", picture())
    storage.create(f"{s3}/up/lists/l.txt", b"../a.png\n./../a.png\n")
    assert found(f"{s3}/up/lists/l.txt") == [f"{s3}/up/a.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_lists_may_have_a_byte_order_mark(tmp_path, encoding, kind):
    (tmp_path / "ä\u2028.png").write_bytes(picture())
    text = {"txt": "ä\u2028.png\r\ngone.png\r\n", "jsonl": '"ä\\u2028.png"\n{"path": "gone.png"}\n'}[kind]
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    (tmp_path / f"list.{kind}").write_bytes(mark + text.encode(encoding))
    rows = plan_rows(planned(tmp_path / "out", tmp_path / f"list.{kind}"))
    assert [(row["uri"], row["error"]) for row in rows] == [
        (f"{tmp_path}/gone.png", f"{tmp_path}/gone.png is listed in list.{kind} line 2 and does not exist."),
        (f"{tmp_path}/ä\u2028.png", None),
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("a.png\n".encode("utf-16-le"), "holds NUL bytes, as UTF-16 without its mark does; save it as UTF-8, a path a line."),
        (b"\xff\xfea", "is UTF-16 that cannot be read; save it as UTF-8."),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_one_line(tmp_path, data, text):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(DataError) as error:
        found(tmp_path / "list.txt")
    assert str(error.value) == f"{tmp_path}/list.txt {text}"


PATHS = ["a.png", None, "gone.png"]
HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "column",
    [
        pa.array(PATHS, pa.large_string()),
        pa.array(PATHS, pa.string_view()),
        pa.array(PATHS).dictionary_encode(),
        pa.array([path and {"path": path} for path in PATHS]),
        pa.array([path and {"bytes": None, "path": path} for path in PATHS], HUB),
    ],
    ids=lambda column: str(column.type)[:24],
)
@pytest.mark.parametrize("name", ["image", "image_path"])
def test_a_parquet_column_may_hold_paths_in_any_type(tmp_path, column, name):
    (tmp_path / "a.png").write_bytes(picture())
    pq.write_table(pa.table({"number": [1, 2, 3], name: column}), tmp_path / "list.parquet")
    notes = []
    files = inputs.find_inputs([f"{tmp_path}/list.parquet"], on_note=notes.append)
    assert [(os.fsdecode(file.name), file.error) for file in files] == [
        (f"{tmp_path}/a.png", None),
        (f"{tmp_path}/gone.png", f"{tmp_path}/gone.png is listed in list.parquet row 2 and does not exist."),
    ]
    assert notes == ["Skipped: 1 empty cells of list.parquet."]


def test_the_hubs_struct_with_bytes_holds_images_and_a_line_of_it_names_one(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": picture(), "path": "b.png"}]
    pq.write_table(pa.table({"image": pa.array(cells, HUB)}), tmp_path / "images.parquet")
    assert found(tmp_path / "images.parquet") == [f"{tmp_path}/images.parquet"]
    (tmp_path / "list.jsonl").write_text('{"uri": null, "image": {"bytes": null, "path": "a.png"}}\n')
    assert found(tmp_path / "list.jsonl") == [f"{tmp_path}/a.png"]


def test_pipes_devices_and_folders_that_are_named_are_error_rows_before_the_run(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "list.txt").write_text(f"{tmp_path}/pipe.jpg\n/dev/zero\n{tmp_path}/folder.jpg\n")
    rows = plan_rows(planned(tmp_path / "out", tmp_path / "list.txt"))
    odd = "cannot be read: It is a pipe, a socket or a device, and no file."
    assert [(row["error_code"], row["error"]) for row in rows] == [
        ("read_error", f"/dev/zero {odd}"),
        ("read_error", f"{tmp_path}/folder.jpg cannot be read: Is a directory."),
        ("read_error", f"{tmp_path}/pipe.jpg {odd}"),
    ]
    (row,) = plan_rows(planned(tmp_path / "alone", tmp_path / "pipe.jpg"))
    assert row["error"] == f"{tmp_path}/pipe.jpg {odd}"


def test_a_pipe_is_nowhere_waited_for(tmp_path):
    for name in ("list.txt", "list.parquet", "segray.json", "video.mp4", "masks"):
        os.mkfifo(tmp_path / name)
    odd = "It is a pipe, a socket or a device, and no file"
    for read in (
        lambda: found(tmp_path / "list.txt"),
        lambda: index_video(f"{tmp_path}/video.mp4"),
        lambda: locators.read_mask(f"{tmp_path}/masks"),
        lambda: locators.read_image(f"{tmp_path}/masks"),
        lambda: read_info(str(tmp_path)),
    ):
        with pytest.raises(SegrayError, match=odd):
            read()
    with pytest.raises(StorageError, match="masks cannot be listed: Not a directory"):
        find_images(str(tmp_path / "masks"))  # --truth
    assert len(plan_rows(planned(tmp_path / "out", tmp_path / "list.parquet"))) == 1


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_lists_name_files_relative_or_whole_and_missing_ones_keep_their_row(root, kind, tmp_path):
    names = [f"{root}/a.png", "b/c.JPG", "gone.png", f"{root}/a.png"]
    if kind == "txt":
        data = "\r\n".join([*names, ""]).encode()
    elif kind == "jsonl":
        data = "\n".join([json.dumps({"uri": names[0], "x": 1}), *map(json.dumps, names[1:])]).encode()
    else:
        sink = io.BytesIO()
        pq.write_table(pa.table({"number": [1, 2, 3, 4], "path": names}), sink)
        data = sink.getvalue()
    storage.create(f"{root}/list.{kind}", data)
    plan = planned(tmp_path / "out", f"{root}/list.{kind}")
    assert [(row["uri"], row["error_code"]) for row in plan_rows(plan)] == [
        (f"{root}/a.png", None),
        (f"{root}/b/c.JPG", None),
        (f"{root}/gone.png", "input_missing"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_which_a_list_tells_size_and_etag_are_not_asked_for(tmp_path, s3, monkeypatch, kind):
    rows = [{"uri": f"{s3}/gone/{i}.png", "size": i, "etag": f'"e{i}"'} for i in range(3)]
    if kind == "jsonl":
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    monkeypatch.setattr(storage, "stat", None)
    files = list(inputs.find_inputs([f"{tmp_path}/list.{kind}"]))
    assert [(file.name.decode(), file.size, file.stamp, file.error) for file in files] == [
        (f"{s3}/gone/{i}.png", i, f"e{i}", None) for i in range(3)
    ]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_s3_inventory_is_its_bucket_without_a_listing(tmp_path, s3, monkeypatch, kind):
    """Only the newest versions of what would be taken from the bucket, and nothing that segray wrote."""
    bucket, _, top = f"{s3}/{tmp_path.name}"[5:].partition("/")
    names = [
        "a b.png",
        "ä/1.mp4",
        "notes.md",
        "old.png",
        "removed.png",
        "out/labels/part-0.parquet",
        "out/0.png",
        "dir/",
    ]
    names += ["out/_segray/plan-00000.json"]
    rows = [
        {
            **{"Bucket": bucket, "Key": f"{top}/{name}", "IsLatest": name != "old.png"},
            **{"IsDeleteMarker": name == "removed.png", "Size": i, "ETag": f"e{i}"},
        }
        for i, name in enumerate(names)
    ]
    rows[4] |= {"Size": None, "ETag": None}
    if kind == "CSV":
        lines = io.StringIO()
        cells = (
            [bucket, quote_plus(row["Key"]), *("" if cell is None else str(cell) for cell in list(row.values())[2:])]
            for row in rows
        )
        csv.writer(lines, quoting=csv.QUOTE_ALL).writerows(
            [[cell.lower() if cell in ("True", "False") else cell for cell in row] for row in cells]
        )
        data, schema = gzip.compress(lines.getvalue().encode()), "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag"
    else:
        own = [
            dict(zip(("bucket", "key", "is_latest", "is_delete_marker", "size", "e_tag"), row.values(), strict=True))
            for row in rows
        ]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(own), sink)
        data, schema = sink.getvalue(), "message s3.inventory { required binary bucket (UTF8); }"
    storage.create(f"s3://{bucket}/{top}/inventory/data/1", data)
    files = [{"key": f"{top}/inventory/data/1", "size": len(data), "MD5checksum": ""}]
    about = {"sourceBucket": bucket, "destinationBucket": f"arn:aws:s3:::{bucket}", "fileFormat": kind}
    manifest = f"s3://{bucket}/{top}/inventory/manifest.json"
    storage.create(manifest, json.dumps(about | {"fileSchema": schema, "files": files}).encode())
    listed = list(inputs.find_inputs([manifest], on_note=(notes := []).append))
    assert [(file.name.decode(), file.size, file.stamp) for file in listed] == [
        (f"s3://{bucket}/{top}/a b.png", 0, "e0"),
        (f"s3://{bucket}/{top}/ä/1.mp4", 1, "e1"),
    ]
    assert notes == ["Skipped: 1 .md.", f"Skipped, as segray wrote them: s3://{bucket}/{top}/out."]


def test_a_manifest_of_something_else_is_one_line(tmp_path):
    for text, says in (
        ("[1]", "is no manifest of an S3 Inventory; give a folder, a glob or a list."),
        (
            '{"sourceBucket": "a", "destinationBucket": "b", "fileSchema": "", "fileFormat": "ORC", "files": []}',
            ": an inventory in ORC is not read; have it written as CSV or Parquet.",
        ),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError) as error:
            inputs.find_inputs([f"{tmp_path}/manifest.json"])
        assert str(error.value) == f"{tmp_path}/manifest.json{'' if says.startswith(':') else ' '}{says}"


def test_what_a_list_must_not_name_is_a_row_with_the_reason(tmp_path, predictor):
    names = ["http://169.254.169.254/a.png", "simplecache::file:///etc/passwd", "s3://k:s@b/a.png", "", '"\\ud800.png"']
    (tmp_path / "list.jsonl").write_text("\n".join([*map(json.dumps, names[:3]), "", names[4]]))
    plan = planned(tmp_path / "out", tmp_path / "list.jsonl")
    label_all(plan, predictor)
    summary = parts.finish([plan], {})
    assert (summary["rows"], summary["ok"]) == (4, 0)
    assert parts.verify([plan]) == []
    messages = pq.read_table(tmp_path / "out" / "errors.parquet")["error_message"].to_pylist()
    assert sum("only local paths, s3://, gs:// and az:// are read" in text for text in messages) == 2


@pytest.mark.parametrize(
    ("line", "text"),
    [("{", "line 2 is not JSON"), ("{}", "line 2 names no file; give it under one of the keys uri, path")],
)
def test_a_list_that_is_none_is_one_line(tmp_path, line, text):
    (tmp_path / "list.jsonl").write_text(f'"a.png"\n{line}\n')
    with pytest.raises(DataError, match=text):
        found(f"{tmp_path}/list.jsonl")


@pytest.mark.parametrize("kind", ["hub", "binary"])
def test_images_inside_parquet_are_rows_of_it(root, kind, tmp_path, predictor):
    cells = [picture(i) for i in range(5)]
    cells[3] = None
    image = cells if kind == "binary" else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(cells)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": image, "text": list("abcde")}), sink, row_group_size=2)
    storage.create(f"{root}/p/images.parquet", sink.getvalue())
    plan = planned(tmp_path / "out", f"{root}/p", shard_size=3)
    label_all(plan, predictor)
    rows = [row for shard in range(plan.shards) for row in pq.read_table(plan.part_uri(shard)).to_pylist()]
    assert [(row["frame_index"], row["status"]) for row in rows] == list(enumerate(["ok", "ok", "ok", "error", "ok"]))
    assert rows[3]["error_message"] == f"{root}/p/images.parquet, row 3 is empty."
    assert locators.read_image(locators.image_place(rows[4]))[0, 0].tolist() == [4, 0, 0]
    assert list(read_images(f"{root}/p/images.parquet", [1, 2, 4])) == [cells[1], cells[2], cells[4]]


def test_a_parquet_without_images_or_torn_is_an_error_row(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"number": [1]}), folder / "numbers.parquet")
    (folder / "torn.parquet").write_bytes(b"PAR1")
    rows = plan_rows(planned(tmp_path / "out", folder))
    assert [row["error_code"] for row in rows] == ["decode_error"] * 2
    assert rows[0]["error"].endswith("numbers.parquet has no column called image, nor one other of encoded images.")
    assert rows[1]["error"].startswith(f"{folder}/torn.parquet cannot be read: Parquet file size is 4 bytes")


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """20 frames at uneven times: 10 in the first second, 10 in the following four; a keyframe every 5."""
    path = tmp_path_factory.mktemp("drive") / "drive.mp4"
    write_video(path, pts=[*range(10), *range(10, 50, 4)], g="5", sc_threshold="0")
    return path


@pytest.mark.parametrize(
    ("more", "frames"),
    [
        ({}, list(range(20))),
        ({"every": 6}, [0, 6, 12, 18]),
        ({"fps": 1.0}, [0, 10, 13, 15, 18]),  # at 0, 1, 2.2, 3 and 4.2 s: the first at or after each second
        ({"fps": 1000.0}, list(range(20))),
        ({"limit": 7}, list(range(7))),
    ],
)
def test_frames_of_a_video_by_number_or_by_time(drive, tmp_path, more, frames):
    rows = plan_rows(planned(tmp_path / "out", drive, **more))
    assert [row["frame_index"] for row in rows] == frames
    assert [row["before_pts"] for row in rows] == [None, *(row["pts"] for row in rows[:-1])]


def test_spans_of_a_video_begin_at_keyframes(drive, tmp_path):
    plan = planned(tmp_path / "out", drive, shard_size=4)
    assert [row["frame_index"] for row in plan_rows(plan) if row["shard"] == 1] == [5, 6, 7, 8, 9]
    assert plan.shards == 4


def test_a_video_that_was_cut_before_the_plan_has_its_frames_and_a_row_that_says_so(drive, tmp_path, predictor):
    whole = tmp_path / "whole.mkv"
    write_video(whole, pts=range(0, 60, 2))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    plan = planned(tmp_path / "out", tmp_path / "in")
    label_all(plan, predictor)
    summary = parts.finish([plan], {})
    assert summary["errors"] == {"video_truncated": 1, "decode_error": 2}  # the last two may not be what they seem
    assert 5 < summary["ok"] < 30
    messages = pq.read_table(tmp_path / "out" / "errors.parquet")["error_message"].to_pylist()
    assert sum("s of the 5.9 s that its header states; it was cut." in message for message in messages) == 1
    assert parts.verify([plan]) == []


@pytest.mark.parametrize("suffix", ["mts", "m2ts", "3gp", "wmv", "flv", "h264", "hevc", "vob", "mxf", "MP4"])
def test_a_folder_gives_the_videos_of_cameras_and_recorders(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").touch()
    assert found(str(tmp_path)) == [f"{tmp_path}/a.{suffix}"]


def test_a_cut_video_that_was_replaced_by_the_whole_one_has_all_its_frames_after_another_try(tmp_path, predictor):
    video, out = tmp_path / "in" / "a.mkv", str(tmp_path / "out")
    video.parent.mkdir()
    write_video(video, pts=range(60))
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    first = planned(out, video)
    label_all(first, predictor)
    before = parts.finish([first], {})
    assert before["errors"]["video_truncated"] == 1

    video.write_bytes(whole)
    second = make_plan(out, first.settings, SPACE, [first], LabelFolder([first]).failed_rows())
    label_all(second, predictor)
    summary = parts.finish([first, second], {})
    assert (summary["rows"], summary["ok"], summary["errors"]) == (60, 60, {})
    assert parts.verify([first, second]) == []
    ok = [row for row in pq.read_table(tmp_path / "out" / "labels").to_pylist() if row["status"] == "ok"]
    assert sorted(row["frame_index"] for row in ok) == list(range(60))


def test_a_sample_is_a_share_and_the_same_every_time(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i}.png").touch()
    some = [row["uri"] for row in plan_rows(planned(tmp_path / "a", folder, sample=0.25))]
    assert 70 < len(some) < 130
    more = [row["uri"] for row in plan_rows(planned(tmp_path / "b", folder, sample=0.5))]
    assert set(some) < set(more)
    with pytest.raises(DataError, match="Nothing is left of 400 files"):
        planned(tmp_path / "c", folder, sample=1e-9)


@pytest.mark.parametrize("part", [{"sample": 0.25}, {"limit": 400, "sample": 0.25}, {"limit": 100}])
def test_the_last_shards_of_a_part_of_the_images_are_small_too(tmp_path, monkeypatch, part):
    """Here of a fifth of the rows that are left, and of 8 at least."""
    monkeypatch.setattr(planning, "SHARD_ROWS", 4)
    monkeypatch.setattr(planning, "GROWTH", 5)
    (tmp_path / "in").mkdir()
    for i in range(400):
        (tmp_path / "in" / f"{i}.png").touch()
    plan = planned(tmp_path / "out", tmp_path / "in", shard_size=None, **part)
    rows = [PlanReader(plan).rows_in(shard) for shard in range(plan.shards)]
    assert max(rows) in (9, 10)
    assert max(rows[-2:]) == 8


@pytest.mark.parametrize("kind", ["images", "cells"])
def test_shards_grow_with_the_number_of_rows_whatever_they_come_from(tmp_path, monkeypatch, kind):
    """Here to a tenth of the rows before them, up to 20, from 16 on; with images also to a tenth of the rows after."""
    monkeypatch.setattr(planning, "SHARD_ROWS", 16)
    monkeypatch.setattr(planning, "GROWTH", 10)
    monkeypatch.setattr(planning, "MOST_ROWS", 20)
    (tmp_path / "in").mkdir()
    count = 480 if kind == "images" else 320
    for i in range(count if kind == "images" else 0):
        (tmp_path / "in" / f"{i}.png").touch()
    if kind == "cells":  # in groups of one
        pq.write_table(pa.table({"image": [b""] * count}), tmp_path / "in" / "a.parquet", row_group_size=1)
    plan = planned(tmp_path / "out", tmp_path / "in", shard_size=None)
    rows = [PlanReader(plan).rows_in(shard) for shard in range(plan.shards)]
    assert rows[:11] == [16] * 11  # 16 is a tenth of 160
    assert rows[11:13] == [17, 19]
    if kind == "cells":
        assert set(rows[14:-1]) == {20}
    else:  # 212 rows are done, and 268 left
        assert rows[13:] == [20, 20, 20, 20, 18, 17, *[16] * 9, 9]
    assert sum(rows) == plan.rows == count
    assert [len(PlanReader(plan).shard(shard)) for shard in range(plan.shards)] == rows


def test_a_plan_is_several_files_whose_hashes_stand_in_its_json(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "FILE_SHARDS", 3)
    monkeypatch.setattr(planning, "FILE_ROWS", 8)
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i:02}.png").touch()
    plan, wide = (planned(tmp_path / f"out{size}", tmp_path / "in", shard_size=size) for size in (1, 4))
    assert [file.shards for file in plan.files] == [3, 3, 3, 3, 3, 3, 2]
    assert [file.shards for file in wide.files] == [2, 2, 1]
    assert [row["uri"] for row in plan_rows(plan)] == [f"{tmp_path}/in/{i:02}.png" for i in range(20)]
    assert [row["shard"] for row in plan_rows(plan)] == list(range(20))
    reader = PlanReader(plan)
    assert [reader.shard(shard)[0]["shard"] for shard in (19, 0, 10, 19)] == [19, 0, 10, 19]
    assert reader.columns(["shard"])["shard"].to_pylist() == list(range(20))
    for file in plan.files:
        data = (tmp_path / "out1" / "_segray" / file.name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file.sha256
    again = planned(tmp_path / "again", tmp_path / "in", shard_size=1)
    assert (again.plan_id, again.files) == (plan.plan_id, plan.files)


def test_many_videos_are_looked_into_elsewhere_and_the_plan_is_the_same(drive, tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(drive.read_bytes() if name != "b.mp4" else b"torn")
    looked = []

    @contextmanager
    def elsewhere(place):
        assert place == f"{tmp_path}/a.mp4"
        yield lambda work, items: (looked.append(item.name) or work(pickle.loads(pickle.dumps(item))) for item in items)

    settings = settings_of([tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")])
    here = make_plan(str(tmp_path / "here"), settings, SPACE, spread=elsewhere)
    assert not looked  # too few
    monkeypatch.setattr("segray.core.labels.units.MANY", 3)
    there = make_plan(str(tmp_path / "there"), settings, SPACE, spread=elsewhere)
    assert len(looked) == 3
    assert (there.plan_id, there.rows) == (here.plan_id, here.rows)


def test_names_of_parts_sort_as_their_numbers_do(tmp_path):
    (tmp_path / "a.png").touch()
    plan = planned(tmp_path / "out", tmp_path / "a.png")
    assert plan.part_uri(0).endswith(f"/labels/part-00000-of-00001-{plan.plan_id[:8]}.parquet")
    many = [replace(plan, shards=123_456).part_uri(shard) for shard in (0, 7, 99_999, 100_000, 123_455)]
    assert many == sorted(many)
    assert many[1].endswith(f"/labels/part-000007-of-123456-{plan.plan_id[:8]}.parquet")


def test_a_plan_of_the_version_before_is_read(tmp_path):
    """All its rows are in one file, and their numbers stand in its footer alone."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    plan = planned(tmp_path / "out", *(tmp_path / name for name in ("a.png", "b.png", "c.png")), shard_size=2)
    folder = tmp_path / "out" / "_segray"
    (folder / plan.files[0].name).rename(folder / f"plan-{plan.plan_id[:8]}.parquet")
    about = json.loads((folder / "plan-00000.json").read_text()) | {"schema_version": 2}
    old = {key: value for key, value in about.items() if key not in ("files", "shard_rows")}
    (folder / "plan-00000.json").write_text(json.dumps(old))
    (loaded,) = load_plans(plan.out)
    assert [PlanReader(loaded).rows_in(shard) for shard in range(2)] == [2, 1]
    assert [row["uri"] for row in plan_rows(loaded)] == [f"{tmp_path}/{name}" for name in ("a.png", "b.png", "c.png")]
    (folder / "plan-00000.json").write_text(json.dumps(old | {"schema_version": 1}))
    with pytest.raises(OutputExists, match="a segray whose plans have version 1, this one's 3; give another --out"):
        load_plans(plan.out)


def test_new_inputs_are_a_further_plan_and_old_parts_stay(tmp_path, predictor):
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    for name in ("a.png", os.fsdecode(b"\xff.png")):
        (folder / name).write_bytes(picture(1))
    first = planned(out, folder)
    label_all(first, predictor)
    assert parts.finish([first], {})["rows"] == 2
    assert make_plan(out, first.settings, SPACE, [first]) is None  # nothing is new

    (folder / "b.png").write_bytes(picture(2))
    before = storage.read_bytes(first.part_uri(0))
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(picture(1))  # of the new ones, none needs a mask
    second = make_plan(out, first.settings | {"truth": str(tmp_path / "truth")}, SPACE, [first])
    assert [row["uri"] for row in plan_rows(second)] == [f"{folder}/b.png"]
    assert load_plans(out) == [first, second]
    assert read_summary([first, second]) is None  # _SUCCESS spoke of the first alone
    label_all(second, predictor)
    assert parts.finish([first, second], {})["rows"] == 3
    assert parts.verify(load_plans(out)) == []
    assert storage.read_bytes(first.part_uri(0)) == before


def test_an_input_that_changed_since_it_was_planned_is_said(tmp_path):
    """Of two that are there still, one is another picture by now; one that was not there then is no other."""
    folder, out, notes = tmp_path / "in", str(tmp_path / "out"), []
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture(1))
    (tmp_path / "list.txt").write_text("in/a.png\nin/b.png\nin/late.png\n")
    first = make_plan(out, settings_of([tmp_path / "list.txt"]), SPACE)
    for name in ("b.png", "late.png", "new.png"):
        (folder / name).write_bytes(picture(2))
    second = make_plan(out, settings_of([folder]), SPACE, [first], on_note=notes.append)
    assert [row["uri"] for row in plan_rows(second)] == [f"{folder}/new.png"]
    assert notes == [
        f"Changed since they were planned, and not labelled again: 1, such as {folder}/b.png. "
        "Another --out labels them as they are now."
    ]


def test_of_two_extensions_that_race_both_find_their_inputs_planned(tmp_path, monkeypatch):
    out, folders = str(tmp_path / "out"), [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        (folder / "1.png").write_bytes(picture())
    first = planned(out, folders[0])
    write_rows, theirs = planning._write_rows, []

    def meanwhile(*arguments):
        monkeypatch.setattr(planning, "_write_rows", write_rows)
        theirs.append(make_plan(out, settings_of([folders[1]]), SPACE, [first]))
        return write_rows(*arguments)

    monkeypatch.setattr(planning, "_write_rows", meanwhile)
    mine = make_plan(out, settings_of([folders[1], folders[2]]), SPACE, [first])
    assert load_plans(out) == [first, *theirs, mine]
    assert [row["uri"] for row in plan_rows(mine)] == [f"{folders[2]}/1.png"]


def test_failed_inputs_are_tried_again_as_a_further_plan(tmp_path, predictor, drive):
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.mp4"):
        (folder / name).write_bytes(picture() if name == "a.png" else b"torn")
    first = planned(out, folder)
    label_all(first, predictor)
    assert parts.finish([first], {})["errors"] == {"decode_error": 3}

    (folder / "b.png").write_bytes(picture())
    (folder / "d.mp4").write_bytes(drive.read_bytes())
    failed = LabelFolder([first]).failed_rows()
    assert {row["uri"].rpartition("/")[2] for row in failed.values()} == {"b.png", "c.png", "d.mp4"}
    second = make_plan(out, first.settings, SPACE, [first], failed)
    label_all(second, predictor)
    summary = parts.finish([first, second], {})
    assert (summary["rows"], summary["ok"], summary["errors"]) == (1 + 1 + 1 + 20, 22, {"decode_error": 1})
    assert pq.read_table(tmp_path / "out" / "errors.parquet")["uri"].to_pylist() == [f"{folder}/c.png"]
    assert parts.verify([first, second]) == []
    ok = [row for row in pq.read_table(tmp_path / "out" / "labels").to_pylist() if row["status"] == "ok"]
    assert len({row["input_id"] for row in ok}) == len(ok) == 22
    assert summary["class_pixels"] == np.sum([row["class_pixels"] for row in ok], axis=0).tolist()

    third = make_plan(out, first.settings, SPACE, [first, second], LabelFolder([first, second]).failed_rows())
    label_all(third, predictor)
    assert parts.finish([first, second, third], {})["errors"] == {"decode_error": 1}


def test_a_file_that_never_was_is_not_gone_at_another_try(tmp_path, predictor):
    (tmp_path / "list.txt").write_text("a.png\n")
    first = planned(tmp_path / "out", tmp_path / "list.txt")
    label_all(first, predictor)
    parts.finish([first], {})
    again = make_plan(first.out, first.settings, SPACE, [first], LabelFolder([first]).failed_rows())
    assert [row["error"] for row in plan_rows(again)] == [f"{tmp_path}/a.png does not exist."]


def test_what_was_made_with_other_settings_is_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    plan = planned(tmp_path / "out", tmp_path / "a.png", mean=[0.5, 0.5, 0.5])
    with pytest.raises(OutputExists, match=r"\(mean was \[0.5, 0.5, 0.5\], is \[0, 0, 0\]\)\. Give another --out"):
        check_same(plan, {**plan.settings, "mean": [0, 0, 0]})
    with pytest.raises(OutputExists, match="or --extend for further inputs"):
        check_same(plan, {**plan.settings, "inputs": ["elsewhere"]})


def test_runs_of_ids_give_the_mask_back(tmp_path, predictor):
    (tmp_path / "a.png").write_bytes(picture())
    masks = {}
    for kind in ("png", "rle", "none"):
        plan = planned(tmp_path / kind, tmp_path / "a.png", mask_format=kind)
        label_all(plan, predictor)
        parts.finish([plan], {})
        assert parts.verify([plan]) == []
        (row,) = pq.read_table(tmp_path / kind / "labels").to_pylist()
        masks[kind] = locators.mask_of(row)
    assert np.array_equal(masks["png"], masks["rle"])
    assert masks["none"] is None


def test_work_ahead_keeps_its_order_and_its_errors():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert list(ahead(pool, lambda i: i * i, range(20), 3)) == [i * i for i in range(20)]
        with pytest.raises(ZeroDivisionError):
            list(ahead(pool, lambda i: 1 // i, [1, 0], 1))


def test_a_file_that_is_larger_than_any_image_is_not_read(tmp_path):
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "a.jpg").open("wb") as file:
        file.truncate(1 << 36)  # of which the disk holds nothing
    plan = make_plan(str(tmp_path / "out"), settings_of([tmp_path / "in"]), streets.LABEL_SPACE)
    (error,) = encoded(plan_rows(plan))
    assert str(error) == (
        f"{tmp_path}/in/a.jpg has 68,719,476,736 bytes, more than any image that is read; it is none."
    )
