"""Folders of images beside folders of masks: files pair by their path without suffix."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from segray.config import DataSection
from segray.core import storage
from segray.core.images import IMAGE_SUFFIXES
from segray.core.samples import SampleRef
from segray.errors import DataError

# What published sets put behind a frame's name, for its image or its mask.
SUFFIXES = ("_leftImg8bit", "_gtFine_labelIds", "_gtCoarse_labelIds", "_mask", "_L")
OTHER_MASKS = re.compile(r"_gt(Fine|Coarse)_(color|instanceIds|instanceTrainIds|labelTrainIds)$")  # not labels' ids


def pair_key(stem: str) -> str:
    """A frame's name, from its image's or its mask's.

    >>> pair_key("aachen_000000_000019_gtFine_labelIds")
    'aachen_000000_000019'
    """
    return next((stem.removesuffix(suffix) for suffix in SUFFIXES if stem.endswith(suffix)), stem)


def find_images(folder: str) -> dict[str, str]:
    """Path below `folder`, as pair_key, → URI, for every image file; DataError where two share it."""
    found: dict[str, str] = {}
    for entry in storage.list_files(folder):
        name = entry.uri[len(folder.rstrip("/")) + 1 :]
        stem, dot, suffix = name.rpartition(".")
        if not dot or f".{suffix.lower()}" not in IMAGE_SUFFIXES or storage.name_of(name).startswith("."):
            continue
        if OTHER_MASKS.search(stem):
            continue
        key = pair_key(stem)
        if key in found:
            raise DataError(f"{entry.uri} and {found[key]} share a stem; keep one of them.")
        found[key] = entry.uri
    return found


def find_truth(folder: str) -> dict[str, str]:
    """Frame name → mask, wherever below `folder` it is. DataError where two masks share a name."""
    found: dict[str, str] = {}
    for key, uri in find_images(folder).items():
        name = storage.name_of(key)
        if name in found:
            raise DataError(f"{uri} and {found[name]} share a name; truth pairs by file name: keep one of them.")
        found[name] = uri
    return found


def pair(images: str, masks: str, prefix: str = "") -> tuple[list[SampleRef], list[str]]:
    """(frames with a mask, files without a partner), both in order of name; ids are `prefix` + stem."""
    image_uris, mask_uris = find_images(images), find_images(masks)
    refs = [
        SampleRef(prefix + stem, image_uris[stem], mask_uris[stem])
        for stem in sorted(image_uris.keys() & mask_uris.keys())
    ]
    lonely = image_uris.keys() ^ mask_uris.keys()
    return refs, sorted(image_uris.get(stem) or mask_uris[stem] for stem in lonely)


def read_text(uri: str) -> str:
    """A small UTF-8 file, with or without a byte order mark. DataError for another encoding."""
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{uri} is not UTF-8 text; save it as UTF-8.") from None


def check_root(root: str | None, layout: str) -> str:
    """The data folder, absolute. DataError when none was given, or it is not there."""
    if root is None:
        raise DataError(f"No data folder given; the layout {layout} needs --data FOLDER.")
    root = storage.absolute(root)
    if not storage.exists(root):
        raise DataError(f"{root} does not exist; give the folder that holds {layout}.")
    return root


def split(
    refs: Sequence[SampleRef], config: DataSection, group: Callable[[SampleRef], str] = lambda ref: ref.sample_id
) -> dict[str, tuple[SampleRef, ...]]:
    """Frames by split: by their first folder where that is a split's name, else as their group's hash says.

    The hash is the same on every machine; frames of one group stay together. Of two groups or more, val has one
    at least, and so has train.
    """
    named = (config.train_split, config.val_split, "test")
    splits: dict[str, list[SampleRef]] = {}
    has_folders = any(ref.sample_id.split("/")[0] in named for ref in refs)
    draws = {name: _draw(name) for name in map(group, refs)}
    limit = config.val_share * 2**32
    if len(draws) > 1:  # few groups, such as three drives, can all fall on one side
        limit = min(max(limit, min(draws.values()) + 1), max(draws.values()))
    for ref in refs:
        drawn = config.val_split if draws[group(ref)] < limit else config.train_split
        splits.setdefault(ref.sample_id.split("/")[0] if has_folders else drawn, []).append(ref)
    return {key: tuple(members) for key, members in splits.items()}


def _draw(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4])


def split_by_lists(
    folder: str,
    refs: Sequence[SampleRef],
    config: DataSection,
    group: Callable[[SampleRef], str] = lambda ref: ref.sample_id,
) -> dict[str, tuple[SampleRef, ...]]:
    """Frames by the lists in `folder`, train.txt and so on: a name a line, with or without folder and suffix.

    Without any list, as `split`. DataError when the list of train or val has a name that no frame has; any other
    such list is passed over, as of frames whose masks were not published.
    """
    by_name = {storage.name_of(ref.sample_id): ref for ref in refs}
    splits: dict[str, tuple[SampleRef, ...]] = {}
    for entry in storage.list_files(folder):
        name = storage.name_of(entry.uri)
        if entry.uri != storage.join(folder, name) or not name.endswith(".txt"):
            continue
        lines = read_text(entry.uri).split("\n")
        names = [pair_key(storage.stem_of(line.split()[0])) for line in lines if line.strip()]
        missing = [one for one in names if one not in by_name]
        listed = name.removesuffix(".txt")
        if missing and listed in (config.train_split, config.val_split):
            raise DataError(f"{entry.uri} lists {missing[0]}, which has no image with a mask ({len(missing)} such).")
        if names and not missing:
            splits[listed] = tuple(by_name[one] for one in names)
    return splits or split(refs, config, group)
