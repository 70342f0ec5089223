"""Folders in, one HTML page out: what it shows, what it never does, and how it works in a real browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray import __version__
from segray.cli import terminal
from segray.core import formatting, metrics
from segray.core.io import locators, storage
from segray.core.io.masks import encode_mask
from segray.core.labels import digest
from segray.core.labels.schema import ROW_SCHEMA
from segray.core.samples import LabelSpace
from segray.errors import ConfigError, DataError, OutputExists
from segray.pages import charts, folders, gallery
from segray.stages.report import report

SPACE = LabelSpace(("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))
CONFUSION = np.array([[80, 10, 0], [5, 25, 0], [0, 0, 0]])  # sky is nowhere: undefined
CONFIG = "data:\n  format: camvid\n  root: data/camvid\n  val_split: val\n"
PLAN_ID = "0123456789abcdef"
PANELS = ["Image", "Ground truth", "Prediction", "Errors", "Overlay"]
NAME_ONE = "Name a folder that segray train, sweep, evaluate, compare or label wrote."
HOSTILE = "<img src=x onerror=alert(1)>\u202egpj.exe\x07"


def write_run(folder, epochs=3, space=SPACE, best=True):
    """What train leaves: config, history, best bundle."""
    (folder / "best").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    epoch = {"loss": 1.5, "val_loss": 1.25, "miou": 0.25, "pixel_accuracy": 0.5}
    lines = [json.dumps({"epoch": i + 1, **epoch}) + "\n" for i in range(epochs)]
    (folder / "history.jsonl").write_text("".join(lines))
    if best:
        facts = {"label_space": space.to_dict(), "confusion": CONFUSION.tolist(), "epoch": epochs}
        facts |= {"scores": metrics.scores(CONFUSION).to_dict(), "input_size": "180x240", "model_id": "ab12"}
        (folder / "best" / "segray.json").write_text(json.dumps(facts))
    return str(folder)


def write_sweep(folder, trials=("unet-a", "unet-b"), error="Out of memory."):
    """What sweep leaves: trials best first, the last one failed and without a folder."""
    write_run(folder)
    (folder / "history.jsonl").unlink()
    board = []
    for rank, trial in enumerate(trials, start=1):
        row = {"rank": rank, "trial": trial, "arch": "unet", "encoder": "resnet18", "learning_rate": 0.001}
        row |= {"miou": 0.4321, "pixel_accuracy": 0.8765, "epochs": 3, "status": "finished", "error": None}
        row |= {"parameters": 14328354, "images_per_s": 12.1, "seconds": 40.1}
        if rank == len(trials):
            row |= dict.fromkeys(("miou", "pixel_accuracy", "parameters", "images_per_s"))
            row |= {"epochs": 0, "status": "failed", "error": error}
        else:
            write_run(folder / "trials" / trial, best=False)
        board.append(row)
    (folder / "leaderboard.json").write_text(json.dumps(board))
    return str(folder)


def add_costs(folder):
    """Score and cost of the first three of four trials, each worse and faster than the one before."""
    board = json.loads((folder / "leaderboard.json").read_text())
    for i, row in enumerate(board[:3]):
        row |= {"miou": 0.5 - i / 10, "miou_mean": 0.5 - i / 10, "miou_spread": 0.012, "label_images_per_s": 4.5 + i}
        row |= {"peak_memory_mib": 1812.4, "gmacs": 2.5, "cost_per_million": 74.1, "pareto": True, "chosen": i == 1}
        row["settings"] = json.dumps({"model.encoder": f"resnet{i}", "train.learning_rate": 10.0 ** -(i + 1)})
    (folder / "leaderboard.json").write_text(json.dumps(board))
    return str(folder)


def ok_row(name, mask_hw, **values):
    row = {"input_id": f"id of {name}", "uri": f"/gone/{name}", "status": "ok", "entropy_mean": 0.5}
    row["mask"] = {"bytes": encode_mask(mask_hw, SPACE.colors), "path": "m.png"}
    return row | {"class_pixels": np.bincount(mask_hw.ravel(), minlength=3).tolist()} | values


def error_row(uri, code="decode_error", message="torn"):
    return {"input_id": f"id of {uri}", "uri": uri, "status": "error", "error_code": code, "error_message": message}


def stamp_of(place):
    return storage.stat(place).stamp if Path(place).exists() else ""


def write_labels(folder, rows, shards=2, finished=True, space=SPACE):
    """What label leaves: the plan, parts of consecutive rows, and _SUCCESS; unfinished: the first part alone."""
    for name in ("_segray", "labels"):
        (folder / name).mkdir(parents=True)
    plan = {"schema_version": 2, "plan_id": PLAN_ID, "rows": len(rows), "shards": shards, "model_id": "ab12"}
    plan["settings"] = {"every": 1, "mask_format": "png"}
    (folder / "_segray" / "plan-00000.json").write_text(json.dumps(plan | {"label_space": space.to_dict()}))
    names = [{"input_id": row["input_id"], "stamp": stamp_of(row["uri"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(names), folder / "_segray" / f"plan-{PLAN_ID[:8]}.parquet")
    for i, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        if finished or i == 0:
            table = pa.Table.from_pylist([rows[j] for j in part], schema=ROW_SCHEMA)
            pq.write_table(table, folder / "labels" / f"part-{i:05}-of-{shards:05}-{PLAN_ID[:8]}.parquet")
    if finished:
        ok = [row for row in rows if row["status"] == "ok"]
        scored = any(row.get("miou") is not None for row in ok)
        success = {"plans": [PLAN_ID], "rows": len(rows), "ok": len(ok), "seconds": 12.3, "images_per_s": 9.75}
        success["class_pixels"] = np.sum([[0, 0, 0], *(row["class_pixels"] for row in ok)], 0).tolist()
        success["confusion"] = CONFUSION.tolist() if scored else None
        success["scores"] = metrics.scores(CONFUSION).to_dict() if scored else None
        success["baseline_miou"] = metrics.majority_baseline(CONFUSION).miou if scored else None
        (folder / "_SUCCESS").write_text(json.dumps(success))
    return str(folder)


def labelled_images(folder, n=6, size=(24, 32)):
    """n rows with image, truth and a prediction that is wrong in its first i rows of pixels."""
    folder.mkdir()
    truth = np.ones(size, np.uint8)
    truth[0] = 255
    (folder / "truth.png").write_bytes(encode_mask(truth, [(0, 0, 0)] * 256))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"frame-{i}.jpg")
        pred = np.ones(size, np.uint8)
        pred[:i] = 0
        places = {"uri": str(folder / f"frame-{i}.jpg"), "truth_uri": str(folder / "truth.png")}
        rows.append(ok_row(f"frame-{i}", pred, miou=1 - i / 10, **places))
    return rows


def write_evaluation(folder, frames, model="runs/camvid/best"):
    """What evaluate leaves, of rows of `labelled_images`: the worst first, each of them pictured as best or worst."""
    folder.mkdir()
    pixels = [80, 10, 5, 25]
    scores = metrics.scores(np.column_stack([CONFUSION, [0, 0, 0]])).to_dict()
    scores |= {"image_miou": 0.5, "boundary_miou": 0.25, "class_boundary": [0.25, 0.25, None], "ece": 0.125}
    found = {"frames": len(frames), "protocol": "by name", "rule": "the predicted classes", "scores": scores}
    found |= {"classes": list(SPACE.names), "label_space": SPACE.to_dict(), "baseline_miou": 0.375}
    found |= {"undecided_share": 0.0, "confusion": np.column_stack([CONFUSION, [0, 0, 0]]).tolist()}
    found |= {"not_covered": [], "missing": [], "model": model, "split": "val", "scored": "camvid val"}
    found |= {"reliability": [{"confidence": 0.5, "accuracy": 0.4, "share": 1.0}]}
    found["conditions"] = {"weather": {"rain": {"frames": 2, "miou": 0.25, "pixel_accuracy": 0.5}}}
    rows = []
    for i, frame in enumerate(sorted(frames, key=lambda frame: frame["miou"])):
        row = {"sample_id": frame["uri"], "image": frame["uri"], "mask": frame["truth_uri"], "miou": frame["miou"]}
        row |= {"pixel_accuracy": frame["miou"], "entropy_mean": 0.5, "cells": [0, 1, 4, 5], "pixels": pixels}
        row |= {
            "shown": ["worst" if 2 * i < len(frames) else "Best frames"],
            "prediction": frame["mask"],
        }  # 0.1: the title
        row["image_stamp"] = stamp_of(frame["uri"])
        row["truth"] = {"bytes": Path(frame["truth_uri"]).read_bytes(), "path": "truth.png"}
        rows.append(row)
    (folder / "scores.json").write_text(json.dumps(found))
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet")
    return str(folder)


def write_comparison(folder):
    """What compare leaves: mIoU and road better, car undecided, sky undefined."""
    folder.mkdir()
    better = {"a": 0.5, "b": 0.6, "difference": 0.1, "low": 0.05, "high": 0.15, "b_better": 1.0, "verdict": 1}
    unsure = better | {"difference": 0.01, "low": -0.05, "b_better": 0.6, "verdict": 0}
    unknown = dict.fromkeys(better)
    found = {"a": "runs/one", "b": "runs/other", "frames": 9, "draws": 10000, "seed": 0, "no_picture": None}
    found |= {"miou": better, "classes": {"road": better, "car": unsure, "sky": unknown}}
    found["images"] = [{"sample_id": "frame-3", "a": 0.25, "b": 0.75, "difference": 0.5}]
    (folder / "compare.json").write_text(json.dumps(found))
    Image.new("RGB", (1600, 400), (9, 9, 9)).save(folder / "changed.png")
    return str(folder)


def page_of(tmp_path, *folders):
    return Path(report(folders, str(tmp_path / "page.html"), overwrite=True)).read_text()


def table_rows(page):
    """Texts of every table row: '<tr><td>1<td>a</tr>' → ['1', 'a']."""
    rows = [re.split(r"<t[hd][^>]*>", row)[1:] for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    return [[re.sub(r"<small.*?</small>|<[^>]*>", "", cell).strip() for cell in row] for row in rows]


def galleries(page):
    """Names of the frames in each gallery of a page's last folder."""
    found = re.findall(
        r'<div class="gallery">\s*<h4>(.*?)</h4>(.*?)</div>\s*(?=<div class="gallery"|</div>|<p)', page, re.S
    )
    return {title: re.findall(r"<header><span>([^<]*?) ?<(?:/span|span)", text) for title, text in found}


class Tags(HTMLParser):
    """Every start tag of a page, with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def full_page(tmp_path):
    """A sweep, a run, two label folders, one of them unfinished, an evaluation and a comparison, as a page."""
    frames = labelled_images(tmp_path / "frames")
    rows = [*frames, error_row("torn.jpg")]
    labels = [write_labels(tmp_path / "val", rows), write_labels(tmp_path / "drive", rows, finished=False)]
    scored = [write_evaluation(tmp_path / "scored", frames), write_comparison(tmp_path / "compared")]
    write_sweep(tmp_path / "sweep", trials=[f"deeplabv3plus-mobilenet_v2-lr1.0e-0{i}-seed{i}" for i in range(4)])
    return page_of(tmp_path, add_costs(tmp_path / "sweep"), write_run(tmp_path / "run"), *labels, *scored)


def test_page_loads_nothing_and_runs_the_one_script_that_its_policy_names(full_page):
    tags = Tags(full_page).found
    (script,) = re.findall(r"<script>(.*?)</script>", full_page, re.S)
    known = b64encode(sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    policy += "; base-uri 'none'; form-action 'none'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in tags
    places = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset")]
    assert places
    assert all(place.startswith(("data:image/", "#")) for place in places)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}
    assert "@import" not in full_page


def test_ids_are_unique_and_every_reference_in_a_chart_is_met(full_page):
    charts = re.findall(r"<svg.*?</svg>", full_page, re.S)
    # Three curves and a matrix for the sweep and for the run, score against speed and settings for the sweep, a matrix and the frames' spread for the finished labels,
    # the spread alone for the others, both and the reliability for the evaluation, the differences of the comparison.
    assert len(charts) == 4 + 4 + 2 + 2 + 1 + 3 + 1
    for chart in set(charts):
        ids = re.findall(r' id="([^"]+)"', chart)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', chart)) <= set(ids)


def test_same_folders_give_the_same_bytes_but_for_when_and_where_they_were_written(tmp_path):
    run = write_run(tmp_path / "run")
    first, second = (page_of(tmp_path, run).splitlines() for _ in range(2))
    at = first.index("<h1>Segmentation report</h1>") + 1
    assert first[:at] + first[at + 1 :] == second[:at] + second[at + 1 :]
    software = rf"segray {re.escape(__version__)}, Python 3[\d.]+"
    line = rf"20\d\d-\d\d-\d\d \d\d:\d\d UTC · {software} · \d+ × .+, \d+ GiB, \w+"
    assert re.fullmatch(rf'<p class="caption">{line}</p>', first[at])


def test_contents_lead_to_every_part_and_heading(full_page):
    headings = re.findall(r'<(?:section|h3) id="([^"]+)">', full_page)
    (contents,) = re.findall(r'<nav aria-label="Contents">(.*?)</nav>', full_page, re.S)
    assert re.findall(r'href="#([^"]+)"', contents) == headings
    assert len(headings) == len(set(headings)) > 20
    assert "part-1-learning-curves" in headings


def test_a_bundle_says_what_it_was_trained_with(tmp_path):
    run = write_run(tmp_path / "run")
    facts = json.loads((tmp_path / "run/best/segray.json").read_text())
    facts["versions"] = {"segray": "0.1.0", "torch": "2.9.1"}
    (tmp_path / "run/best/segray.json").write_text(json.dumps(facts))
    assert "Trained with segray 0.1.0, torch 2.9.1." in page_of(tmp_path, run)


def test_class_table_shows_the_scores_of_the_bundle(tmp_path):
    page = page_of(tmp_path, write_run(tmp_path / "run"))
    # road: IoU 80 / (90 + 5), F1 160 / 175, sensitivity 80 / 90, specificity 25 / 30, 90 of 120 pixels
    assert table_rows(page)[1:4] == [
        ["road", "", "0.842", "0.914", "0.889", "0.833", "75.0%"],
        ["car", "", "0.625", "0.769", "0.833", "0.889", "25.0%"],
        ["sky", "", "–", "–", "–", "–", "0.0%"],
    ]


def test_header_sets_the_best_miou_beside_the_majority_baseline(tmp_path):
    page = page_of(tmp_path, write_run(tmp_path / "run"))
    cards = re.findall(r'<p class="label">(.*?)</p><p class="value">(.*?)</p><p class="note">(.*?)</p>', page)
    # (84.2 + 62.5) / 2, and road everywhere: (90 / 120 + 0) / 2
    assert cards == [("Best mIoU", "0.734", "run"), ("Baseline mIoU", "0.375", "always “road”")]
    assert "Measured on the val split of data/camvid at 240 × 180 pixels: 120 labelled pixels." in page


def test_a_run_says_what_it_was_trained_on(tmp_path):
    folder = Path(write_run(tmp_path / "run", epochs=1))
    row = json.loads((folder / "history.jsonl").read_text())
    devices = ["8 × H100 80GB HBM3, bf16", "2 CPU workers × 1 thread, fp32", "2 CPU workers × 1 thread, fp32"]
    rows = [json.dumps(row | {"epoch": i, "device": device}) for i, device in enumerate(devices, 1)]
    (folder / "history.jsonl").write_text("\n".join(rows))
    page = Path(report([str(folder)], str(tmp_path / "r.html"))).read_text()
    assert "Trained on 8 × H100 80GB HBM3, bf16; 2 CPU workers × 1 thread, fp32." in page


def test_leaderboard_shows_every_trial_and_why_one_failed(tmp_path):
    page = page_of(tmp_path, write_sweep(tmp_path / "sweep"))
    assert table_rows(page)[1:3] == [
        ["1", "unet-a", "0.432", "0.876", "3", "14,328,354", "–", "–", "–", "40 s"],
        ["2", "unet-b", "–", "–", "0", "–", "–", "–", "–", "40 s"],
    ]
    assert "Out of memory." in page
    assert " · failed</small>" in page


def test_leaderboard_with_costs_shows_the_front_and_the_settings(tmp_path):
    write_sweep(tmp_path / "sweep", trials=("unet-a", "unet-b", "unet-c", "unet-d"))
    page = page_of(tmp_path, add_costs(tmp_path / "sweep"))
    cells = ["0.400", "0.876", "3", "14,328,354", "5.5", "2.5", "1,812", "74.1", "40 s"]
    assert table_rows(page)[2] == ["2", "unet-b", *cells]
    assert "mean 0.400 ± 0.012" in page
    assert page.count("<b>best/</b>") == 1
    assert "Score against speed" in page
    assert "Settings of each trial" in page
    assert "unet-b" in re.search(r'<p class="label">Best mIoU.*?</div>', page, re.S)[0]


def test_run_without_a_finished_epoch_says_so(tmp_path):
    page = page_of(tmp_path, write_run(tmp_path / "run", epochs=0, best=False))
    assert "nothing has been scored yet" in page
    assert "<svg" not in page


def test_gallery_shows_best_and_worst_with_truth_and_errors(tmp_path):
    page = page_of(tmp_path, write_labels(tmp_path / "val", labelled_images(tmp_path / "frames", 9)))
    shown = galleries(page)
    assert shown["Best frames"] == ["frame-0.jpg", "frame-1.jpg", "frame-2.jpg", "frame-3.jpg"]
    assert shown["Worst frames"] == ["frame-8.jpg", "frame-7.jpg", "frame-6.jpg", "frame-5.jpg"]
    assert "mIoU 0.200" in page
    assert re.findall(r"<figcaption>([\w ]+)</figcaption>", page)[:5] == PANELS


def test_gallery_of_right_and_wrong_frames_goes_by_their_pixels(tmp_path):
    rows = labelled_images(tmp_path / "frames", 4)
    for i, row in enumerate(rows):
        row["pixel_accuracy"] = (i + 1) / 10  # the other way round than mIoU
    page = page_of(tmp_path, write_labels(tmp_path / "val", rows))
    assert galleries(page) == {
        "Best frames": ["frame-0.jpg", "frame-1.jpg"],
        "Worst frames": ["frame-3.jpg", "frame-2.jpg"],
    }
    also = [text.partition(" and ")[0] for text in re.findall(r"Also one of the (.*?)\.</p>", page)]
    assert also == 2 * ["incorrectly classified frames"] + 2 * ["correctly classified frames"]


def test_a_frame_of_two_galleries_is_pictured_once(tmp_path):
    page = page_of(tmp_path, write_labels(tmp_path / "val", labelled_images(tmp_path / "frames", 2)))
    assert galleries(page) == {"Best frames": ["frame-0.jpg"], "Worst frames": ["frame-1.jpg"]}
    assert page.count("Also one of the most uncertain frames.") == 1
    assert page.count("<img") == 2 * len(PANELS)


def test_error_map_marks_wrong_pixels_and_void():
    image, truth = np.full((1, 3, 3), 200, np.uint8), np.array([[0, 1, 255]], np.uint8)
    shown = gallery.error_map(image, truth, np.zeros((1, 3), np.uint8), ignore_index=255)
    assert shown.tolist() == [[[90, 90, 90], list(gallery.WRONG_RGB), list(gallery.VOID_RGB)]]


def test_video_gets_overlays_and_its_classes_over_time(tmp_path):
    place = str(tmp_path / "drive.mp4")
    with av.open(place, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(6):
            frame = np.full((48, 64, 3), 40 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    shown = {"uri": place, "video_uri": place}
    mask = np.ones((48, 64), np.uint8)
    rows = [ok_row(f"drive.mp4#{i}", mask, frame_index=i, time_s=i / 10, **shown) for i in range(6)]
    for i, row in enumerate(rows[1:], 1):
        row |= {"flicker_share": i / 10, "entropy_mean": 0.5 - i / 10}
    page = page_of(tmp_path, write_labels(tmp_path / "labels", rows))
    assert re.findall(r"<figcaption>([\w ]+)</figcaption>", page)[:3] == ["Image", "Prediction", "Overlay"]
    assert "Shown without it" not in page
    shown = galleries(page)
    assert shown["A spread of frames"] == ["drive.mp4 · frame 0", "drive.mp4 · frame 2", "drive.mp4 · frame 3"]
    assert shown["Most uncertain frames"][0] == "drive.mp4 · frame 1"  # frame 0 is pictured above
    assert shown["Most flickering frames"] == ["drive.mp4 · frame 5", "drive.mp4 · frame 4"]
    assert "flicker 50.0%" in page
    assert "Classes over time" in page
    assert 'car <span class="muted">100.0%' in page


def test_missing_source_leaves_the_mask_and_a_note(tmp_path):
    rows = [ok_row("a.jpg", np.zeros((8, 8), np.uint8))]
    page = page_of(tmp_path, write_labels(tmp_path / "labels", rows, shards=1))
    gone = "/gone/a.jpg does not exist; it was moved or deleted, or its name is mistyped. Shown without it."
    assert gone in page
    assert re.findall(r"<figcaption>([\w ]+)</figcaption>", page) == ["Prediction"]


@pytest.mark.parametrize("kind", ["labels", "evaluation"])
def test_an_image_that_has_changed_is_not_drawn_under_the_masks_of_another(tmp_path, kind):
    write = {"labels": write_labels, "evaluation": write_evaluation}[kind]
    place = write(tmp_path / "out", labelled_images(tmp_path / "frames", 2))
    assert "has changed" not in page_of(tmp_path, place)
    os.utime(tmp_path / "frames" / "frame-1.jpg", (0, 0))
    page = page_of(tmp_path, place)
    assert page.count("frame-1.jpg has changed since its masks were made. Shown without it.") == 1
    assert page.count('alt="Image of') == 1
    assert page.count('alt="Prediction of') == 2


def test_torn_mask_is_a_note(tmp_path):
    rows = [ok_row("a.jpg", np.zeros((8, 8), np.uint8), mask={"bytes": b"no PNG", "path": "m.png"})]
    page = page_of(tmp_path, write_labels(tmp_path / "labels", rows, shards=1))
    assert re.search(r"labels/part-00000-of-00001-\w+\.parquet#row=0 is not an image", page)
    assert "<img" not in page


def test_unfinished_labels_are_said_to_be_and_counted_from_their_rows(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8)) for i in range(5)] + [error_row("torn.jpg")]
    page = page_of(tmp_path, write_labels(tmp_path / "labels", rows[::-1], finished=False))
    assert "<b>Unfinished:</b> 1 of 2 parts are there, 3 of 6 frames." in page
    assert ["decode_error", "1", "torn.jpg", "torn"] in table_rows(page)


def test_labels_without_a_single_part_give_a_page(tmp_path):
    place = write_labels(tmp_path / "labels", [error_row("a"), error_row("b")], finished=False)
    shutil.rmtree(tmp_path / "labels" / "labels")
    assert "0 of 2 parts are there, 0 of 2 frames." in page_of(tmp_path, place)


def test_finished_labels_that_lost_a_part_are_said_to_be_incomplete(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8)) for i in range(4)]
    place = write_labels(tmp_path / "labels", rows)
    next((tmp_path / "labels" / "labels").glob("part-00001*")).unlink()
    assert "the run had finished, but 1 of 2 parts are there now" in page_of(tmp_path, place)


def test_labels_in_a_bucket_are_reported_into_one(tmp_path, s3):
    import s3fs

    place = write_labels(tmp_path / "labels", labelled_images(tmp_path / "frames"))
    s3fs.S3FileSystem().put(place, f"{s3}/report/labels", recursive=True)
    assert report([f"{s3}/report/labels"], f"{s3}/report/page.html") == f"{s3}/report/page.html"
    page = s3fs.S3FileSystem().cat(f"{s3}/report/page.html").decode()
    assert galleries(page) == galleries(page_of(tmp_path, place))


def test_parts_of_another_plan_are_not_counted(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8)) for i in range(4)]
    place = write_labels(tmp_path / "labels", rows, finished=False)
    parts = tmp_path / "labels" / "labels"
    shutil.copy(next(parts.glob("*.parquet")), parts / "part-00001-of-00002-ffffffff.parquet")
    assert "1 of 2 parts are there, 2 of 4 frames." in page_of(tmp_path, place)


def write_hostile(tmp_path):
    """Folders of every kind whose names, classes, files, messages and settings are markup."""
    space = LabelSpace((HOSTILE, "</text></svg><script>x</script>", r"$\frac{$"), SPACE.colors)
    sweep = write_sweep(tmp_path / "sweep", trials=("unet-a", HOSTILE), error=HOSTILE)
    write_run(tmp_path / "other", space=space)
    shutil.copytree(tmp_path / "other" / "best", tmp_path / "sweep" / "best", dirs_exist_ok=True)
    (tmp_path / "sweep" / "config.yaml").write_text(f"data: {{root: '{HOSTILE[:28]}'}} # </pre><script>")
    rows = [ok_row(HOSTILE, np.zeros((8, 8), np.uint8)), error_row("torn", code=HOSTILE, message=HOSTILE)]
    labels = write_labels(tmp_path / "'onload=alert(1) \"<b>", rows, space=space)
    scored = write_evaluation(tmp_path / "scored", labelled_images(tmp_path / "frames"), model=HOSTILE)
    found = json.loads((tmp_path / "scored" / "scores.json").read_text())
    found |= {"classes": list(space.names), "label_space": space.to_dict(), "rule": HOSTILE, "scored": HOSTILE}
    found |= {"missing": [HOSTILE], "not_covered": [HOSTILE]}
    found["conditions"] = {HOSTILE: {HOSTILE: {"frames": 1, "miou": None, "pixel_accuracy": 0.5}}}
    found["scores"]["category_iou"] = {HOSTILE: 0.5}
    (tmp_path / "scored" / "scores.json").write_text(json.dumps(found))
    compared = write_comparison(tmp_path / "compared")
    found = json.loads((tmp_path / "compared" / "compare.json").read_text())
    found |= {"a": HOSTILE, "classes": {HOSTILE: found["miou"]}}
    found["images"][0]["sample_id"] = HOSTILE
    (tmp_path / "compared" / "compare.json").write_text(json.dumps(found))
    return page_of(tmp_path, sweep, labels, scored, compared)


def test_names_and_messages_from_outside_are_inert(tmp_path):
    page = write_hostile(tmp_path)
    tags = Tags(page).found
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in tags if tag == "img")
    assert page.count("&lt;img src=x onerror=alert(1)&gt;gpj.exe") > 20
    assert not set(page) & {"\u202e", "\x07"}
    assert r"$\frac{$" in page


def test_trial_names_do_not_lead_out_of_the_folder(tmp_path):
    write_run(tmp_path / "secret", epochs=9)
    sweep = write_sweep(tmp_path / "sweep", trials=("unet-a", "../../secret"))
    assert folders.read_run(sweep).histories["../../secret"] == []


def test_only_masks_of_the_gallery_are_decoded(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        locators, "decode_mask", lambda data, source: decoded.append(source) or np.zeros((8, 8), np.uint8)
    )
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8), miou=i / 400) for i in range(400)]
    page = page_of(tmp_path, write_labels(tmp_path / "labels", rows, shards=4))
    # best, worst, uncertain
    assert page.count("<article") + page.count("Also one of the ") == 3 * digest.EACH
    assert 0 < len(decoded) <= 3 * digest.EACH


def test_page_stays_below_ten_megabytes_with_the_worst_of_pictures(tmp_path):
    rng = np.random.default_rng(0)
    size = (gallery.THUMB_PX, gallery.THUMB_PX)
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / "noise.jpg")
    ids = rng.integers(0, 3, size, np.uint8)
    (tmp_path / "noise.png").write_bytes(encode_mask(ids, SPACE.colors))
    places = {"uri": str(tmp_path / "noise.jpg"), "truth_uri": str(tmp_path / "noise.png")}
    scores = ("miou", "pixel_accuracy", "entropy_mean")
    rows = [ok_row(f"f-{i}", np.roll(ids, i + 1), **places, **dict.fromkeys(scores, (i + 1) / 10)) for i in range(9)]
    page = page_of(tmp_path, *(write_labels(tmp_path / f"labels-{i}", rows) for i in range(3)))
    assert folders.PICTURE_BYTES / 2 < len(page) < 10e6
    shown = galleries(page)
    assert {"Best frames", "Worst frames"} <= set(shown)  # the room is shared out over the galleries


def test_evaluation_shows_classes_averages_conditions_and_frames(tmp_path):
    page = page_of(tmp_path, write_evaluation(tmp_path / "scored", labelled_images(tmp_path / "frames", 4)))
    rows = table_rows(page)
    assert ["road", "", "0.842", "0.914", "0.889", "0.833", "0.250", "75.0%"] in rows
    assert ["Mean of image mIoU", "0.500", "the mean of the frames&#39; own mIoU"] in rows
    assert [
        "Expected calibration error",
        "0.125",
        "the mean distance of confidence and accuracy; 0 is perfectly calibrated",
    ] in rows
    assert ["weather", "rain", "2", "", "0.250", "0.500"] in rows
    assert "Lowest 0.700, quartiles" in page
    shown = galleries(page)
    assert [name.rpartition("/")[2] for name in shown["Best frames"]] == ["frame-0.jpg", "frame-1.jpg"]
    assert [name.rpartition("/")[2] for name in shown["Worst frames"]] == ["frame-3.jpg", "frame-2.jpg"]
    assert re.findall(r"<figcaption>([\w ]+)</figcaption>", page) == 4 * PANELS
    assert "<b>runs/camvid/best</b> has mIoU 0.734 and pixel accuracy 0.875 on camvid val" in page


def test_notes_of_an_evaluation_are_no_warnings(tmp_path):
    place = write_evaluation(tmp_path / "scored", labelled_images(tmp_path / "frames", 4))
    scores = tmp_path / "scored" / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"notes": ["Read as folder."]}))
    assert '<p class="caption">Read as folder.</p>' in page_of(tmp_path, place)


@pytest.mark.parametrize(("first", "how"), [("road", "not scored"), ("background", "scored as background")])
def test_classes_that_a_model_lacks_are_said_to_be_its_background_where_they_are(tmp_path, first, how, capsys):
    place = write_evaluation(tmp_path / "scored", labelled_images(tmp_path / "frames", 4))
    scores = tmp_path / "scored" / "scores.json"
    found = json.loads(scores.read_text()) | {"not_covered": ["fence"], "classes": [first, "car", "sky"], "notes": []}
    found["label_space"]["names"][0] = first
    scores.write_text(json.dumps(found))
    assert f"are not predicted, and {how}: fence." in page_of(tmp_path, place)
    terminal.show_scores(found)
    assert f"Classes that this model does not know, {how}: fence." in capsys.readouterr().out


def test_comparison_says_what_is_more_than_noise(tmp_path):
    page = page_of(tmp_path, write_comparison(tmp_path / "compared"))
    assert "B is better than A: mIoU 0.500 and 0.600, B − A +0.100, 95&nbsp;% interval +0.050 to +0.150." in page
    assert ["car", "0.500", "0.600", "+0.010", "0.600"] in table_rows(page)
    assert ["sky", "–", "–", "–", "–"] in table_rows(page)
    assert page.count("data:image/jpeg") == 1


def test_labels_show_where_the_time_went(tmp_path):
    place = write_labels(tmp_path / "labels", [ok_row("a", np.zeros((8, 8), np.uint8))], shards=1)
    success = json.loads((tmp_path / "labels" / "_SUCCESS").read_text())
    success |= {"new_rows": 200, "stage_seconds": {"model": 3.0, "decode": 1.0}}
    (tmp_path / "labels" / "_SUCCESS").write_text(json.dumps(success))
    page = page_of(tmp_path, place)
    assert table_rows(page)[-2:] == [["decode", "", "1", "25.0%", "5"], ["model", "", "3", "75.0%", "15"]]
    assert "200 frames in 12 s" in page


def test_ten_thousand_frames_stay_a_small_page(tmp_path):
    frames = labelled_images(tmp_path / "frames", 2, size=(360, 480))
    rows = [frames[i % 2] | {"input_id": str(i), "miou": i / 10_000} for i in range(10_000)]
    page = page_of(tmp_path, write_labels(tmp_path / "labels", rows, shards=40))
    assert len(page) < 10e6
    assert "The 600 frames of lowest mIoU, of 10,000" in page


@pytest.mark.parametrize(("epochs", "ticks"), [([1], ["1"]), ([7], ["7"]), ([1, 2], ["1", "2"])])
def test_curves_have_ticks_at_whole_epochs(epochs, ticks):
    rows = [{"epoch": epoch, "loss": 1.5, "val_loss": 1.5, "miou": 0.25, "pixel_accuracy": 0.5} for epoch in epochs]
    chart = charts.learning_curves({"run": rows}, None)["mIoU"]
    below, _ = chart.split(">epoch<")
    assert re.findall(r">([\d.]+)</text>", below) == ticks


def test_many_classes_keep_the_matrix_to_the_most_frequent(tmp_path):
    counts = np.diag(np.arange(150))
    chart = charts.confusion_chart(counts, [f"class {i}" for i in range(150)])
    assert "class 120<" in chart
    assert "class 119<" not in chart


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ([], ConfigError, "Nothing to report; name the folders of runs, evaluations, comparisons or labels."),
        (["{tmp}/none"], DataError, "{tmp}/none does not exist. " + NAME_ONE),
        (
            ["{tmp}"],
            DataError,
            "{tmp} holds none of _segray/plan-00000.json, scores.json, compare.json, leaderboard.json, history.jsonl, "
            "best/segray.json. " + NAME_ONE,
        ),
    ],
)
def test_folder_that_cannot_be_reported_says_why(tmp_path, given, error, text):
    with pytest.raises(error) as raised:
        report([place.format(tmp=tmp_path) for place in given], str(tmp_path / "page.html"))
    assert str(raised.value) == text.format(tmp=tmp_path)


def test_a_folder_of_several_names_them(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text("{}")
    with pytest.raises(DataError, match=rf"compare or label wrote: {tmp_path}/a, {tmp_path}/b\.$"):
        report([str(tmp_path)], str(tmp_path / "page.html"))


def test_evaluation_without_masks_says_what_to_do(tmp_path):
    place = write_evaluation(tmp_path / "old", labelled_images(tmp_path / "frames"))
    rows = pq.read_table(tmp_path / "old" / "images.parquet")
    pq.write_table(rows.drop_columns(["shown", "truth", "prediction"]), tmp_path / "old" / "images.parquet")
    with pytest.raises(
        DataError, match=r"old was made by an older segray, without masks; evaluate again with --overwrite\."
    ):
        page_of(tmp_path, place)


def test_torn_history_names_its_line(tmp_path):
    run = write_run(tmp_path / "run")
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"epoch": 4, ')
    with pytest.raises(DataError, match=r"run/history\.jsonl line 4 is not JSON: .* Restore it, or leave"):
        page_of(tmp_path, run)


def test_torn_part_is_named(tmp_path):
    place = write_labels(tmp_path / "labels", [error_row("a")], shards=1)
    part = next((tmp_path / "labels" / "labels").iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{part.name} cannot be read: .* run again what wrote it\."):
        page_of(tmp_path, place)


def test_page_that_exists_is_kept_unless_overwrite_is_given(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(OutputExists) as raised:
        report([run], str(out))
    assert str(raised.value) == f"{out} exists already. Choose another --out, or pass --overwrite."
    assert out.read_text() == "mine"
    assert report([run], str(out), overwrite=True) == str(out)
    assert "Segmentation report" in out.read_text()


def test_folders_and_the_page_may_be_in_ones_home_and_the_page_has_them_as_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "run")
    assert report(["~/run"], "~/page.html") == "~/page.html"
    page = (tmp_path / "page.html").read_text()
    assert (">~/run<" in page, str(tmp_path) in page) == (True, False)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (formatting.counted(1, "frame"), "1 frame"),
        (formatting.counted(0, "frame"), "0 frames"),
        (formatting.counted(12_000, "frame is", "frames are"), "12,000 frames are"),
        (formatting.pct(0.4123), "41.2%"),
        (formatting.score(0.4123), "0.412"),
        (formatting.change(0.1), "+0.100"),
        (formatting.change(None), "–"),
        (formatting.pct(None), "–"),
        (formatting.pct(float("nan")), "–"),
        (formatting.count(14328354), "14,328,354"),
        (formatting.short(14328354), "14.3\N{NO-BREAK SPACE}million"),
        (formatting.number(0.001), "0.001"),
        (formatting.number(1e-5), "0.00001"),
        (formatting.number(0.0), "0"),
        (formatting.number(12.14), "12.1"),
        (formatting.number(1234.5), "1,234"),
        (formatting.number(-1234567), "-1,234,567"),
        (formatting.duration(3725), "1 h 2 min"),
        (formatting.clean("a\u202eb\x00\udc80"), "ab"),
    ],
)
def test_numbers_and_names_as_text(shown, text):
    assert shown == text


def test_report_loads_neither_ray_nor_torch_nor_click():
    code = "import sys, segray.stages.report; print(sorted({'ray', 'torch', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CHROMIUM = shutil.which("chromium")
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def browse(tmp_path):
    """Open tmp_path/page.html in a real browser; at the end nothing was complained about and every picture was there."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    complaints = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)

        def open_page(width=1100, **options):
            page = browser.new_page(viewport={"width": width, "height": 800}, **options)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "request",
                lambda request: None if request.url[:5] in ("file:", "data:") else complaints.append(request.url),
            )
            page.add_init_script(
                "document.addEventListener('securitypolicyviolation', (e) => console.log(e.blockedURI))"
            )
            page.goto((tmp_path / "page.html").as_uri())
            widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
            assert all(width > 0 for width in widths)
            return page

        yield open_page
        browser.close()
    assert complaints == []


@pytest.mark.parametrize("width", [390, pytest.param(768, marks=pytest.mark.long), 1100])
def test_nothing_is_wider_than_the_window(full_page, browse, width):
    page = browse(width)
    assert page.evaluate("document.images.length") > 16
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1100:
        boxes = "[...document.querySelectorAll('.scroll, .panelbox, .long, .square')]"
        assert (
            page.evaluate(f"{boxes}.filter(box => box.scrollWidth > box.clientWidth).map(box => box.outerHTML)") == []
        )
    if width == 390:  # what does not fit scrolls and shows that it does, instead of being folded or tiny
        heads = page.evaluate("[...document.querySelectorAll('thead')].map(head => head.offsetHeight)")
        assert max(heads) < 40
        text_px = "svg => 10 * svg.getBoundingClientRect().width / parseFloat(svg.style.getPropertyValue('--width'))"
        assert min(page.evaluate(f"[...document.querySelectorAll('.square svg, .long svg')].map({text_px})")) >= 8.9
        shade = "getComputedStyle(document.querySelector('{}')).backgroundAttachment"
        boxes = (".scroll", ".square", ".long")
        assert {page.evaluate(shade.format(box)) for box in boxes} == {"local, local, scroll, scroll"}


def test_charts_follow_the_dark_scheme_and_are_dark_on_paper(full_page, browse):
    page = browse(color_scheme="dark")
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    assert page.evaluate(ink) == "rgb(160, 167, 176)"  # --muted of the dark scheme
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(ink) == "rgb(92, 99, 109)"
    assert page.pdf()[:5] == b"%PDF-"


def column(page, label, i):
    rows = page.locator(f"table[aria-label='{label}'] tbody tr").all()
    return [row.locator("th, td").nth(i).inner_text() for row in rows]


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(tmp_path, browse):
    page_of(tmp_path, write_run(tmp_path / "run"))
    page = browse()
    table = page.locator("table[aria-label='Scores by class']")
    heads = table.locator("thead th")
    assert column(page, "Scores by class", 2) == ["0.842", "0.625", "–"]
    button = table.get_by_role("button", name="Specificity")
    button.click()
    assert column(page, "Scores by class", 5) == ["0.889", "0.833", "–"]  # the highest first
    assert heads.nth(5).get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert column(page, "Scores by class", 5) == ["0.833", "0.889", "–"]  # what is undefined stays last
    assert heads.nth(5).get_attribute("aria-sort") == "ascending"
    table.get_by_role("button", name="Class").press("Space")
    assert column(page, "Scores by class", 0) == ["car", "road", "sky"]
    assert [heads.nth(i).get_attribute("aria-sort") for i in (0, 5)] == ["ascending", None]


def test_galleries_and_table_are_filtered_by_class_and_by_score(tmp_path, browse):
    page_of(tmp_path, write_labels(tmp_path / "val", labelled_images(tmp_path / "frames", 9)))
    page = browse()

    def listed():
        return sorted(
            row.inner_text() for row in page.locator("table[aria-label='Frames'] tbody th").all() if row.is_visible()
        )

    def pictured():
        return sum(frame.is_visible() for frame in page.locator("article").all())

    assert (len(listed()), pictured()) == (9, 8)
    kind, (low, high) = page.locator(".filter select"), page.locator(".filter input").all()
    kind.select_option("road")  # frame 0 has none
    assert listed() == [f"frame-{i}.jpg" for i in range(1, 9)]
    low.fill("0.35")
    high.fill("0.8")
    assert listed() == [f"frame-{i}.jpg" for i in range(2, 7)]  # of mIoU 0.8 to 0.4
    assert page.locator("output").inner_text() == f"{pictured()} of 8 pictured, 5 of 9 listed"
    kind.select_option("sky")
    assert (listed(), pictured()) == ([], 0)
    assert not page.get_by_role("heading", name="Best frames").is_visible()
    kind.select_option("any")
    low.fill("")
    high.fill("")
    assert (len(listed()), pictured()) == (9, 8)


def test_hostile_names_stay_text_in_a_browser(tmp_path, browse):
    write_hostile(tmp_path)
    page = browse()
    asked = []
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    for button in page.get_by_role("button").all():
        button.click()
        page.keyboard.press("Escape")  # of a picture that is shown large
    assert asked == []
    assert page.locator("script").count() == 1
    assert page.get_by_text("<img src=x onerror=alert(1)>").count() > 10


def test_a_picture_is_enlarged_with_its_legend_and_left_by_the_keyboard(tmp_path, browse):
    page_of(tmp_path, write_labels(tmp_path / "val", labelled_images(tmp_path / "frames", 4)))
    page = browse()
    small = page.locator(".panels img").first.bounding_box()["width"]
    page.get_by_role("button", name="Enlarge: Image of frame-0.jpg").click()
    large = page.locator("dialog img")
    assert large.bounding_box()["width"] > 3 * small
    assert page.locator("dialog .legend li").first.inner_text().startswith("road")
    page.keyboard.press("ArrowRight")
    assert large.get_attribute("alt") == "Ground truth of frame-0.jpg"
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_without_its_script_the_page_shows_everything(full_page, browse):
    page = browse(java_script_enabled=False)
    assert page.locator(".filter:visible").count() == 0
    assert page.locator("article:visible").count() == full_page.count("<article") > 0
