"""The whole pipeline on drawn streets, from drawing to the report."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
import webbrowser
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from segray.cli.app import resuming
from segray.cli.terminal import labelling, say, show_labels, show_leaderboard, sweeping
from segray.cluster import connect
from segray.config import Config
from segray.core.data import streets
from segray.core.formatting import duration
from segray.core.io import claims, storage
from segray.core.labels.totals import Summary
from segray.stages.label import label
from segray.stages.report import report
from segray.stages.sweep import sweep

SIZE = (96, 128)  # small enough for two laptop cores, large enough that a sign has some pixels
BOLD = 1.8  # signs and poles that many times larger than life, for the same reason
MADE = (".segray-demo", "streets", "held-out", "sweep", "labels-frames", "labels-video", "report.html")
KIND = claims.Kind("demo", MADE[0], MADE, lambda out: any(storage.exists(storage.join(out, name)) for name in MADE[1:]))


@dataclass(frozen=True)
class Extent:
    """How much a demo does. frames: that it trains on, validates on, and labels. minutes: on two cores, measured."""

    frames: tuple[int, int, int]
    video_s: float
    encoders: tuple[str, ...]
    epochs: int
    ema: float | None
    minutes: str


WHOLE = Extent((240, 16, 24), 4.0, ("resnet18", "mobilenet_v2"), 12, 0.99, "five minutes")
SMALL = Extent((48, 8, 8), 1.0, ("mobilenet_v2",), 4, None, "a minute")  # an EMA would lag behind so few steps


def demo(out: str = "runs/demo", *, small: bool = False, overwrite: bool = False) -> str:
    """Draw, sweep, label and report, all in `out`; return the report's path. The same call again resumes."""
    started, extent = time.monotonic(), SMALL if small else WHOLE
    root = storage.local(out, "a demo")
    with claims.held(str(root), KIND), resuming(lambda: KIND.began(str(root))):
        claims.claim(str(root), KIND, overwrite, lambda: _other(root, extent))
        storage.replace(str(root / KIND.mark), json.dumps(asdict(extent)).encode())
        say(f"This takes about {extent.minutes} on two cores; there are {os.cpu_count()} here.")
        page = _demo(root, extent)
    say(f"Took {duration(time.monotonic() - started)}. The report is {page}")
    _open(Path(page).absolute())
    return page


def _other(root: Path, extent: Extent) -> list[str]:
    """Say how the demo that is there differs."""
    there = (root / KIND.mark).read_text()
    asked = json.loads(json.dumps(asdict(extent)))
    found = json.loads(there) if there else {}  # version 0.1 wrote nothing
    return [f"{key} was {found.get(key)}, is {value}" for key, value in asked.items() if found.get(key) != value]


def _open(page: Path) -> None:
    """Show the page to who sits at a terminal of this machine; tell who came by SSH how to fetch it."""
    if not sys.stdout.isatty():
        return
    if server := ssh_server(os.environ):
        say(f"From your own machine: scp {getpass.getuser()}@{server}:{page} .")
    elif has_display(os.environ):
        webbrowser.open(page.as_uri())


def ssh_server(environ: Mapping[str, str]) -> str | None:
    """Return the address by which an SSH client reached this machine; None for who did not come by SSH.

    >>> ssh_server({"SSH_CONNECTION": "10.0.0.9 50022 10.0.0.5 22"}), ssh_server({"SSH_TTY": "/dev/pts/0"})
    ('10.0.0.5', 'HOST')
    """
    ends = environ.get("SSH_CONNECTION", "").split()  # address and port of the client, then of the server
    if not ends and "SSH_TTY" not in environ:
        return None
    server = ends[2] if len(ends) == 4 else "HOST"
    return f"[{server}]" if ":" in server else server


def has_display(environ: Mapping[str, str]) -> bool:
    """Say whether a browser would have a window; without a display, Linux would start one in the terminal."""
    return sys.platform != "linux" or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def _demo(root: Path, extent: Extent) -> str:
    train, val, held = extent.frames
    say(f"1/4  Drawing {train + val + held} streets and a video")
    drawn = streets.write(root / "streets", train=train, val=val, video_s=extent.video_s, size=SIZE, bold=BOLD)
    held_out = streets.write(root / "held-out", train=0, val=held, seed=1, video_s=0, size=SIZE, bold=BOLD)
    config = _config(root, drawn, extent)
    with connect.connected(config.cluster, sweeps=True):
        say(f"2/4  Training {' and '.join(extent.encoders)} from random weights, {extent.epochs} epochs each")
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


def _config(root: Path, drawn: Path, extent: Extent) -> Config:
    return Config().changed(
        {
            "data.format": "streets",
            "data.root": str(drawn),
            "data.size": SIZE,
            "model.options": {"encoder_depth": 4, "decoder_channels": [64, 48, 32, 24]},
            "train.epochs": extent.epochs,
            "train.batch_size": 8,
            "train.loss": {"cross_entropy": 1.0, "dice": 1.0},
            "train.class_weights": "median",  # signs and people have few pixels
            "train.ema": extent.ema,
            "sweep.out": str(root / "sweep"),
            "sweep.encoders": list(extent.encoders),
            "sweep.learning_rates": [3e-3],
            "sweep.grace_epochs": extent.epochs,  # two models learn to their ends in the time that there is
            "label.model": str(root / "sweep" / "best"),
            "label.shard_size": 16,
        }
    )
