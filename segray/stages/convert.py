"""Annotations of other tools → the layout `folder`, once: images, masks of class ids, and a table of the classes.

    OUT/images/train/day1/a.jpg       links to the images, or copies, below the split where the source has splits
    OUT/masks/train/day1/a.png        palette PNGs of ids; 255 is void
    OUT/classes.csv                   written last: without it, `--format folder` does not open
    OUT/_convert/convert.json         what is converted
    OUT/_convert/00042.json           frames 42 × PIECE and on are written: their counts, and what was left out

The same command resumes an interrupted conversion after the last piece.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from segray.core.annotations import open_annotations
from segray.core.annotations.frames import BACKGROUND, STRUCTURE, Annotations, Class, Frame, Problems, Source, split_of
from segray.core.data.class_names import colored
from segray.core.formats.masks import classes_csv
from segray.core.io import claims, images, storage
from segray.core.io.masks import encode_mask
from segray.core.io.pairing import pair_key
from segray.core.prefetch import ahead
from segray.core.progress import Progress, untold
from segray.core.samples import IGNORE_INDEX
from segray.errors import ConfigError, DataError, StorageError

STATE = "_convert"
MARK = f"{STATE}/convert.json"
CLASSES = "classes.csv"
PIECE = 32  # frames; as many for each thread are in memory, where the images are in the annotations
THREADS = min(4, os.cpu_count() or 1)
Background = Literal["void", "class"]
KIND = claims.Kind(
    "conversion", MARK, ("images", "masks", CLASSES, STATE), lambda out: any((Path(out) / "masks").rglob("*.png"))
)


class Converted(NamedTuple):
    """frames of total that are written. pixels, frames_with: of each class, and of None: void. new: whether any was.

    background: the class of what is not annotated; None: it is void. left_out, notes: sentences for people.
    """

    format: str
    frames: int
    total: int
    classes: tuple[Class, ...]
    pixels: dict[int | None, int]
    frames_with: dict[int | None, int]
    background: str | None
    left_out: list[str]
    notes: tuple[str, ...]
    new: bool


@dataclass(frozen=True)
class _Job:
    """out: where to. first: position that the source's first class has here, 1 where a background stands before it.

    fill: id of pixels that are not annotated. colors: of all classes here.
    """

    out: Path
    source: Source
    first: int
    fill: int
    colors: tuple[tuple[int, int, int], ...]
    link: bool


def convert(
    annotations: str,
    out: str,
    *,
    kind: str | None = None,
    images: str | None = None,
    background: Background | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: Progress = untold,
) -> Converted:
    """Write images and masks of annotated frames below `out`; the same call resumes an interrupted one.

    kind: a row of core.annotations.READERS, found by looking where None. images: folder or zip of the images.
    background: whether pixels that are not annotated are void or of a class; None: void, unless the source has a class
    background. link: make symbolic links to images, and not hard links or copies. progress is in frames.
    Raises DataError for what cannot be read, OutputExists if `out` holds something else.
    """
    folder = storage.local(out, "a conversion").absolute()
    kind, source, found = open_annotations(annotations, kind, images)
    for place in (source.files.uri, source.images.files.uri):
        if storage.join(storage.normal(str(folder)), "").startswith(storage.join(place, "")):
            raise ConfigError(f"{out} lies in {place}, which is read; give a folder beside it.")
    if link and (source.images.files.zip is not None or storage.in_bucket(source.images.files.uri)):
        raise ConfigError(f"--link needs images in a local folder; {source.images.files.uri} is none. Leave it out.")
    about = {
        "annotations": storage.absolute(annotations), "images": source.images.files.uri, "from": kind,
        "background": background, "link": link, "content": source.files.digest,
    }  # fmt: skip
    classes, job = _layout(folder, source, found, background, link)
    with claims.held(str(folder), KIND):
        mark = str(folder / MARK)
        before: dict[str, Any] = storage.read_json(mark) if storage.exists(mark) else about
        changed = [f"{key} was {before.get(key)}, is {now}" for key, now in about.items() if before.get(key) != now]
        claims.claim(str(folder), KIND, overwrite, lambda: changed)
        if not KIND.has_results(str(folder)):
            storage.remove(str(folder / STATE))  # pieces of frames that all were left out, maybe of other settings
        storage.replace(mark, json.dumps(about, indent=2).encode())
        new = _write(job, found, progress)
        done = _total(job, kind, found, classes, new)
        storage.replace(str(folder / CLASSES), classes_csv([one.name for one in classes], job.colors))
    return done


def pieces(out: Path) -> list[Path]:
    """List the pieces of a conversion that are done."""
    return list((out / STATE).glob("[0-9]*.json"))


def _layout(
    folder: Path, source: Source, found: Annotations, background: Background | None, link: bool
) -> tuple[tuple[Class, ...], _Job]:
    """Return the classes as they are written, and the job."""
    own = found.background
    first = int(background == "class" and own is None)
    classes = (*[Class(BACKGROUND, (0, 0, 0))] * first, *found.classes)
    if len(classes) > IGNORE_INDEX:
        raise DataError(
            f"{source.files.uri} has {len(classes)} classes with the background; a mask holds {IGNORE_INDEX}."
        )
    fill = IGNORE_INDEX if background == "void" or (own is None and not first) else own or 0
    colors = colored([one.name for one in classes], [one.color for one in classes])
    return classes, _Job(folder, source, first, fill, colors, link)


def _write(job: _Job, found: Annotations, progress: Progress) -> bool:
    """Write all pieces that are not there yet; say whether there were any."""
    there = {path.stem for path in pieces(job.out)}
    new = False

    def missing() -> Iterator[tuple[str, list[tuple[Frame, str]]]]:
        named, number = _named(found), 0
        while piece := list(islice(named, PIECE)):
            if f"{number:05}" in there:
                progress(len(piece), found.total)
            else:
                yield f"{number:05}", piece
            number += 1

    with ThreadPoolExecutor(THREADS) as pool:
        for done in ahead(pool, partial(_write_piece, job), missing(), THREADS):
            new = True
            progress(done, found.total)
    return new


def _named(found: Annotations) -> Iterator[tuple[Frame, str]]:
    """Give each frame with its path below images/; of frames with one image the first alone."""
    images: set[str] = set()
    taken: set[str] = set()
    for frame in found.frames:
        if frame.picture is None and frame.image in images:
            found.problems.add("Images that are annotated twice, of which the first annotation is taken", frame.image)
            continue
        images.add(frame.image)
        name = _below_split(frame)
        stem, _, suffix = name.rpartition(".")
        number = 0
        while pair_key(stem) in taken:  # a.jpg and a.png would have one mask
            number += 1
            stem = f"{name.rpartition('.')[0]}_{suffix}{number if number > 1 else ''}"
        taken.add(pair_key(stem))
        yield frame, f"{stem}.{suffix}"


def _below_split(frame: Frame) -> str:
    """Return the path of a frame's image here: its split, and its path without folders that say no more.

    images/train2017/0001.jpg of train → train/0001.jpg; frames/day1/a.jpg of no split → frames/day1/a.jpg
    """
    *folders, name = frame.image.split("/")
    while folders and (folders[0].lower() in STRUCTURE or (frame.split and split_of(folders[0]) == frame.split)):
        del folders[0]
    return "/".join([*([frame.split] if frame.split else []), *folders, name])


def _write_piece(job: _Job, work: tuple[str, list[tuple[Frame, str]]]) -> int:
    number, frames = work
    problems = Problems()
    pixels: Counter[int] = Counter()
    frames_with: Counter[int] = Counter()
    written = 0
    for frame, name in frames:
        mask_hw = _write_frame(job, frame, name, problems)
        if mask_hw is not None:
            ids, counts = np.unique(mask_hw, return_counts=True)
            pixels.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
            frames_with.update(ids.tolist())
            written += 1
    piece = {"frames": written, "pixels": pixels, "frames_with": frames_with, "problems": problems.found}
    storage.replace(str(job.out / STATE / f"{number}.json"), json.dumps(piece).encode())
    return len(frames)


def _write_frame(job: _Job, frame: Frame, name: str, problems: Problems) -> np.ndarray | None:
    """Write the image and the mask of a frame. Returns the mask; None where there is none, and why is in `problems`."""
    files = job.source.images.files
    try:
        data = files.read(frame.image) if frame.picture is None else frame.picture()
        mask_hw = _mask(job, frame, data, problems)
    except DataError as error:
        problems.add("Images that cannot be opened, left out", str(error).rstrip("."))
        return None
    if mask_hw is None:
        return None
    if (mask_hw == IGNORE_INDEX).all():
        problems.add("Frames in which nothing is annotated, left out", frame.image)
        return None
    target = job.out / "images" / name
    if frame.picture is not None or files.zip is not None or storage.in_bucket(files.uri):
        storage.replace(str(target), data)
    else:
        _link(files.place(frame.image), target, symbolic=job.link)
    mask_name = f"{name.rpartition('.')[0]}.png"
    storage.replace(str(job.out / "masks" / mask_name), encode_mask(mask_hw, job.colors))
    return mask_hw


def _mask(job: _Job, frame: Frame, data: bytes, problems: Problems) -> np.ndarray | None:
    """Draw a frame's mask upright, like its image as segray reads it, and fill it where nothing is annotated."""
    upright, turned = images.upright_size(data, frame.image), images.orientation(data, frame.image) or 1
    stored = upright[::-1] if turned in images.SIDEWAYS else upright
    if frame.size not in (None, upright, stored):
        height, width = frame.size or upright
        shown = f"{frame.image} is {upright[0]}×{upright[1]}, annotated as {height}×{width} (height × width)"
        problems.add("Images of another size than was annotated, left out", shown)
        return None
    if turned in images.TURNS and upright == stored:
        problems.add(
            "Images that EXIF turns or mirrors to the same size, whose annotations are taken as of the upright picture",
            frame.image,
        )
    size = upright if frame.size is None else frame.size
    drawn = frame.draw(*size)
    for what, which in drawn.problems:
        problems.add(what, which)
    if drawn.mask_hw is None:
        return None
    nothing = drawn.mask_hw == IGNORE_INDEX
    mask_hw = np.where(nothing, job.fill, drawn.mask_hw + job.first).astype(np.uint8)
    if drawn.void_hw is not None:
        mask_hw[drawn.void_hw & nothing] = IGNORE_INDEX
    return mask_hw if size == upright else images.turn_upright(mask_hw, turned)


def _link(place: str, target: Path, *, symbolic: bool) -> None:
    """Give an image a second name below OUT, or a copy where the disk is another."""
    source = os.path.realpath(place)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if symbolic:
            target.symlink_to(source)
            return
        with suppress(OSError):
            target.hardlink_to(source)
            return
        temporary = storage.temporary_beside(target)
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {storage.reason(error)}.") from error


def _total(job: _Job, kind: str, found: Annotations, classes: tuple[Class, ...], new: bool) -> Converted:
    pixels: Counter[int | None] = Counter()
    frames_with: Counter[int | None] = Counter()
    frames = 0
    problems = found.problems
    for path in sorted(pieces(job.out)):
        piece = storage.read_json(str(path))
        frames += piece["frames"]
        for counts, told in ((pixels, piece["pixels"]), (frames_with, piece["frames_with"])):
            counts.update({None if (i := int(raw)) == IGNORE_INDEX else i: count for raw, count in told.items()})
        for what, (count, which) in piece["problems"].items():
            problems.add(what, which, count)
    background = None if job.fill == IGNORE_INDEX else classes[job.fill].name
    if not frames:
        lines = "; ".join(problems.lines()) or "it holds no frame"
        raise DataError(
            f"{job.source.files.uri} gives no frame with a mask: {lines}. --images FOLDER says where the images are."
        )
    return Converted(
        kind,
        frames,
        found.total,
        classes,
        dict(pixels),
        dict(frames_with),
        background,
        problems.lines(),
        found.notes,
        new,
    )
