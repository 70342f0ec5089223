"""Match the classes of two label spaces by name, so that a model of one is scored on ground truth of the other."""

from __future__ import annotations

from segray.core.samples import IGNORE_INDEX, LabelSpace

# Names that mean the same, according to the annotation guides of COCO/VOC, Cityscapes and CamVid. A rider is a person
# to VOC; its cars exclude trucks; CamVid's cars include vans. CamVid's bicyclist is a person with a bicycle, and so
# matches neither class.
SYNONYMS = (
    {"person", "pedestrian", "rider"},
    {"motorbike", "motorcycle"},
    {"sidewalk", "pavement"},
    {"vegetation", "tree"},
    {"traffic sign", "sign symbol", "sign"},
)
BACKGROUND = "background"


def scoring_map(model: LabelSpace, truth: LabelSpace) -> tuple[dict[int, int], list[str]]:
    """Return the class of the model, or 255, for each id in the truth's files, and the truth's classes not covered.

    A class that the model does not know becomes its background class if it has one, else void. If the model
    distinguishes two synonyms (rider, person), each is matched by its own name first.
    """
    found = [match(name, model.names) for name in truth.names]
    unknown = model.names.index(BACKGROUND) if BACKGROUND in model.names else IGNORE_INDEX
    target = [unknown if label is None else label for label in found]
    id_map = {raw: IGNORE_INDEX if label == IGNORE_INDEX else target[label] for raw, label in truth.id_map.items()}
    return id_map, [name for name, label in zip(truth.names, found, strict=True) if label is None]


def match(name: str, names: tuple[str, ...]) -> int | None:
    """Return the position of this class, or of a synonym, or None."""
    same = next((group for group in SYNONYMS if name in group), {name})
    return next((names.index(known) for known in (name, *sorted(same)) if known in names), None)
