"""Match the classes of two label spaces by name, so that a model of one is scored on ground truth of the other."""

from __future__ import annotations

from segray.core.data.class_names import match
from segray.core.samples import IGNORE_INDEX, LabelSpace

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


def nothing_in_common(whose: str, predicted: LabelSpace, truth: LabelSpace) -> str:
    """Say that no class of a model has the name of one of the data's. whose: the model, in a possessive."""
    return (
        f"{whose} classes ({', '.join(predicted.names[:5])}, …) and the data's ({', '.join(truth.names[:5])}, …) have "
        "no name in common. Rename the data's with data.class_map."
    )
