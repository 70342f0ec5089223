"""Run folders in, one HTML page out: what it shows, what it never does, and how it looks in a real browser."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray import report as module
from segray.core import images, metrics
from segray.core.rows import ROW_SCHEMA
from segray.core.samples import LabelSpace
from segray.errors import ConfigError, DataError, OutputExists
from segray.report import report

SPACE = LabelSpace(("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))
CONFUSION = np.array([[80, 10, 0], [5, 25, 0], [0, 0, 0]])  # sky is nowhere: undefined
CONFIG = "data:\n  format: camvid\n  root: data/camvid\n  val_split: val\n"
PLAN_ID = "0123456789abcdef"
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


def ok_row(name, mask_hw, **values):
    row = {"input_id": f"id of {name}", "uri": f"/gone/{name}", "status": "ok", "entropy_mean": 0.5}
    row["mask"] = {"bytes": images.encode_mask(mask_hw, SPACE.colors), "path": "m.png"}
    return row | {"class_pixels": np.bincount(mask_hw.ravel(), minlength=3).tolist()} | values


def error_row(uri, code="decode_error", message="torn"):
    return {"input_id": f"id of {uri}", "uri": uri, "status": "error", "error_code": code, "error_message": message}


def write_labels(folder, rows, shards=2, finished=True, space=SPACE):
    """What label leaves: the plan, parts of consecutive rows, and _SUCCESS; unfinished: the first part alone."""
    for name in ("_segray", "labels"):
        (folder / name).mkdir(parents=True)
    plan = {"schema_version": 2, "plan_id": PLAN_ID, "rows": len(rows), "shards": shards, "model_id": "ab12"}
    plan["settings"] = {"every": 1, "mask_format": "png"}
    (folder / "_segray" / "plan-00000.json").write_text(json.dumps(plan | {"label_space": space.to_dict()}))
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
    (folder / "truth.png").write_bytes(images.encode_mask(truth, [(0, 0, 0)] * 256))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / f"frame-{i}.jpg")
        pred = np.ones(size, np.uint8)
        pred[:i] = 0
        places = {"uri": str(folder / f"frame-{i}.jpg"), "truth_uri": str(folder / "truth.png")}
        rows.append(ok_row(f"frame-{i}", pred, miou=1 - i / 10, **places))
    return rows


def page_of(tmp_path, runs=(), labels=()):
    return report(runs, labels, str(tmp_path / "page.html"), overwrite=True).read_text()


def table_rows(page):
    """Texts of every table row: '<tr><td>1<td>a</tr>' → ['1', 'a']."""
    rows = [re.split(r"<t[hd][^>]*>", row)[1:] for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    return [[re.sub(r"<small.*?</small>|<[^>]*>", "", cell).strip() for cell in row] for row in rows]


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
    """A sweep, a run and two label folders, one of them unfinished, as a page."""
    rows = [*labelled_images(tmp_path / "frames"), error_row("torn.jpg")]
    labels = [write_labels(tmp_path / "val", rows), write_labels(tmp_path / "drive", rows, finished=False)]
    return page_of(tmp_path, [write_sweep(tmp_path / "sweep"), write_run(tmp_path / "run")], labels)


def test_page_loads_nothing_and_runs_no_script(full_page):
    tags = Tags(full_page).found
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in tags
    places = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset")]
    assert places
    assert all(place.startswith(("data:image/", "#")) for place in places)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}
    assert "@import" not in full_page


def test_ids_are_unique_and_every_reference_in_a_chart_is_met(full_page):
    charts = re.findall(r"<svg.*?</svg>", full_page, re.S)
    assert len(charts) == 8  # three curves and a matrix, for the sweep and for the run
    for chart in set(charts):
        ids = re.findall(r' id="([^"]+)"', chart)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', chart)) <= set(ids)


def test_same_folders_give_the_same_bytes(tmp_path):
    run = write_run(tmp_path / "run")
    assert page_of(tmp_path, [run]) == page_of(tmp_path, [run])


def test_class_table_shows_the_scores_of_the_bundle(tmp_path):
    page = page_of(tmp_path, [write_run(tmp_path / "run")])
    # road: IoU 80 / (90 + 5), F1 160 / 175, sensitivity 80 / 90, specificity 25 / 30, 90 of 120 pixels
    assert table_rows(page)[1:] == [
        ["road", "", "84.2%", "91.4%", "88.9%", "83.3%", "75.0%"],
        ["car", "", "62.5%", "76.9%", "83.3%", "88.9%", "25.0%"],
        ["sky", "", "–", "–", "–", "–", "0.0%"],
    ]


def test_header_sets_the_best_miou_beside_the_majority_baseline(tmp_path):
    page = page_of(tmp_path, [write_run(tmp_path / "run")])
    cards = re.findall(r'<p class="label">(.*?)</p><p class="value">(.*?)</p><p class="note">(.*?)</p>', page)
    # (84.2 + 62.5) / 2, and road everywhere: (90 / 120 + 0) / 2
    assert cards == [("Best mIoU", "73.4%", "run"), ("Baseline mIoU", "37.5%", "always “road”")]
    assert "Measured on the val split of data/camvid at 240 × 180 pixels: 120 labelled pixels." in page


def test_leaderboard_shows_every_trial_and_why_one_failed(tmp_path):
    page = page_of(tmp_path, [write_sweep(tmp_path / "sweep")])
    assert table_rows(page)[1:3] == [
        ["1", "unet-a", "", "43.2%", "87.6%", "3", "14.3 M", "–", "–", "–", "40.1 s", "finished"],
        ["2", "unet-b", "", "–", "–", "0", "–", "–", "–", "–", "40.1 s", "failed"],
    ]
    assert "Out of memory." in page


def test_leaderboard_with_costs_shows_the_front_and_the_settings(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", trials=("unet-a", "unet-b", "unet-c", "unet-d"))
    board = json.loads((tmp_path / "sweep" / "leaderboard.json").read_text())
    for i, row in enumerate(board[:3]):
        row |= {"miou": 0.5 - i / 10, "miou_mean": 0.5 - i / 10, "miou_spread": 0.012, "label_images_per_s": 4.5 + i}
        row |= {"peak_memory_mib": 812.4, "gmacs": 2.5, "cost_per_million": 74.1, "pareto": True, "chosen": i == 1}
        row["settings"] = json.dumps({"model.encoder": f"resnet{i}", "train.learning_rate": 10.0 ** -(i + 1)})
    (tmp_path / "sweep" / "leaderboard.json").write_text(json.dumps(board))
    page = page_of(tmp_path, [sweep])
    cells = ["40.0%", "87.6%", "3", "14.3 M", "5.5", "2.5", "812", "74.1", "40.1 s", "finished"]
    assert table_rows(page)[2] == ["2", "unet-b", "", *cells]
    assert "mean 40.0% ± 1.2" in page
    assert page.count("<small>best/</small>") == 1
    assert "Score against speed" in page
    assert "Settings of each trial" in page
    assert "unet-b" in re.search(r'<p class="label">Best mIoU.*?</div>', page, re.S)[0]


def test_run_without_a_finished_epoch_says_so(tmp_path):
    page = page_of(tmp_path, [write_run(tmp_path / "run", epochs=0, best=False)])
    assert "nothing has been scored yet" in page
    assert "<svg" not in page


def test_gallery_shows_best_and_worst_with_truth_and_errors(tmp_path):
    page = page_of(tmp_path, labels=[write_labels(tmp_path / "val", labelled_images(tmp_path / "frames", 9))])
    frames = re.findall(r"<article.*?<span>(frame-\d).jpg ?</span>.*?mIoU (\S+)", page, re.S)
    worst, best = [("frame-8", "20.0%"), ("frame-7", "30.0%")], [("frame-0", "100.0%"), ("frame-1", "90.0%")]
    assert frames[:2] == best
    assert frames[4:6] == worst
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page)[:4] == ["Image", "Truth", "Prediction", "Errors"]


def test_error_map_marks_wrong_pixels_and_void():
    image, truth = np.full((1, 3, 3), 200, np.uint8), np.array([[0, 1, 255]], np.uint8)
    shown = module.error_map(image, truth, np.zeros((1, 3), np.uint8), ignore_index=255)
    assert shown.tolist() == [[[90, 90, 90], list(module.WRONG_RGB), list(module.VOID_RGB)]]


def test_uncertain_frames_are_taken_apart_from_each_other():
    assert module.apart([50, 51, 49, 10, 90], most=3, total=100) == [50, 10, 90]


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
    page = page_of(tmp_path, labels=[write_labels(tmp_path / "labels", rows)])
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page)[:3] == ["Image", "Prediction", "Overlay"]
    assert "Shown without it" not in page
    assert "drive.mp4 · frame 5 <span" in page
    assert "Classes over time" in page
    assert 'car <span class="muted">100.0%' in page


def test_missing_source_leaves_the_mask_and_a_note(tmp_path):
    rows = [ok_row("a.jpg", np.zeros((8, 8), np.uint8))]
    page = page_of(tmp_path, labels=[write_labels(tmp_path / "labels", rows, shards=1)])
    assert "/gone/a.jpg cannot be read: No such file or directory. Shown without it." in page
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["Prediction"]


def test_unfinished_labels_are_said_to_be_and_counted_from_their_rows(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8)) for i in range(5)] + [error_row("torn.jpg")]
    page = page_of(tmp_path, labels=[write_labels(tmp_path / "labels", rows[::-1], finished=False)])
    assert "<b>Unfinished:</b> 1 of 2 parts are there, 3 of 6 frames." in page
    assert ["decode_error", "1", "torn.jpg", "torn"] in table_rows(page)


def test_labels_without_a_single_part_give_a_page(tmp_path):
    place = write_labels(tmp_path / "labels", [error_row("a"), error_row("b")], finished=False)
    shutil.rmtree(tmp_path / "labels" / "labels")
    assert "0 of 2 parts are there, 0 of 2 frames." in page_of(tmp_path, labels=[place])


def test_finished_labels_that_lost_a_part_are_said_to_be_incomplete(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8)) for i in range(4)]
    place = write_labels(tmp_path / "labels", rows)
    next((tmp_path / "labels" / "labels").glob("part-00001*")).unlink()
    assert "the run had finished, but 1 of 2 parts are there now" in page_of(tmp_path, labels=[place])


def test_parts_of_another_plan_are_not_counted(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8)) for i in range(4)]
    place = write_labels(tmp_path / "labels", rows, finished=False)
    parts = tmp_path / "labels" / "labels"
    shutil.copy(next(parts.glob("*.parquet")), parts / "part-00001-of-00002-ffffffff.parquet")
    assert "1 of 2 parts are there, 2 of 4 frames." in page_of(tmp_path, labels=[place])


def test_names_and_messages_from_outside_are_inert(tmp_path):
    space = LabelSpace((HOSTILE, "</text></svg><script>x</script>", r"$\frac{$"), SPACE.colors)
    sweep = write_sweep(tmp_path / "sweep", trials=("unet-a", HOSTILE), error=HOSTILE)
    write_run(tmp_path / "other", space=space)
    shutil.copytree(tmp_path / "other" / "best", tmp_path / "sweep" / "best", dirs_exist_ok=True)
    (tmp_path / "sweep" / "config.yaml").write_text(f"data: {{root: '{HOSTILE[:28]}'}} # </pre><script>")
    rows = [ok_row(HOSTILE, np.zeros((8, 8), np.uint8)), error_row("torn", code=HOSTILE, message=HOSTILE)]
    page = page_of(tmp_path, [sweep], [write_labels(tmp_path / "labels", rows, space=space)])
    tags = Tags(page).found
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in tags if tag == "img")
    assert page.count("&lt;img src=x onerror=alert(1)&gt;gpj.exe") > 8
    assert not set(page) & {"\u202e", "\x07"}
    assert r"$\frac{$" in page


def test_trial_names_do_not_lead_out_of_the_folder(tmp_path):
    write_run(tmp_path / "secret", epochs=9)
    sweep = write_sweep(tmp_path / "sweep", trials=("unet-a", "../../secret"))
    assert module.read_run(sweep).histories["../../secret"] == []


def test_only_masks_of_the_gallery_are_decoded(tmp_path):
    rows = [ok_row(f"frame-{i}", np.zeros((8, 8), np.uint8), miou=i / 400) for i in range(400)]
    for row in rows[4:-4]:
        row["mask"] = {"bytes": b"no PNG", "path": ""}
    page = page_of(tmp_path, labels=[write_labels(tmp_path / "labels", rows, shards=4)])
    assert page.count("<article") == 8


def test_page_stays_below_ten_megabytes_with_the_worst_of_pictures(tmp_path):
    rng = np.random.default_rng(0)
    size = (module.THUMB_PX, module.THUMB_PX)
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / "noise.jpg")
    ids = rng.integers(0, 3, size, np.uint8)
    (tmp_path / "noise.png").write_bytes(images.encode_mask(ids, SPACE.colors))
    places = {"uri": str(tmp_path / "noise.jpg"), "truth_uri": str(tmp_path / "noise.png")}
    rows = [ok_row(f"f-{i}", np.roll(ids, i + 1), miou=0.1, **places) for i in range(9)]
    page = page_of(tmp_path, labels=[write_labels(tmp_path / f"labels-{i}", rows) for i in range(3)])
    assert page.count("<article") == module.GALLERY_ROWS
    assert len(page) < 10e6


def test_many_classes_keep_the_matrix_to_the_most_frequent(tmp_path):
    counts = np.diag(np.arange(150))
    chart = module.confusion_chart(counts, [f"class {i}" for i in range(150)])
    assert "class 120<" in chart
    assert "class 119<" not in chart


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({}, ConfigError, "Nothing to report: report.runs and report.labels are empty. Name a folder in one."),
        (
            {"runs": ["{tmp}/none"]},
            DataError,
            "{tmp}/none does not exist. Name a folder that segray train or segray sweep wrote.",
        ),
        (
            {"runs": ["{tmp}"]},
            DataError,
            "{tmp} holds no leaderboard.json or history.jsonl or best/segray.json. "
            "Name a folder that segray train or segray sweep wrote.",
        ),
        (
            {"labels": ["{tmp}"]},
            DataError,
            "{tmp} holds no _segray/plan-00000.json. Name a folder that segray label wrote.",
        ),
    ],
)
def test_folder_that_cannot_be_reported_says_why(tmp_path, given, error, text):
    places = {key: [place.format(tmp=tmp_path) for place in value] for key, value in given.items()}
    with pytest.raises(error) as raised:
        report(places.get("runs", []), places.get("labels", []), str(tmp_path / "page.html"))
    assert str(raised.value) == text.format(tmp=tmp_path)


def test_torn_history_names_its_line(tmp_path):
    run = write_run(tmp_path / "run")
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"epoch": 4, ')
    with pytest.raises(DataError, match=r"run/history\.jsonl line 4 is not JSON: .* Restore it, or leave"):
        page_of(tmp_path, [run])


def test_torn_part_is_named(tmp_path):
    place = write_labels(tmp_path / "labels", [error_row("a")], shards=1)
    part = next((tmp_path / "labels" / "labels").iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{part.name} cannot be read: .* run segray label again\."):
        page_of(tmp_path, labels=[place])


def test_page_that_exists_is_kept_unless_overwrite_is_given(tmp_path):
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(OutputExists) as raised:
        report([run], [], str(out))
    assert str(raised.value) == f"{out} exists already. Choose another report.out, or pass --overwrite."
    assert out.read_text() == "mine"
    assert report([run], [], str(out), overwrite=True) == out
    assert "Segmentation report" in out.read_text()


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (module.pct(0.4123), "41.2%"),
        (module.pct(None), "–"),
        (module.pct(float("nan")), "–"),
        (module.count(14328354), "14,328,354"),
        (module.short(14328354), "14.3\N{NO-BREAK SPACE}million"),
        (module.number(0.001), "0.001"),
        (module.duration(3725), "1 h 02 min"),
        (module.clean("a\u202eb\x00\udc80"), "ab"),
    ],
)
def test_numbers_and_names_as_text(shown, text):
    assert shown == text


def test_report_loads_neither_ray_nor_torch_nor_click():
    code = "import sys, segray.report; print(sorted({'ray', 'torch', 'click'} & set(sys.modules)))"
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


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_page_in_a_real_browser_on_a_phone(full_page, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    complaints = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        page_width = page.evaluate("document.documentElement.scrollWidth")
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        browser.close()
    assert complaints == []
    assert len(widths) > 16
    assert all(width > 0 for width in widths)
    assert page_width <= 390
    assert ink == "rgb(160, 167, 176)"  # --muted of the dark scheme: charts follow it
