"""The whole pipeline on drawn streets, from drawing to the report."""

from __future__ import annotations

import sys
import time
import webbrowser
from pathlib import Path

from segray.cli.terminal import labelling, say, show_labels, show_leaderboard, sweeping
from segray.cluster import connect
from segray.config import Config
from segray.core.data import streets
from segray.core.io import claims, storage
from segray.core.labels.totals import Summary
from segray.pages.formatting import duration
from segray.stages.label import label
from segray.stages.report import report
from segray.stages.sweep import sweep

SIZE = (96, 128)  # small enough for two laptop cores, large enough that a sign has some pixels
TRAIN, VAL, HELD_OUT = 96, 16, 24
EPOCHS = 8
ENCODERS = ["resnet18", "mobilenet_v2"]
LEARNING_RATES = [1e-3, 3e-3]
MADE = (".segray-demo", "streets", "held-out", "sweep", "labels-frames", "labels-video", "report.html")
KIND = claims.Kind("demo", MADE[0], MADE, lambda out: any(storage.exists(storage.join(out, name)) for name in MADE[1:]))


def demo(out: str = "runs/demo", *, overwrite: bool = False) -> str:
    """Draw, sweep, label and report, all in `out`; return the report's path. The same call again resumes."""
    started = time.monotonic()
    root = storage.local(out, "a demo")
    with claims.held(str(root), KIND):
        claims.claim(str(root), KIND, overwrite)
        storage.replace(str(root / KIND.mark), b"")
        page = _demo(root)
    say(f"Took {duration(time.monotonic() - started)}. The report is {page}")
    if sys.stdout.isatty():
        webbrowser.open(Path(page).absolute().as_uri())
    return page


def _demo(root: Path) -> str:
    say(f"1/4  Drawing {TRAIN + VAL + HELD_OUT} streets and a video")
    drawn = streets.write(root / "streets", train=TRAIN, val=VAL)
    held_out = streets.write(root / "held-out", train=0, val=HELD_OUT, seed=1, video_s=0)
    config = _config(root, drawn)
    with connect.connected(config.cluster, sweeps=True):
        say(f"2/4  Sweeping {len(ENCODERS)} encoders over {len(LEARNING_RATES)} learning rates")
        with sweeping(config.sweep.out) as on_row:
            result = sweep(config, on_row=on_row)
        say("3/4  Labelling held-out streets and the video with the best model")
        frames = {"label.inputs": [str(held_out / "val")], "label.truth": str(held_out / "valannot")}
        scored = _label(config.changed({**frames, "label.out": str(root / "labels-frames")}))
        video = {"label.inputs": [str(drawn / "video.mp4")], "label.out": str(root / "labels-video")}
        _label(config.changed(video))
    say("4/4  Writing the report")
    page = report(
        [config.sweep.out, str(root / "labels-frames"), str(root / "labels-video")], str(root / "report.html"),
        overwrite=True,
    )  # fmt: skip
    show_leaderboard(result.leaderboard)
    show_labels(str(root / "labels-frames"), scored)
    return page


def _label(config: Config) -> Summary:
    with labelling() as watch:
        return label(config, watch=watch)


def _config(root: Path, drawn: Path) -> Config:
    return Config().changed(
        {
            "data.format": "streets",
            "data.root": str(drawn),
            "data.size": SIZE,
            "augment.scale": [0.75, 1.5],  # too few epochs for a wider range
            "train.epochs": EPOCHS,
            "train.batch_size": 4,
            "sweep.out": str(root / "sweep"),
            "sweep.encoders": ENCODERS,
            "sweep.learning_rates": LEARNING_RATES,
            "sweep.grace_epochs": 2,
            "label.model": str(root / "sweep" / "best"),
            "label.shard_size": 16,
        }
    )
