"""A model bundle and decoded frames of any size → class ids at source size, with metrics of confidence."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional

from segray.core.clock import Clock
from segray.core.memory import is_exhausted
from segray.core.models import bundle, forward, name_of
from segray.core.models.fold import fold_batch_norm
from segray.core.precision import autocast, autocast_dtype, cast_weights
from segray.core.samples import IGNORE_INDEX
from segray.core.transforms import fit, inner_size, normalize, sent, to_float
from segray.errors import ConfigError, InputTooLarge, ModelTooLarge
from segray.sections.labelling import InferSection

LOW_MARGIN = 0.5  # below this, first and second class are within half a probability of each other
WINDOWS_AT_ONCE = {"cpu": 4, "cuda": 16}
# Pixels that a CPU works on at once: 9.5 frames/s of 352×480 one by one, 6.1 by eight, whose layers outgrow caches.
CPU_PX = 1 << 18
LEAST_SIDE_BY_SIDE, MOST_SIDE_BY_SIDE = 2, 16
BAND_ROWS = {"cpu": 32, "cuda": 512}  # rows of logits in work at once: about what a CPU's cache holds
AT_ONCE_PX = 1 << 15
AT_ONCE_LOGITS = 1 << 28  # interpolated ones that a GPU holds at once, 1 GiB of float32

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
        windows = WINDOWS_AT_ONCE[self.device.type]
        self.most_at_once = windows if self.infer.window else sys.maxsize  # windows, or frames
        self.lock = threading.RLock() if self.device.type == "cuda" else threading.Semaphore(sys.maxsize)
        self._threads = max(1, torch.get_num_threads() // side_by_side(torch.get_num_threads()))
        self.threshold, self.confidence_maps = threshold, confidence_maps
        self.session = self._session(model) if self.infer.engine == "onnx" else None
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        # Not cudnn.benchmark: another process might pick other algorithms, and then label ties otherwise.
        self.copies = torch.cuda.Stream() if self.device.type == "cuda" else None
        if self.copies is not None and self.dtype is not None:
            cast_weights(self.model, self.dtype)

    def _session(self, model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the forward pass in ONNX Runtime. Raises ConfigError for an unsupported device or precision."""
        from segray.core.models import onnx_file

        if self.device.type != "cpu" or self.dtype is not None:
            asked = "a GPU" if self.device.type != "cpu" else f"infer.precision {self.infer.precision}"
            raise ConfigError(f"infer.engine onnx is for CPUs and fp32, not for {asked}; take torch, or auto.")
        threads = 1 if self._threads == 1 else torch.get_num_threads()
        any_size = bool(self.infer.window) or self.infer.scales != [1.0] or self.info.resize == "short_side"
        return onnx_file.session(model, self.info, threads, any_size=any_size)

    def prepare(self, image_hwc: np.ndarray) -> np.ndarray:
        """Turn a decoded frame into the pixels that the model sees, uint8: unchanged with a window, else resized.

        Raises InputTooLarge if memory does not hold them.
        """
        if self.infer.window:
            return image_hwc
        size = self.info.input_size
        if self.info.resize == "short_side":
            scale = min(size) / min(image_hwc.shape[:2])
            height, width = (max(1, round(side * scale)) for side in image_hwc.shape[:2])
            size = height, width
        try:
            return fit(image_hwc, size, "keep" if self.info.resize == "keep" else "stretch")
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
            return inner_size(job.size, self.info.input_size, "keep")
        height, width = job.seen_hwc.shape[:2]
        return height, width

    def _normal(self, images_hwc: Sequence[np.ndarray]) -> torch.Tensor:
        return normalize(to_float(self._batch(images_hwc)), self.info.mean, self.info.std)

    def _batch(self, images_hwc: Sequence[np.ndarray]) -> torch.Tensor:
        """Return uint8 [B, H, W, 3] on the device, copied to a GPU while it computes something else."""
        if self.copies is None:
            return torch.from_numpy(np.stack(images_hwc))
        host = _pinned(torch.Size((len(images_hwc), *images_hwc[0].shape)), torch.uint8)
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
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            seen = batch if scale == 1 else functional.interpolate(batch, size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if self.infer.flip else (False,):
                logits = self._forward(seen.flip(-1)).flip(-1) if mirrored else self._forward(seen)
                yield _resize(logits, (height, width)).softmax(1)

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self.session is not None:
            logits = self.session(batch)
        else:
            with autocast(self.infer, self.device):
                logits = forward(self.model, batch).float()
        return logits if self.info.temperature == 1 else logits / self.info.temperature

    def _slide(self, image_hwc: np.ndarray, window: tuple[int, int]) -> torch.Tensor:
        """Return the logarithm of the mean probabilities of all windows, [1, C, H, W]."""
        height, width = image_hwc.shape[:2]
        tall, wide = min(height, window[0]), min(width, window[1])
        corners = [(top, left) for top in _starts(height, tall, self.infer.overlap)
                   for left in _starts(width, wide, self.infer.overlap)]  # fmt: skip
        total = torch.zeros(1, self.label_space.num_classes, height, width, device=self.device)
        seen = torch.zeros(1, 1, height, width, device=self.device)

        def look(some: Sequence[tuple[int, int]]) -> torch.Tensor:
            views = [image_hwc[top : top + tall, left : left + wide] for top, left in some]
            return self._logits(self._normal(views)).softmax(1)

        for (top, left), probabilities in zip(corners, self._as_fits(corners, tall * wide, look), strict=True):
            total[0, :, top : top + tall, left : left + wide] += probabilities
            seen[0, :, top : top + tall, left : left + wide] += 1
        return total.div_(seen).clamp_min_(1e-12).log_()

    def _finish(self, logits: torch.Tensor, jobs: Sequence[_Job]) -> list[Pending]:
        logits = logits.contiguous()  # class by class: a CPU finds the highest faster
        if self.device.type == "cuda":
            return self._finish_at_once(logits, jobs)
        metrics = _metrics(logits).tolist()
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
            ids = _ids_at_once(part, size)
            if self.confidence_maps or self.threshold is not None:
                tops = torch.stack([_tops(one, size) for one in part])
                if self.threshold is not None:
                    ids.masked_fill_(tops <= self.threshold, IGNORE_INDEX)
                if self.confidence_maps:
                    confidences += list(_fetched(tops.mul_(255).round_().to(torch.uint8)))
            masks += list(_fetched(ids))
        metrics = _fetched(_metrics(logits))
        at = [None if job.points is None else _fetched(_at(one, job.size, job.points))
              for one, job in zip(logits, jobs, strict=True)]  # fmt: skip
        wait = _queued(logits.device)

        def ready(i: int) -> Prediction:
            wait()
            confidence_mean, entropy_mean, low_margin_share = metrics[i].tolist()
            confidence = confidences[i] if confidences else None
            return Prediction(masks[i], confidence_mean, entropy_mean, low_margin_share, confidence, at[i])

        return [partial(ready, i) for i in range(len(jobs))]

    def _prediction(
        self, logits: torch.Tensor, size: tuple[int, int], points: np.ndarray | None, metrics: list[float]
    ) -> Prediction:
        """Make a prediction from logits [C, H, W], which are interpolated to `size` so that edges stay smooth."""
        ids, confidence = _ids(logits, size), None
        if self.confidence_maps or self.threshold is not None:
            tops = _tops(logits, size)
            if self.threshold is not None:
                ids[tops <= self.threshold] = IGNORE_INDEX
            if self.confidence_maps:
                confidence = tops.mul_(255).round_().to(torch.uint8).cpu().numpy()
        at = None if points is None else _at(logits, size, points).cpu().numpy()
        confidence_mean, entropy_mean, low_margin_share = metrics
        return Prediction(ids.cpu().numpy(), confidence_mean, entropy_mean, low_margin_share, confidence, at)


def _known(prediction: Prediction) -> Prediction:
    return prediction


def _pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return memory to which a GPU copies by itself; PyTorch keeps it for the next batch."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _fetched(values: torch.Tensor) -> np.ndarray:
    """Return values in the host's memory, where they are once all that is queued is done."""
    if values.device.type == "cpu":
        return values.numpy()
    host = _pinned(values.shape, values.dtype)
    host.copy_(values, non_blocking=True)
    return host.numpy()


def _queued(device: torch.device) -> Callable[[], object]:
    """Return what waits for all that is queued by now, without using a processor."""
    if device.type == "cpu":
        return bool
    done = torch.cuda.Event(blocking=True)
    done.record()
    return done.synchronize


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


def _resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def _ids(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the class of the highest of logits [C, H, W] after _resize() to `size`, uint8.

    A pixel takes the class of its four neighbours if they have the same; only the others are interpolated.
    """
    if len(logits) == 2:  # the sign of their difference is enough, in a tenth to two thirds of the time
        return (_resize((logits[1:] - logits[:1])[None], size)[0, 0] > 0).to(torch.uint8)
    height, width = logits.shape[1:]
    coarse = logits.max(0).indices.to(torch.uint8)  # argmax() is several times as slow on a CPU
    if size == (height, width):
        return coarse
    (upper, lower, down), (left, right, along) = (
        [values.to(logits.device) for values in _between(*sides)] for sides in zip((height, width), size, strict=True)
    )
    lefts, rights = coarse.index_select(1, left), coarse.index_select(1, right)
    ids = lefts.index_select(0, upper)
    torn = ids != rights.index_select(0, upper)
    for corner in (lefts, rights):
        torn |= ids != corner.index_select(0, lower)
    pixels = logits.flatten(1)
    for y, x in zip(*(index.split(AT_ONCE_PX) for index in torn.nonzero(as_tuple=True)), strict=True):
        above, below = (
            torch.lerp(
                pixels.index_select(1, row[y] * width + left[x]),
                pixels.index_select(1, row[y] * width + right[x]),
                along[x],
            )
            for row in (upper, lower)
        )
        ids[y, x] = torch.lerp(above, below, down[y]).max(0).indices.to(torch.uint8)
    return ids


def _ids_at_once(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the ids of a batch [B, C, H, W] as _ids() does of each frame, uint8 [B, *size], but at ties.

    All pixels are interpolated: a GPU does that faster than it finds those that need it.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.argmax(1).to(torch.uint8)
    frame = logits.shape[1] * size[0] * size[1]
    if frame > AT_ONCE_LOGITS:
        frames = [[band.argmax(0).to(torch.uint8) for band in _bands(one, size)] for one in logits]
        return torch.stack([torch.cat(bands) for bands in frames])
    parts = logits.split(max(1, AT_ONCE_LOGITS // frame))
    return torch.cat([_resize(part, size).argmax(1).to(torch.uint8) for part in parts])


def _tops(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the highest probability of each pixel of logits [C, H, W] after _resize() to `size`."""
    return torch.cat([1 / (band - band.amax(0)).exp_().sum(0) for band in _bands(logits, size)])


def _bands(logits: torch.Tensor, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Yield logits [C, H, W] as _resize() returns them at `size`, some rows at a time, never all in memory."""
    height, width = logits.shape[1:]
    upper, lower, share = _between(height, size[0])
    share = sent(share.view(-1, 1), logits.device)
    step = BAND_ROWS[logits.device.type]
    for start in range(0, size[0], step):
        rows = slice(start, start + step)
        if size == (height, width):
            yield logits[:, rows]
            continue
        first, last = int(upper[rows][0]), int(lower[rows][-1]) + 1
        wide = _resize(logits[None, :, first:last], (last - first, size[1]))[0]
        above, below = (wide.index_select(1, sent(row[rows] - first, wide.device)) for row in (upper, lower))
        yield above.lerp_(below, share[rows])


def _between(length: int, wanted: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, for `wanted` pixels along a side of `length`, the two source pixels of each and the second's weight."""
    at = ((torch.arange(wanted) + 0.5) * (length / wanted) - 0.5).clamp_min_(0)  # half-pixel centres
    first = at.long()
    return first, (first + 1).clamp_max_(length - 1), at - first


def _at(logits: torch.Tensor, size: tuple[int, int], points: np.ndarray) -> torch.Tensor:
    """Interpolate logits [C, H, W] only at some pixels of `size`: [N, 2] rows and columns → [N, C]."""
    shares = (torch.from_numpy(points).float() + 0.5) / torch.tensor(size)
    grid = (shares.flip(-1) * 2 - 1).view(1, 1, -1, 2).to(logits.device)
    found = functional.grid_sample(logits[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def _metrics(logits: torch.Tensor) -> torch.Tensor:
    """Return [B, 3]: mean confidence, mean relative entropy, low-margin share."""
    step = BAND_ROWS[logits.device.type]
    sums = torch.stack([_figure_sums(logits[:, :, i : i + step]) for i in range(0, logits.shape[2], step)]).sum(0)
    return sums / logits[0, 0].numel()


def _figure_sums(logits: torch.Tensor) -> torch.Tensor:
    """Sum confidence, relative entropy and low margins over pixels, [B, 3].

    With d the logit's distance from the highest: probability exp(d) / s, s their sum; entropy log(s) − Σ d exp(d) / s.
    """
    top, label = logits.max(1, keepdim=True)
    down = logits - top
    parts = down.exp()
    total = parts.sum(1)
    entropy = (total.log() - parts.mul_(down).sum(1) / total) / max(np.log(logits.shape[1]), 1e-9)
    second = down.scatter_(1, label, -torch.inf).amax(1).exp()  # topk() is slower on a CPU
    columns = (1 / total, entropy, (1 - second) / total < LOW_MARGIN)
    return torch.stack([column.double().sum(dim=(1, 2)) for column in columns], dim=1)
