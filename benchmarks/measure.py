"""A contender in a fresh process: its own result, and what its whole tree of processes took; the machine in words."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil

import segray
from segray.cli.terminal import say

LOOK_S = 0.5  # between looks at the processes
WEIGH_EVERY = 8  # looks; their memory is dear: the kernel walks all their pages


class Usage:
    """CPU seconds and memory of a process and all below it, looked at now and then; what Ray leaves behind counts."""

    def __init__(self, root: psutil.Process, weigh_every: int = WEIGH_EVERY) -> None:
        self.root, self.weigh_every, self.cpu_s, self.most_mib = root, weigh_every, {}, 0.0
        self._looks = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._done.wait(LOOK_S):
            with contextlib.suppress(psutil.Error):
                self.look()

    def look(self) -> None:
        total, self._looks = 0, self._looks + 1
        for process in [self.root, *self.root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self.cpu_s[process.pid, process.create_time()] = times.user + times.system
                if self._looks % self.weigh_every == 0:
                    total += process.memory_full_info().pss  # pages that several share count once
        self.most_mib = max(self.most_mib, total / 2**20)

    def end(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        return {"cpu_s": sum(self.cpu_s.values()), "most_mib": self.most_mib}


def run(module: str, name: str, job: dict[str, Any]) -> dict[str, Any]:
    """`python -m module name JOB` in a fresh process: what it wrote to job["result"], and its cpu_s and most_mib."""
    with tempfile.TemporaryDirectory(prefix="segray-bench-out-") as folder:
        more = {"out": f"{folder}/out", "up": f"{folder}/up", "result": f"{folder}/result.json", "born": time.time()}
        more["cpus"] = len(os.sched_getaffinity(0))
        # Beside other work, OpenMP's threads spin at each other: without this, model-only fell to a thirtieth under
        # a load of 6, the script to half; segray stayed.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        with tempfile.TemporaryFile("w+") as errors:
            process = psutil.Popen(
                [sys.executable, "-m", module, name, json.dumps(job | more)],
                stdout=subprocess.DEVNULL, stderr=errors, env=quiet,
            )  # fmt: skip
            usage = Usage(process, job.get("weigh_every", WEIGH_EVERY))
            if process.wait():
                errors.seek(0)
                raise click.ClickException(f"{name} failed:\n{errors.read()[-4000:]}")
        return json.loads(Path(more["result"]).read_text()) | usage.end()


def rounds(module: str, names: list[str], job: dict[str, Any], count: int, what: str = "") -> list[dict[str, Any]]:
    """Each contender once a round, in another order each; results by name, a dict a round."""
    results = []
    for number in range(count):
        order = names[number % len(names) :] + names[: number % len(names)]
        results.append({name: run(module, name, job) for name in order})
        speeds = ", ".join(f"{name} {result['images_per_s']:.1f}" for name, result in results[-1].items())
        say(f"{what}round {number + 1}: {speeds} (load {os.getloadavg()[0]:.1f})")
    return results


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(result[name] for result in results) for name in results[0]}


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def verdict(ratios: list[float], least: float | None) -> str:
    return "" if least is None else f"≥ {least:g}: {'met' if median(ratios) >= least else 'missed'}"


def print_machine() -> None:
    """Print what machine this is, and the command."""
    for line in machine():
        say(line)
    module = Path(sys.argv[0]).with_suffix("").name
    say(f"python -m benchmarks.{module} {' '.join(sys.argv[1:])}\n")


def version_of(name: str) -> str:
    """Return an installed version; segray may be a checkout that nobody has installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return segray.__version__ if name == "segray" else "–"


def machine() -> list[str]:
    """Return processor, GPU and versions in a few lines."""
    cpus = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in cpus.read_text().splitlines() if "model name" in line] if cpus.exists() else []
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    kind, load = (names or [platform.machine()])[0], os.getloadavg()[0]
    lines = [f"{kind}, {cores} cores, {memory_gib:.0f} GiB, load {load:.1f}"]
    smi = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError):  # no GPU
        lines.append(subprocess.run(smi, capture_output=True, text=True, check=True).stdout.strip())
    packages = ("torch", "ray", "pyarrow", "segmentation-models-pytorch", "segray")
    versions = ", ".join(f"{name} {version_of(name)}" for name in packages)
    return [*lines, f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}"]


def memory_mib() -> tuple[float, float]:
    """Of this process, now and at most; getrusage would give the parent's maximum where that is higher."""
    found = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(round(int(found[key].split()[0]) / 2**10, 1) for key in ("VmRSS", "VmHWM"))
