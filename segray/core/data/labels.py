"""segray's own labels as training data: the --out of `segray label` is the root, its rows are the frames.

A teacher's labels train a student. Rows whose mean confidence is below data.min_confidence are dropped; with
data.min_pixel_confidence, pixels below it are void.
"""

from __future__ import annotations

from segray.core.io.locators import FrameOf, image_place
from segray.core.io.pairing import check_root, split
from segray.core.samples import Dataset, LabelSpace, SampleRef
from segray.errors import ConfigError, DataError
from segray.sections.training import DataSection

COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "status", "confidence_mean"]


class _Row(FrameOf):
    """COLUMNS of a label row, and the place of its mask."""

    status: str
    confidence_mean: float | None
    place: str


def open_dataset(config: DataSection) -> Dataset:
    """Open the splits train and val: whole videos and images by their names' hashes; the end of a lone video is val."""
    if config.mask_channel:
        raise ConfigError("data.mask_channel is of mask files; labels hold class ids: leave it out.")
    from segray.core.labels.folder import LabelFolder  # here, as plans pair their truths through this package

    root = check_root(config.root, "labels/ and _SUCCESS")
    folder = LabelFolder.open_finished(root)
    if (masks := folder.plans[0].settings["mask_format"]) != "png":
        raise DataError(f"{root} was made with label.mask_format {masks}; label with png to train on the masks.")
    rows: list[_Row] = list(folder.rows(COLUMNS))
    kept = [row for row in rows if row["status"] == "ok" and (row["confidence_mean"] or 0) >= config.min_confidence]
    if not kept:
        raise DataError(f"None of {len(rows)} rows in {root} has a confidence of {config.min_confidence}; lower it.")
    pixels = f",{config.min_pixel_confidence:f}" if config.min_pixel_confidence else ""
    stamps = folder.stamps()
    refs = [
        SampleRef(row["input_id"], image_place(row), f"{row['place']}{pixels}", stamps[row["input_id"]]) for row in kept
    ]
    return Dataset("labels", LabelSpace(folder.space.names, folder.space.colors), _split(refs, config))


def _split(refs: list[SampleRef], config: DataSection) -> dict[str, tuple[SampleRef, ...]]:
    def source(ref: SampleRef) -> str:
        return ref.image.partition("#frame=")[0]

    if len({source(ref) for ref in refs}) > 1:
        return split(refs, config, source)
    cut = max(1, round(len(refs) * (1 - config.val_share)))
    return {config.train_split: tuple(refs[:cut]), config.val_split: tuple(refs[cut:])}
