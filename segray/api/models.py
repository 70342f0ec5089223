"""A model in this process: images and video → results."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image, ImageOps

from segray.api.results import Place, Result, in_unit_range
from segray.core.formatting import counted
from segray.core.infer.predictor import Predictor
from segray.core.io import locators, storage
from segray.core.io.images import IMAGE_SUFFIXES
from segray.core.io.video_index import VIDEO_SUFFIXES
from segray.core.labels.units import chosen_frames
from segray.core.models import name_of, ready
from segray.core.training.workers import local_device
from segray.errors import ConfigError, DataError
from segray.sections.labelling import ClusterSection, InferSection, LabelSection

Pixels = Place | np.ndarray | Image.Image
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")  # Pillow's, whose channels have 8 bits


def load(model: Place, *, device: str | None = None, weights_dir: str | None = None, **infer: Any) -> Model:
    """Load a model for predictions in this process.

    model: a bundle's folder, as runs/sweep/best, local or in a bucket, or a ready model's name, as deeplabv3-coco
    or hf:OWNER/NAME.
    device: cpu or cuda. Default: the GPU where there is one.
    weights_dir: folder of a ready model's downloaded weights.
    infer: settings of the section `infer`, such as window=(512, 1024), flip=True, threshold=0.5.
    Raises ModelError for what holds no model, ConfigError for an unknown setting.

    >>> model = segray.load("runs/street/best")
    >>> model
    <Model unet over resnet18, 11 classes, 32×48, cpu>
    """
    from segray.config import load as load_settings

    settings = load_settings(None, {f"infer.{key}": value for key, value in infer.items()})
    chosen = local_device(ClusterSection()) if device is None else _device(str(device))
    return Model(ready.resolve(os.fspath(model), weights_dir), chosen, settings.infer)


class Model:
    """A loaded model. names: its classes, in the order of their indices in a mask."""

    def __init__(self, place: str, device: str, infer: InferSection) -> None:
        self._predictor = Predictor(place, device, infer, threshold=infer.threshold, confidence_maps=True)
        self.info = self._predictor.info

    @property
    def names(self) -> tuple[str, ...]:
        return self._predictor.label_space.names

    @overload
    def predict(self, image: Pixels) -> Result: ...

    @overload
    def predict(self, image: list[Any], *, batch_size: int = ...) -> list[Result]: ...

    @overload
    def predict(
        self, image: Place, *, every: int | None = ..., fps: float | None = ..., batch_size: int = ...
    ) -> Iterator[Result]: ...

    def predict(
        self,
        image: Pixels | list[Any],
        *,
        every: int | None = None,
        fps: float | None = None,
        batch_size: int = 8,
    ) -> Result | list[Result] | Iterator[Result]:
        """Label an image, a list of images in batches, or with `every` or `fps` the frames of a video.

        image: a path or URI, VIDEO#frame=N, a PIL image, or a uint8 RGB array [H, W, 3]; OpenCV's arrays are BGR:
            give image[..., ::-1]. A mask has the size of its image.
        every: label each N-th frame of a video. The results come in order of time, as they are made; frames that cannot
            be decoded are left out.
        fps: label so many frames of a video a second.
        Raises DataError for an image that cannot be read or is of another kind, ConfigError for a wrong number.

        >>> result = model.predict("frames/000.jpg")
        >>> result.mask.shape, result.mask.dtype
        ((96, 128), dtype('uint8'))
        >>> [result.time_s for result in model.predict("drive.mp4", fps=2)]
        [0.0, 0.5]
        """
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; give a whole number of images, from 1 on.")
        if every is not None or fps is not None:
            if not isinstance(image, str | os.PathLike) or _is_named(os.fspath(image), IMAGE_SUFFIXES):
                raise ConfigError(
                    "every and fps choose frames of a video; give its path, or leave them out for an image."
                )
            chosen = _chosen(every, fps)
            return self._frames(os.fspath(image), chosen.every, chosen.fps, batch_size)
        if isinstance(image, str | os.PathLike | np.ndarray | Image.Image):
            return self._results([_Frame(image)])[0]
        if isinstance(image, bytes | torch.Tensor) or not isinstance(image, Iterable):
            _checked(image)  # which says that it is no image
        return [result for some in _batches(map(_Frame, image), batch_size) for result in self._results(some)]

    def _frames(self, video: str, every: int, fps: float | None, batch_size: int) -> Iterator[Result]:
        from segray.core.io.video import index_video, read_frames  # loads FFmpeg

        place = storage.absolute(video)
        with storage.reading_input(video):
            index = index_video(place)
        number_of = {index.keys[i]: i for i in chosen_frames(index, every, fps) if i not in index.lost}
        first = next(iter(number_of.values()), 0)
        read = read_frames(place, list(number_of), by_index=index.pts is None, begin=index.start_of(first))
        numbered = ((number_of[frame.key], frame.image_hwc) for frame in read)
        frames = (_Frame(image_hwc, f"{video}#frame={i}", index.times_s[i]) for i, image_hwc in numbered)
        for some in _batches(frames, batch_size):
            yield from self._results(some)

    def _results(self, frames: Sequence[_Frame]) -> list[Result]:
        images = [frame.image_hwc for frame in frames]
        predicted = self._predictor.predict(
            [self._predictor.prepare(image_hwc) for image_hwc in images], [image_hwc.shape[:2] for image_hwc in images]
        )
        return [
            Result(
                made.mask_hw,
                self._predictor.label_space,
                frame.pixels,
                in_unit_range(made.confidence_hw),
                frame.source,
                frame.time_s,
            )
            for frame, made in zip(frames, predicted, strict=True)
        ]

    def __repr__(self) -> str:
        size = "×".join(map(str, self.info.input_size))
        name = name_of(self.info.model)
        return f"<Model {name}, {len(self.names)} classes, {size}, {self._predictor.device}>"


class _Frame:
    """An image as it was given. image_hwc: uint8 RGB [H, W, 3]."""

    def __init__(self, given: Pixels, source: str | None = None, time_s: float | None = None) -> None:
        self.source, self.time_s = source, time_s
        if isinstance(given, str | os.PathLike):
            self.source = os.fspath(given)
            if _is_named(self.source, VIDEO_SUFFIXES):
                raise DataError(f"{given} is a video; model.predict(video, every=1) labels each of its frames.")
            with storage.reading_input(self.source):
                self.image_hwc = locators.read_image(storage.absolute(self.source))
        elif isinstance(given, Image.Image):
            self.image_hwc = _from_pillow(given)
        else:
            self.image_hwc = _checked(given)

    def pixels(self) -> np.ndarray:
        return self.image_hwc


def _is_named(place: str, suffixes: Collection[str]) -> bool:
    return Path(place).suffix.lower() in suffixes


def _device(name: str) -> str:
    """Return a device that can be used. Raises ConfigError with the rule for another."""
    if name not in ("cpu", "cuda") and not re.fullmatch(r"cuda:\d+", name):
        raise ConfigError(f"device is {name!r}; give cpu, cuda, or one of several GPUs, as cuda:1.")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {name!r}, and torch can use {counted(torch.cuda.device_count(), 'GPU')} here; "
            "give cpu or another."
        )
    return name


def _chosen(every: int | None, fps: float | None) -> LabelSection:
    """Return which frames of a video are chosen, by the rules of `segray label`."""
    from segray.config import load as load_settings

    given = {"label.every": every, "label.fps": fps}
    chosen = load_settings(None, {key: value for key, value in given.items() if value is not None}).label
    chosen.check_frames()
    return chosen


def _batches(frames: Iterable[_Frame], size: int) -> Iterator[list[_Frame]]:
    rest = iter(frames)
    while some := list(islice(rest, size)):
        yield some


def _from_pillow(image: Image.Image) -> np.ndarray:
    if image.mode not in MODES:
        raise DataError(
            f"A PIL image of mode {image.mode} was given; give one of 8 bits a channel, as RGB, or its path."
        )
    try:  # Pillow decodes the file of an opened image only now
        return _checked(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    except (OSError, ValueError) as error:
        raise DataError(f"A PIL image cannot be decoded: {error}.") from error


def _checked(image: Any) -> np.ndarray:
    """Return an array that is an image. Raises DataError with what makes it one."""
    rule = "an image is uint8 RGB [height, width, 3]"
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise DataError(f"{type(image).__name__} is no image: give a path, a PIL image or an array; {rule}.")
    array = np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image)
    what = f"An array of {array.dtype} {list(array.shape)} was given"
    if array.dtype != np.uint8:
        scaled = (
            ": (255 * image).round().astype(np.uint8) makes it from values in 0–1" if array.dtype.kind == "f" else ""
        )
        raise DataError(f"{what}; {rule}{scaled}.")
    if array.ndim == 2:
        raise DataError(f"{what}; {rule}: np.stack([image] * 3, axis=-1) makes it from grey.")
    if array.ndim == 3 and array.shape[2] == 4:
        raise DataError(f"{what}; {rule}: image[..., :3] leaves alpha out.")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        raise DataError(f"{what}; {rule}: image.transpose(1, 2, 0) makes it from channels first.")
    if array.ndim == 4:
        raise DataError(f"{what}; {rule}: give a list of images, as list(images).")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(f"{what}; {rule}.")
    return np.ascontiguousarray(array)
