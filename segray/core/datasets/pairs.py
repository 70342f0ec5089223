"""Folders of images beside folders of masks: files pair by their path without suffix."""

from __future__ import annotations

from segray.core import storage
from segray.core.images import IMAGE_SUFFIXES
from segray.core.samples import SampleRef
from segray.errors import DataError


def find_images(folder: str) -> dict[str, str]:
    """Path below `folder` without suffix → URI, for every image file; DataError where two share a stem."""
    found: dict[str, str] = {}
    for entry in storage.list_files(folder):
        name = entry.uri[len(folder.rstrip("/")) + 1 :]
        stem, dot, suffix = name.rpartition(".")
        if not dot or f".{suffix.lower()}" not in IMAGE_SUFFIXES or storage.name_of(name).startswith("."):
            continue
        if stem in found:
            raise DataError(f"{entry.uri} and {found[stem]} share a stem; keep one of them.")
        found[stem] = entry.uri
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


def check_root(root: str | None, layout: str) -> str:
    """The data folder, absolute. DataError when none was given, or it is not there."""
    if root is None:
        raise DataError(f"No data folder given; the layout {layout} needs --data FOLDER.")
    root = storage.absolute(root)
    if not storage.exists(root):
        raise DataError(f"{root} does not exist; give the folder that holds {layout}.")
    return root
