"""The settings and frames that a run began with, and what may differ from them when it goes on."""

from __future__ import annotations

import logging
import math

from segray.cluster import connect
from segray.config import Config
from segray.core.data.frame_list import FRAMES, differences
from segray.core.io import claims, storage
from segray.core.models.info import read_info
from segray.core.training import optim
from segray.core.training.checkpoint import (
    BEST,
    HISTORY,
    SETTINGS,
    STATE,
    History,
    command_of,
    has_results,
    read_settings,
)
from segray.core.transforms import usual_crop
from segray.sections.training import TrainSection
from segray.stages import trackers
from segray.stages.batch_size import note_batch
from segray.stages.run_data import DataPlan

log = logging.getLogger("segray")

SECTIONS = ("data", "model", "augment", "train", "cluster")
FREE_KEYS = {  # settings that may change when a run is resumed
    "train.epochs", "train.max_steps", "train.eval_every", "train.out", "train.max_failures", "train.patience",
    "train.mlflow", "train.compile", "model.weights_dir",
}  # fmt: skip

CHOSEN = (  # settings that are chosen if they are not given
    "data.size", "data.resize", "train.learning_rate", "train.weight_decay",
    "augment.scale", "augment.crop", "augment.rotate_deg",
    "augment.brightness", "augment.contrast", "augment.saturation",
)  # fmt: skip
MADE = (SETTINGS, FRAMES, STATE, HISTORY, BEST, trackers.TENSORBOARD, trackers.MLFLOW_RUN, connect.RUN)
KIND = claims.Kind("training run", SETTINGS, MADE, has_results, lambda out: command_of(out) == "train")


def claim(config: Config, overwrite: bool, plan: DataPlan | None = None) -> Config:
    """Claim `train.out` for this run; return its settings, which the folder keeps.

    plan: the frames, which must be those that the run began with; None if a sweep has checked them for its trials.
    Raises OutputExists if the folder holds something else, unless `overwrite`.
    """
    out = config.train.out
    begun = before(out, KIND, overwrite)
    config = as_begun(config, begun, plan).resolved()
    frames = plan.frame_list() if plan else None

    def changed() -> list[str]:
        return different(begun_settings(out).absolute(), config) + changed_frames(out, frames)

    claims.claim(out, KIND, overwrite, changed)
    if begun is not None and config.train.batch_size == "auto" != begun.train.batch_size:
        note_batch(out, begun.train)
    storage.replace(storage.join(out, SETTINGS), config.to_yaml(SECTIONS).encode())
    if frames is not None:
        storage.replace(storage.join(out, FRAMES), frames)
    return with_kept_pixels(config)


def with_kept_pixels(config: Config) -> Config:
    """Take mean and standard deviation from the run's best bundle, if this version might choose others."""
    best, model = storage.join(config.train.out, BEST), config.model
    if (model.mean and model.std) or not storage.exists(best):
        return config
    info = read_info(best)
    return config.changed({"model.mean": model.mean or info.mean, "model.std": model.std or info.std})


def changed_frames(out: str, frames: bytes | None) -> list[str]:
    """Say how the frames differ from those that the run in `out` began with; [] if an older version kept no list."""
    place = storage.join(out, FRAMES)
    return differences(storage.read_bytes(place), frames) if frames is not None and storage.exists(place) else []


def before(out: str, kind: claims.Kind, overwrite: bool) -> Config | None:
    """Return the settings of the run in `out` that is resumed; None if a new one begins."""
    return begun_settings(out) if kind.began(out) and not overwrite else None


def begun_settings(out: str) -> Config:
    """Read the settings of the run or sweep in `out`; those of versions without data.resize stretched every frame."""
    config = read_settings(out)
    return config.changed({"data.resize": config.data.resize or "stretch"})


def as_begun(config: Config, before: Config | None, plan: DataPlan | None) -> Config:
    """Return the settings, with defaults as they were when the run began: another version may choose otherwise.

    before: that run's settings. Without them, the run is new and gets the shape of the planned frames, and the usual
    crop for it; a sweep's trials have both from the sweep.
    """
    if before is None:
        if plan is None:
            return config
        crop = config.augment.crop or usual_crop(plan.size)
        return config.changed({"data.size": plan.size, "data.resize": plan.resize, "augment.crop": crop})
    now, then = (c.model_dump(mode="json") for c in (config, before))
    keys = (key.split(".") for key in CHOSEN)
    return config.changed({f"{part}.{key}": then[part][key] for part, key in keys if now[part][key] is None})


def different(before: Config, now: Config, sections: tuple[str, ...] = SECTIONS[:-1]) -> list[str]:
    """List the settings that lead to another model, as `key was a, is b`."""
    lines = []
    for section in sections:
        old, new = (c.model_dump(mode="json")[section] for c in (before, now))
        for key in old:
            name = f"{section}.{key}"
            goes_on = name == "train.batch_size" and new[key] == "auto"  # with the batch that the run had
            if old[key] != new[key] and name not in FREE_KEYS and not goes_on:
                lines.append(f"{name} was {old[key]}, is {new[key]}")
    return lines


def note_rate(train: TrainSection, history: History, frames: int) -> None:
    """Warn if a resumed run with another schedule, as with more epochs, has a higher rate than it ended with."""
    if not history:
        return
    steps = max(1, frames // train.batch)
    last, done = history[-1]["learning_rate"], len(history) * steps
    ended, begins = (optim.learning_rate(train, step, steps * train.epochs) for step in (done - 1, done))
    if begins > last and not math.isclose(ended, last, rel_tol=1e-6):
        log.warning(
            f"Epoch {len(history)} ended at a learning rate of {last:.3g}; by the schedule of now {train.epochs} "
            f"epochs the next one begins at {begins:.3g}."
        )


def note_frames(out: str, plan: DataPlan) -> None:
    """Warn if a run of an earlier version, which kept no list of its frames, resumes with other frames."""
    best = storage.join(out, BEST)
    if storage.exists(best) and read_info(best).data_id not in ("", plan.data_id):
        log.warning(
            f"The frames or classes are not those of the best epoch so far in {out}: its scores and those to come are "
            "of different data. --overwrite begins anew."
        )
