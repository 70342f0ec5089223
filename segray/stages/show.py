"""Pictures to look at: a model's prediction for one frame, and a labelled video with its masks over it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.config import Config
from segray.core.io import images, locators, storage
from segray.core.io.drawing import beside, enlarged, legend_for
from segray.core.io.masks import encode_mask, overlay
from segray.core.io.video import read_frames
from segray.core.io.video_index import VIDEO_SUFFIXES
from segray.core.labels.folder import LabelFolder, mask_place
from segray.core.labels.plan import frame_key
from segray.core.progress import Progress, untold
from segray.core.samples import LabelSpace
from segray.errors import ConfigError, DataError, OutputExists

log = logging.getLogger("segray")

TICKS = 90_000  # ticks of a second in MPEG
VIDEOS = (".mp4", ".mov", ".mkv")  # containers of H.264
SLOW_S = 0.5  # from here on a video is a slideshow
WHERE = ["input_id", "video_uri", "frame_index", "pts", "time_s", "height_px", "width_px"]


def show(place: str, config: Config, out: str, *, overwrite: bool = False) -> list[str]:
    """Write the segmentation map and the overlay of one frame, as OUT/<name>-map.png and -overlay.png.

    place: an image file, VIDEO#frame=N or PARQUET#image=N. Raises DataError for a frame that cannot be read,
    ConfigError for a folder, or a video without a frame's number, OutputExists where one of the pictures is there.
    """
    if Path(place).suffix.lower() in VIDEO_SUFFIXES:
        raise ConfigError(f"{place} is a video; name one of its frames, such as '{place}#frame=0'.")
    if not storage.in_bucket(place) and Path(place).is_dir():
        raise ConfigError(
            f"{place} is a folder; name one of its images. Pictures of labels are written by segray report, and by "
            "segray select with --pictures."
        )
    from segray.core.infer.predictor import Predictor
    from segray.core.models import ready
    from segray.core.training.workers import local_device

    name = storage.name_of(place).replace("#", "-").replace("=", "")
    map_, over = (storage.join(out, f"{name}-{kind}.png") for kind in ("map", "overlay"))
    for uri in (map_, over):
        if not overwrite and storage.exists(storage.absolute(uri)):
            raise OutputExists(f"{uri} exists already. Choose another --out, or pass --overwrite.")
    model = ready.resolve(config.label.given_model(), config.model.weights_dir)
    predictor = Predictor(model, local_device(config.cluster), config.infer, threshold=config.infer.threshold)
    with storage.reading_input(place):
        image_hwc = locators.read_image(storage.absolute(place))
    mask_hw = predictor.predict([predictor.prepare(image_hwc)], [image_hwc.shape[:2]])[0].mask_hw
    space = predictor.label_space
    times, panel = legend_for(mask_hw.shape, space)
    drawn = beside(enlarged(overlay(image_hwc, mask_hw, space.colors), times), panel)
    storage.replace(storage.absolute(map_), encode_mask(mask_hw, space.colors))
    storage.replace(storage.absolute(over), images.encode_image(drawn))
    return [map_, over]


def overlay_video(labels: str, out: str, name: str | None = None, progress: Progress = untold) -> int:
    """Write a labelled video's frames under their masks, with a legend, at their own times, as H.264.

    name: the end of the video's path, if the labels hold several. Frames without a mask are left out. progress is in
    frames. The file appears when it is whole. Returns how many frames there are. Raises DataError if the labels hold no
    such video or it has changed since, ConfigError for a file of another kind.
    """
    if Path(out).suffix.lower() not in VIDEOS:
        raise ConfigError(f"{out} ends in none of {', '.join(VIDEOS)}; name such a file.")
    folder = LabelFolder.open(labels)
    rows, space = _frames_of(labels, name), folder.space
    size = height, width = tuple(rows[key][0].as_py() for key in ("height_px", "width_px"))
    file = storage.local(out, "a video")
    video, first = (rows[key][0].as_py() for key in ("video_uri", "input_id"))
    if storage.absolute(str(file)) == video:
        raise OutputExists(f"{out} is the labelled video itself; choose another --video.")
    storage.check_unchanged(video, folder.stamps([first])[first])
    file.parent.mkdir(parents=True, exist_ok=True)
    _note_slow(rows["time_s"].to_numpy(), out)
    height, width = height - height % 2, width - width % 2  # H.264 halves the resolution of colour
    times, panel = legend_for((height, width), space)
    count = 0
    unfinished = file.with_name(f".{file.stem}-unfinished{file.suffix}")
    try:
        with av.open(str(unfinished), mode="w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "20", "preset": "veryfast"})
            stream.height, stream.width = len(panel), width * times + panel.shape[1]
            stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, TICKS)
            for time_s, picture in _pictures(rows, space):
                whole = images.resize_image(picture, size)  # a recording may go on at another resolution
                shown = beside(enlarged(whole[:height, :width], times), panel)
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
                frame.pts, frame.time_base = round(time_s * TICKS), Fraction(1, TICKS)
                container.mux(stream.encode(frame))
                count += 1
                progress(1, len(rows))
            container.mux(stream.encode())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _note_slow(times_s: np.ndarray, out: str) -> None:
    """Warn of a video that shows single pictures, as its labels are of few frames."""
    if len(times_s) > 1 and (apart_s := float(np.median(np.diff(times_s)))) >= SLOW_S:
        log.warning(f"{out} is a slideshow: its labels are {apart_s:.2g} s apart. Label more frames for a moving one.")


def _pictures(rows: pa.Table, space: LabelSpace) -> Iterator[tuple[float, np.ndarray]]:
    """Yield time and overlay of each frame; the frames of a part are decoded in one pass."""
    for _, group in groupby(rows.to_pylist(), lambda row: row["part"]):
        row_of = {frame_key(row): row for row in group}
        first = next(iter(row_of.values()))
        for frame in read_frames(first["video_uri"], list(row_of), by_index=first["pts"] is None):
            row = row_of[frame.key]
            yield row["time_s"], overlay(frame.image_hwc, locators.read_mask(mask_place(row)), space.colors)


def _frames_of(labels: str, name: str | None) -> pa.Table:
    """Return the locations of a video's frames with masks, by time. Raises DataError unless it is one video."""
    none = pa.table({"video_uri": pa.array([], pa.string())})
    masked = (
        rows.filter(pc.and_(pc.is_valid(rows["video_uri"]), pc.is_valid(rows["height_px"])))
        for rows in LabelFolder.open(labels).tables(WHERE)
    )
    rows = pa.concat_tables([none, *masked], promote_options="default")
    videos = sorted(uri for uri in pc.unique(rows["video_uri"]).to_pylist() if uri.endswith(name or ""))
    if not videos:
        raise DataError(f"{labels} has no labelled frame of a video{f' that ends in {name}' if name else ''}.")
    if len(videos) > 1:
        few = ", ".join(map(storage.name_of, videos[:4]))
        raise DataError(
            f"{labels} holds {len(videos)} videos ({few}{', …' * (len(videos) > 4)}); name one with --input."
        )
    return rows.filter(pc.equal(rows["video_uri"], videos[0])).sort_by("frame_index")
