"""The rules by which published scores of a data set are counted: its classes, void, and additional scores.

All of them start from one confusion matrix (core.metrics); void is left out, as a label space's id_map says. If a
model predicts classes that a protocol does not score, those pixels are misses of their true class, and false alarms
of none, as in cityscapesScripts (evalPixelLevelSemanticLabeling: only labels that are scored have columns).
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np

from segray.core import metrics
from segray.core.data import camvid, carvana, cityscapes, voc
from segray.core.samples import LabelSpace


class Protocol(NamedTuple):
    """names: the scored classes, in order. spaces: the label spaces it is for. groups: classes that form a category."""

    name: str
    rule: str
    names: tuple[str, ...] = ()
    spaces: tuple[LabelSpace, ...] = ()
    groups: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (never changed)


class MoreScores(TypedDict, total=False):
    """Scores of some protocols beyond those of metrics: IoU by category; IoU and Dice of the foreground alone."""

    foreground_iou: float | None
    foreground_dice: float | None
    category_iou: dict[str, float | None]


PROTOCOLS = (
    Protocol(
        "cityscapes", "19 classes of labelIds, the other labels void", cityscapes.LABEL_SPACE.names,
        (cityscapes.LABEL_SPACE,), cityscapes.CATEGORIES,
    ),
    Protocol(
        "camvid", "SegNet's 11 classes, void out", camvid.LABEL_SPACE.names, (camvid.LABEL_SPACE, camvid.COLOR_SPACE)
    ),
    Protocol("voc", "21 classes with background, 255 void", voc.NAMES, (voc.LABEL_SPACE,)),
    Protocol("binary", "foreground against background", carvana.LABEL_SPACE.names, (carvana.LABEL_SPACE,)),
)  # fmt: skip
BY_NAME = Protocol("by name", "the predicted classes, each with the ground truth of its name")


def protocol_of(truth: LabelSpace, predicted: tuple[str, ...]) -> Protocol:
    """Return the protocol of a label space if all its scored classes are predicted, else BY_NAME."""
    for row in PROTOCOLS:
        if set(row.names) <= set(predicted) and any(
            (truth.names, truth.id_map) == (space.names, space.id_map) for space in row.spaces
        ):
            return row
    return BY_NAME._replace(names=predicted)


def scored_counts(counts: np.ndarray, predicted: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Turn counts of predicted classes, int64 [P, P + 1], into those of the scored classes alone, [C, C + 1].

    Pixels predicted as another class count in the last column, with the undecided pixels.
    """
    keep = [predicted.index(name) for name in names]
    rest = [i for i in range(len(predicted) + 1) if i not in keep]
    return np.column_stack([counts[np.ix_(keep, keep)], counts[np.ix_(keep, rest)].sum(1)])


def more_scores(protocol: Protocol, confusion: np.ndarray) -> MoreScores:
    scores = metrics.scores(confusion).to_dict()
    if protocol.name == "binary":
        return {"foreground_iou": scores["class_iou"][1], "foreground_dice": scores["class_f1"][1]}
    if not protocol.groups:
        return {}
    member = np.array([[name in names for name in protocol.names] for names in protocol.groups.values()], np.int64)
    groups = np.column_stack([member @ confusion[:, :-1] @ member.T, member @ confusion[:, -1]])
    iou = metrics.scores(groups).to_dict()["class_iou"]
    return {"category_iou": dict(zip(protocol.groups, iou, strict=True))}
