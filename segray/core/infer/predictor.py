"""A model bundle and decoded frames of any size → class ids at source size, with metrics of confidence."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional

from segray.core.clock import Clock, moved
from segray.core.infer import logit_maps
from segray.core.memory import is_exhausted
from segray.core.models import STRIDE, bundle, coarse, name_of
from segray.core.models.fold import fold_batch_norm
from segray.core.models.weights import first_words
from segray.core.precision import autocast, autocast_dtype, cast_weights
from segray.core.precision import name_of as precision_name
from segray.core.samples import IGNORE_INDEX
from segray.core.transforms import fit, normalize, to_float
from segray.errors import ConfigError, InputTooLarge, ModelError, ModelTooLarge
from segray.sections.labelling import InferSection

WINDOWS_AT_ONCE = {"cpu": 4, "cuda": 16}
# Pixels that a CPU works on at once: 9.5 frames/s of 352×480 one by one, 6.1 by eight, whose layers outgrow caches.
CPU_PX = 1 << 18
LEAST_SIDE_BY_SIDE, MOST_SIDE_BY_SIDE = 2, 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prediction(NamedTuple):
    """A mask, uint8 [H, W] at source size, with metrics that are means over the pixels that the model sees.

    confidence_mean: of the highest class probability. entropy_mean: of the entropy, as a share of log C.
    low_margin_share: share of pixels where first minus second probability is below 0.5.
    confidence_hw: uint8 [H, W] at source size, 255 × the highest probability, if requested.
    logits_nc: float32 [N, C] at the requested points.
    """

    mask_hw: np.ndarray
    confidence_mean: float
    entropy_mean: float
    low_margin_share: float
    confidence_hw: np.ndarray | None = None
    logits_nc: np.ndarray | None = None


Pending = Callable[[], Prediction]  # waits for the device where it is still at work on it


class _Job(NamedTuple):
    """A frame: the pixels that the model sees, the size of its mask, and the points whose logits are wanted."""

    seen_hwc: np.ndarray
    size: tuple[int, int]
    points: np.ndarray | None


class Predictor:
    """The model on its device, ready for batches; frames of different sizes may share one.

    infer.engine onnx is ONNX Runtime on a CPU, with the same labels except in ties. auto is torch here, because label()
    resolves it.

    Without a window, a frame is resized to the model's input size, as in training; where it is padded to that, masks
    and metrics are of the frame alone. With a window, it slides over the frame at its own size, and probabilities are
    averaged where windows overlap; so are those of mirrored and scaled frames. Where the best probability is not above
    `threshold`, the mask holds 255.

    Several threads may share a predictor. On a GPU they take turns to queue a batch, and wait for its results without
    holding the others up, so that it always has work. On a CPU each thread uses its share of the
    threads that PyTorch had when the predictor was made: threads within a layer wait for the slowest, callers do not
    wait for each other (Unet over resnet18 on 2 cores: 9.5 frames/s against 7.7). A single caller does not get more, as
    the last bits of logits depend on the number of threads. If a batch exceeds the memory, it is split in halves
    from then on.
    """

    def __init__(
        self,
        uri: str,
        device: str = "cpu",
        infer: InferSection | None = None,
        *,
        threshold: float | None = None,
        confidence_maps: bool = False,
    ) -> None:
        self.infer = infer or InferSection()
        self.device = torch.device(device)
        self.dtype = autocast_dtype(self.infer, self.device)
        model, self.info = bundle.load(uri)
        model = fold_batch_norm(model)
        self.label_space = self.info.space
        self.scores = bool(getattr(model, "scores", False))
        windows = WINDOWS_AT_ONCE[self.device.type]
        self.most_at_once = windows if self.infer.window else sys.maxsize  # windows, or frames
        self.lock = threading.RLock() if self.device.type == "cuda" else threading.Semaphore(sys.maxsize)
        self._threads = max(1, torch.get_num_threads() // side_by_side(torch.get_num_threads()))
        self.threshold, self.confidence_maps = threshold, confidence_maps
        exported = self.infer.engine == "onnx" and self.info.model.arch != "onnx"  # which runs in ONNX Runtime anyway
        self.session = self._session(model) if exported else None
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        # Not cudnn.benchmark: another process might pick other algorithms, and then label ties otherwise.
        self.copies = torch.cuda.Stream() if self.device.type == "cuda" else None
        self.as_is = getattr(model, "as_is", False)  # whose code may look at the types of its weights
        if self.copies is not None and self.dtype is not None and not self.as_is:
            cast_weights(self.model, self.dtype)
        self.step_px = 1  # sides of windows and scaled frames are multiples of it
        if self.as_is and (self.infer.window or self.infer.scales != [1.0]):
            self._find_step()

    def _find_step(self) -> None:
        """Find whether a model from elsewhere takes sides that are multiples of 32: nothing in it pads others to these.

        Many leave out what is no whole patch at the right and below, and stretch the rest over it. Raises ModelError if
        the model does not take frames of the window's size or of the scales.
        """
        for self.step_px in (STRIDE, 1):
            try:
                return self.check()
            except ModelTooLarge:
                raise
            except Exception as error:  # of its library, which has errors of its own
                problem = error
        size = "×".join(map(str, self.info.input_size))
        raise ModelError(
            f"{name_of(self.info.model)} does not run with this window or these scales "
            f"({first_words(problem).partition(';')[0]}). Its own size is {size} (height × width): leave out "
            "infer.window and infer.scales, or give that as the window."
        ) from problem

    def _session(self, model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the forward pass in ONNX Runtime. Raises ConfigError for an unsupported device or precision."""
        from segray.core.models import onnx_file

        if self.device.type != "cpu" or self.dtype is not None:
            asked = "a GPU" if self.device.type != "cpu" else f"infer.precision {self.infer.precision}"
            raise ConfigError(f"infer.engine onnx is for CPUs and fp32, not for {asked}; take torch, or auto.")
        threads = 1 if self._threads == 1 else torch.get_num_threads()
        varies = self.info.resize not in ("stretch", "keep")
        any_size = bool(self.infer.window) or self.infer.scales != [1.0] or varies
        return onnx_file.session(model, self.info, threads, any_size=any_size)

    def prepare(self, image_hwc: np.ndarray) -> np.ndarray:
        """Turn a decoded frame into the pixels that the model sees, uint8: unchanged with a window, else resized.

        Raises InputTooLarge if memory does not hold them.
        """
        if self.infer.window:
            return image_hwc
        keeps = self.info.resize == "keep"
        size = self.info.input_size if keeps else self.info.seen_size(image_hwc.shape[:2])
        try:
            return fit(image_hwc, size, "keep" if keeps else "stretch", self.info.resample)
        except Exception as error:
            if not is_exhausted(error):
                raise
            text = " and ".join(f"{height}×{width}" for height, width in (image_hwc.shape[:2], size))
            raise InputTooLarge(
                f"This machine's memory does not hold a frame of {text} pixels (height × width), as it is and as the "
                "model sees it. Lower the batch size, or end what else uses the memory."
            ) from error

    @torch.inference_mode()
    def predict(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        points: Sequence[np.ndarray] | None = None,
        clock: Clock | None = None,
    ) -> list[Prediction]:
        """Predict a batch of prepared frames; sizes are the (height, width) of their sources, in the same order.

        points: for each frame int [N, 2], rows and columns of source pixels whose logits are returned, too.
        clock: counts "wait", while other threads queue their batches on the GPU, and "model".
        Raises ModelTooLarge if a single frame is too large for the memory.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, pixels in enumerate(prepared):
            groups.setdefault(pixels.shape, []).append(i)
        wanted: Sequence[np.ndarray | None] = [None] * len(prepared) if points is None else points
        found: dict[int, Pending] = {}
        clock = clock or Clock()
        with clock("wait"):
            self.lock.acquire()
        try:
            with clock("model"), self._own_threads():
                for members in groups.values():  # one shape at a time
                    jobs = [_Job(prepared[i], sizes[i], wanted[i]) for i in members]
                    found |= zip(members, self._predict(jobs), strict=True)
        finally:
            self.lock.release()
        with clock("model"):
            return [found[i]() for i in range(len(prepared))]

    def check(self) -> None:
        """Predict a black frame, which can fail only because of the model or its device."""
        size = self.infer.window or self.info.input_size
        self.predict([self.prepare(np.zeros((*size, 3), np.uint8))], [size])

    @contextmanager
    def _own_threads(self) -> Iterator[None]:
        """Give this thread its share of the processors, if the model runs on them."""
        before = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _predict(self, jobs: Sequence[_Job]) -> list[Pending]:
        try:
            if window := self.infer.window:
                return [self._finish(self._slide(job.seen_hwc, window), [job])[0] for job in jobs]
            return list(self._as_fits(jobs, jobs[0].seen_hwc[..., 0].size, self._see))
        except Exception as error:
            if not is_exhausted(error):
                raise
            height, width = jobs[0].seen_hwc.shape[:2]
            raise ModelTooLarge(
                f"{name_of(self.info.model)} does not fit into the memory of {self.device} "
                f"with a single frame of {height}×{width} (height × width). Give it smaller windows, such as "
                f"--window 256x512, or a {'machine' if self.device.type == 'cpu' else 'GPU'} that nothing else uses."
            ) from error

    def _as_fits(
        self, items: Sequence[Item], px: int, work: Callable[[Sequence[Item]], Iterable[Result]]
    ) -> Iterator[Result]:
        """Yield the results of work() over as many items of `px` pixels at once as fit the memory, or a CPU's caches.

        Raises its error of exhausted memory if a single item is too large.
        """
        most = max(1, CPU_PX // px) if self.device.type == "cpu" else len(items)
        start = 0
        while start < len(items):
            some = items[start : start + min(self.most_at_once, most)]
            try:
                results = work(some)
            except Exception as error:
                if len(some) == 1 or not is_exhausted(error):
                    raise
                self.most_at_once = len(some) // 2
            else:
                yield from results
                start += len(some)
                continue
            torch.cuda.empty_cache()  # only here has the traceback released its tensors

    def _see(self, jobs: Sequence[_Job]) -> list[Pending]:
        logits = self._logits(self._normal([job.seen_hwc for job in jobs]))
        sides = [self._inner(job) for job in jobs]
        if len({*sides}) == 1:
            return self._finish(logits[..., : sides[0][0], : sides[0][1]], jobs)
        return [
            self._finish(one[None, :, :height, :width], [job])[0]
            for one, (height, width), job in zip(logits, sides, jobs, strict=True)
        ]

    def _inner(self, job: _Job) -> tuple[int, int]:
        """Return the (height, width) of the frame in what the model sees; the rest is padding."""
        if self.info.resize == "keep":
            return self.info.seen_size(job.size)
        height, width = job.seen_hwc.shape[:2]
        return height, width

    def _normal(self, images_hwc: Sequence[np.ndarray]) -> torch.Tensor:
        return normalize(to_float(self._batch(images_hwc)), self.info.mean, self.info.std)

    def _batch(self, images_hwc: Sequence[np.ndarray]) -> torch.Tensor:
        """Return uint8 [B, H, W, 3] on the device, copied to a GPU while it computes something else."""
        if self.copies is None:
            return torch.from_numpy(np.stack(images_hwc))
        host = logit_maps.pinned(torch.Size((len(images_hwc), *images_hwc[0].shape)), torch.uint8)
        np.stack(images_hwc, out=host.numpy())
        with torch.cuda.stream(self.copies):
            there = host.to(self.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self.copies)
        there.record_stream(torch.cuda.current_stream())
        return there

    def _logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C, H, W]: the model's own, or the log of probabilities averaged over scales and flips."""
        if self.infer.scales == [1.0] and not self.infer.flip:
            return self._forward(batch)
        views = list(self._views(batch))
        return torch.stack(views).mean(0).clamp_min(1e-12).log()

    def _views(self, batch: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield probabilities at the batch's size, for each scale and mirror image."""
        height, width = batch.shape[-2:]
        for scale in self.infer.scales:
            size = self._steps(height * scale), self._steps(width * scale)
            seen = batch if scale == 1 else functional.interpolate(batch, size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if self.infer.flip else (False,):
                logits = self._forward(seen.flip(-1)).flip(-1) if mirrored else self._forward(seen)
                yield self._large(logits, (height, width)).softmax(1)

    def _steps(self, side: float) -> int:
        """Round a side to the nearest multiple of step_px."""
        return max(1, round(side / self.step_px)) * self.step_px

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        moved()
        if self.session is not None:
            logits = self.session(batch)
        else:
            with autocast(self.infer, self.device):
                logits = coarse(self.model, batch).float()
        return logits if self.info.temperature == 1 else logits / self.info.temperature

    def _large(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self._unmixed(logit_maps.resize(self._mixable(logits), size))

    def _mixable(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what is interpolated to find classes: logits, or the scores that they are the logarithms of."""
        return (logits * self.info.temperature).exp() if self.scores else logits

    def _unmixed(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits of what _mixable() returns."""
        return values.log() / self.info.temperature if self.scores else values

    def _slide(self, image_hwc: np.ndarray, window: tuple[int, int]) -> torch.Tensor:
        """Return the logarithm of the mean probabilities of all windows, [1, C, H, W]."""
        height, width = image_hwc.shape[:2]
        tall, wide = min(height, window[0]), min(width, window[1])
        # A model from elsewhere sees whole windows of whole steps, also of a smaller frame; others pad by themselves.
        most = [-(-side // self.step_px) * self.step_px for side in window] if self.as_is else [tall, wide]
        down, right = most[0] - tall, most[1] - wide
        corners = [(top, left) for top in _starts(height, tall, self.infer.overlap)
                   for left in _starts(width, wide, self.infer.overlap)]  # fmt: skip
        total = torch.zeros(1, self.label_space.num_classes, height, width, device=self.device)
        times = torch.zeros(1, 1, height, width, device=self.device)

        def look(some: Sequence[tuple[int, int]]) -> torch.Tensor:
            views = [image_hwc[top : top + tall, left : left + wide] for top, left in some]
            seen = self._normal(views)
            seen = functional.pad(seen, (0, right, 0, down)) if down or right else seen
            return self._large(self._logits(seen), (tall + down, wide + right))[..., :tall, :wide].softmax(1)

        for (top, left), probabilities in zip(corners, self._as_fits(corners, tall * wide, look), strict=True):
            total[0, :, top : top + tall, left : left + wide] += probabilities
            times[0, :, top : top + tall, left : left + wide] += 1
        return total.div_(times).clamp_min_(1e-12).log_()

    def _finish(self, logits: torch.Tensor, jobs: Sequence[_Job]) -> list[Pending]:
        logits = logits.contiguous()  # class by class: a CPU finds the highest faster
        if self.device.type == "cuda":
            return self._finish_at_once(logits, jobs)
        metrics = logit_maps.metrics_of(logits).tolist()
        found = [
            self._prediction(one, job.size, job.points, metric)
            for one, job, metric in zip(logits, jobs, metrics, strict=True)
        ]
        return [partial(_known, one) for one in found]

    def _finish_at_once(self, logits: torch.Tensor, jobs: Sequence[_Job]) -> list[Pending]:
        """Queue a batch's ids and metrics in few large steps, and their copies to pinned memory: for a GPU."""
        sizes = [job.size for job in jobs]
        parts = [(logits, sizes[0])] if len({*sizes}) == 1 else zip(logits.split(1), sizes, strict=True)
        masks: list[np.ndarray] = []
        confidences: list[np.ndarray | None] = []
        for part, size in parts:
            mixable = self._mixable(part)
            ids = logit_maps.ids_at_once(mixable, size)
            if self.confidence_maps or self.threshold is not None:
                tops = torch.stack([logit_maps.tops_of(one, size, self._unmixed) for one in mixable])
                if self.threshold is not None:
                    ids.masked_fill_(tops <= self.threshold, IGNORE_INDEX)
                if self.confidence_maps:
                    confidences += list(logit_maps.fetched(tops.mul_(255).round_().to(torch.uint8)))
            masks += list(logit_maps.fetched(ids))
        metrics = logit_maps.fetched(logit_maps.metrics_of(logits))
        at = [None if job.points is None
              else logit_maps.fetched(self._unmixed(logit_maps.at_points(self._mixable(one), job.size, job.points)))
              for one, job in zip(logits, jobs, strict=True)]  # fmt: skip
        wait = logit_maps.queued(logits.device)

        def ready(i: int) -> Prediction:
            wait()
            confidence_mean, entropy_mean, low_margin_share = self._numbers(metrics[i].tolist())
            confidence = confidences[i] if confidences else None
            return Prediction(masks[i], confidence_mean, entropy_mean, low_margin_share, confidence, at[i])

        return [partial(ready, i) for i in range(len(jobs))]

    def _numbers(self, metrics: list[float]) -> list[float]:
        """Return a frame's metrics. Raises ModelError if a pixel's logits are no numbers: it would be of class 0."""
        if math.isfinite(metrics[0]):
            return metrics
        overflows = self.dtype is torch.float16
        raise ModelError(
            f"{name_of(self.info.model)} gives logits that are no numbers, in {precision_name(self.dtype)}. "
            + ("Larger numbers have room in fp32: --set infer.precision=fp32." if overflows else "Check its weights.")
        )

    def _prediction(
        self, logits: torch.Tensor, size: tuple[int, int], points: np.ndarray | None, metrics: list[float]
    ) -> Prediction:
        """Make a prediction from logits [C, H, W], which are interpolated to `size` so that edges stay smooth."""
        mixable = self._mixable(logits)
        ids, confidence = logit_maps.ids_of(mixable, size), None
        if self.confidence_maps or self.threshold is not None:
            tops = logit_maps.tops_of(mixable, size, self._unmixed)
            if self.threshold is not None:
                ids[tops <= self.threshold] = IGNORE_INDEX
            if self.confidence_maps:
                confidence = tops.mul_(255).round_().to(torch.uint8).cpu().numpy()
        at = None if points is None else self._unmixed(logit_maps.at_points(mixable, size, points)).cpu().numpy()
        confidence_mean, entropy_mean, low_margin_share = self._numbers(metrics)
        return Prediction(ids.cpu().numpy(), confidence_mean, entropy_mean, low_margin_share, confidence, at)


def _known(prediction: Prediction) -> Prediction:
    return prediction


def is_of_device(error: Exception) -> bool:
    """Say whether an exception is a GPU's: this process's later results are unreliable, and retrying is useless."""
    return isinstance(error, torch.AcceleratorError) or any(name in str(error) for name in ("CUDA", "cuDNN", "CUDNN"))


def side_by_side(cpus: int) -> int:
    """Return how many threads should share a predictor with that many processors; at least two, as one may read."""
    return min(MOST_SIDE_BY_SIDE, max(LEAST_SIDE_BY_SIDE, cpus))


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """List where windows begin that cover a side: evenly, overlapping by at least `overlap` of a window."""
    stride = max(1, int(window * (1 - overlap)))
    count = 1 + -(-(length - window) // stride)
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]
