"""How many frames a step of training takes: as given, or by `auto` as many as memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from segray.config import Config
from segray.core.training import loop
from segray.core.training.checkpoint import (
    EpochRow,
    read_history,
    write_history,
)
from segray.errors import ModelTooLarge
from segray.sections.training import TrainSection

log = logging.getLogger("segray")


def with_batch(config: Config, history: Sequence[EpochRow] = ()) -> Config:
    """Return the settings with a number for train.batch_size: for auto that of the last epoch, or AUTO_BATCH.

    The latter is more where workers need it.
    """
    if config.train.batch_size != "auto":
        return config
    used: Mapping[str, Any] = history[-1] if history else {}
    least = loop.least_batch(config, config.cluster.workers)
    return config.changed({
        "train.batch_size": used.get("batch_size", max(config.train.batch, least)),
        "train.accumulate": used.get("accumulate", config.train.accumulate),
    })  # fmt: skip


def until_it_fits(config: Config, fit: Callable[[Config], None]) -> None:
    """Call `fit` with the settings; for auto with half the batch and twice the steps a group, while memory runs out.

    Each call begins after the last complete epoch, on all workers, so that they agree.
    """
    sized, least = with_batch(config, read_history(config.train.out)), loop.least_batch(config, config.cluster.workers)
    while sized.train.batch < least:  # auto halved it for fewer workers
        batch, steps = sized.train.batch * 2, max(1, sized.train.accumulate // 2)
        sized = sized.changed({"train.batch_size": batch, "train.accumulate": steps})
    while True:
        try:
            fit(sized)
            return
        except ModelTooLarge:
            batch, steps = sized.train.batch // 2, sized.train.accumulate * 2
            if config.train.batch_size != "auto" or batch < least:
                raise
            log.warning(f"Memory ran out with train.batch_size {2 * batch}: it is {batch} now, and accumulate {steps}.")
            sized = sized.changed({"train.batch_size": batch, "train.accumulate": steps})
        torch.cuda.empty_cache()  # only here has the traceback released its tensors


def in_epochs(config: Config, frames: int, history: Sequence[EpochRow] = ()) -> Config:
    """Return the settings with train.max_steps, if given, as the nearest number of epochs over that many frames.

    For auto, steps are of the batch that a resumed run began with: halving it changes no number of epochs.
    """
    if config.train.max_steps is None:
        return config
    begun = with_batch(config, history[:1]).train
    steps = max(1, frames // (begun.batch * begun.accumulate // config.train.accumulate))
    return config.changed({"train.epochs": max(1, round(config.train.max_steps / steps))})


def note_batch(out: str, begun: TrainSection) -> None:
    """Write the batch into rows of older versions, which lack it, so that auto begins with it."""
    rows = read_history(out)
    for row in rows:
        row.setdefault("batch_size", begun.batch)
        row.setdefault("accumulate", begun.accumulate)
    if rows:
        write_history(out, rows)
