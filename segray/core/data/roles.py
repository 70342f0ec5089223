"""Which files of a folder are images and which are their masks, by the names of folders and files.

A folder is of masks if a word of its name says so, of images if one does; what is left of its name, such as the split,
is a part of the frames' names. So these are all the frame train/0001:

    images/train/0001.jpg   masks/train/0001.png           the words first
    train/images/0001.jpg   train/masks/0001.png           the split first
    train/0001.png          train_labels/0001_L.png        Kaggle's CamVid
    train/0001.jpg          train/0001_mask.png            one folder, by the masks' suffix
    train/0001.jpg          train/0001.png                 one folder, by their formats
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.pairing import image_paths, pair_found
from segray.core.samples import SampleRef
from segray.errors import DataError

IMAGE_WORDS = frozenset(
    {
        *("image", "images", "img", "imgs", "frame", "frames", "photo", "photos", "picture", "pictures", "rgb"),
        *("jpegimages", "leftimg8bit", "original", "originals"),
    }
)
MASK_WORDS = frozenset(
    {
        *("mask", "masks", "label", "labels", "annot", "annots", "annotation", "annotations", "annotated"),
        *("segmentation", "segmentations", "segmentationclass", "seg", "semantic", "gtfine", "labelids"),
        *("gt", "groundtruth", "truth", "target", "targets"),
    }
)
GLUED = ("annot", "masks", "labels")  # ends of a folder's name that need nothing before them: trainannot
WORD = re.compile(r"[_\-. ]+")
# Ends of file names that published data sets and tools give to masks and to images.
MASK_ENDS = (
    *("_gtFine_labelIds", "_gtCoarse_labelIds", "_labelTrainIds", "_labelIds", "_train_id"),
    *("_segmentation", "_annotation", "_labels", "_label", "_masks", "_mask", "_seg", "_gt", "_L", "_P"),
    *("-mask", "-label", "-seg", "-gt", ".mask", ".label"),
)
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img", "_sat", "_rgb", "-image", "-img")
PHOTOS = (".jpg", ".jpeg")  # formats that only an image has


@dataclass
class _File:
    """path: below the root. folder: what is left of its folders' names. is_mask: None where no folder's name tells."""

    path: str
    folder: str
    stem: str
    is_mask: bool | None

    def key(self, ends: Iterable[str]) -> str:
        end = next((end for end in ends if self.stem.endswith(end) and self.stem != end), "")
        return "/".join(part for part in (self.folder, self.stem.removesuffix(end)) if part)


@dataclass
class Found:
    """images, masks: frame's name → place. notes: what was decided, in half sentences.

    bare: names of the images in folders that have no mask at all, as test splits are published.
    """

    images: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    bare: frozenset[str] = frozenset()

    def paired(self) -> tuple[list[SampleRef], list[str]]:
        """Return the frames, and the files without a partner."""
        images = {name: place for name, place in self.images.items() if name not in self.bare}
        return pair_found(images, self.masks)


def find(root: str, images: str | None = None, masks: str | None = None, mask_suffix: str | None = None) -> Found:
    """Find images and masks below `root`.

    images, masks: folders below it that are one or the other, whatever their names; the other role is then found
    among the rest. mask_suffix: the end of the masks' file names, where it is none of MASK_ENDS. DataError where two
    files claim to be the same of one frame.
    """
    named = ((images, False, "images"), (masks, True, "masks"))
    images, masks = (given or _usual(root, name) for given, _, name in named)
    found = Found()
    if images and masks:  # nothing else is looked at
        files = [
            _File(path, *_place(path, one), role)
            for one, role in ((images, False), (masks, True))
            for path in _listed(root, one)
        ]
    else:
        files = [_role(path, {images: False, masks: True}) for path in _listed(root)]
    roles = {file.is_mask for file in files}
    for given, role, name in named:
        if given and role not in roles:
            raise DataError(f"data.{name} is {given}, and no picture is in such a folder below {root}.")
    if True not in roles:
        _by_name(files, mask_suffix)
    elif False in roles:  # with folders of images and of masks, others are neither
        others = [file for file in files if file.is_mask is None]
        if others:
            several = counted(len(others), "file is", "files are")
            found.notes.append(f"{several} in no folder of images or masks, such as {others[0].path}")
        files = [file for file in files if file.is_mask is not None]
    image_ends: Collection[str] = IMAGE_ENDS
    ends: Collection[str] = (mask_suffix,) if mask_suffix else MASK_ENDS
    imaged = [file for file in files if not file.is_mask]
    masked = [file for file in files if file.is_mask]
    names = _names(imaged, IMAGE_ENDS)
    pairs = len(names & _names(masked, ends))
    if not mask_suffix and not pairs and (end := _common_end(masked, names)):
        ends = (end,)
        found.notes.append(f"masks are taken to end in {end}, as their images' names without it do")
    elif not mask_suffix and pairs < len(_names(imaged, ()) & _names(masked, ())):
        image_ends = ends = ()  # names end so themselves, as 0001_L of a left camera
    found.images = _keyed(root, imaged, image_ends, "data.images")
    found.masks = _keyed(root, masked, ends, "data.masks")
    _pass_over_unlabelled(found)
    return found


def _usual(root: str, name: str) -> str | None:
    return name if storage.exists(storage.join(root, name)) else None


def _listed(root: str, folder: str = "") -> list[str]:
    """List the pictures in a folder, as paths below the root."""
    top = storage.join(root, folder).rstrip("/")
    return [storage.join(top, path)[len(root) + 1 :] for path in image_paths(top)]


def _place(path: str, folder: str) -> tuple[str, str]:
    """Return a path's folders below `folder`, and its stem; accents are composed, as macOS writes them apart."""
    below = storage.folder_of(path).removeprefix(folder.strip("/")).strip("/")
    return unicodedata.normalize("NFC", below), unicodedata.normalize("NFC", storage.stem_of(path))


def _role(path: str, given: dict[str | None, bool]) -> _File:
    """Tell a file's role by the folders that were given, else by the words in its folders' names."""
    for name, is_mask in given.items():
        if name and path.startswith(f"{name.strip('/')}/"):
            return _File(path, *_place(path, name), is_mask)
    folder, stem = _place(path, "")
    words = [_word_of(part) for part in folder.split("/")]
    told = {is_mask for _, is_mask in words} - {None}
    role = True in told if told else None
    if role in {is_mask for name, is_mask in given.items() if name}:
        return _File(path, folder, stem, None)  # this role's folder was given, and is another one
    return _File(path, "/".join(rest for rest, _ in words if rest), stem, role)


def _word_of(folder: str) -> tuple[str, bool | None]:
    """Return what is left of a folder's name without the word that says what it holds, and whether that is masks.

    >>> _word_of("train_labels"), _word_of("trainannot"), _word_of("imgs"), _word_of("day1")
    (('train', True), ('train', True), ('', False), ('day1', None))
    """
    words = WORD.split(folder)
    for role, known in ((True, MASK_WORDS), (False, IMAGE_WORDS)):
        if any(word.lower() in known for word in words):
            return "_".join(word for word in words if word.lower() not in known), role
    end = next((end for end in GLUED if folder.lower().endswith(end)), None)
    return (folder[: -len(end)], True) if end else (folder, None)


def _by_name(files: list[_File], mask_suffix: str | None) -> None:
    """Tell masks from images in the same folders: by the ends of their names, else by their formats."""
    ends = (mask_suffix,) if mask_suffix else MASK_ENDS
    images = {file.key(IMAGE_ENDS) for file in files if not file.stem.endswith(ends)}
    for file in files:
        if file.is_mask is None and file.stem.endswith(ends):
            file.is_mask = file.key(ends) in images or None
    if any(file.is_mask for file in files):
        return
    photos = {file.key(()) for file in files if file.path.lower().endswith(PHOTOS)}
    for file in files:
        if not file.path.lower().endswith(PHOTOS):
            file.is_mask = file.key(()) in photos or None


def _names(files: list[_File], ends: Collection[str]) -> set[str]:
    return {file.key(ends) for file in files}


def _keyed(root: str, files: list[_File], ends: Iterable[str], setting: str) -> dict[str, str]:
    keyed: dict[str, _File] = {}
    for file in files:
        other = keyed.setdefault(file.key(ends), file)
        if other is not file:
            hint = "keep one of them"
            if storage.folder_of(other.path) != storage.folder_of(file.path):
                hint = f"say which folder is meant: --set {setting}={storage.folder_of(file.path)}"
            raise DataError(f"{root}: {other.path} and {file.path} share a stem; {hint}.")
    return {key: storage.join(root, file.path) for key, file in keyed.items()}


def _common_end(masks: list[_File], images: Collection[str]) -> str | None:
    """Return the end without which the names of most masks are those of images; None where there is none."""
    found: Counter[str] = Counter()
    for file in masks:
        cuts = [match.start() for match in WORD.finditer(file.stem)]
        cut = next((at for at in reversed(cuts) if file.key((file.stem[at:],)) in images), None)
        if cut:
            found[file.stem[cut:]] += 1
    if not found:
        return None
    end, count = found.most_common(1)[0]
    return end if 2 * count > len(masks) else None


def _pass_over_unlabelled(found: Found) -> None:
    """Find folders of images none of which has a mask, as those of a test split that was published without."""
    labelled = {storage.folder_of(name) for name in found.masks}
    if found.images.keys() & found.masks.keys():
        found.bare = frozenset(name for name in found.images if storage.folder_of(name) not in labelled)
    for folder, count in sorted(Counter(map(storage.folder_of, found.bare)).items()):
        found.notes.append(f"{counted(count, 'image')} of {folder or 'no folder'}: left out, as none has a mask")
