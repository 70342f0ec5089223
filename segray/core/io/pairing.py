"""Folders of images beside folders of masks: files pair by their path without suffix."""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.images import IMAGE_SUFFIXES
from segray.core.io.texts import read_text
from segray.core.samples import SampleRef
from segray.errors import DataError
from segray.sections.training import DataSection

# Suffixes that published data sets append to a frame's name, for its image or its mask.
SUFFIXES = ("_leftImg8bit", "_gtFine_labelIds", "_gtCoarse_labelIds", "_mask", "_L")
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
SEPARATOR = re.compile(r"[\s,;]+")  # separator of the columns in a list
IMAGE_NAME = re.compile(f"({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})$", re.IGNORECASE)
COLUMN = re.compile(f"{IMAGE_NAME.pattern[:-1]}{SEPARATOR.pattern}", re.IGNORECASE)  # a column that names an image
LONGEST = 4096  # characters of the longest path
MOST_COLUMNS = 64  # columns of a line: a longer one is prose, or a table
OTHER_MASKS = re.compile(r"_gt(Fine|Coarse)_(color|instanceIds|instanceTrainIds|labelTrainIds)$")  # not label ids


def pair_key(stem: str) -> str:
    """Return a frame's name, from its image's or its mask's; accents are composed, as macOS writes them apart.

    >>> pair_key("aachen_000000_000019_gtFine_labelIds")
    'aachen_000000_000019'
    """
    stem = unicodedata.normalize("NFC", stem)
    return next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix)), stem)


def frame_name(path: str) -> str:
    """Return a frame's path without an image's suffix, what pair_key cuts, and empty steps.

    >>> frame_name("./day1/0001_mask.PNG"), frame_name("1623173424.123456")
    ('day1/0001', '1623173424.123456')
    """
    path = _steps(path)
    stem, dot, suffix = path.rpartition(".")
    return pair_key(stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else path)


def _steps(path: str) -> str:
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def drive_of(ref: SampleRef) -> str:
    """Name the drive of a frame: the frame's name up to the last underscore, else its folder, else the frame alone.

    day1/seq_0001 is of day1/seq, day1/0001 of day1, 0001 of 0001.
    """
    folder, _, name = ref.sample_id.rpartition("/")
    start = name.rpartition("_")[0]
    return "/".join(part for part in (folder, start) if part) or name


def image_paths(folder: str) -> Iterator[str]:
    """Give the paths below an absolute `folder` of its images, in order, without systems' files and other masks."""
    for entry in storage.list_files(folder, storage.not_hidden):
        path = entry.uri[len(folder) + 1 :]
        name = storage.name_of(path)
        stem, dot, suffix = name.rpartition(".")
        is_image = bool(dot) and f".{suffix.lower()}" in IMAGE_SUFFIXES
        if is_image and not storage.is_hidden(name) and not OTHER_MASKS.search(stem):
            yield path


def find_images(folder: str) -> dict[str, str]:
    """Map path below `folder`, as pair_key, to URI, for every image file; DataError where two share a path."""
    found: dict[str, str] = {}
    folder = storage.absolute(folder)
    for path in image_paths(folder):
        uri, key = storage.join(folder, path), pair_key(path.rpartition(".")[0])
        if key in found:
            raise DataError(f"{uri} and {found[key]} share a stem; keep one of them.")
        found[key] = uri
    return found


def find_truth(folder: str) -> dict[str, str]:
    """Map the masks of a folder as find_images() does. DataError where it is not there, or holds none."""
    masks = find_images(check_root(folder, "the masks"))
    if not masks:
        raise DataError(f"{folder} holds no mask; give the folder that holds the masks.")
    return masks


class Matched(NamedTuple):
    """key_of: image → key of its mask. notes: how files were paired and which masks are not used, in sentences."""

    key_of: dict[str, str]
    notes: list[str]


def match_masks(masks: Mapping[str, str], images: Iterable[tuple[str, str]]) -> Matched:
    """Pair masks with images by path, else by file name where one mask and one image alone have it.

    masks: path below the masks' folder, as find_images() gives it → place. images: (place, frame_path()) of each.
    A mask a/b pairs with the image that lies at a/b below the images' common folder, or else with the one whose path
    ends in a/b. By file name, an image in or below a folder that masks have too pairs with none of another folder, and
    so does a mask.
    """
    masks_named = Counter(storage.name_of(key) for key in masks)
    images_named: dict[str, list[tuple[str, str]]] = {}
    folders: set[str] = set()
    first = last = ""
    for place, path in images:
        first, last = min(path, first or path), max(path, last)
        folders.add(storage.folder_of(path))
        if (name := storage.name_of(path)) in masks_named:
            images_named.setdefault(name, []).append((place, path))
    mask_folders = {storage.folder_of(key) for key in masks} - {""}
    shared = shared_names(mask_folders, folders)
    root = common_folder(first, last)
    key_of = _keys_by_path(masks, chain.from_iterable(images_named.values()), root, mask_folders)
    taken, elsewhere, unclear = set(key_of.values()), [], []
    alone = [
        f"{masks[key]} with {place}"
        for place, path in chain.from_iterable(images_named.values())
        if "/" in path.removeprefix(root) and "/" not in (key := key_of.get(place, "/"))
    ]
    for key in masks:
        same = images_named.get(storage.name_of(key), [])
        if key in taken or all(place in key_of for place, _ in same):
            continue
        if len(same) != 1 or masks_named[storage.name_of(key)] != 1:
            unclear.append(masks[key])
        elif is_elsewhere(same[0][1], key, shared):
            elsewhere.append(f"{masks[key]} with {same[0][0]}")
        else:
            key_of[same[0][0]] = key
            alone.append(f"{masks[key]} with {same[0][0]}")
    notes = []
    if alone:
        notes.append(f"Masks that pair by file name alone, as their folders differ: {len(alone)}, such as {alone[0]}.")
    if elsewhere:
        said = "Masks that do not pair with the image of their file name, as its folder or theirs is on both sides"
        notes.append(
            f"{said}: {len(elsewhere)}, such as {elsewhere[0]}. Put masks into folders as their images lie in."
        )
    if unclear:
        said = f"Masks that pair with no image, as several images or masks have their file name: {len(unclear)}"
        notes.append(f"{said}, such as {unclear[0]}. Put masks into folders as their images lie in.")
    return Matched(key_of, notes)


def common_folder(first: str, last: str) -> str:
    """Return the folder that holds all paths between `first` and `last` in sorted order; it ends in a slash.

    >>> common_folder("in/day1/0001", "in/day2/0001")
    'in/'
    """
    return posixpath.commonprefix([first, last]).rpartition("/")[0] + "/"


def frame_path(uri: str) -> str:
    """Return a frame's path without suffix, as the keys of find_images() end.

    >>> frame_path("val/aachen/aachen_000000_000019_leftImg8bit.png")
    'val/aachen/aachen_000000_000019'
    """
    return pair_key(uri.removesuffix(storage.name_of(uri)) + storage.stem_of(uri))


def _keys_by_path(
    masks: Mapping[str, str], images: Iterable[tuple[str, str]], root: str, folders: set[str]
) -> dict[str, str]:
    """Map each image to the key of the mask at its path, the longest of several, in the image's own mask folder.

    A mask that several images claim goes to the image that lies at its path below `root`.
    """
    claims: dict[str, list[tuple[bool, str]]] = {}
    for place, path in images:
        below = path.removeprefix(root)
        key = next((end for end in (*ends(path)[:-1], below) if end in masks), None)
        if key is not None and own_folder(path, folders) == storage.folder_of(key):
            claims.setdefault(key, []).append((len(key) >= len(below), place))
    found = {}
    for key, claimants in claims.items():
        best = [place for exact, place in claimants if exact] or [place for _, place in claimants]
        if len(best) == 1:
            found[best[0]] = key
    return found


def own_folder(path: str, folders: Collection[str]) -> str:
    """Return the one of these folders that a path lies in or deepest below, comparing path ends; '' for none.

    >>> own_folder("/in/day1/cam/0001", {"day1", "day2"}), own_folder("/in/0001", {"day1", "day2"})
    ('day1', '')
    """
    above = folders_above(path) if folders else []
    return next((end for folder in above for end in ends(folder) if end in folders), "")


def shared_names(one: Iterable[str], other: Iterable[str]) -> set[str]:
    """Return the names of folders that are in paths of both kinds.

    >>> shared_names(["day1", "day2"], ["/in/day1/cam"])
    {'day1'}
    """
    names, others = ({name for folder in set(folders) for name in folder.split("/")} for folders in (one, other))
    return (names & others) - {""}


def is_elsewhere(path: str, other: str, shared: Collection[str]) -> bool:
    """Say whether two paths with one file name lie in different folders, as far as shared_names() of all tell."""
    one, two = ([name for name in each.split("/")[:-1] if name in shared] for each in (path, other))
    return one != two


def folders_above(path: str) -> list[str]:
    """List the folders above a path, deepest first: 'a/b/c' → 'a/b', 'a'."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def pair(images: str, masks: str, prefix: str = "") -> tuple[list[SampleRef], list[str]]:
    """Return (frames with a mask, files without a partner), both in order of name; ids are `prefix` + stem."""
    return pair_found(find_images(images), find_images(masks), prefix)


def pair_found(
    image_uris: Mapping[str, str], mask_uris: Mapping[str, str], prefix: str = ""
) -> tuple[list[SampleRef], list[str]]:
    """Pair what find_images() gave, as pair() does."""
    refs = [
        SampleRef(prefix + stem, image_uris[stem], mask_uris[stem])
        for stem in sorted(image_uris.keys() & mask_uris.keys())
    ]
    lonely = image_uris.keys() ^ mask_uris.keys()
    return refs, sorted(image_uris.get(stem) or mask_uris[stem] for stem in lonely)


def check_root(root: str | None, layout: str) -> str:
    """Return the data folder as an absolute path. DataError when none was given, or it does not exist."""
    if root is None:
        raise DataError(f"No data folder given; the layout {layout} needs --data FOLDER.")
    root = storage.absolute(root)
    if not storage.exists(root):
        raise DataError(f"{root} does not exist; give the folder that holds {layout}.")
    return root


def split(
    refs: Sequence[SampleRef], config: DataSection, group: Callable[[SampleRef], str] = lambda ref: ref.sample_id
) -> dict[str, tuple[SampleRef, ...]]:
    """Split frames by their first folder where any is named like a split, else as split_by_hash() does.

    DataError for frames beside the folders of splits.
    """
    folders = {ref.sample_id.partition("/")[0] for ref in refs if "/" in ref.sample_id}
    has_folders = any(name.lower() in SPLIT_NAMES or name in (config.train_split, config.val_split) for name in folders)
    if has_folders and (beside := [ref for ref in refs if "/" not in ref.sample_id]):
        raise DataError(
            f"{beside[0].image} lies beside the folders {', '.join(sorted(folders))} "
            f"({counted(len(beside), 'such frame')}), and so belongs to no split; move it into one of them."
        )
    if not has_folders:
        train, val = split_by_hash(refs, config.val_share, group)
        found = {config.train_split: train, config.val_split: val}
        return {name: members for name, members in found.items() if members}
    splits: dict[str, list[SampleRef]] = {}
    for ref in refs:
        splits.setdefault(ref.sample_id.split("/")[0], []).append(ref)
    return {key: tuple(members) for key, members in splits.items()}


def split_by_hash(
    refs: Sequence[SampleRef], val_share: float, group: Callable[[SampleRef], str] = lambda ref: ref.sample_id
) -> tuple[tuple[SampleRef, ...], tuple[SampleRef, ...]]:
    """Return frames to train and to validate on, by the hash of their group, which is the same on every machine.

    Frames of one group stay together. With two or more groups, both have at least one.
    """
    draws = {name: _draw(name) for name in map(group, refs)}
    limit = val_share * 2**32
    if len(draws) > 1:  # few groups, such as three drives, can all fall on one side
        limit = min(max(limit, min(draws.values()) + 1), max(draws.values()))
    train, val = (tuple(ref for ref in refs if (draws[group(ref)] < limit) == is_val) for is_val in (False, True))
    return train, val


def _draw(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4])


def split_by_lists(
    root: str,
    refs: Sequence[SampleRef],
    images: Iterable[str],
    config: DataSection,
    group: Callable[[SampleRef], str] = lambda ref: ref.sample_id,
) -> tuple[dict[str, tuple[SampleRef, ...]], tuple[str, ...]]:
    """Return splits from read_lists() at the root, else from split(); and notes about the lists.

    Lists of other names alone, such as all.txt, make no splits.
    """
    splits, notes = read_lists(root, refs, images, config)
    if splits.keys() & {*SPLIT_NAMES, config.train_split, config.val_split}:
        return splits, tuple(notes)
    return split(refs, config, group), (*notes, *(f"{root}/{name}.txt is of no split by its name" for name in splits))


def read_lists(
    folder: str, refs: Sequence[SampleRef], images: Iterable[str], config: DataSection
) -> tuple[dict[str, tuple[SampleRef, ...]], list[str]]:
    """Return (frames by the lists in `folder`, train.txt and so on; notes about the lists). {} without a list.

    images: the names of all images, also of those without a mask. A line is a frame's path or the end of it, with or
    without suffix and folders above, and may have further columns; one that names a mask names the frame's own.
    A frame that a list repeats is taken once. DataError for a line that two frames answer to, for two lines that mean
    one frame, for one that means none, and for one with another mask, in the lists of train and val; other lists with
    such a line are passed over, as of frames whose masks were not published.
    """
    frames = _Frames(refs, images)
    splits: dict[str, tuple[SampleRef, ...]] = {}
    notes: list[str] = []
    empty: list[str] = []
    for entry in storage.list_files(folder, deep=False):
        name = storage.name_of(entry.uri)
        listed, _, suffix = name.rpartition(".")
        if entry.uri != storage.join(folder, name) or storage.is_hidden(name):
            continue
        needed = listed in (config.train_split, config.val_split)
        if suffix.lower() != "txt":
            if needed:
                notes.append(f"{entry.uri} is not read: a list of a split is a .txt with a frame a line")
            continue
        lines = {
            n: line for n, text in enumerate(re.split(r"\r\n|\r|\n", read_text(entry.uri)), 1) if (line := text.strip())
        }
        try:
            members = frames.members(entry.uri, lines)
        except DataError as error:
            if needed:
                raise
            if frames.knows_any(lines.values()):
                notes.append(f"{error} So {listed} is no split here")
            continue
        if repeated := len(lines) - len(members):
            notes.append(f"{entry.uri} repeats {counted(repeated, 'line')}; each frame is taken once")
        if members:
            splits[listed] = tuple(members)
        elif needed:
            empty.append(entry.uri)
    if empty and not splits:
        raise DataError(f"{empty[0]} lists no frame; give it some, or delete all lists.")
    return splits, notes


class _Frames:
    """Frames by the names that a list may use for them."""

    def __init__(self, refs: Sequence[SampleRef], images: Iterable[str]) -> None:
        self.ref_of: dict[str, SampleRef | None] = {_steps(name): None for name in images}
        self.ref_of |= {_steps(ref.sample_id): ref for ref in refs}
        self.folders = {end for name in self.ref_of if (end := storage.folder_of(name))}
        self.by_end: dict[str, list[str]] = {}
        for name in self.ref_of:
            for end in ends(name):
                self.by_end.setdefault(end, []).append(name)

    def members(self, source: str, lines: Mapping[int, str]) -> list[SampleRef]:
        """Return the frames that a list names, each once. lines: by their numbers."""
        line_of: dict[SampleRef, str] = {}
        missing: list[str] = []
        for number, line in lines.items():
            where = f"{source} line {number}"
            name, end = self._named(line, where)
            if name is None or (ref := self.ref_of[name]) is None:
                what = "of which there is no image" if name is None else "whose image has no mask"
                missing.append(f"{where} lists {line}, {what}")
                continue
            if other := self._other(line[end:], ref):
                raise DataError(
                    f"{where} lists {other} beside {line[:end]}, which is not the frame's mask, {ref.mask}. List "
                    "images alone, or put the masks that are meant where the others lie."
                )
            if line_of.setdefault(ref, line) != line:
                raise DataError(f"{source} lists {line_of[ref]} and {line}, which are one frame, {ref.image}.")
        if missing:
            raise DataError(f"{missing[0]} ({counted(len(missing), 'such line')}).")
        return list(line_of)

    def knows_any(self, lines: Iterable[str]) -> bool:
        """Say whether this can be a list of frames, and not text of another kind."""
        return any(storage.name_of(frame_name(SEPARATOR.split(line)[0])) in self.by_end for line in lines)

    def _named(self, line: str, where: str) -> tuple[str | None, int]:
        """Return (frame of a line, where its name ends): all of it, as names hold spaces, or its first columns."""
        for end in _cuts(line):
            if name := self._found(line[:end], where):
                return name, end
        one_path = len(line) < LONGEST and IMAGE_NAME.search(line) is not None
        return (self._found(line, where, one_path=True) if one_path else None), len(line)

    def _found(self, path: str, where: str, *, one_path: bool = False) -> str | None:
        """Return the frame of a path. one_path: folders above its name may hold spaces, which then end no column."""
        for name in (frame_name(path), _steps(path)):
            if name in self.ref_of:
                return name
            if len(found := self.by_end.get(name, [])) > 1:
                raise DataError(
                    f"{where} lists {path}, and {len(found)} frames end so, such as {found[0]} and {found[1]}; "
                    "list their paths."
                )
            if found:
                return found[0]
            end = next((end for end in ends(name) if end in self.ref_of), None)
            if end is None or own_folder(name, self.folders) != storage.folder_of(end):
                continue
            above = name.removesuffix(end)
            if not SEPARATOR.search(above) or (one_path and not COLUMN.search(above) and not set(",;") & set(above)):
                return end
        return None

    def _other(self, columns: str, ref: SampleRef) -> str | None:
        """Return text after a frame's name that names a file other than its image and its mask."""
        below = ref.sample_id.count("/") + 2  # from the folder of all images, or of all masks, on
        own = ["/".join(frame_name(uri).split("/")[-below:]) for uri in (ref.image, ref.mask)]
        named = columns.lstrip(" \t,;")
        if any(
            name in ends(one) or one in ends(name)
            for end in _cuts(named)
            for one in own
            if (name := frame_name(named[:end]))
        ):
            return None
        return next((one for one in SEPARATOR.split(named) if IMAGE_NAME.search(one) or self._is_path(one)), None)

    def _is_path(self, column: str) -> bool:
        name = frame_name(column)
        return "/" in name and storage.name_of(name) in self.by_end


def _cuts(line: str) -> list[int]:
    """List where a line may end that has further columns, or none, longest first; for a long line the first columns."""
    starts = [match.start() for match in islice(SEPARATOR.finditer(line), MOST_COLUMNS + 1)]
    return [*([len(line)] if len(starts) <= MOST_COLUMNS else []), *reversed(starts)]


def ends(name: str) -> list[str]:
    """List the ends of a path: 'a/b/c' → 'a/b/c', 'b/c', 'c'."""
    parts = name.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]
