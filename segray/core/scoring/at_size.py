"""A model from elsewhere, scored as a training run scores its own: on the same frames, at the same size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from segray.core import metrics, transforms
from segray.core.data import read_sample
from segray.core.infer.predictor import Predictor, side_by_side
from segray.core.io.masks import resize_mask
from segray.core.prefetch import ahead
from segray.core.samples import IGNORE_INDEX, LabelSpace, SampleRef
from segray.core.scoring.classmaps import nothing_in_common, scoring_map
from segray.errors import ModelError
from segray.sections.training import Resize

BATCH = 4


def classes_for(predicted: LabelSpace, truth: LabelSpace) -> tuple[np.ndarray, list[str]]:
    """Return the true class of each predicted id, uint8 [256], 255 for none, and the true classes not predicted.

    Raises ModelError if the two have no class in common.
    """
    own = replace(predicted, id_map={i: i for i in range(predicted.num_classes)})
    id_map, _ = scoring_map(truth, own)
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[list(id_map)] = list(id_map.values())
    missing = [name for i, name in enumerate(truth.names) if i not in table]
    if len(missing) == truth.num_classes:
        raise ModelError(nothing_in_common("Its", predicted, truth))
    return table, missing


def confusion_at(
    predictor: Predictor, refs: Sequence[SampleRef], truth: LabelSpace, size: tuple[int, int], resize: Resize
) -> np.ndarray:
    """Count the (true, predicted) pairs of the truth's classes, int64 [C, C + 1]; the last column: none of them.

    A frame is predicted from its own pixels, as in labelling. Prediction and truth are then resized to `size` (height,
    width), as training resizes masks.
    """
    table, _ = classes_for(predictor.info.space, truth)
    classes = truth.num_classes

    def shrunk(mask_hw: np.ndarray) -> np.ndarray:
        inner = resize_mask(mask_hw, transforms.inner_size(mask_hw.shape, size, resize))
        return transforms.padded(inner, size, IGNORE_INDEX)

    def look(batch: Sequence[SampleRef]) -> np.ndarray:
        samples = [read_sample(ref, truth, None) for ref in batch]
        prepared = [predictor.prepare(one.image_hwc) for one in samples]
        found = predictor.predict(prepared, [one.mask_hw.shape for one in samples])
        total = np.zeros((classes, classes + 1), np.int64)
        for sample, one in zip(samples, found, strict=True):
            total += metrics.confusion_with_undecided(shrunk(sample.mask_hw), shrunk(table[one.mask_hw]), classes)
        return total

    batches = [refs[i : i + BATCH] for i in range(0, len(refs), BATCH)]
    threads = side_by_side(torch.get_num_threads())
    with ThreadPoolExecutor(threads) as pool:
        return sum(ahead(pool, look, batches, threads), np.zeros((classes, classes + 1), np.int64))
