"""A data set → what stands in its masks, and everything that would spoil training, with the files that hold it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from segray.core.data import likeness
from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.images import SIDEWAYS, TURNS
from segray.core.io.locators import orientation, read_image, read_mask_and_palette
from segray.core.progress import Progress, untold
from segray.core.samples import CHANNELS, COLOR, Dataset, LabelSpace, SampleRef, color_id, id_color, id_text
from segray.errors import SegrayError

KEPT_IDS = 256  # unknown ids of one mask that are counted one by one: a mask that was a JPEG has ten thousand
LISTED_IDS = 20  # unknown ids that get a line of their own
BLENDED = 0.25  # share of boundaries with a pixel between two ids; drawn masks have few such pixels, at thin objects
LEAST_BOUNDARIES = 50
ROWS = 256  # rows of a mask that are looked at together: the differences of a whole mask may not fit into memory
MOSTLY = 0.5  # share of a frame that is void, above which it teaches little
NEAR = 6  # of each channel: how far JPEG moves the colours of flat areas; blends of two colours are further off


@dataclass
class CheckResult:
    """problems: each stops training, one line each. notes: worth knowing. pixels: id in mask files → count.

    other_pixels: of unknown ids that are not in `pixels`, as their masks have more than KEPT_IDS of them.
    turned: images that EXIF turns and whose masks it does not, though their sizes are the same.
    boundaries: (neighbours but one that differ, how many of them have a pixel of an id or colour in between).
    mostly_void: images of frames of which more than MOSTLY is void. broken: those that cannot be read, or their masks.
    ids_in: the known ids of each split. looks: likeness.look() of each frame that has one.
    """

    frames: dict[str, int]
    pixels: Counter[int] = field(default_factory=Counter)
    other_pixels: int = 0
    frames_with: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    turned: list[str] = field(default_factory=list)
    boundaries: tuple[int, int] = (0, 0)
    mostly_void: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    ids_in: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    looks: dict[SampleRef, np.ndarray] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def blended(self) -> bool:
        """Whether masks look resized with interpolation, or drawn with smooth edges."""
        count, between = self.boundaries
        return count >= LEAST_BOUNDARIES and between > BLENDED * count


@dataclass(frozen=True)
class _Finding:
    ref: SampleRef
    size: tuple[int, int] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    other_pixels: int = 0
    turned: bool = False
    boundaries: tuple[int, int] = (0, 0)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    look: np.ndarray | None = None


@dataclass
class _Unknown:
    """An id that no class has: the first mask with it, and how many there are."""

    file: str
    masks: int = 0


def check(
    dataset: Dataset, needed: tuple[str, ...], progress: Progress = untold, root: str | None = None
) -> CheckResult:
    """Decode every frame and mask once. needed: splits that training asks for; progress is in frames.

    root: the data folder, below which data.exclude names frames.
    """
    result = CheckResult({split: len(refs) for split, refs in dataset.splits.items()})
    refs = frames_of(dataset)
    splits_of: defaultdict[SampleRef, list[str]] = defaultdict(list)
    for split, members in dataset.splits.items():
        for ref in members:
            splits_of[ref].append(split)
    unknown: dict[int, _Unknown] = {}
    with ThreadPoolExecutor(4) as pool:
        for finding in pool.map(partial(_look, space=dataset.label_space), refs):
            progress(1, len(refs))
            _add(result, finding, dataset.label_space, unknown)
            for split in splits_of[finding.ref]:
                result.ids_in[split] |= finding.counts.keys()
    result.problems += [f"no frames in split {split!r}" for split in needed if not dataset.splits.get(split)]
    result.problems += [f"{uri} has no partner" for uri in dataset.unpaired]
    result.problems += _unknown_ids(result, unknown, dataset.label_space)
    result.notes += [*dataset.notes, *_shared(dataset, needed), *_alike(result, dataset, needed)]
    result.notes += [*_notes(result, dataset), *_lacking(result, dataset, needed)]
    if result.broken:
        result.notes.append(_left_out("that cannot be read", result.broken, root))
    if result.mostly_void:
        result.notes.append(_left_out("with more than half of the pixels void", result.mostly_void, root))
    return result


def frames_of(dataset: Dataset) -> list[SampleRef]:
    """List every frame once, also where splits share some, as VOC's trainval does."""
    return list(dict.fromkeys(ref for refs in dataset.splits.values() for ref in refs))


def _look(ref: SampleRef, space: LabelSpace) -> _Finding:
    notes: list[str] = []
    try:
        image_hwc = read_image(ref.image, notes.append, ref.stamp)
        raw_hw, palette = read_mask_and_palette(ref.mask, space.mask_channel)
        turn, upright_mask = orientation(ref.image), orientation(ref.mask) == 1
    except SegrayError as error:
        return _Finding(ref, error=str(error))
    ids, counts = np.unique(raw_hw, return_counts=True)
    order = np.argsort(counts)[::-1]
    known = [i for i in order.tolist() if int(ids[i]) in space.id_map]
    kept = known + [i for i in order.tolist() if int(ids[i]) not in space.id_map][:KEPT_IDS]
    found = {int(ids[i]): int(counts[i]) for i in kept}
    height, width = image_hwc.shape[:2]
    turned = upright_mask and turn in TURNS and (turn not in SIDEWAYS or height == width)
    problem = None
    if raw_hw.shape != (height, width):
        problem = f"{ref.mask} is {raw_hw.shape[0]}×{raw_hw.shape[1]}, its image {height}×{width} (height × width)"
    if odd := _other_colors(palette, found, space):
        notes.append(f"{ref.mask} {odd}")
    others = raw_hw.size - sum(found.values())
    look = likeness.look(image_hwc)
    return _Finding(ref, (height, width), found, others, turned, boundaries(raw_hw), notes, problem, look)


def _other_colors(palette: Mapping[int, tuple[int, int, int]], ids: Iterable[int], space: LabelSpace) -> str | None:
    """Say so where a mask's palette shows most of its ids in other classes' colours: they may not be class ids."""
    shown = {raw: space.id_map.get(color_id(*palette[raw])) for raw in ids if raw in palette}
    known = {raw: label for raw, label in shown.items() if label is not None and raw in space.id_map}
    other = [raw for raw, label in known.items() if label != space.id_map[raw]]
    if len(other) < 2 or 2 * len(other) <= len(known):
        return None
    names = [*space.names, *["void"] * (space.ignore_index + 1 - space.num_classes)]
    return (
        f"shows id {other[0]}, {names[space.id_map[other[0]]]}, in the colour of {names[known[other[0]]]} "
        f"({len(other)} such ids): its palette may be of colours in any order, and not of ids; store it as RGB"
    )


def boundaries(raw_hw: np.ndarray) -> tuple[int, int]:
    """Count pairs of pixels, two apart, that differ by 2 or more, and those of them with a value between in the middle.

    >>> boundaries(np.array([[0, 0, 7, 7], [0, 3, 7, 7]]))
    (4, 1)
    """
    count = between = 0
    for top in range(0, len(raw_hw), ROWS):
        values_hwc = raw_hw[top : top + ROWS + 2, :, None].astype(np.int32)
        if values_hwc.max() >= COLOR:
            values_hwc = values_hwc >> np.array([16, 8, 0]) & 255
        rows = values_hwc[:ROWS]
        for first, middle, last in (
            (rows[:, :-2], rows[:, 1:-1], rows[:, 2:]),
            (values_hwc[:-2], values_hwc[1:-1], values_hwc[2:]),
        ):
            low, high = np.minimum(first, last), np.maximum(first, last)
            apart = (high - low).max(-1) >= 2
            inside = ((low <= middle) & (middle <= high)).all(-1)
            inside &= (middle != first).any(-1) & (middle != last).any(-1)
            count += int(apart.sum())
            between += int((apart & inside).sum())
    return count, between


def _add(result: CheckResult, finding: _Finding, space: LabelSpace, unknown: dict[int, _Unknown]) -> None:
    if finding.error:
        result.problems.append(finding.error)
        if finding.size is None:
            result.broken.append(finding.ref.image)
    if finding.look is not None:
        result.looks[finding.ref] = finding.look
    void = sum(count for raw, count in finding.counts.items() if space.id_map.get(raw) == space.ignore_index)
    if void > MOSTLY * sum(finding.counts.values()):
        result.mostly_void.append(finding.ref.image)
    result.notes += [note.rstrip(".") for note in finding.notes]
    if finding.turned:
        result.turned.append(finding.ref.image)
    if finding.size:
        result.sizes[finding.size] += 1
    result.pixels.update(finding.counts)
    result.other_pixels += finding.other_pixels
    result.frames_with.update(finding.counts.keys())
    count, between = result.boundaries
    result.boundaries = (count + finding.boundaries[0], between + finding.boundaries[1])
    for raw in finding.counts.keys() - space.id_map.keys():
        unknown.setdefault(raw, _Unknown(finding.ref.mask)).masks += 1


def _unknown_ids(result: CheckResult, unknown: dict[int, _Unknown], space: LabelSpace) -> list[str]:
    if len(unknown) > LISTED_IDS:
        first = max(unknown, key=result.pixels.__getitem__)
        more = " or more" if result.other_pixels else ""
        share = (sum(result.pixels[raw] for raw in unknown) + result.other_pixels) / max(
            1, result.pixels.total() + result.other_pixels
        )
        return [
            f"{len(unknown)}{more} ids are unknown, in {share:.1%} of the pixels, such as {id_text(first)} in "
            f"{unknown[first].file}; the label space knows {space.known_like(first)}. {_cause(result, unknown, space)}"
        ]
    problems = []
    for raw, found in sorted(unknown.items()):
        more = f" and {found.masks - 1} more" if found.masks > 1 else ""
        problems.append(
            f"id {id_text(raw)} is unknown; the label space knows {space.known_like(raw)}. In {found.file}{more}. "
            f"Map it: --set data.id_map.{id_text(raw)}=CLASS, or 255 for void{space.or_list_it}"
        )
    if unknown.keys() >= {255} and len(unknown) == 1:
        problems[-1] += " (masks of 0 and 255 are binary: map 255 to class 1)"
    elif unknown and min(unknown) >= COLOR:
        if channel := _channel_of(unknown):
            problems[-1] += f" (colours of {channel} alone may hold ids: --set data.mask_channel={channel})"
        elif _is_grey(unknown):
            problems[-1] += " (shades of grey may be ids: --set data.mask_channel=red)"
    return problems


def _scaled(ids: Collection[int], space: LabelSpace) -> str | None:
    """Say so where every id is a multiple of 85 or 17, as masks of 2 and 4 bits are when a tool fills 8 bits."""
    seen = sorted(raw for raw in ids if raw)
    for factor, bits in ((85, 2), (17, 4)):
        if len(seen) > 1 and all(raw % factor == 0 and raw // factor in space.id_map for raw in seen):
            names = [*space.names, *["255"] * (space.ignore_index + 1 - space.num_classes)]
            classes = ", ".join(f"{raw}: {names[space.id_map[raw // factor]]}" for raw in seen)
            return (
                f"every id is a multiple of {factor}, as of masks of {bits} bits that were scaled to 8; if so: "
                f"--set 'data.id_map={{{classes}}}'"
            )
    return None


def _cause(result: CheckResult, unknown: Collection[int], space: LabelSpace) -> str:
    """Explain what made so many unknown ids, and what to do."""
    if (channel := _channel_of(unknown)) and min(unknown) >= COLOR:
        return f"Their colours are of {channel} alone, which may hold ids: --set data.mask_channel={channel}"
    colors, seen = (_colors([raw for raw in ids if raw >= COLOR]) for ids in (space.id_map, unknown))
    if len(colors) and len(seen):
        near = np.array([np.abs(colors - one).max(1).min() <= NEAR for one in seen])
        pixels = np.array([result.pixels[raw] for raw in unknown if raw >= COLOR])
        if pixels[near].sum() > pixels.sum() / 2:
            return (
                "Most are close to the colour of a class: the masks were JPEGs once, which changes colours. "
                "Export them again as PNG"
            )
    if result.blended:
        return (
            "Pixels between two classes have ids or colours between theirs: the masks were resized with interpolation, "
            "or drawn with smooth edges. Resize them with nearest neighbour, and draw them without anti-aliasing"
        )
    return "Give them classes in data.id_map, or 255 for void; or is it another layout's data?"


def _channel_of(ids: Iterable[int]) -> str | None:
    """Return the only channel in which all these colours differ from black, or None."""
    lit = _colors(ids).any(axis=0)
    return CHANNELS[int(lit.argmax())] if lit.sum() == 1 else None


def _is_grey(ids: Iterable[int]) -> bool:
    colors = _colors(ids)
    return bool(colors.any() and (colors == colors[:, :1]).all())


def _colors(ids: Iterable[int]) -> np.ndarray:
    """Turn colours' ids into int [N, 3]."""
    return np.array([id_color(raw) for raw in ids], np.int64).reshape(-1, 3)


def _shared(dataset: Dataset, needed: tuple[str, ...]) -> list[str]:
    """List frames, or else folders of frames, that are in both training and validation."""
    splits = [dataset.splits.get(split, ()) for split in dict.fromkeys(needed)]
    if len(splits) != 2:
        return []
    where = " and in ".join(needed)
    trained = {storage.real(ref.image) for ref in splits[0]}
    if both := [ref for ref in splits[1] if storage.real(ref.image) in trained]:
        first = min(ref.sample_id for ref in both)
        frames = counted(len(both), "frame is", "frames are")
        return [f"{frames} in {where}, such as {first}: their scores are those of training"]
    train, val = ({ref.sample_id.rpartition("/")[0] for ref in refs} for refs in splits)
    if not (folders := sorted(train & val - {""})):
        return []
    return [
        f"frames of {counted(len(folders), 'folder')} are in {where}, such as {folders[0]}: where a folder is a drive, "
        "its frames look alike, and scores are better than on another drive; keep each folder in one split"
    ]


def _alike(result: CheckResult, dataset: Dataset, needed: tuple[str, ...]) -> list[str]:
    """Say which frames of one split look nearly like one of the other."""
    if len(set(needed)) != 2:
        return []
    train, val = ([ref for ref in dataset.splits.get(split, ()) if ref in result.looks] for split in needed)
    found = list(likeness.alike(*([result.looks[ref] for ref in refs] for refs in (val, train))))
    pairs = [(val[i], train[j]) for i, j in found if val[i].image != train[j].image]
    if not pairs:
        return []
    one, other = pairs[0]
    said = counted(len(pairs), f"frame of {needed[1]} looks", f"frames of {needed[1]} look")
    return [
        f"{said} like one of {needed[0]}, such as {one.sample_id} and "
        f"{other.sample_id}: scores are better than on new frames; keep each drive in one split, by folders or lists "
        f"({needed[0]}.txt, {needed[1]}.txt)"
    ]


def _lacking(result: CheckResult, dataset: Dataset, needed: tuple[str, ...]) -> list[str]:
    """Say which classes are in one split alone."""
    space = dataset.label_space
    if len(set(needed)) != 2 or not all(dataset.splits.get(split) for split in needed):
        return []
    seen = [{space.id_map.get(raw) for raw in result.ids_in[split]} for split in needed]
    lacks = [
        (split, [name for label, name in enumerate(space.names) if label in seen[1 - at] - seen[at]])
        for at, split in enumerate(needed)
    ]
    means = ("it cannot be learned", "it is not scored")
    return [
        f"{split} has no pixel of {', '.join(names)}, which the other split has: {means[at]}"
        for at, (split, names) in enumerate(lacks)
        if names
    ]


def _left_out(why: str, places: list[str], root: str | None) -> str:
    top = f"{storage.absolute(root)}/" if root else ""
    names = [place.removeprefix(top) for place in places]
    listed = ", ".join(f'"{name}"' for name in names[:LISTED_IDS])
    more = ", …" * (len(names) > LISTED_IDS)
    return f"{counted(len(places), 'frame')} {why}; to leave out: --set 'data.exclude=[{listed}{more}]'"


def _notes(result: CheckResult, dataset: Dataset) -> list[str]:
    notes = []
    if scaled := _scaled(result.pixels, dataset.label_space):
        notes.append(scaled)
    if len(result.sizes) > 1:
        sizes = ", ".join(f"{h}×{w} ({n})" for (h, w), n in result.sizes.most_common(4))
        notes.append(f"frames of {len(result.sizes)} sizes: {sizes}; all are resized to data.size, by data.resize")
    if result.turned:
        notes.append(
            f"EXIF turns or mirrors {counted(len(result.turned), 'image')} to the same size, such as "
            f"{result.turned[0]}, and not their masks: these have to be drawn on the picture as a viewer shows it"
        )
    if result.pixels.keys() == {0, 255}:
        notes.append("every mask holds 0 and 255 alone: a binary mask, 255 may be meant as class 1, not void")
    if result.blended and all(raw < COLOR for raw in result.pixels):
        count, between = result.boundaries
        notes.append(
            f"at {between / count:.0%} of the boundaries a pixel has an id between those beside it: the ids may have "
            "been made by resizing with interpolation; resize masks with nearest neighbour"
        )
    space = dataset.label_space
    present = {space.id_map.get(raw) for raw in result.pixels}
    missing = [name for label, name in enumerate(space.names) if label not in present]
    if missing:
        notes.append(f"never seen: {', '.join(missing)}")
    return notes
