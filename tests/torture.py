"""Labelling under faults: writers that race and are killed, readers that watch, and what must hold all the time.

    world = World.write(folder)                      # inputs good and broken, truths, and what a quiet run makes of them
    found = round_(world, out, seed, env, logs)      # found.problems must be empty
    crash_at(world, out, step)                       # a writer that ends at its n-th change of the file system

A writer labels as a run does, less Ray, and with a model that costs nothing: a first plan, a second one of further
inputs, a third one of what failed. Processes come from a fork server, as what segray imports takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import traceback
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from labelled import settings_of

from segray.core.data import streets
from segray.core.infer.label_rows import label_rows
from segray.core.infer.predictor import Prediction
from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder, read_summary, success_uri
from segray.core.labels.plan import PlanReader, load_plans
from segray.core.labels.planning import make_plan

PLANS = 3
KILLS = 8  # of a writer, at most; then it may finish
PAUSE_S = 0.005
KILL_WITHIN_S = 1.2  # of its start: about as long as a writer alone takes
END_WITHIN_S = 300  # of a writer that is let finish
TOTALS = ("rows", "ok", "errors", "class_pixels", "confusion", "parts")
FAULTS = {
    **{"lost": 0.1, "http_503": 0.02, "slow_down": 0.02, "http_500": 0.02, "reset": 0.02, "cut": 0.05},
    **{"delay": 0.1, "hang": 0.002},
}
CRASHED = 9
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["segray.core.labels.parts", "s3fs", "duckdb", "azure.storage.blob"])


class Hashed:
    """In the place of a Predictor: class ids drawn from a hash of the pixels."""

    lock = threading.RLock()

    def prepare(self, image_hwc):
        return zlib.crc32(image_hwc.tobytes())

    def predict(self, prepared, sizes, clock=None):
        return [self._one(seed, size) for seed, size in zip(prepared, sizes, strict=True)]

    def _one(self, seed, size):
        coarse = np.random.default_rng(seed).integers(0, streets.LABEL_SPACE.num_classes, (4, 4), np.uint8)
        rows, columns = (np.linspace(0, 4, px, endpoint=False).astype(int) for px in size)
        return Prediction(coarse[np.ix_(rows, columns)], 0.5, 0.5, 0.5)


@dataclass(frozen=True)
class World:
    """first, further: places of inputs. made: of each file that a quiet run leaves in labels/, the hash."""

    first: str
    further: str
    truth: str
    shard_size: int
    made: dict[str, str]
    summary: dict

    @classmethod
    def write(cls, folder: Path, place: str | None = None, frames: int = 20, shard_size: int = 2) -> World:
        """Inputs below `folder`, or copied from there to `place`; labelled once without faults."""
        town = streets.write(folder / "town", train=frames, val=frames, size=(24, 32), video_s=1.0)
        (town / "train" / "empty.jpg").write_bytes(b"")
        (town / "train" / "text.png").write_text("no picture")
        half = sorted((town / "val").glob("*.jpg"))[-1]
        half.write_bytes(half.read_bytes()[:500])
        (town / "val" / "clip.mp4").write_text("no video")
        shutil.copy(town / "video.mp4", town / "val" / "drive.mp4")
        shutil.copytree(town / "trainannot", town / "valannot", dirs_exist_ok=True)
        place = place or str(town)
        if storage.in_bucket(place):
            for path in (path for name in ("train", "val", "valannot") for path in (town / name).iterdir()):
                storage.create(storage.join(place, path.parent.name, path.name), path.read_bytes())
        names = (storage.join(place, name) for name in ("val", "train", "valannot"))
        world = cls(*names, shard_size, {}, {})
        quiet = storage.join(str(folder), "quiet")
        label(world, quiet, random.Random(0))
        summary = read_summary(load_plans(quiet))
        assert summary["confusion"]
        assert summary["errors"] == {"decode_error": 4}
        return replace(world, made=hashes(quiet), summary=summary)


def hashes(out):
    entries = storage.iter_files(storage.join(out, "labels"))
    return {
        storage.name_of(entry.uri): hashlib.sha256(storage.read_bytes(entry.uri)).hexdigest()
        for entry in entries
        if entry.uri.endswith(".parquet")
    }


def label(world, out, order, log=lambda line: None):
    """What a command does for a new output, then with --extend, then with --retry-errors; or what is left of it."""
    settings = settings_of([world.first], truth=world.truth, shard_size=world.shard_size)
    further = {**settings, "inputs": [world.first, world.further]}
    space = streets.LABEL_SPACE
    plans = load_plans(out)
    while True:
        if plans and read_summary(plans) is None:
            for plan in plans:
                label_plan(plan, order, log)
            parts.finish(plans, {})
        if len(plans) == PLANS:
            return
        if not plans:
            make_plan(out, settings, space)
        elif len(plans) == 1:
            make_plan(out, further, space, plans)
        else:
            make_plan(out, settings, space, plans, LabelFolder(plans).failed_rows())
        plans = load_plans(out)


def done_shards(plan):
    return {part.shard for part in LabelFolder([plan]).parts}


def label_plan(plan, order, log):
    reader = PlanReader(plan)
    work = partial(label_rows, predictor=Hashed(), batch_size=2)
    todo = sorted(set(range(plan.shards)) - done_shards(plan))
    order.shuffle(todo)
    for shard in todo:
        log("made" if parts.label_shard(plan, reader.shard(shard), shard, work).created else "lost_race")


def read(out, seen, log):
    """Look at all that is visible once. seen: name → hash of the parts that were read before, or are known."""
    finished = storage.exists(success_uri(out))
    plans = load_plans(out)
    said = json.loads(storage.read_bytes(success_uri(out)))["parts"] if finished else []
    there = {}
    for plan in plans:
        there |= {storage.name_of(plan.part_uri(shard)): (plan, shard) for shard in done_shards(plan)}
    for name in set(said) - there.keys():
        log(f"violation: _SUCCESS speaks of {name}, which is not there")
    for name, (plan, shard) in there.items():
        data = storage.read_bytes(plan.part_uri(shard))
        log("read")
        sha256 = hashlib.sha256(data).hexdigest()
        if seen.setdefault(name, sha256) != sha256:
            log(f"violation: {name} has other bytes than before, or than a quiet run writes")
        ids = pq.read_table(pa.BufferReader(data), columns=["input_id"])["input_id"].to_pylist()
        if ids != [row["input_id"] for row in PlanReader(plan).shard(shard)]:
            log(f"violation: {name} has other rows than its plan")


def process(env, log_path, work, *arguments):
    """What runs in a process of its own: `work`, with a log of whole lines that outlives a SIGKILL."""
    os.environ.update(env)
    file = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        work(*arguments, lambda line: os.write(file, f"{line}\n".encode()))
    except BaseException as error:
        os.write(file, f"violation: {work.__name__} ended with {error!r}\n".encode())
        traceback.print_exc()
        os._exit(1)


def write_slowly(world, out, seed, log):
    """With pauses between the changes of the file system, for kills and readers to fall into."""
    chance = random.Random(seed)
    before_changes(lambda: time.sleep(chance.uniform(0, PAUSE_S)))
    label(world, out, chance, log)


def write_once(world, out, log):
    label(world, out, random.Random(0), log)


def read_on(world, out, log):
    seen = dict(world.made)
    while True:
        read(out, seen, log)
        time.sleep(PAUSE_S / 2)  # while nothing is there, looking would take a whole processor


def keep_writing(world, out, seed, env, log_path):
    """One writer: killed at random moments and started again, until it ends by itself; the number of kills."""
    chance = random.Random(seed)
    for kills in range(KILLS + 1):
        writer = PROCESSES.Process(target=process, args=(env, log_path, write_slowly, world, out, chance.random()))
        writer.start()
        killed = kills < KILLS and chance.random() < 0.9
        writer.join(chance.uniform(0, KILL_WITHIN_S) if killed else END_WITHIN_S)
        if writer.exitcode is not None:
            return kills
        writer.kill()
        writer.join(END_WITHIN_S)
    raise AssertionError(f"A writer has not ended within {END_WITHIN_S} s.")


@dataclass
class Found:
    """count: of what happened. problems: every break of the promise, a line each."""

    count: Counter
    problems: list[str]

    def __str__(self):
        names = ("rounds", "writers", "kills", "lost_race", "read", "fault")
        figures = ", ".join(f"{self.count[name]} {name}" for name in names)
        return f"{figures}, {len(self.problems)} violations"


def round_(world, out, seed, env, logs: Path) -> Found:
    """Writers and readers on one output until all writers have ended."""
    chance, log_path = random.Random(seed), logs / f"{seed}.log"
    readers = [
        PROCESSES.Process(target=process, args=(env, log_path, read_on, world, out), daemon=True)
        for _ in range(chance.randint(1, 2))
    ]
    seeds = [chance.random() for _ in range(chance.randint(1, 3))]
    for reader in readers:
        reader.start()
    try:
        with ThreadPoolExecutor(len(seeds)) as pool:
            kills = sum(pool.map(lambda one: keep_writing(world, out, one, env, log_path), seeds))
    finally:
        for reader in readers:
            reader.kill()
            reader.join(END_WITHIN_S)
    lines = log_path.read_text().splitlines()
    count = Counter(lines) + Counter(rounds=1, writers=len(seeds), kills=kills)
    problems = [line for line in lines if line.startswith("violation")] + after(world, out, kills)
    if count["made"] > len(world.made):  # less where a writer was killed between the part and the line
        problems.append(f"{count['made']} parts were created, of {len(world.made)}")
    return Found(count, problems)


def after(world, out, kills=0):
    """What is wrong with an output whose writers have all ended."""
    plans = load_plans(out)
    summary = read_summary(plans) or {}
    problems = [f"verify: {problem}" for problem in parts.verify(plans)]
    problems += [
        f"{key} is {summary.get(key)}, not {world.summary[key]}"
        for key in TOTALS
        if summary.get(key) != world.summary[key]
    ]
    if hashes(out) != world.made:
        problems.append("the parts are not those of a quiet run")
    left = [entry.uri for entry in storage.iter_files(out) if entry.uri.endswith(".tmp")]
    if len(left) > kills:
        problems.append(f"{len(left)} temporary files of {kills} writers that were killed")
    return problems


def crash_at(world, out, step) -> bool:
    """A writer that ends before its step-th change of the file system, and then another; False when there is no such."""
    log_path = Path(f"{out}.log")
    for work, arguments in ((write_until, (step,)), (write_once, ())):
        writer = PROCESSES.Process(target=process, args=({}, log_path, work, world, out, *arguments))
        writer.start()
        writer.join()
        if work is write_until:
            ended = writer.exitcode == CRASHED
        assert writer.exitcode in (0, CRASHED), log_path.read_text()
    return ended


def write_until(world, out, step, log):
    left = step

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(CRASHED)

    before_changes(count)
    label(world, out, random.Random(0), log)


def before_changes(work):
    """From now on work() comes before this process makes, half writes, writes, syncs, links, renames or deletes a file."""

    def worked(call):
        def working(*args, **kwargs):
            work()
            return call(*args, **kwargs)

        return working

    def opened(path, mode="r", *args, **kwargs):
        if "r" in mode:
            return plain_open(path, mode, *args, **kwargs)
        work()
        file = plain_open(path, mode, *args, **kwargs)
        plain_write = file.write

        def write(data):
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                work()
                plain_write(half)
                file.flush()

        file.write = write
        return file

    plain_open, Path.open = Path.open, opened
    for name in ("mkdir", "fsync", "link", "replace", "rename", "unlink"):
        setattr(os, name, worked(getattr(os, name)))
