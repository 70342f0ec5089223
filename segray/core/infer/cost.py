"""What a model costs: its speed, memory and multiply-adds as a labeller, and its seconds per training step.

All are measured on this device with random pixels, as neither speed nor memory depends on what a frame shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from segray.config import Config
from segray.core.infer.predictor import Predictor, side_by_side
from segray.core.models import FROM_ELSEWHERE, build, bundle, forward, forward_all
from segray.core.precision import autocast
from segray.core.search.pareto import Cost
from segray.core.training import losses, optim
from segray.core.transforms import augment
from segray.errors import ConfigError, ModelError
from segray.sections.labelling import InferSection

REPEATS, BATCH = 3, 8
ENGINES = ("torch", "onnx")  # values of infer.engine
STATUS = Path("/proc/self/status")  # Linux's account of a process


def labelling_cost(uri: str, device: str, threads: int) -> Cost:
    """Label batches of the bundle's input size as `segray label` does, in that many threads, and return the cost.

    Call it in a fresh process: the memory measured is what the process grows by.
    """
    torch.set_num_threads(threads)
    before_mib = _reset_peak(device)
    predictor = Predictor(uri, device)
    rate = _images_per_s(predictor, predictor.info.input_size)
    peak_mib = _peak(device)
    grown = None if peak_mib is None or before_mib is None else peak_mib - before_mib
    with autocast(predictor.infer, predictor.device):
        gmacs = multiply_adds(predictor.model, predictor.info.input_size) / 1e9
    return Cost(rate, grown, gmacs or None, bundle.count_parameters(uri) or None)  # both are inside an ONNX file


def engine_speeds(uri: str, infer: InferSection, threads: int) -> dict[str, float]:
    """Measure images per second on this CPU of each engine that can run the bundle, at the size it will see.

    A model from elsewhere has one engine.
    """
    torch.set_num_threads(threads)
    speeds = {}
    for engine in ENGINES:
        try:
            predictor = Predictor(uri, infer=infer.model_copy(update={"engine": engine}))
        except (ConfigError, ModelError):  # not installed, not for this precision, or no ONNX of this architecture
            if engine == ENGINES[0]:
                raise
        else:
            speeds[engine] = _images_per_s(predictor, infer.window or predictor.info.input_size)
            if predictor.info.model.arch in FROM_ELSEWHERE:  # whose export takes minutes, or which is ONNX already
                break
    return speeds


def _images_per_s(predictor: Predictor, size: tuple[int, int]) -> float:
    frames = list(np.random.default_rng(0).integers(0, 256, (BATCH, *size, 3), np.uint8))
    callers = side_by_side(torch.get_num_threads()) if predictor.device.type == "cpu" else 1
    with ThreadPoolExecutor(callers) as pool:
        each = partial(predictor.predict, sizes=[size] * BATCH)
        return callers * BATCH / _seconds(lambda: list(pool.map(each, [frames] * callers)))


def multiply_adds(model: torch.nn.Module, size: tuple[int, int]) -> float:
    """Count the multiply-adds of one frame's forward pass: half of the floating-point operations PyTorch counts."""
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model, torch.zeros(1, 3, *size, device=device))
    return float(counter.get_total_flops()) / 2


def training_step_s(config: Config, classes: int, size: tuple[int, int], device: str) -> float:
    """Measure the seconds of a training step over one worker's batch, in its precision, without reading frames."""
    train, there = config.train, torch.device(device)
    batch = max(2, -(-train.batch // max(1, config.cluster.workers)))
    model = build(config.model, classes).to(device).to(memory_format=torch.channels_last)
    optim.freeze(model, optim.is_frozen(train, 1))
    optimizer = optim.make_optimizer(model, train)
    loss, generator = losses.combine(train, None), torch.Generator()
    frames = torch.randint(256, (batch, *size, 3), dtype=torch.uint8, device=device)
    truths = torch.randint(classes, (batch, *size), dtype=torch.uint8, device=device)

    def step() -> None:
        images, masks = augment(frames, truths, config.augment, generator)
        with autocast(train, there):
            outputs = forward_all(model, images)
        torch.stack([loss(output, masks) for output in outputs]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _seconds(step)


def _seconds(work: Callable[[], object]) -> float:
    """Return the median seconds of some calls, after one call to warm up."""
    took = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return median(took[1:])


def _reset_peak(device: str) -> float | None:
    """Reset the memory's peak and return the MiB in use now; None if this system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return 0.0
    if not STATUS.exists():
        return None
    STATUS.with_name("clear_refs").write_text("5")  # proc(5): resets the high-water mark VmHWM
    return _status_mib("VmRSS")


def _peak(device: str) -> float | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _status_mib("VmHWM") if STATUS.exists() else None


def _status_mib(key: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 2**10
