"""What `infer.precision: auto` stands for in an output: settled once, by the first process that labels into it.

Masks of two precisions differ in some pixels. A run that began on GPUs and goes on where there is none goes on in the
same precision, or is refused.
"""

from __future__ import annotations

import torch

from segray.core.io import storage
from segray.core.precision import autocast_dtype, name_of
from segray.errors import ConfigError, OutputExists
from segray.sections.labelling import InferSection


def settle_precision(out: str, infer: InferSection, device: str) -> InferSection:
    """Return the settings with the output's precision in the place of `auto`.

    OutputExists where this device cannot compute in the precision in which the output was begun.
    """
    if infer.precision != "auto":
        return infer
    place = storage.join(out, "_segray", "precision.txt")
    if not storage.exists(place):
        storage.create(place, name_of(autocast_dtype(infer, torch.device(device))).encode())
    settled = infer.model_copy(update={"precision": storage.read_bytes(place).decode()})
    try:
        autocast_dtype(settled, torch.device(device))
    except ConfigError as error:
        raise OutputExists(
            f"{out} was begun in {settled.precision}, which this machine's {device} cannot compute or is slow at, and "
            "masks of two precisions are not mixed. Go on with machines like the first ones, or give another --out."
        ) from error
    return settled
