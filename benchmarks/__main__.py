"""Every benchmark, one after the other, into benchmarks/RESULTS.md.

python -m benchmarks           # one round, 47 minutes on 2 cores, which the README quotes; `make bench`
python -m benchmarks --full    # three rounds, and larger ones
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from segray.cli import main
from segray.terminal import say

RESULTS = Path(__file__).with_name("RESULTS.md")
RUNS = {  # a program of this folder → its arguments in minutes, and in full
    "start": ("--rounds 1", ""),
    "levers": ("--model real", ""),
    "label": ("--rounds 1 --frames 96 --kind jpeg360,jpeg1024", "--rounds 3"),
    "train": ("--rounds 1 --frames 48", "--rounds 3"),
    "growth": ("--frames 1000,10000 --sizes 360x480,2160x3840", "--frames 1000,10000,100000"),
    "label --model segformer": ("--rounds 1 --frames 96 --kind jpeg360", "--rounds 3 --kind jpeg360"),
    "label --model torchvision": ("--rounds 1 --frames 96 --kind jpeg360", "--rounds 3 --kind jpeg360"),
    "label plan": ("", ""),
    "label memory": ("--frames 2000", ""),
    "scale driver": ("--shards 1000 --actors 1,2", ""),
    "scale resume": ("--parts 1000", ""),
    "scale tail": ("", ""),
}


@click.command()
@click.option("--full", is_flag=True, help="Three rounds of everything, hours.")
@click.option("--out", default=str(RESULTS), show_default=True)
def bench(full: bool, out: str) -> None:
    """Run every benchmark, and write what each prints to one file."""
    parts = ["# Measured\n\nWritten by `python -m benchmarks`. Each table is of one run, its ratios of one round.\n"]
    for name, args in RUNS.items():
        words = [*name.split(), *args[full].split()]
        say(f"python -m benchmarks.{' '.join(words)}")
        command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "120"})
        if done.returncode:
            raise click.ClickException(f"benchmarks.{name} failed.")
        lines = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        parts.append(f"## {name}\n\n```\n{lines}\n```\n")
        Path(out).write_text("\n".join(parts))
    say(f"The tables are in {out}.")


if __name__ == "__main__":
    main(bench)
