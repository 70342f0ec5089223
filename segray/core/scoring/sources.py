"""The frames to score: a model's predictions for labelled frames, or finished labels with their ground truth.

Both yield frames with their truth and prediction, in the classes of the source's `space`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from segray.config import Config
from segray.core.data import open_dataset, read_sample, split_refs
from segray.core.infer.predictor import Predictor, side_by_side
from segray.core.io import locators
from segray.core.io.pairing import common_folder, find_truth, frame_path, match_masks, pair_key
from segray.core.labels.folder import LabelFolder
from segray.core.prefetch import ahead
from segray.core.samples import LabelSpace, SampleRef
from segray.core.scoring import calibration
from segray.core.scoring.classmaps import nothing_in_common, scoring_map
from segray.errors import ConfigError, DataError

COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "truth_uri", "status", "entropy_mean"]


class _Row(locators.FrameOf):
    """COLUMNS of a label row, and the location of its mask."""

    truth_uri: str | None
    status: str
    entropy_mean: float | None
    place: str


class Drawn(NamedTuple):
    """The pixels of a frame that were drawn for calibration: their truth, uint8 [N], and what was predicted there.

    logits_nc: a model's logits, float32 [N, C]. sure: for labels with confidence maps, the confidence, float32 [N] in
    0..1, and whether the label is right, bool [N].
    """

    truth_n: np.ndarray
    logits_nc: np.ndarray | None = None
    sure: tuple[np.ndarray, np.ndarray] | None = None


class Scored(NamedTuple):
    """A frame with its truth and its prediction, uint8 [H, W] each, in the classes of the source's `space`.

    entropy_mean: the prediction's mean entropy, as in a label row.
    """

    ref: SampleRef
    truth_hw: np.ndarray
    pred_hw: np.ndarray
    entropy_mean: float | None
    drawn: Drawn


class ModelFrames:
    """The bundle `model` and the labelled frames of one split, in order; evaluate.start() gives it its predictor.

    space: the predicted classes. truth_space: the truth's own classes and ids. not_covered: classes of the truth that
    are not predicted. missing: truth without a prediction. notes: remarks on the pairs of truth and prediction.
    what: the words for this source in messages.
    """

    missing: Sequence[str] = ()
    notes: Sequence[str] = ()
    predictor: Predictor

    def __init__(self, config: Config, model: str, space: LabelSpace) -> None:
        self.model = model
        dataset = open_dataset(config.data)
        self.refs = split_refs(dataset, config.evaluate.split)
        self.notes = [f"{note}." for note in dataset.notes]
        self.space, self.truth_space, self.what = space, dataset.label_space, f"{dataset.name} {config.evaluate.split}"
        self._reading, self.not_covered = reading_space(space, dataset.label_space)
        self._batch_size = config.evaluate.batch_size
        self._most = calibration.pixels_a_frame(len(self.refs), space.num_classes)

    def frames(self, refs: Sequence[SampleRef]) -> Iterator[Scored]:
        """Yield the scored frames. Each batch runs in one thread, as many at once as suit the predictor."""
        batches = [refs[i : i + self._batch_size] for i in range(0, len(refs), self._batch_size)]
        threads = side_by_side(torch.get_num_threads())
        with ThreadPoolExecutor(threads) as pool:
            yield from chain.from_iterable(ahead(pool, self._look, batches, threads))

    def _look(self, batch: Sequence[SampleRef]) -> list[Scored]:
        samples = [read_sample(ref, self._reading, None) for ref in batch]
        points = [_points(ref, one.mask_hw, self._most) for ref, one in zip(batch, samples, strict=True)]
        prepared = [self.predictor.prepare(one.image_hwc) for one in samples]
        found = self.predictor.predict(prepared, [one.mask_hw.shape for one in samples], points)
        return [
            Scored(ref, truth_hw, one.mask_hw, one.entropy_mean, Drawn(truth_hw[at[:, 0], at[:, 1]], one.logits_nc))
            for ref, (_, truth_hw), at, one in zip(batch, samples, points, found, strict=True)
        ]


class LabelFrames:
    """Finished labels and their truth; the attributes are those of ModelFrames.

    The truth is the folder `evaluate.truth`, with masks at the images' paths and the ids that the model learned from;
    else the split of the data settings, if data.root is given; else the masks that the labels were made with.
    Raises DataError for labels that are not finished, hold no masks, or have no truth.
    """

    refs: Sequence[SampleRef]
    missing: Sequence[str]

    def __init__(self, config: Config) -> None:
        section, labels = config.evaluate, config.evaluate.given_model()
        folder = LabelFolder.open_finished(labels)
        if folder.plans[0].settings["mask_format"] == "none":
            raise DataError(f"{labels} was made with label.mask_format none; label with png or rle to score it.")
        rows: list[_Row] = list(folder.rows(COLUMNS))
        self.space = self.truth_space = folder.space
        self.notes = []
        if section.truth:
            masks = find_truth(section.truth)
            wanted: Sequence[SampleRef] = [SampleRef(name, "", uri) for name, uri in masks.items()]
            self.what = section.truth
        elif config.data.root:
            dataset = open_dataset(config.data)
            wanted, self.what = split_refs(dataset, section.split), f"{dataset.name} {section.split}"
            self.notes = [f"{note}." for note in dataset.notes]
            self.truth_space = dataset.label_space
        else:
            having = [(row, truth) for row in rows if (truth := row["truth_uri"])]
            paths = [_path(row) for row, _ in having]
            root = common_folder(min(paths, default=""), max(paths, default=""))
            wanted = [
                SampleRef(path.removeprefix(root), locators.image_place(row), truth)
                for path, (row, truth) in zip(paths, having, strict=True)
            ]
            self.what = "the ground truth of labelling"
        if not wanted:
            raise ConfigError(
                f"{labels} was labelled without ground truth; give --truth FOLDER, or --format and --data."
            )
        self._reading, self.not_covered = reading_space(self.space, self.truth_space)
        self._pair(wanted, rows, folder)
        self._most = calibration.pixels_a_frame(max(1, len(self.refs)), 1)

    def _pair(self, wanted: Sequence[SampleRef], rows: list[_Row], folder: LabelFolder) -> None:
        """Pair truth and labels by the frame's path, else as match_masks() does; refs are in the order of the parts."""
        frames = {locators.image_place(row): row for row in rows}
        ref_of = {ref.image: ref for ref in wanted if ref.image in frames}
        others = {pair_key(ref.sample_id): ref for ref in wanted if ref.image not in frames}
        matched = match_masks({key: ref.mask for key, ref in others.items()}, ((p, _path(frames[p])) for p in frames))
        ref_of = {place: others[key] for place, key in matched.key_of.items()} | ref_of
        kept = [place for row in rows if frames[place := locators.image_place(row)] is row and row["status"] == "ok"]
        stamps = folder.stamps(frames[place]["input_id"] for place in kept)
        self.refs = [
            replace(ref_of[place], image=place, stamp=stamps.get(frames[place]["input_id"]))
            for place in kept
            if place in ref_of
        ]
        if not self.refs:
            none = f"No labelled frame has the name of one of {len(wanted)} masks in {self.what}."
            raise DataError(matched.notes[0] if matched.notes and not matched.key_of else none)
        scored = {ref.sample_id for ref in self.refs}
        self.missing = [ref.sample_id for ref in wanted if ref.sample_id not in scored]
        self.notes = [*self.notes, *matched.notes]
        self._masks = {place: frames[place] for place in kept}

    def frames(self, refs: Sequence[SampleRef]) -> Iterator[Scored]:
        threads = side_by_side(torch.get_num_threads())
        with ThreadPoolExecutor(threads) as pool:
            yield from ahead(pool, self._frame, refs, threads)

    def _frame(self, ref: SampleRef) -> Scored:
        row = self._masks[ref.image]
        place, entropy_mean = row["place"], row["entropy_mean"]
        truth_hw, pred_hw = (
            self._reading.apply(locators.read_mask(ref.mask, self._reading.mask_channel), ref.mask),
            locators.read_mask(place),
        )
        if truth_hw.shape != pred_hw.shape:
            raise DataError(f"{ref.mask} is {truth_hw.shape} but its label {pred_hw.shape} (height, width).")
        confidence_hw = locators.read_confidence(place)
        rows, columns = _points(ref, truth_hw, self._most).T
        truth_n = truth_hw[rows, columns]
        if confidence_hw is None:
            return Scored(ref, truth_hw, pred_hw, entropy_mean, Drawn(truth_n))
        confidence_n = confidence_hw[rows, columns].astype(np.float32) / 255
        right_n: np.ndarray = truth_n == pred_hw[rows, columns]
        return Scored(ref, truth_hw, pred_hw, entropy_mean, Drawn(truth_n, sure=(confidence_n, right_n)))


def reading_space(predicted: LabelSpace, truth: LabelSpace) -> tuple[LabelSpace, list[str]]:
    """Return the predicted classes with ids as in the truth's files, and the truth's classes that are not covered."""
    if predicted.names == truth.names:
        return replace(predicted, id_map=truth.id_map, mask_channel=truth.mask_channel), []
    id_map, not_covered = scoring_map(predicted, truth)
    if len(not_covered) == len(truth.names):
        raise DataError(nothing_in_common("The model's", predicted, truth))
    return replace(predicted, id_map=id_map, mask_channel=truth.mask_channel), not_covered


def _points(ref: SampleRef, truth_hw: np.ndarray, most: int) -> np.ndarray:
    return calibration.sample_pixels(truth_hw, most, zlib.crc32(ref.sample_id.encode(errors="surrogatepass")))


def _path(row: _Row) -> str:
    """Return a labelled frame's path without suffix, with its number if it is in a video or Parquet file."""
    path = frame_path(row["uri"])
    return path if row["frame_index"] is None else f"{path}#{row['frame_index']}"
