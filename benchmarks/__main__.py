"""Every benchmark, one after the other, into benchmarks/RESULTS.md.

python -m benchmarks                  # an hour or two on 2 cores; `make bench`
python -m benchmarks --only growth    # one of them; the other tables stay as they are
python -m benchmarks --full           # three rounds, and larger ones
python -m benchmarks gpu --minutes 9  # what a GPU machine shows in minutes, into a file of its own
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.gpu import gpu
from segray.cli import main
from segray.cli.terminal import say

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = """# Measured

Written by `python -m benchmarks`. Each section is one whole run of its program, under that run's machine, versions and
command; each ratio is of one round.
"""
RUNS = {  # a program of this folder → its arguments in minutes, and in full
    "start": ("--rounds 1", ""),
    "levers": ("--model real", ""),
    "label": ("--rounds 1 --frames 96 --kind jpeg360,jpeg1024", "--rounds 3 --kind jpeg360,jpeg1024"),
    "label --kind video": ("--rounds 3 --frames 96", "--rounds 3"),
    "train": ("--rounds 1 --frames 48", "--rounds 3"),
    "readers": ("--rounds 1 --frames 120", "--rounds 3"),
    "readers --kind jpg": ("--rounds 1 --frames 120", "--rounds 3"),
    "growth": ("--frames 1000,10000,100000 --sizes 360x480,2160x3840", "--frames 1000,10000,100000"),
    "label --model segformer": ("--rounds 1 --frames 96 --kind jpeg360", "--rounds 3 --kind jpeg360"),
    "label --model torchvision": ("--rounds 1 --frames 96 --kind jpeg360", "--rounds 3 --kind jpeg360"),
    "label plan": ("", ""),
    "label memory": ("--frames 2000", ""),
    "scale driver": ("--shards 1000 --actors 1,2", ""),
    "scale resume": ("--parts 1000", ""),
    "scale tail": ("", ""),
}


@click.group(invoke_without_command=True)
@click.option("--full", is_flag=True, help="Three rounds of everything, hours.")
@click.option("--only", multiple=True, type=click.Choice(list(RUNS)), help="One program, may be given again.")
@click.option("--out", default=str(RESULTS), show_default=True)
@click.pass_context
def bench(context: click.Context, full: bool, only: tuple[str, ...], out: str) -> None:
    """Run every benchmark, and write what each prints to one file."""
    if context.invoked_subcommand:
        return
    path = Path(out)
    before = path.read_text() if path.exists() else ""
    tables = dict(part.split("\n", 1) for part in before.split("\n## ")[1:])
    for name in only or RUNS:
        words = [*name.split(), *RUNS[name][full].split()]
        say(f"python -m benchmarks.{' '.join(words)}")
        command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "120"})
        if done.returncode:
            raise click.ClickException(f"benchmarks.{name} failed.")
        lines = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        tables[name] = f"\n```\n{lines}\n```\n"
        path.write_text("\n".join([TITLE, *(f"## {run}\n{tables[run]}" for run in RUNS if run in tables)]))
    say(f"The tables are in {out}.")


bench.add_command(gpu)

if __name__ == "__main__":
    main(bench)
