"""Where the seconds before the first result go: of `segray --help`, of labelling, of training.

    python -m benchmarks.start --rounds 3

A fresh process each, the files in the disk's cache; medians. What Ray and PyTorch take to start and to be imported is
shown beside what is left, which is segray's own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.label import bundle_of, write_images
from benchmarks.measure import medians, print_machine, run
from segray.cli import main
from segray.cli.terminal import table

PROGRAMS = {
    "python -c pass": "pass",
    "import torch": "import torch",
    "import ray": "import ray",
    "Ray alone: import, init, an actor's first answer, shutdown": (
        "import ray; ray.init('local', log_to_driver=False); A = ray.remote(type('A', (), {'f': lambda self: 1})); "
        "ray.get(A.remote().f.remote()); ray.shutdown()"
    ),
    "what an actor imports: PyTorch, smp, segray": (
        "import segray.stages.label, segray.core.infer.predictor, segray.core.infer.label_rows"
    ),
}
EPOCHS = ("--epochs", "1", "--batch-size", "8", "--encoder", "resnet18")


@click.command()
@click.option("--rounds", default=3, show_default=True)
def start(rounds: int) -> None:
    """Seconds before anything happens."""
    print_machine()
    rows = [("segray --help", seconds(["-m", "segray.cli", "--help"], rounds))]
    rows += [(name, seconds(["-c", text], rounds)) for name, text in PROGRAMS.items()]
    table("A process, from its start to its end", ("", "s"), rows)
    with tempfile.TemporaryDirectory(prefix="segray-start-") as folder:
        begin = medians([labelling(Path(folder)) for _ in range(rounds)])
        table(
            "`segray label`, to its first shard of 8 frames",
            ("", "s"),
            [(name, f"{s:.1f}") for name, s in begin.items()],
        )
        town = Path(folder) / "town"
        subprocess.run(
            [sys.executable, "-m", "segray.cli", "data", "draw", str(town)], check=True, stdout=subprocess.DEVNULL
        )
        rows = []
        for name, workers in (("alone, --workers 0", 0), ("under Ray, --workers 1", 1)):
            command = [
                "-m",
                "segray.cli",
                "train",
                "--format",
                "streets",
                "--data",
                str(town),
                "--workers",
                str(workers),
                *EPOCHS,
                "--overwrite",
            ]
            rows.append((name, f"{median(first_line(command, folder) for _ in range(rounds)):.1f}"))
        table("`segray train` of 24 frames, to its first line: an epoch's scores", ("", "s"), rows)


def seconds(words: list[str], rounds: int) -> str:
    took = []
    for _ in range(1 + rounds):  # the first fills the disk's cache
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took.append(time.perf_counter() - started)
    return f"{median(took[1:]):.2f}"


def labelling(root: Path) -> dict[str, float]:
    frames, size = [root / "frames" / f"{i:03}.jpg" for i in range(48)], (360, 480)
    if not frames[0].exists():
        write_images(frames, size)
    job: dict[str, Any] = {"inputs": [str(root / "frames")], "spans": [], "device": "cpu", "batch": 8, "shard": 8}
    return run("benchmarks.rivals", "segray", job | bundle_of(root, "real", (352, 480)) | {"frames": 48})["begin_s"]


def first_line(words: list[str], folder: str) -> float:
    """Seconds until a command first writes, to which it is then left to its end."""
    started = time.perf_counter()
    command = [sys.executable, *words, "--out", f"{folder}/run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        took = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with {process.returncode}.")
    return took


if __name__ == "__main__":
    main(start)
