"""Buckets in the place of folders: what commands read from them and write to them, and what says that it cannot."""

from functools import partial

import pytest
from running import run

from segray.core.data import streets
from segray.core.io import storage

TINY = ("--arch", "unet-plain", "--set", "model.options={channels: 4}", "--epochs", "1", "--batch-size", "4")


@pytest.fixture
def segray(tmp_path, monkeypatch, capsys):
    """A command in an empty folder: (exit code, stdout, stderr). What it would write to s3: on the disk fails the test."""
    monkeypatch.chdir(tmp_path)

    yield partial(run, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def town(s3, tmp_path_factory):
    """Four drawn streets and two for validation, in a bucket."""
    drawn = streets.write(tmp_path_factory.mktemp("town") / "town", train=4, val=2, size=(32, 48), video_s=0)
    for file in drawn.rglob("*"):
        if file.is_file():
            storage.replace(f"{s3}/{file.relative_to(drawn.parent)}", file.read_bytes())
    return f"{s3}/town"


def test_data_a_run_its_scores_and_the_report_may_all_be_in_a_bucket(segray, town, s3):
    data, out = ("--format", "streets", "--data", town), f"{s3}/runs"
    train = ("train", *data, *TINY, "--workers", "0", "--out", f"{out}/a")
    steps = [
        (("data", "check", "--format", "streets", town), "Training can start."),
        (train, f"Next: segray label --model {out}/a/best --input FRAMES --out labels"),
        (("status", f"{out}/a"), f"{out}/a: train, finished: 1 of 1 epoch"),
        (("evaluate", f"{out}/a/best", *data, "--out", f"{out}/scores"), f"Scores are in {out}/scores/scores.json"),
        (
            ("show", f"{town}/val/street_050000.jpg", "--model", f"{out}/a/best", "--out", out),
            f"{out}/street_050000.jpg-map.png\n{out}/street_050000.jpg-overlay.png\n",
        ),
        (("report", f"{out}/a", f"{out}/scores", "--out", f"{out}/page.html"), f"The report is {out}/page.html."),
    ]
    for args, line in steps:
        code, said, err = segray(*args)
        assert (code, err, line in said) == (0, "", True), said + err
    assert f">{out}/scores<" in storage.read_bytes(f"{out}/page.html").decode()


LOCAL = [
    (("demo", "--out", "s3://b/x"), "s3://b/x: a demo"),
    (("data", "draw", "s3://b/x"), "s3://b/x: a drawn town"),
    (("data", "get", "camvid", "s3://b/x"), "s3://b/x: a download"),
    (("select", "s3://b/labels", "--pictures", "s3://b/x"), "s3://b/x: a folder of pictures"),
    (("overlay", "s3://b/labels", "--video", "s3://b/x.mp4"), "s3://b/x.mp4: a video"),
]


@pytest.mark.parametrize(("args", "what"), LOCAL)
def test_what_can_be_written_to_a_disk_alone_says_so(segray, args, what):
    line = f"segray: {what} is written to a local disk. Name a place there, and copy it afterwards.\n"
    assert segray(*args) == (2, "", line)


def test_an_archive_in_a_bucket_is_copied_first(segray):
    line = "s3://b/x.zip: archives are fetched from http(s):// and local files. Copy it, and name the file."
    assert segray("data", "get", "camvid", "camvid", "--url", "s3://b/x.zip") == (2, "", f"segray: {line}\n")
